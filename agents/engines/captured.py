"""What a turn keeps besides its rows: captured hidden states, and snapshots on its way."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from unspoken.agents.engines.base import TurnRequest
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.hf import Capture
from unspoken.channels.kv.state import KVState


def with_hidden(
    state: KVState, hidden: Capture, computed: Sequence[int], states: Sequence[KVState]
) -> KVState:
    """The state with the captured inputs of its last rows, as far back as they have no gap.

    Args:
        state: The state of the whole context.
        hidden: What was captured, in the order of computing.
        computed: The positions it belongs to, ascending.
        states: What was in place before; the one right before the captured rows may have such
            inputs too.
    """
    if not hidden:
        return state
    rows = 0
    while rows < len(computed) and computed[-1 - rows] == state.stop - 1 - rows:
        rows += 1
    kept = {layer: torch.cat(parts)[-rows:] for layer, parts in hidden.items()} if rows else {}
    for before in states:
        follows = rows and before.stop == state.stop - rows
        if not follows or not set(hidden) <= set(before.hidden):
            continue
        # Rows of it that were computed again have other hidden states than those it brought.
        again = max((at for at in computed if at < before.stop), default=-1) + 1
        back = before.stop - max(before.hidden_first, again)
        if back > 0:
            kept = {
                layer: torch.cat((before.hidden[layer][-back:], kept[layer])) for layer in hidden
            }
    return replace(state, hidden=kept)


def marks_of(model: TurnModel, request: TurnRequest, missing: Sequence[int]) -> tuple[int, ...]:
    """After how many of the missing tokens a snapshot of recurrent layers is taken, ascending.

    One stands where the prompt ends: decoding may go further than what is kept of it.
    """
    if not model.geometry.recurrent:
        return ()
    counts = {at - missing[0] for at in request.snapshots} | {len(missing)}
    return tuple(sorted(count for count in counts if 0 < count <= len(missing)))
