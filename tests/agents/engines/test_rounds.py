"""Turns that are computed together: how many forwards they take, and who fails alone."""

from collections.abc import Sequence

import anyio
import pytest
import torch
from processes import LIMIT_S

from unspoken.agents.engines.base import Sampling, TurnOutcome, TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import Worker
from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.ragged.segment import Segment
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.testing import tiny_model

pytestmark = pytest.mark.anyio

TOKENS = 12
PROMPTS = [tuple(range(20 + 7 * n, 40 + 9 * n)) for n in range(6)]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.fixture
def rounds(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """How many tokens each turn had in each forward."""
    counted: list[list[int]] = []
    compute = model.compute

    def count(segments: Sequence[Segment]) -> list[torch.Tensor | None]:
        counted.append([len(segment.ids) for segment in segments])
        return compute(segments)

    monkeypatch.setattr(model, "compute", count)
    return counted


def engine_of(model: LocalModel) -> LocalEngine:
    return LocalEngine(model, StateStore(), Worker("rounds"))


def request(ids: tuple[int, ...], **sampling: object) -> TurnRequest:
    return TurnRequest(ids=ids, sampling=Sampling(**{"max_tokens": TOKENS, **sampling}))  # type: ignore[arg-type]


async def together(
    engine: LocalEngine, requests: Sequence[TurnRequest]
) -> list[TurnOutcome | Exception]:
    outcomes: dict[int, TurnOutcome | Exception] = {}

    async def take(number: int) -> None:
        try:
            outcomes[number] = await engine.turn(requests[number], lambda event: None)
        except Exception as error:
            outcomes[number] = error

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            for number in range(len(requests)):
                tasks.start_soon(take, number)
    return [outcomes[number] for number in range(len(requests))]


def ids_of(outcome: TurnOutcome | Exception) -> tuple[int, ...]:
    assert isinstance(outcome, TurnOutcome), outcome
    return outcome.ids


def generated(model: LocalModel, ids: tuple[int, ...]) -> tuple[int, ...]:
    given = torch.tensor([ids])
    written = model.hf.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
    )
    return tuple(written[0].tolist())


async def test_turns_take_as_many_forwards_as_the_longest(
    model: LocalModel, rounds: list[list[int]]
) -> None:
    """Six agents write as many tokens as one in about as many forwards, the tokens of generate."""
    outcomes = await together(engine_of(model), [request(ids) for ids in PROMPTS])
    assert [ids_of(outcome) for outcome in outcomes] == [generated(model, ids) for ids in PROMPTS]
    usages = [outcome.usage for outcome in outcomes if isinstance(outcome, TurnOutcome)]
    assert max(usage.forwards for usage in usages) <= len(rounds)
    computed = sum(usage.forwards for usage in usages)
    assert computed == sum(len(turns) for turns in rounds)
    assert all(4 < usage.turns_per_forward <= 6 for usage in usages)
    assert len(rounds) < 3 * TOKENS and max(map(len, rounds)) == len(PROMPTS)


async def test_a_long_prompt_is_read_in_slices_beside_others(
    model: LocalModel, rounds: list[list[int]]
) -> None:
    """Nobody who writes waits for more than a slice."""
    long = tuple(3 + n % 150 for n in range(500))
    await together(engine_of(model), [request(PROMPTS[0], max_tokens=60), request(long)])
    beside = [max(counts) for counts in rounds if len(counts) == 2 and 1 in counts]
    assert beside and max(beside) <= 64


async def test_each_turn_has_its_own_sampling(model: LocalModel) -> None:
    """A seed draws the same beside others as alone."""
    ways = [{"temperature": 1.0, "seed": seed} for seed in range(4)] + [{}]
    requests = [request(PROMPTS[0], **way) for way in ways]
    beside = [ids_of(one) for one in await together(engine_of(model), requests)]
    alone = [ids_of((await together(engine_of(model), [one]))[0]) for one in requests]
    assert beside == alone and len(set(beside)) == len(ways)


async def test_a_forward_that_fails_fails_for_the_one_to_blame(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its round go on, and write what they write alone."""
    compute = model.compute

    def choosy(segments: Sequence[Segment]) -> list[torch.Tensor | None]:
        if any(7 in segment.ids for segment in segments):
            raise MemoryError("no room")
        return compute(segments)

    monkeypatch.setattr(model, "compute", choosy)
    broken = (*PROMPTS[0][:5], 7)
    outcomes = await together(engine_of(model), [request(broken), *map(request, PROMPTS[1:3])])
    assert isinstance(outcomes[0], MemoryError)
    written = [ids_of(outcome) for outcome in outcomes[1:]]
    assert written == [generated(model, ids) for ids in PROMPTS[1:3]]
    assert model.backbone.tails.taken == 0


async def test_a_sampler_that_fails_fails_alone(model: LocalModel) -> None:
    """Nothing left to choose from is one turn's trouble."""
    nothing = request(PROMPTS[0], temperature=1.0, suppressed=tuple(range(model.vocabulary)))
    outcomes = await together(engine_of(model), [nothing, request(PROMPTS[1])])
    assert isinstance(outcomes[0], Exception)
    assert ids_of(outcomes[1]) == generated(model, PROMPTS[1])


async def test_a_cancelled_turn_leaves_its_round(model: LocalModel) -> None:
    """Its rows go, the others go on."""
    engine = engine_of(model)
    left: list[TurnOutcome | Exception] = []

    async def leave() -> None:
        with anyio.CancelScope() as scope:
            await engine.turn(request(PROMPTS[1], max_tokens=500), lambda event: scope.cancel())

    async def stay() -> None:
        left.extend(await together(engine, [request(PROMPTS[0])]))

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            tasks.start_soon(stay)
    assert ids_of(left[0]) == generated(model, PROMPTS[0])
    assert model.backbone.tails.taken == 0 and model.backbone.tails.nbytes == 0


async def test_a_fault_in_a_round_is_raised_and_the_next_turns_are_served(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever for a device whose thread met an error of the engine's own."""
    engine = engine_of(model)

    def broken(asks: object) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patched:
        patched.setattr("unspoken.agents.engines.worker.slices", broken)
        outcomes = await together(engine, [request(PROMPTS[0]), request(PROMPTS[1])])
    assert [str(outcome) for outcome in outcomes] == ["a fault", "a fault"]
    (after,) = await together(engine, [request(PROMPTS[0])])
    assert ids_of(after) == generated(model, PROMPTS[0])
