"""Whole runs on a tiny model: what agents write, what it costs, and what is left behind."""

import gc
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from flows import DOCUMENT, QUESTION, own_cache, reader_solver, sibling, sound, tiny_model

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.engines.local import worker_for
from unspoken.agents.planning.planner import plan_workflow
from unspoken.agents.runtime.events import (
    AgentSkipped,
    Event,
    FallbackTaken,
    LoopEnded,
    MessageCarried,
    RunFinished,
    RunStarted,
    TokenWritten,
    TurnFinished,
    TurnStarted,
)
from unspoken.agents.runtime.scheduler import Scheduler
from unspoken.agents.runtime.states import StateRef, StateStore
from unspoken.channels import KVState, SameModelCacheChannel, TextChannel
from unspoken.channels.errors import (
    AgentError,
    ContextLengthError,
    InputError,
    RunTimeout,
    StateError,
    TemplateError,
    WorkflowError,
)

pytestmark = pytest.mark.anyio

GIVEN = {"document": DOCUMENT, "question": QUESTION}
FEW = {"max_new_tokens": 6}
CACHE, TEXT = "same_model_cache", "text"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalModel, LocalModel]]:
    """A model, and one that differs in one weight."""
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        one = tiny_model(folder / "one")
        yield one, sibling(one, folder / "other")


@pytest.fixture(scope="module")
def model(models: tuple[LocalModel, LocalModel]) -> LocalModel:
    return models[0]


def chain(model: LocalModel, channel: str, **edge: Any) -> Workflow:
    """Three agents in a row, each with the whole context of the one before."""
    agents = [
        Agent("a", model, prompt="{{ inputs.document }}", generate=FEW),
        Agent("b", model, prompt="the question", generate=FEW),
        Agent("c", model, prompt="the answer", generate=FEW),
    ]
    flow = Workflow("chain", agents)
    for sharer, receiver in (("a", "b"), ("b", "c")):
        shared = {"share": "context"}
        flow.connect(sharer, receiver, _channel(channel, **shared), **edge)
    return flow


def draft_and_critic(model: LocalModel, memory: str, channel: str, turns: int = 3) -> Workflow:
    """A draft that a critic sends back until all turns are used."""
    draft = Agent(
        "draft",
        model,
        prompt="{% if turn == 1 %}{{ inputs.document }}{% else %}again: "
        "{{ critic.text }}{% endif %}",
        generate=FEW,
        max_turns=turns,
        memory=memory,  # type: ignore[arg-type]
    )
    critic = Agent("critic", model, prompt="what of it?", generate=FEW, memory=memory)  # type: ignore[arg-type]
    flow = Workflow("loop", [draft, critic])
    flow.connect(draft, critic, channel)
    return flow.connect(critic, draft, channel, loop=True)


def fan_out(model: LocalModel, channel: str) -> Workflow:
    """One reader, three solvers, all on the reader's one state."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solvers = [Agent(f"s{n}", model, prompt=f"question {n}", generate=FEW) for n in range(3)]
    flow = Workflow("fan-out", [reader, *solvers])
    for solver in solvers:
        flow.connect(reader, solver, channel)
    return flow


def _channel(name: str, **options: Any) -> TextChannel | SameModelCacheChannel:
    return TextChannel(**options) if name == TEXT else SameModelCacheChannel(**options)


async def events_of(flow: Workflow, **inputs: object) -> list[Event]:
    async with aclosing(flow.stream(**inputs)) as events:
        return [event async for event in events]


async def test_a_cache_edge_writes_what_a_text_edge_writes(model: LocalModel) -> None:
    """Reader and solver: same greedy text over both channels, the document computed only once."""
    words = await reader_solver(model, model, TEXT).arun(**GIVEN)
    state = await reader_solver(model, model, CACHE).arun(**GIVEN)
    assert state.outputs == words.outputs
    assert state["solver"].text
    (edge,) = sound(state.report).edges
    assert (edge.planned, edge.channel, edge.exact, edge.repaired) == (CACHE, CACHE, True, 0)
    assert edge.reused >= edge.tokens > 50
    (solver,), (plain,) = state.report.agents["solver"], sound(words.report).agents["solver"]
    assert solver.prompt_tokens == plain.prompt_tokens == plain.prefilled_tokens
    assert solver.reused_tokens >= edge.tokens


async def test_a_chain_of_whole_contexts_writes_what_text_writes(model: LocalModel) -> None:
    """With share: context each agent goes on exactly from the one before."""
    words = await chain(model, TEXT).arun(document=DOCUMENT)
    state = await chain(model, CACHE).arun(document=DOCUMENT)
    assert {name: one.text for name, one in state.agents.items()} == {
        name: one.text for name, one in words.agents.items()
    }
    assert all(edge.exact and edge.repaired == 0 for edge in sound(state.report).edges)
    b, c = state.report.agents["b"][0], state.report.agents["c"][0]
    assert c.reused_tokens > b.reused_tokens > 50


async def test_a_splice_with_every_token_repaired_writes_what_text_writes(
    model: LocalModel,
) -> None:
    """Behind another system prompt, repairing all of the message is exact."""
    words = await reader_solver(model, model, TEXT, system="You solve.").arun(**GIVEN)
    channel = SameModelCacheChannel(sink=10**6)
    state = await reader_solver(model, model, channel, system="You solve.").arun(**GIVEN)
    assert state.outputs == words.outputs
    (edge,) = sound(state.report).edges
    assert edge.exact and edge.repaired >= edge.tokens and edge.reused == 0
    assert state.report.agents["solver"][0].recomputed_tokens == edge.repaired


async def test_a_splice_repairs_the_first_tokens_only(model: LocalModel) -> None:
    """By default four tokens are computed anew, and the report calls it inexact."""
    state = await reader_solver(model, model, CACHE, system="You solve.").arun(**GIVEN)
    (edge,) = sound(state.report).edges
    assert (edge.repaired, edge.exact) == (4, False)
    assert edge.reused >= edge.tokens - 4


@pytest.mark.parametrize("memory", ["run", "turn"])
async def test_a_loop_writes_the_same_over_both_channels(model: LocalModel, memory: str) -> None:
    """Draft and critic agree turn by turn where states are continued or spliced whole."""
    words = await draft_and_critic(model, memory, TEXT).arun(document=DOCUMENT)
    flow = draft_and_critic(model, memory, TEXT)
    exact = SameModelCacheChannel(sink=10**6)
    flow = Workflow("loop", _agents(flow, model)).connect("draft", "critic", exact)
    state = await flow.connect("critic", "draft", exact, loop=True).arun(document=DOCUMENT)
    assert [len(one.turns) for one in words.agents.values()] == [3, 3]
    assert {n: one.turns for n, one in state.agents.items()} == {
        n: one.turns for n, one in words.agents.items()
    }
    sound(state.report)


def _agents(flow: Workflow, model: LocalModel) -> list[Agent]:
    """The agents of a workflow anew, without its edges."""
    fields = ("prompt", "generate", "max_turns", "memory")
    return [
        Agent(name, model, **{field: getattr(one, field) for field in fields})
        for name, one in flow.spec.agents.items()
    ]


async def test_an_agent_that_remembers_reuses_its_own_context(model: LocalModel) -> None:
    """In a second turn all of the first is reused, and with memory: turn nothing of it."""
    kept = await draft_and_critic(model, "run", TEXT).arun(document=DOCUMENT)
    afresh = await draft_and_critic(model, "turn", TEXT).arun(document=DOCUMENT)
    first, second, third = sound(kept.report).agents["draft"]
    assert first.reused_tokens == 0
    assert second.reused_tokens >= first.prompt_tokens + first.generated_tokens - 1
    assert third.reused_tokens >= second.prompt_tokens + second.generated_tokens - 1
    assert [turn.reused_tokens for turn in afresh.report.agents["draft"]] == [0, 0, 0]


async def test_an_exhausted_loop_is_told(model: LocalModel) -> None:
    """The critic's last message is dropped with an event."""
    happened = await events_of(draft_and_critic(model, "run", CACHE), document=DOCUMENT)
    assert LoopEnded("critic", "draft") in happened


async def test_receivers_of_one_reader_share_its_state(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three receivers get one and the same memory, and each writes what it writes over text."""
    put: list[KVState] = []
    shelve = StateStore.put

    def spy(shelf: StateStore, state: KVState, readers: int) -> StateRef:
        put.append(state)
        return shelve(shelf, state, readers)

    monkeypatch.setattr(StateStore, "put", spy)
    state = await fan_out(model, CACHE).arun(document=DOCUMENT)
    words = await fan_out(model, TEXT).arun(document=DOCUMENT)
    assert state.outputs == words.outputs
    assert len({one.layers[0].keys.data_ptr() for one in put}) == 1 and len(put) == 3
    assert all(edge.reused >= edge.tokens for edge in sound(state.report).edges)


async def test_independent_branches_overlap(model: LocalModel) -> None:
    """Both solvers start before either is done."""
    happened = await events_of(fan_out(model, CACHE), document=DOCUMENT)
    order = [
        (type(event), event.agent)
        for event in happened
        if isinstance(event, TurnStarted | TurnFinished) and event.agent != "reader"
    ]
    assert [kind for kind, _ in order[:3]] == [TurnStarted] * 3


async def test_events_come_in_order(model: LocalModel) -> None:
    """A run tells of its start, of each turn's start, tokens and end, and ends with its result."""
    happened = await events_of(reader_solver(model, model), **GIVEN)
    assert isinstance(happened[0], RunStarted) and isinstance(happened[-1], RunFinished)
    solver = [event for event in happened if getattr(event, "agent", "") == "solver"]
    assert isinstance(solver[0], TurnStarted) and isinstance(solver[-1], TurnFinished)
    written = "".join(event.text for event in solver if isinstance(event, TokenWritten))
    assert written == solver[-1].text == happened[-1].outputs["solver"]
    assert [type(event) for event in happened].count(MessageCarried) == 1


async def test_for_each_runs_once_an_item_and_gathers_in_order(model: LocalModel) -> None:
    """Each item gives what it gives alone, and the receiver reads them in order."""
    each = Agent("each", model, prompt="{{ item }}", generate=FEW, for_each="inputs.rows")
    last = Agent("last", model, prompt="so: {{ each.text }}", generate=None)
    flow = Workflow(
        "map", [each, last], outputs={"first": "{{ each.items[0] }}", "all": "{{ last.text }}"}
    )
    rows = ["the key", "who was it?", "漢"]
    result = await flow.connect(each, last).arun(rows=rows)
    alone = [
        (
            await Workflow(
                "one", [Agent("x", model, prompt="{{ inputs.row }}", generate=FEW)]
            ).arun(row=row)
        )
        for row in rows
    ]
    texts = [one["x"].text for one in alone]
    assert result.outputs == {"first": texts[0], "all": "so: " + "\n\n".join(texts)}
    assert result["each"].text == "\n\n".join(texts)
    assert len(sound(result.report).agents["each"]) == 3


async def test_for_each_over_nothing_writes_nothing(model: LocalModel) -> None:
    """An empty list is a turn without items, and its readers run on."""
    each = Agent("each", model, prompt="{{ item }}", generate=FEW, for_each="inputs.rows")
    last = Agent("last", model, prompt="end", generate=None)
    result = await Workflow("map", [each, last]).connect(each, last).arun(rows=[])
    assert result["each"].text == "" and result["last"].text == "end"


async def test_a_reader_s_text_is_its_prompt(model: LocalModel) -> None:
    """An agent that writes nothing is known by what it read."""
    result = await reader_solver(model, model).arun(**GIVEN)
    assert result["reader"].text == DOCUMENT


async def test_a_false_condition_skips_and_is_told(model: LocalModel) -> None:
    """Of two branches with opposite conditions one runs; the other is skipped and says so."""
    a = Agent("a", model, prompt="{{ inputs.document }}", generate=None)
    b, c = (Agent(name, model, prompt="go", generate=FEW) for name in "bc")
    flow = Workflow("branch", [a, b, c], outputs={"c": "{{ c.skipped }} {{ b.skipped }}"})
    flow.connect(a, b, when="'key' in a.text").connect(a, c, when="'key' not in a.text")
    happened = await events_of(flow, document=DOCUMENT)
    assert AgentSkipped("c") in happened and AgentSkipped("b") not in happened
    assert happened[-1].outputs == {"c": "True False"}  # type: ignore[attr-defined]
    assert happened[-1].report.agents["c"] == ()  # type: ignore[attr-defined]


async def test_an_agent_that_takes_too_long_is_named(model: LocalModel) -> None:
    """An agent's timeout ends the run."""
    slow = Agent("slow", model, prompt="x", generate={"max_new_tokens": 1000}, timeout=1e-6)
    with pytest.raises(RunTimeout, match="agent 'slow' took longer") as caught:
        await Workflow("w", [slow]).arun()
    assert caught.value.agent == "slow"


async def test_a_run_that_takes_too_long_ends(model: LocalModel) -> None:
    """The workflow's timeout ends the run, and names no agent."""
    slow = Agent("slow", model, prompt="x", generate={"max_new_tokens": 1000})
    with pytest.raises(RunTimeout, match="the run took longer") as caught:
        await Workflow("w", [slow], timeout=1e-6).arun()
    assert caught.value.agent == ""


async def test_a_failing_agent_stops_the_others(model: LocalModel) -> None:
    """The error names the agent, its cause is chained, and the other one stops writing."""
    good = Agent("good", model, prompt="x", generate={"max_new_tokens": 1500})
    bad = Agent("bad", model, prompt="{{ inputs.rows[5] }}", generate=FEW)
    flow = Workflow("w", [good, bad], inputs={"rows": "list"})
    seen: list[Event] = []

    async def follow() -> None:
        async with aclosing(flow.stream(rows=[])) as events:
            async for event in events:
                seen.append(event)

    for run in (follow, lambda: flow.arun(rows=[])):
        with pytest.raises(AgentError, match="agent 'bad' failed") as caught:
            await run()
        assert caught.value.agent == "bad"
        assert isinstance(caught.value.__cause__, TemplateError)
    assert len(seen) < 1500


async def test_too_long_a_prompt_is_an_error_of_the_input(model: LocalModel) -> None:
    """A prompt past the model's context is exit code 2 and says how long it may be."""
    with pytest.raises(AgentError, match="tokens") as caught:
        await reader_solver(model, model).arun(document="the reader " * 3000, question="x")
    assert caught.value.agent == "reader" and caught.value.exit_code == 2
    assert isinstance(caught.value.__cause__, ContextLengthError)
    assert "2048" in caught.value.expected


async def test_a_channel_that_fails_gives_way_to_text(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fallback: text the words are read instead, and the report and an event say why."""
    expected = await reader_solver(model, model, TEXT).arun(**GIVEN)
    monkeypatch.setattr(SameModelCacheChannel, "carry", _broken)
    happened = await events_of(reader_solver(model, model, CACHE), **GIVEN)
    result = happened[-1]
    assert isinstance(result, RunFinished)
    assert result.outputs == expected.outputs
    (fallback,) = [event for event in happened if isinstance(event, FallbackTaken)]
    assert (fallback.sharer, fallback.receiver) == ("reader", "solver")
    assert "the state is broken" in fallback.reason
    assert result.report.fallbacks == (("reader -> solver", fallback.reason),)
    (edge,) = sound(result.report).edges
    assert (edge.planned, edge.channel) == (CACHE, TEXT)


async def test_a_channel_that_fails_and_must_not_fall_back_ends_the_run(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fallback: error the error names agent and edge."""
    monkeypatch.setattr(SameModelCacheChannel, "carry", _broken)
    with pytest.raises(AgentError, match="the state is broken") as caught:
        await reader_solver(model, model, CACHE, fallback="error").arun(**GIVEN)
    assert (caught.value.agent, caught.value.edge) == ("solver", "reader -> solver")
    assert caught.value.exit_code == 1


def _broken(*args: object) -> object:
    raise StateError("the state is broken")


async def test_other_weights_go_by_text_with_the_reason(
    models: tuple[LocalModel, LocalModel],
) -> None:
    """Between models that differ in one weight, auto takes text, and names the weights."""
    flow = reader_solver(*models)
    (edge,) = flow.plan().edges
    assert (edge.channel, edge.fell_back) == (TEXT, False) and "other weights" in edge.reason
    expected = await reader_solver(*models, TEXT).arun(**GIVEN)
    result = await flow.arun(**GIVEN)
    assert result.outputs == expected.outputs and result.report.fallbacks == ()


async def test_a_cache_asked_for_between_other_weights_is_a_recorded_fallback(
    models: tuple[LocalModel, LocalModel],
) -> None:
    """A cache by name that cannot be had is text, and the run says so once."""
    result = await reader_solver(*models, CACHE).arun(**GIVEN)
    ((edge, reason),) = result.report.fallbacks
    assert edge == "reader -> solver" and "other weights" in reason


async def test_breaking_out_of_a_stream_stops_after_the_operation_under_way(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving the loop waits for one forward, and no other follows."""
    forward, calls = model.backbone.forward, 0
    under_way, release = anyio.Event(), threading.Event()
    token = anyio.lowlevel.current_token()

    def slow(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            anyio.from_thread.run_sync(under_way.set, token=token)
            release.wait(20)
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.backbone, "forward", slow)
    flow = Workflow("w", [Agent("a", model, prompt="x", generate={"max_new_tokens": 1000})])

    async def release_soon() -> None:
        await anyio.wait_all_tasks_blocked()
        release.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks, aclosing(flow.stream()) as events:
            async for event in events:
                if isinstance(event, TokenWritten):
                    await under_way.wait()
                    tasks.start_soon(release_soon)
                    break
    assert calls == 3


async def test_two_workflows_run_side_by_side(model: LocalModel) -> None:
    """Runs in one event loop share the worker and do not disturb each other."""
    expected = [(await reader_solver(model, model, CACHE).arun(**GIVEN)).outputs]
    expected.append((await chain(model, CACHE).arun(document=DOCUMENT)).outputs)
    found: dict[int, dict[str, str]] = {}

    async def go(number: int, flow: Workflow, **inputs: object) -> None:
        found[number] = (await flow.arun(**inputs)).outputs

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: go(0, reader_solver(model, model, CACHE), **GIVEN))
        tasks.start_soon(lambda: go(1, chain(model, CACHE), document=DOCUMENT))
    assert [found[0], found[1]] == expected


async def test_a_state_is_freed_once_its_reader_has_read_it(model: LocalModel) -> None:
    """When the third of a chain starts, the first one's state is gone from the shelf."""
    flow = chain(model, CACHE)
    flow.load()
    models = dict.fromkeys(flow.spec.agents, model)
    held: dict[str, int] = {}

    def emit(event: Event) -> None:
        if isinstance(event, TurnStarted):
            held[event.agent] = len(scheduler.shelf)

    scheduler = Scheduler(
        flow.spec, models, plan_workflow(flow.spec, models), {"document": DOCUMENT}, emit
    )
    await scheduler.run()
    assert held == {"a": 0, "b": 1, "c": 1}
    assert len(scheduler.shelf) == 0


async def test_an_agent_that_remembers_lets_go_of_what_it_read(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a message is in the agent's own state, its tensors are gone."""
    put: list[weakref.ref[Any]] = []
    shelve = StateStore.put

    def spy(shelf: StateStore, state: KVState, readers: int) -> StateRef:
        put.append(weakref.ref(state.layers[0].keys))
        return shelve(shelf, state, readers)

    monkeypatch.setattr(StateStore, "put", spy)
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    writer = Agent("writer", model, prompt="turn {{ turn }}", generate=FEW, max_turns=2)
    flow = Workflow("w", [reader, writer]).connect(reader, writer, CACHE)
    flow.connect(writer, writer, TEXT, loop=True)
    alive = []
    async with aclosing(flow.stream(document=DOCUMENT)) as events:
        async for event in events:
            if isinstance(event, TokenWritten) and event.turn == 2:
                gc.collect()
                alive.append(put[0]() is not None)
    assert len(put) == 1 and alive and not any(alive)


@pytest.mark.parametrize("memory", ["run", "turn"])
async def test_no_state_outlives_its_run(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """After a loop with caches, every state that was shelved is gone."""
    put: list[weakref.ref[Any]] = []
    shelve = StateStore.put

    def spy(shelf: StateStore, state: KVState, readers: int) -> StateRef:
        put.append(weakref.ref(state.layers[0].keys))
        return shelve(shelf, state, readers)

    monkeypatch.setattr(StateStore, "put", spy)
    result = await draft_and_critic(model, memory, CACHE).arun(document=DOCUMENT)
    # The worker's thread has left the last job once it is done with another one.
    await worker_for(model.device).run(_nothing(), lambda event: None)
    gc.collect()
    assert len(put) == 6 and all(one() is None for one in put)
    assert result.report.peak_state_bytes > 0


def _nothing() -> Generator[None, None, None]:
    yield


async def test_inputs_are_checked_before_anything_runs(model: LocalModel) -> None:
    """A missing input is an input error, and no event is sent."""
    with pytest.raises(InputError, match="'question' is missing"):
        await events_of(reader_solver(model, model), document="x")


async def test_a_cache_that_must_not_fall_back_is_refused_before_it_runs(
    models: tuple[LocalModel, LocalModel],
) -> None:
    """By name and with fallback: error, the plan refuses and names the field that differs."""
    flow = reader_solver(*models, CACHE, fallback="error")
    with pytest.raises(WorkflowError, match="other weights") as caught:
        await flow.arun(**GIVEN)
    assert caught.value.problems[0].where == "edges[0].channel"


async def test_two_messages_of_one_agent_are_both_delivered(model: LocalModel) -> None:
    """A mention places the first edge's message; the other becomes a turn of its own."""
    a = Agent("a", model, prompt="{{ inputs.document }}", generate=FEW)
    b = Agent("b", model, prompt="so: {{ a.text }}", generate=None)
    flow = Workflow("w", [a, b])
    flow.connect(a, b, TextChannel(share="output")).connect(a, b, TextChannel(share="prompt"))
    both = await flow.arun(document=DOCUMENT)
    alone = await Workflow("w", [a, b]).connect(a, b, TEXT).arun(document=DOCUMENT)
    longer = both.report.agents["b"][0].prompt_tokens - alone.report.agents["b"][0].prompt_tokens
    assert longer > len(model.text.encode_words(DOCUMENT))
