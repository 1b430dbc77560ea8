"""Arms: what each does to the messages of a workflow, on a model that answers from its prompt."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.evaluation.arms import ARMS, CONTROLS, check_names, make_arms, target_of
from unspoken.agents.evaluation.evaluator import Evaluator
from unspoken.agents.evaluation.journal import Journal
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.rows import Columns, make_rows
from unspoken.agents.evaluation.setting import Setting
from unspoken.agents.evaluation.trial import Known, asked, told
from unspoken.agents.execution import How
from unspoken.agents.testing import FakeBridge, ScriptedModel, tiny_model
from unspoken.channels import InputError, ProjectedCacheChannel
from unspoken.channels.errors import ContextLengthError

ROWS = [
    {"document": f"The lamp is {colour}. Ships pass.", "question": f"Ask {number}", "gold": colour}
    for number, colour in enumerate(["red", "green", "blue"], 1)
]


def answer(agent: str, turn: int, prompt: str) -> str:
    """The colour that the prompt tells, and the number of the question."""
    colour, number = re.search(r"lamp is (\w+)", prompt), re.search(r"Ask (\d)", prompt)
    return f"{colour[1] if colour else 'unknown'} {number[1] if number else '-'}"


def pair(reads: Any, solves: Any, channel: Any = "auto", **solver: Any) -> Workflow:
    """A reader, and a solver that asks about what it read."""
    agents = [
        Agent("reader", reads, prompt="{{ inputs.document }}", generate=None),
        Agent("solver", solves, prompt="{{ inputs.question }}", **solver),
    ]
    return Workflow("pair", agents).connect("reader", "solver", channel)


async def unscored(outcome: Outcome, known: Known) -> Outcome:
    return outcome


def outcomes(
    flow: Workflow, arms: Sequence[str], rows: Any = ROWS
) -> dict[tuple[str, str], Outcome]:
    """What every row gave under every arm."""
    made, journal = make_rows(flow.spec, rows, Columns()), Journal(None)
    evaluator = Evaluator(flow.load(), made, arms, Setting())
    anyio.run(evaluator.run, journal, unscored, lambda progress: None)
    return journal.outcomes


def test_arms_ask_the_same_and_hear_otherwise() -> None:
    """Each row's own message, none, another's, or all of another's."""
    model = ScriptedModel(answer)
    arms = [*ARMS, *CONTROLS]
    for other in ("splice", "recompute", "bridge"):
        arms.remove(other)
    given = outcomes(pair(model, model), arms)
    own = {"1": "red", "2": "green", "3": "blue"}
    for row, colour in own.items():
        for arm in ("text", "text+reuse", "plan", "continuation", "again"):
            assert given[row, arm].answer == f"{colour} {row}"
        for arm in ("alone", "none"):
            assert given[row, arm].answer == f"unknown {row}"
        for arm in ("stranger", "neighbour"):
            other, number = given[row, arm].answer.split()
            assert other != colour and number == row
        other, number = given[row, "everything_stranger"].answer.split()
        assert own[number] == other != colour
        assert given[row, "none"].computed > given[row, "alone"].computed
        assert given[row, "text"].all_text and not given[row, "plan"].all_text


def test_equal_time_cuts_the_message_to_what_is_asked_about() -> None:
    """A plan that takes no time leaves no time to read; half of text's time, half of the text."""
    model = ScriptedModel(answer)
    flow = pair(model, model)
    rows = make_rows(flow.spec, ROWS, Columns())
    evaluator = Evaluator(flow.load(), rows[:1], ["equal_time"], Setting())
    journal = Journal(None)
    assert list(evaluator.arms) == ["text", "plan", "equal_time"]
    anyio.run(evaluator.run, journal, unscored, lambda progress: None)
    text = replace(journal.outcomes["1", "text"], first_token_s=2.0)
    assert text.target_computed == text.target_tokens > 0
    whole = None
    for plan_s in (2.0, 1.9, 0.0):
        journal = Journal(None)
        journal.add(text)
        journal.add(Outcome(row="1", context="1", arm="plan", first_token_s=plan_s))
        anyio.run(evaluator.run, journal, unscored, lambda progress: None)
        given = journal.outcomes["1", "equal_time"]
        whole = whole or given.target_tokens
        if plan_s == 1.9:
            assert given.target_tokens <= 0.95 * whole and given.answer == "red 1"
        else:
            assert given.answer == ("red 1" if plan_s else "unknown 1")


def test_without_the_plan_s_time_there_is_no_equal_time() -> None:
    """It would be all of the text, which is another arm."""
    model = ScriptedModel(answer)
    flow = pair(model, model)
    evaluator = Evaluator(
        flow.load(), make_rows(flow.spec, ROWS[:1], Columns()), ["equal_time"], Setting()
    )
    journal = Journal(None)
    journal.add(Outcome(row="1", context="1", arm="plan"))
    anyio.run(evaluator.run, journal, unscored, lambda progress: None)
    assert "no time to the first token" in (journal.outcomes["1", "equal_time"].error or "")


def test_a_message_that_was_not_sent_is_not_there_in_equal_time_either() -> None:
    """Its condition did not hold."""
    model = ScriptedModel(answer)
    flow = Workflow(
        "pair",
        [
            Agent("reader", model, prompt="{{ inputs.document }}", generate=None),
            Agent("other", model, prompt="{{ inputs.document }}", generate=None),
            Agent("solver", model, prompt="{{ inputs.question }}"),
        ],
    )
    flow.connect("reader", "solver", when="false").connect("other", "solver")
    given = outcomes(flow, ["text", "equal_time"], ROWS[:1])
    assert given["1", "equal_time"].error is None
    assert given["1", "equal_time"].target_tokens <= given["1", "text"].target_tokens


def test_a_message_that_went_by_another_cache_counts_as_fallen_back() -> None:
    """An arm is judged by what it is called."""
    one = tiny_model()
    flow = pair(one, one, "text", generate={"max_new_tokens": 2}, system="Be brief.").load()
    (_, arm) = make_arms(flow, ["splice"], "solver")
    (row,) = make_rows(flow.spec, ROWS[:1], Columns())
    result = anyio.run(arm.flow.arun_as, How(), row.inputs)
    assert not told(arm, row, result, "solver").fallbacks
    (edge,) = result.report.edges
    report = replace(result.report, edges=[replace(edge, mode="continuation")])
    fallbacks = told(arm, row, replace(result, report=report), "solver").fallbacks
    assert fallbacks == ("reader -> solver: went by continuation",)


def test_a_row_that_is_too_long_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused for one row's length ends no evaluation."""
    model = ScriptedModel(answer)
    flow = pair(model, model).load()
    run = Workflow.arun_as

    async def held(self: Workflow, how: How, inputs: Any, *more: Any) -> Any:
        if "red" in inputs["document"]:
            raise ContextLengthError("too long")
        return await run(self, how, inputs, *more)

    monkeypatch.setattr(Workflow, "arun_as", held)
    given = outcomes(flow, ["text"])
    assert given["1", "text"].error == "too long" and given["2", "text"].error is None


def test_a_run_that_fails_is_an_outcome_with_an_error() -> None:
    """The other rows go on."""

    def half(agent: str, turn: int, prompt: str) -> str:
        if "red" in prompt:
            raise ValueError("no red")
        return "fine"

    model = ScriptedModel(half)
    given = outcomes(pair(model, model), ["text"])
    assert "no red" in (given["1", "text"].error or "")
    assert given["2", "text"].error is None and given["2", "text"].answer == "fine"


def test_caches_are_reused_where_an_arm_says_so() -> None:
    """In the plan and with a prefix cache, never in plain text; the words are equal."""
    model = tiny_model()
    flow = pair(model, model, generate={"max_new_tokens": 4})
    arms = ["text+reuse", "plan", "continuation", "alone"]
    row = {**ROWS[0], "document": "the key of the cache is in the document\n" * 4}
    given = {arm: one for (_, arm), one in outcomes(flow, arms, [row]).items()}
    for arm in ("text+reuse", "plan", "continuation"):
        assert given[arm].reused > 20 and given[arm].answer == given["text"].answer
        assert given[arm].computed + given[arm].reused == given["text"].computed
    assert given["text"].reused == 0 and given["text+reuse"].all_text
    assert given["alone"].computed < given["text"].computed - 2 * given["plan"].reused + 60


def test_a_channel_is_forced_where_an_edge_can_have_it() -> None:
    """A bridge, or a splice after a system prompt; elsewhere the arm is refused."""
    one, two = tiny_model(), tiny_model(family="gemma3")
    few = {"max_new_tokens": 2}
    bridged = pair(one, two, ProjectedCacheChannel(FakeBridge(one, two)), generate=few)
    assert not outcomes(bridged, ["bridge"], ROWS[:1])["1", "bridge"].all_text
    spliced = pair(one, one, "text", generate=few, system="Be brief.")
    assert outcomes(spliced, ["splice"], ROWS[:1])["1", "splice"].reused > 0
    with pytest.raises(InputError, match="no edge can have the arm 'continuation'"):
        make_arms(spliced, ["continuation"], "solver")


def test_arms_that_there_are_not_are_refused() -> None:
    """By name, without messages, or where a person is asked."""
    with pytest.raises(InputError, match="no arm 'plann'"):
        check_names(["plann"])
    model = ScriptedModel(answer)
    alone = Workflow("one", [Agent("solver", model, prompt="{{ inputs.question }}")]).load()
    with pytest.raises(InputError, match="gets no message"):
        make_arms(alone, ["stranger"], "solver")
    remembers = pair(model, model, memory="session").load()
    with pytest.raises(InputError, match="goes on from other runs"):
        make_arms(remembers, ["text"], "solver")
    asks = pair(model, model, ask="approve").load()
    with pytest.raises(InputError, match="asks a person"):
        make_arms(asks, ["text"], "solver")
    loop = pair(model, model, max_turns=2).connect("solver", "solver", loop=True).load()
    with pytest.raises(InputError, match="in a loop"):
        make_arms(loop, ["alone"], "solver")


def test_the_last_agent_is_the_one_that_counts() -> None:
    """Unless another one is named; one that writes nothing has no answer."""
    model = ScriptedModel(answer)
    spec = pair(model, model).spec
    assert target_of(spec, None) == target_of(spec, "solver") == "solver"
    for named, found in (("reader", "writes nothing"), ("solve", "no agent 'solve'")):
        with pytest.raises(InputError, match=found):
            target_of(spec, named)
    two = [Agent(name, model, prompt="{{ inputs.question }}") for name in ("one", "two")]
    with pytest.raises(InputError, match="2 agents are last"):
        target_of(Workflow("two", two).spec, None)
    ends = Workflow("two", two, outputs={"answer": "{{ two.text }}"})
    assert target_of(ends.spec, None) == "two"


def test_what_an_agent_asks_is_its_prompt_without_its_messages() -> None:
    """By its template."""
    model = ScriptedModel(answer)
    flow = pair(model, model)
    solver = flow.spec.agents["solver"]
    prompt = "{{ reader.text }} Question: {{ inputs.question }}"
    agents = {**flow.spec.agents, "solver": solver.model_copy(update={"prompt": prompt})}
    spec = flow.spec.model_copy(update={"agents": agents})
    assert asked(spec, "solver", {"question": "Who?"}).strip() == "Question: Who?"
