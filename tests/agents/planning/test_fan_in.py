"""Several messages in one context: what stands first, what is spliced, what is read again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flows import DOCUMENT, Models, sound

from unspoken.agents import Agent, LocalModel, RunResult, Workflow
from unspoken.agents.spec.edge import READ_AGAIN
from unspoken.channels import SameModelCacheChannel

CACHE, TEXT = "same_model_cache", "text"


def panel(
    model: LocalModel, *, writers: int = 3, tokens: int = 6, judge: Any = None, **edge: Any
) -> Workflow:
    """A reader, writers that continue it, and a judge that reads the reader last."""
    names = [f"w{number}" for number in range(writers)]
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    agents = [
        Agent(name, model, prompt=f"task of {name}", generate={"max_new_tokens": tokens})
        for name in names
    ]
    last = Agent("judge", model, prompt="which is best?", generate={"max_new_tokens": 8})
    flow = Workflow("panel", [reader, *agents, replace(last, **(judge or {}))])
    for name in names:
        flow.connect("reader", name)
    for name in names:
        flow.connect(name, "judge", **edge)
    return flow.connect("reader", "judge")


def modes(flow: Workflow) -> dict[str, str]:
    return {edge.sharer: edge.mode for edge in flow.plan().edges if edge.receiver == "judge"}


def taken(result: RunResult) -> dict[str, str]:
    edges = sound(result.report).edges
    return {edge.sharer: edge.mode for edge in edges if edge.receiver == "judge"}


def repaired(flow: Workflow) -> dict[str, int | None]:
    return {edge.sharer: edge.repaired for edge in flow.plan().edges if edge.receiver == "judge"}


def test_short_outputs_are_read_again_and_the_rest_is_spliced(models: Models) -> None:
    """By `auto` alone; the plan and the report say so, and no edge fell back."""
    flow = panel(models["chatml"])
    expected = {"w0": "text", "w1": "text", "w2": "text", "reader": "splice"}
    assert modes(flow) == expected
    assert repaired(flow) == {"w0": None, "w1": None, "w2": None, "reader": READ_AGAIN}
    result = flow.run(document=DOCUMENT)
    assert taken(result) == expected and result.report.fallbacks == ()
    (reason,) = (edge.reason for edge in result.report.edges if edge.sharer == "w0")
    assert "4 messages that would be spliced" in reason


def test_of_long_outputs_the_first_tokens_are_read_again(models: Models) -> None:
    """As many as the edge says, and as there are."""
    flow = panel(models["chatml"], tokens=12, read_again=7)
    assert {mode for name, mode in modes(flow).items() if name != "reader"} == {"splice"}
    assert {count for name, count in repaired(flow).items() if name != "reader"} == {7}
    for edge in flow.run(document=DOCUMENT).report.edges:
        if edge.receiver == "judge" and edge.sharer != "reader":
            assert edge.repaired == min(7, edge.tokens)


@pytest.mark.parametrize(
    ("edge", "sink"),
    [
        ({"read_again": 0}, 4),
        ({"channel": CACHE}, 4),
        ({"repair": {"sink": 2}}, 2),
        ({"repair": "none"}, 0),
        ({"fallback": "error"}, READ_AGAIN),
        ({"share": "prompt"}, READ_AGAIN),
    ],
)
def test_what_is_asked_for_is_kept(models: Models, edge: dict[str, Any], sink: int) -> None:
    """No limit, a channel or a repair by name, an error in place of text, another message."""
    flow = panel(models["chatml"], judge={"system": "Judge."}, **edge)
    chosen = [mode for name, mode in modes(flow).items() if name != "reader"]
    assert set(chosen) == {"splice"}
    assert {count for name, count in repaired(flow).items() if name != "reader"} == {sink}


def test_one_splice_stays_one(models: Models) -> None:
    """An output beside a continuation is spliced, however short it is."""
    model = models["chatml"]
    writer = Agent("w", model, prompt="words", generate={"max_new_tokens": 2})
    flow = Workflow("one", [writer, Agent("judge", model, prompt="so?")]).connect("w", "judge")
    assert modes(flow) == {"w": "splice"}


def test_auto_order_puts_first_what_continues(models: Models) -> None:
    """The reader, though its edge is the last, so that all is exact: the tokens of text."""
    flow = panel(models["chatml"], judge={"order": "auto"})
    plan = flow.plan()
    places = {edge.sharer: edge.place for edge in plan.edges if edge.receiver == "judge"}
    assert places == {"reader": 1, "w0": 2, "w1": 3, "w2": 4}
    result = flow.run(document=DOCUMENT)
    assert taken(result)["reader"] == modes(flow)["reader"] == "continuation"
    assert all(edge.exact for edge in result.report.edges)
    by_text = panel(models["chatml"], judge={"order": "auto"}, channel=TEXT)
    assert by_text.run(document=DOCUMENT).outputs == result.outputs


def test_the_order_of_the_edges_is_kept_unless_it_is_left_open(models: Models) -> None:
    """Words stay where the workflow puts them; the plan says what another order would do."""
    flow = panel(models["chatml"])
    edges = {edge.sharer: edge for edge in flow.plan().edges if edge.receiver == "judge"}
    assert edges["reader"].place == 4 and "order: auto" in edges["reader"].advice


def test_auto_order_moves_nothing_that_the_prompt_places(models: Models) -> None:
    """A mention in the prompt is a place."""
    judge = {"order": "auto", "prompt": "{{ w0.text }} of {{ reader.text }}"}
    flow = panel(models["chatml"], writers=1, judge=judge)
    assert [edge.place for edge in flow.plan().edges if edge.receiver == "judge"] == [None, None]
    assert flow.plan().leading == {}


def test_of_two_that_could_come_first_the_longer_does(models: Models) -> None:
    """A whole context holds the document too, and continues further."""
    flow = panel(models["chatml"], writers=2, judge={"order": "auto"}, share="context")
    places = {edge.sharer: edge.place for edge in flow.plan().edges if edge.receiver == "judge"}
    assert places["w0"] == 1 and modes(flow)["w0"] == "continuation"
    assert taken(flow.run(document=DOCUMENT))["w0"] == "continuation"


def test_a_chain_of_readers_is_put_in_its_order(models: Models) -> None:
    """The second reader continues the first, whatever the order of their edges."""
    model = models["chatml"]
    one = Agent("one", model, prompt="{{ inputs.document }}", generate=None)
    two = Agent("two", model, prompt="and this", generate=None)
    judge = Agent("judge", model, prompt="so?", order="auto", generate={"max_new_tokens": 4})
    flow = Workflow("chain", [one, two, judge]).connect("one", "two")
    flow.connect("two", "judge").connect("one", "judge")
    assert modes(flow) == {"one": "continuation", "two": "continuation"}
    assert taken(flow.run(document=DOCUMENT)) == modes(flow)


def test_a_skipped_message_leaves_the_others_in_their_order(models: Models) -> None:
    """What continues still comes first where another message does not come."""
    flow = panel(models["chatml"], judge={"order": "auto"}, when="false", channel=CACHE)
    report = flow.run(document=DOCUMENT).report
    assert [edge.sharer for edge in report.edges if edge.receiver == "judge"] == ["reader"]
    assert all(edge.exact for edge in report.edges)


def test_a_limit_and_an_order_come_back_from_a_file(models: Models, tmp_path: Path) -> None:
    """Both keys are written, and read again equal."""
    flow = panel(models["chatml"], judge={"order": "auto"}, read_again=7)
    (tmp_path / "flow.yaml").write_text(flow.to_yaml(), encoding="utf-8")
    again = Workflow.from_yaml(tmp_path / "flow.yaml")
    assert again.spec.agents["judge"].order == "auto"
    assert {edge.read_again for edge in again.spec.edges if edge.from_ != "reader"} == {7}


def test_a_splice_by_name_needs_no_limit(models: Models) -> None:
    """A channel object is a channel by name: its messages are spliced."""
    model = models["chatml"]
    agents = [Agent(name, model, prompt=name, generate={"max_new_tokens": 3}) for name in "abj"]
    named = Workflow("objects", agents)
    for name in "ab":
        named.connect(name, "j", SameModelCacheChannel())
    assert {edge.mode for edge in named.plan().edges} == {"splice"}
