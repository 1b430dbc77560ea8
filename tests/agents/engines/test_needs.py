"""What a turn leases, beside what it takes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_turns import inbound, message_of, take, writes
from hybrids import make_hybrid

from unspoken.agents import Agent, LocalModel, Session, Workflow
from unspoken.agents.engines.base import History, TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.needs import Needs
from unspoken.agents.engines.turn import CLOSING
from unspoken.agents.engines.worker import Worker
from unspoken.agents.models.ragged.tails import Tails
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.testing import tiny_model
from unspoken.channels.same_model import SameModelCacheChannel

pytestmark = pytest.mark.anyio

DOCUMENT = tuple(3 + n * 7 % 200 for n in range(400))
QUESTION = tuple(range(40, 60))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    return tiny_model(family=request.param)


@pytest.fixture
def engine(model: LocalModel) -> LocalEngine:
    return LocalEngine(model, StateStore(), Worker("needs"))


@pytest.fixture
def tails(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each buffer for rows of its own that a turn had."""
    sizes: list[int] = []
    resize = Tails._resize

    def spy(tails: Tails, slots: int) -> None:
        resize(tails, slots)
        sizes.append(tails.nbytes)

    monkeypatch.setattr(Tails, "_resize", spy)
    return sizes


@pytest.mark.parametrize("way", ["alone", "history", "message", "splice"])
@pytest.mark.parametrize("keep", [False, True])
async def test_a_lease_is_at_least_what_a_turn_makes(
    engine: LocalEngine, tails: list[int], way: str, keep: bool
) -> None:
    """Its rows, and the copy of them that it leaves behind; no more than twice that, and a bit."""
    first = await take(engine, TurnRequest(ids=DOCUMENT, keep_state=True))
    assert first.state is not None and isinstance(engine.states, StateStore)
    context, given = (*DOCUMENT, *QUESTION), {}
    message = message_of(DOCUMENT, engine.facts.identity)
    match way:
        case "history":
            given = {"history": History(first.ids, first.state)}
        case "message":
            given = {"inbound": (inbound(message, first.state, context),)}
        case "splice":
            context = (*QUESTION, *DOCUMENT, 75)
            arrived = inbound(
                message, first.state, context, len(QUESTION), SameModelCacheChannel(sink=4)
            )
            given = {"inbound": (arrived,)}
    request = TurnRequest(ids=context, sampling=writes(30), keep_state=keep, **given)  # type: ignore[arg-type]
    footprint, before = engine.footprint(request), engine.states.bytes_held
    tails.clear()
    outcome = await take(engine, request)
    made = sum(tails) + engine.states.bytes_held - before
    assert made <= footprint.private <= footprint.peak
    if way in ("history", "message"):
        assert outcome.usage.reused_tokens == len(DOCUMENT)
        alone = engine.footprint(TurnRequest(ids=context, sampling=writes(30), keep_state=keep))
        assert footprint.private < alone.private * 0.75


def test_snapshots_below_what_is_reused_take_no_room() -> None:
    """A turn takes those that it was asked for beyond that, and that of its answer's end."""
    model = make_hybrid("lfm2")
    needs, one = Needs(model, StateStore()), model.geometry.snapshot_bytes
    every = TurnRequest(ids=DOCUMENT, snapshots=tuple(range(10, 400, 10)))
    none = replace(every, snapshots=())
    for reused, taken in ((0, 39), (200, 20), (399, 0)):
        more = needs.lease(every).nbytes(reused) - needs.lease(none).nbytes(reused)
        assert more == taken * one
    kept = needs.lease(replace(none, keep_state=True)).nbytes(0) - needs.lease(none).nbytes(0)
    row = model.geometry.bytes_per_token(model.dtype.itemsize)
    assert kept == (len(DOCUMENT) + CLOSING) * row + one


async def test_a_context_that_is_all_there_goes_on_from_an_earlier_snapshot() -> None:
    """So it takes room for what stands after that, though its state ends with the context."""
    model = make_hybrid("lfm2")
    engine = LocalEngine(model, StateStore(), Worker("needs"))
    context = DOCUMENT[:240]
    first = await take(engine, TurnRequest(ids=context, snapshots=(200,), keep_state=True))
    assert first.state is not None
    again = TurnRequest(ids=context, history=History(context, first.state))
    short = replace(again, history=History(context[:200], first.state))
    alone = engine.footprint(replace(again, history=None)).private
    assert engine.footprint(again).private == engine.footprint(short).private < alone
    outcome = await take(engine, again)
    assert outcome.usage.reused_tokens == 200


def test_many_readers_of_one_document_hold_it_once() -> None:
    """In memory there is the document, and of each reader what it added."""
    model: LocalModel = tiny_model()
    document = "the key of the cache is in the document that the reader was for\n" * 40
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    few: dict[str, Any] = {"max_new_tokens": 6}
    solvers = [Agent(f"s{n}", model, prompt=f"what of {n}?", generate=few) for n in range(8)]
    flow = Workflow("fan-out", [reader, *solvers])
    for solver in solvers:
        flow.connect(reader, solver)
    with Session() as session:
        result = flow.run(document=document, session=session)
        statistics = session.statistics()
    row = model.geometry.bytes_per_token(torch.float32.itemsize)
    whole = result.report.agents["reader"][0].prompt_tokens * row
    assert len(statistics.states) == 9
    assert statistics.bytes_held < whole + 8 * 60 * row < 2 * whole
    assert sum(held.nbytes for held in statistics.states) > 9 * whole
    assert result.report.shared_state_bytes == whole
