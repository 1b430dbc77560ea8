"""``unspoken runs``, and ``unspoken run`` of a run that is kept."""

import json
from pathlib import Path

import pytest
from command_line import INPUTS, call, done, refused

from unspoken.agents.runs import RunStore


@pytest.fixture
def asking(workflow: Path) -> Path:
    """A workflow whose solver's words a person edits."""
    text = workflow.read_text(encoding="utf-8")
    file = workflow.with_name("asking.yaml")
    file.write_text(text.replace("    timeout:", "    ask: edit\n    timeout:"), encoding="utf-8")
    return file


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def listed(store: Path) -> list[dict[str, str]]:
    lines: list[dict[str, str]] = json.loads(done("runs", "list", "--json", "--store", store))
    return lines


def test_a_run_waits_is_answered_and_ends(asking: Path, store: Path) -> None:
    """It ends with an exit code of its own; the answer goes on with it, from its own file."""
    kept = ("--store", store)
    waiting = call("run", asking, *INPUTS, "--run-id", "mine", *kept)
    assert waiting.exit_code == 3 and waiting.stdout == ""
    assert "solver.1 edit:" in waiting.stderr and "paused: " in waiting.stderr
    assert [(line["id"], line["status"], line["asks"]) for line in listed(store)] == [
        ("mine", "paused", "solver.1")
    ]
    assert "solver.1 edit" in done("runs", "show", "mine", *kept)
    assert done("runs", "answer", "mine", "my own words", *kept).strip().endswith("my own words")
    assert listed(store)[0]["status"] == "finished"
    assert done("run", asking, "--run-id", "mine", *kept).strip().endswith("my own words")


def test_json_tells_of_the_questions(asking: Path, store: Path) -> None:
    """Who drives the command line finds the id and the questions in one document."""
    result = call("run", asking, *INPUTS, "--store", store, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 3 and told["status"] == "paused"
    assert [question["id"] for question in told["questions"]] == ["solver.1"]
    assert [line["id"] for line in listed(store)] == [told["run_id"]]


def test_a_run_of_a_process_that_died_is_resumed(workflow: Path, store: Path) -> None:
    """It is listed as interrupted, and needs neither its file nor its inputs."""
    kept = ("--store", store)
    first = done("run", workflow, *INPUTS, "--run-id", "mine", *kept)
    runs = RunStore(store)
    runs.mark("mine", "running")
    assert listed(store)[0]["status"] == "interrupted"
    workflow.unlink()
    assert done("runs", "resume", "mine", *kept) == first
    assert json.loads(done("runs", "show", "mine", "--json", *kept))["status"] == "finished"


def test_a_run_goes_on_with_its_tools_where_they_are_allowed(workflow: Path, store: Path) -> None:
    """Nothing is imported before somebody says so, a second time too."""
    text = workflow.read_text(encoding="utf-8")
    tools = text.replace("    timeout:", "    tools: [mine:add]\n    timeout:")
    workflow.write_text(tools, encoding="utf-8")
    module = workflow.with_name("mine.py")
    module.write_text("def add(a: int) -> int:\n    return a\n", encoding="utf-8")
    kept = ("--store", store)
    first = done("run", workflow, *INPUTS, "--run-id", "mine", "--allow-tools", *kept)
    RunStore(store).mark("mine", "running")
    assert "is a program" in refused("runs", "resume", "mine", *kept)
    assert done("runs", "resume", "mine", "--allow-tools", *kept) == first


def test_another_file_is_refused_with_the_difference(workflow: Path, store: Path) -> None:
    """The changed key is named; --anyway goes on."""
    kept = ("--run-id", "mine", "--store", store)
    done("run", workflow, *INPUTS, *kept)
    text = workflow.read_text(encoding="utf-8")
    workflow.write_text(text.replace("the question is", "say"), encoding="utf-8")
    assert "agents.solver.prompt was 'the question is" in refused("run", workflow, *kept)
    assert done("run", workflow, *kept, "--anyway")


def test_a_failed_run_is_not_removed_unless_it_is_said(workflow: Path, store: Path) -> None:
    """It could go on."""
    kept = ("--store", store)
    done("run", workflow, *INPUTS, "--run-id", "mine", *kept)
    RunStore(store).mark("mine", "failed")
    assert done("runs", "clean", "--yes", *kept) == ""
    assert done("runs", "clean", "--failed", "--yes", *kept) == "mine\n"


def test_runs_are_cancelled_and_removed(asking: Path, store: Path) -> None:
    """What is cancelled does not go on; what is over goes, and what waits stays."""
    kept = ("--store", store)
    for name in ("one", "two"):
        assert call("run", asking, *INPUTS, "--run-id", name, *kept).exit_code == 3
    assert done("runs", "cancel", "one", *kept) == "one\n"
    assert "was cancelled" in refused("runs", "resume", "one", *kept)
    assert "is over already" in refused("runs", "cancel", "one", *kept)
    assert done("runs", "clean", "--yes", *kept) == "one\n"
    assert [line["id"] for line in listed(store)] == ["two"]
    assert done("runs", "clean", "--all", "--yes", *kept).strip() == str(store)
    assert not list(store.glob("runs.sqlite*"))
    assert "there is no run 'two'" in refused("runs", "show", "two", *kept)
