"""Time to the first token after a message: by text, by a bridge, and the least it could be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unspoken.channels.bridges.align import align
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.bridges.projector import Projector
from unspoken.channels.kv.state import KVState
from unspoken.channels.machine import medians
from unspoken.channels.model import TextModel

SIZES = (256, 1024, 2048)
OWN = 32
"""The receiver's own tokens after the message."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """A message in the sharer's cache, and the receiver's context for it.

    Attributes:
        context: The receiver's ids: what stands before the message, the message, `OWN` tokens of
            its own.
        at: Position of the message's first token.
        stop: Position after its last.
        state: The sharer's state of the message.
        rows: The sharer's position for each of its tokens.
        full: The receiver's own state up to `stop`.
        text_bytes: UTF-8 bytes of the message.
    """

    context: tuple[int, ...]
    at: int
    stop: int
    state: KVState
    rows: tuple[int, ...]
    full: KVState
    text_bytes: int


@torch.no_grad()
def scene(text: str, tokens: int, sharer: TextModel, receiver: TextModel) -> Scene | None:
    """A message of `tokens` receiver tokens; None where the text or a model is too short."""
    theirs, ours = sharer.frame("bare").before, receiver.frame("bare").before
    ids, ends = receiver.words(text[: 40 * (tokens + OWN)])
    if len(ids) < tokens + OWN:
        return None
    message = text[: ends[tokens - 1]]
    read, read_ends = sharer.words(message)
    context = (*ours, *ids[: tokens + OWN])
    if len(context) > receiver.geometry.max_positions:
        return None
    if len(theirs) + len(read) > sharer.geometry.max_positions:
        return None
    at, stop = len(ours), len(ours) + tokens
    state = sharer.read((*theirs, *read))
    rows = tuple(len(theirs) + row for row in align(read_ends, ends[:tokens]))
    full = receiver.read(context[:stop])
    return Scene(
        context=context,
        at=at,
        stop=stop,
        state=state,
        rows=rows,
        full=full,
        text_bytes=len(message.encode()),
    )


@torch.no_grad()
def timings(
    bridge: Bridge, place: Scene, receiver: TextModel, repeats: int = 7
) -> dict[str, float]:
    """Seconds to the first token, medians of `repeats`; see `medians`.

    ``text`` computes everything. ``bridge`` projects, then computes the sink and the receiver's own
    tokens. ``floor`` computes those own tokens over the receiver's cache. ``products`` is the
    bridge's matrix products alone. The sharer has read the message before.
    """
    conditions: dict[str, Callable[[], object]] = {
        "text": lambda: _first(receiver, place.context, 0),
        "bridge": lambda: _bridged(bridge, place, receiver),
        "floor": lambda: _first(receiver, place.context, place.stop, place.full),
        "products": products(bridge.projector, place.stop - place.at),
    }
    return medians(conditions, repeats, receiver.device)


def _first(
    receiver: TextModel, context: Sequence[int], start: int, state: KVState | None = None
) -> int:
    ids = torch.tensor(context[start:], device=receiver.device)
    return int(receiver.prefill(ids, () if state is None else (state,)).logits.argmax())


def _bridged(bridge: Bridge, place: Scene, receiver: TextModel) -> int:
    """As a receiver takes a message over: its sink and what follows it in one pass."""
    projected = bridge.project(place.state, place.rows, place.context, place.at, receiver)
    sink = range(min(place.at + SINK, place.stop))
    after = range(place.stop, len(place.context))
    positions = torch.tensor([*sink, *after], device=receiver.device)
    ids = torch.tensor(
        [place.context[position] for position in (*sink, *after)], device=receiver.device
    )
    return int(receiver.prefill(ids, (projected,), positions).logits.argmax())


def products(projector: Projector, tokens: int) -> Callable[[], object]:
    """The matrix products that a projector does for `tokens` tokens, on random data."""
    device = projector.mean.device
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    config, inputs = projector.config, len(projector.mean)
    features, code = random(tokens, inputs), random(tokens, config.rank)
    pairs: list[tuple[Any, Any]] = [(features, projector.encode), (code, projector.decode)]
    if config.hidden:
        hidden, narrow = random(tokens, config.hidden), random(tokens, config.bottleneck)
        pairs += [
            (code, projector.up.weight.T),
            (hidden, projector.down.weight.T),
            (narrow, projector.spread),
            (hidden, projector.weigh.weight.T),
        ]
    return lambda: [left @ right for left, right in pairs]
