"""Workflows whose words stay out of reports and of what is kept of events."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import call
from rich.console import Console

from unspoken.agents import Agent, Workflow
from unspoken.agents.cli.report_view import failed_run, print_partial
from unspoken.agents.events import TurnFinished, replay
from unspoken.agents.runs import RunStore
from unspoken.agents.testing import ScriptedModel
from unspoken.channels.errors import RunError

SECRET, ANSWER = "the code is 4711", "understood, 4711"


def flow(*, private: bool) -> Workflow:
    inner = Workflow("inner", [agent("worker")])
    team = Agent("team", workflow=inner, inputs={"secret": "{{ inputs.secret }}"})
    return Workflow("w", [agent("reader"), team], outputs={"n": "1"}, private=private)


def agent(name: str) -> Agent:
    return Agent(name, ScriptedModel({name: ANSWER}), prompt="{{ inputs.secret }}")


def test_a_report_has_what_each_model_read_and_wrote() -> None:
    """Unless the workflow is private: then it has counts alone, of the workflows inside, too."""
    (turn,) = flow(private=False).run(secret=SECRET).report.agents["reader"]
    assert [(part.role, part.text) for part in turn.prompt][-1] == ("user", SECRET)
    assert (turn.text, turn.finish) == (ANSWER, "stop")
    result = flow(private=True).run(secret=SECRET)
    assert "4711" not in json.dumps(result.to_dict())
    assert set(result.report.agents) == {"reader", "team", "team.1/worker"}
    assert result["reader"].text == ANSWER


def test_kept_events_of_a_private_workflow_have_no_words(tmp_path: Path) -> None:
    """The run goes on from its turns all the same, which the store keeps."""
    store = RunStore(tmp_path)
    first = flow(private=True).run(secret=SECRET, run_id="a", store=store)
    assert all("4711" not in line for line in store.told("a"))
    ended = [one for one in replay("a", store) if isinstance(one, TurnFinished)]
    assert [one.report.generated_tokens > 0 for one in ended if one.agent == "reader"] == [True]
    assert flow(private=True).run(run_id="a", store=store)["reader"].text == first["reader"].text


def test_prompts_of_a_private_workflow_are_not_shown(tmp_path: Path) -> None:
    """It is refused before any model is loaded."""
    file = tmp_path / "w.yaml"
    text = "name: w\nprivate: true\nmodels: {m: a/b}\nagents: {a: {model: m, prompt: p}}\n"
    file.write_text(text, encoding="utf-8")
    result = call("run", file, "--show-prompts")
    assert result.exit_code != 0 and "is private" in result.stderr


def fails(words: str) -> str:
    """A model that has no answer."""
    raise RuntimeError("no answer")


def test_a_private_run_that_fails_prints_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither as JSON nor for people; of an open one, those of a private one inside alone go."""
    inner = Workflow("inner", [agent("worker")], outputs={"n": "1"}, private=True)
    team = Agent("team", workflow=inner, inputs={"secret": "{{ inputs.secret }}"})
    flow = Workflow("w", [team, Agent("last", fails, prompt="p")]).connect("team", "last")
    with pytest.raises(RunError) as caught:
        flow.run(secret=SECRET)
    told = failed_run(caught.value, flow.spec)
    assert told["finished"] == {"team": {"text": "1", "items": ()}}
    assert "understood" not in json.dumps(told)
    print_partial(Console(), caught.value, flow.spec)
    assert "understood" not in capsys.readouterr().out
    hidden = failed_run(caught.value, flow.spec.model_copy(update={"private": True}))
    assert hidden["finished"] == {}


def test_events_of_a_private_workflow_inside_have_no_words(tmp_path: Path) -> None:
    """Those of the open one around it have theirs, and prompts are in no stored event."""
    inner = Workflow("inner", [agent("worker")], outputs={"n": "1"}, private=True)
    team = Agent("team", workflow=inner, inputs={"secret": "{{ inputs.secret }}"})
    store = RunStore(tmp_path)
    flow = Workflow("w", [agent("reader"), team], outputs={"n": "1"})
    result = flow.run(secret=SECRET, run_id="a", store=store)
    assert result.report.agents["reader"][0].prompt
    lines = store.told("a")
    assert not any("4711" in line for line in lines if "team.1" in str(json.loads(line)["path"]))
    assert any(ANSWER in line for line in lines)
    assert not any(SECRET in line for line in lines)


def test_likelihoods_of_choices_are_words() -> None:
    """The likeliest is the answer."""
    (turn,) = flow(private=False).run(secret=SECRET).report.agents["reader"]
    assert replace(turn, likelihoods={"ill": 0.9, "well": 0.1}).without_words().likelihoods is None
