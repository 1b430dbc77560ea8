"""Workflows whose words stay out of reports and of what is kept of events."""

import json
from pathlib import Path

from command_line import call

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import TurnFinished, replay
from unspoken.agents.runs import RunStore
from unspoken.agents.testing import ScriptedModel

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
