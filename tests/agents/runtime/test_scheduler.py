"""Whole runs on a tiny model: what agents write, what it costs, and what is left behind."""

import anyio
import pytest
from flows import DOCUMENT, reader_solver, sound
from runs import CACHE, FEW, GIVEN, TEXT, chain, draft_and_critic, events_of, fan_out

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.events import (
    AgentSkipped,
    LoopEnded,
    MessageCarried,
    RunFinished,
    RunStarted,
    TokenWritten,
    TurnFinished,
    TurnStarted,
)
from unspoken.channels import SameModelCacheChannel, TextChannel

pytestmark = pytest.mark.anyio


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
    """By default four tokens are recomputed, and the report calls it inexact."""
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
    """The agents of a workflow made again, without its edges."""
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
    """The critic's last message is dropped with an event, and the report's data say so."""
    happened = await events_of(draft_and_critic(model, "run", CACHE), document=DOCUMENT)
    assert LoopEnded("critic", "draft", None, 3) in happened
    report = happened[-1].report.to_dict()  # type: ignore[attr-defined]
    ended = {"from": "critic", "to": "draft", "when": None, "turns": 3}
    assert report["loops_ended"] == [ended]


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
