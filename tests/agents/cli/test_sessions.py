"""``unspoken sessions``, and ``unspoken run --session``."""

import json
from pathlib import Path

import pytest
from command_line import INPUTS, call, done, refused, run_json


@pytest.fixture
def chat(workflow: Path) -> Path:
    """A workflow whose solver goes on with a conversation."""
    text = workflow.read_text(encoding="utf-8")
    file = workflow.with_name("chat.yaml")
    file.write_text(text.replace("    timeout:", "    memory: session\n    timeout:"), "utf-8")
    return file


def test_a_conversation_goes_on_is_shown_and_deleted(chat: Path, tmp_path: Path) -> None:
    """Each command is a process of its own elsewhere: nothing but the store connects them."""
    kept = ("--store", tmp_path / "runs")
    asked = (chat, *INPUTS, "--session", "anna", *kept)
    counts = [run_json(*asked)["agents"]["solver"][0]["prompt_tokens"] for _ in range(2)]
    assert counts[1] > 2 * counts[0] - 8
    (line,) = json.loads(done("sessions", "list", "--json", *kept))
    assert (line["name"], line["agents"]) == ("anna", "solver") and line["bytes"] > line["tokens"]
    words = json.loads(done("sessions", "show", "anna", "--json", *kept))["words"]
    assert sum(one["text"].startswith("the question is") for one in words) == 2
    assert "user: the question is what is a key" in done("sessions", "show", "anna", *kept)
    assert json.loads(done("runs", "list", "--json", *kept)) == []  # the run itself is not kept
    assert run_json(*asked, "--anew")["agents"]["solver"][0]["prompt_tokens"] == counts[0]
    assert done("sessions", "delete", "anna", "--yes", *kept) == "anna\n"
    assert "no sessions in" in done("sessions", "list", *kept)
    assert "there is no session 'anna'" in refused("sessions", "show", "anna", *kept)
    assert "there is no session 'anna'" in refused("sessions", "delete", "anna", *kept)


def test_a_run_that_waits_goes_on_in_its_session(chat: Path, tmp_path: Path) -> None:
    """Which it names itself; what was said is in the session once it has ended."""
    text = chat.read_text(encoding="utf-8")
    chat.write_text(text.replace("    timeout:", "    ask: edit\n    timeout:"), "utf-8")
    kept = ("--store", tmp_path / "runs")
    asked = (chat, *INPUTS, "--session", "anna", "--run-id", "mine", *kept)
    assert call("run", *asked).exit_code == 3
    assert json.loads(done("sessions", "list", "--json", *kept)) == []
    done("runs", "answer", "mine", "my own words", *kept)
    assert "assistant: my own words" in done("sessions", "show", "anna", *kept)


def test_a_session_without_an_agent_that_remembers_is_refused(chat: Path, workflow: Path) -> None:
    assert "no agent has memory: session" in refused("run", workflow, *INPUTS, "--session", "anna")
    assert "the run has no session" in refused("run", chat, *INPUTS)
