"""Readers of one message at once: its state is in memory once, and they write as if alone."""

from collections.abc import Sequence
from functools import partial

import anyio
import pytest
import torch
from architectures import make
from engine_turns import Script, inbound, message_of, take, writes
from rows import ids_of, plain

from unspoken.agents.engines.base import TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import Worker
from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.ragged.segment import Segment
from unspoken.agents.runtime.states import StateStore

pytestmark = pytest.mark.anyio

READERS, TOKENS = 8, 24
DOCUMENT = tuple(ids_of(1, 150))
"""Longer than what is copied rather than shared."""


@pytest.fixture(params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    return make(request.param)


@pytest.fixture
def storages(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[int]]]:
    """Of each forward over prefixes, how many there are, and the memory in which they lie."""
    seen: list[tuple[int, set[int]]] = []
    compute = model.compute

    def look(segments: Sequence[Segment]) -> list[torch.Tensor | None]:
        prefixes = [one.sequence.prefix for one in segments if one.sequence.prefix is not None]
        if prefixes:
            chunks = [pair for one in prefixes for layer in one.layers for pair in layer.chunks]
            memory = {part.untyped_storage().data_ptr() for pair in chunks for part in pair}
            seen.append((len(prefixes), memory))
        return compute(segments)

    monkeypatch.setattr(model, "compute", look)
    return seen


async def test_a_message_is_in_memory_once(
    model: LocalModel, storages: list[tuple[int, set[int]]]
) -> None:
    """Eight readers decode over the very memory that the sharer's state has."""
    states = StateStore()
    engine = LocalEngine(model, states, Worker("fan-out"))
    sharer = await take(engine, TurnRequest(ids=DOCUMENT, keep_state=True))
    assert sharer.state is not None
    message = message_of(DOCUMENT, model.identity)
    held = states.get(sharer.state)
    memory = {
        part.untyped_storage().data_ptr()
        for layer in held.layers  # type: ignore[union-attr]
        for pair in layer.chunks
        for part in pair
    }
    written: dict[int, tuple[int, ...]] = {}

    async def read(number: int) -> None:
        ids = (*DOCUMENT, *ids_of(10 + number, 3 + number))
        request = TurnRequest(
            ids=ids, inbound=(inbound(message, sharer.state, ids),), sampling=writes(TOKENS)
        )
        written[number] = (await take(engine, request)).ids[len(ids) :]

    async with anyio.create_task_group() as tasks:
        for number in range(READERS):
            tasks.start_soon(partial(read, number))
    assert max(count for count, _ in storages) == READERS
    assert all(seen == memory for _, seen in storages)
    for number, tokens in written.items():
        ids = [*DOCUMENT, *ids_of(10 + number, 3 + number)]
        logits, _ = plain(model, [*ids, *tokens[:-1]])
        assert tokens == tuple(logits[len(ids) - 1 :].argmax(-1).tolist())
    assert (model.backbone.tails.taken, model.backbone.tails.nbytes) == (0, 0)


async def test_a_long_closing_has_room(model: LocalModel) -> None:
    """Ids that close a turn may be more than a turn takes room for."""
    states = StateStore()
    engine = LocalEngine(model, states, Worker("closing"))
    closing = tuple(ids_of(3, 70))
    request = TurnRequest(
        ids=DOCUMENT[:20], sampling=writes(2), reply=Script(closing=closing), keep_state=True
    )
    outcome = await take(engine, request)
    assert outcome.state is not None and outcome.ids[-70:] == closing
    state = states.get(outcome.state)
    _, cache = plain(model, outcome.ids)
    for layer, plainly in zip(state.layers, cache.layers, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(layer.keys, plainly.keys[0], atol=1e-4, rtol=1e-4)
