"""``unspoken run``: its outputs, its report, its events, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

import pytest
from command_line import INPUTS, call, run_json, write_workflow
from processes import environment, until
from tiny import tiny_llama
from transformers import AutoModelForCausalLM

from unspoken.agents.cli.main import main

_TURN = """turn prompt_tokens prefilled_tokens reused_tokens recomputed_tokens projected_tokens
    generated_tokens thought_tokens layer_tokens_computed ttft_s seconds forwards
    turns_per_forward finish item attempts likelihoods tool_calls prompt text"""
_EDGE = """from to turn channel mode planned reason fallback exact tokens reused repaired projected
    recomputed_layers layer_tokens bytes seconds item"""
_RUN = """run_id workflow outputs agents edges fallbacks loops_ended failed_items failed_turns
    empty_turns late_messages unknown_calls peak_state_bytes
    shared_state_bytes spilled_state_bytes prefix_hits linears seconds"""
TURN_KEYS, EDGE_KEYS, RUN_KEYS = (set(keys.split()) for keys in (_TURN, _EDGE, _RUN))


def test_run_json_has_the_documented_keys(workflow: Path) -> None:
    """One JSON object, with the keys that docs and design promise, is all there is on stdout."""
    result = run_json(workflow, *INPUTS)
    assert set(result) == RUN_KEYS
    assert set(result["outputs"]) == {"answer"}
    assert set(result["agents"]) == {"reader", "solver"}
    for turns in result["agents"].values():
        assert [set(turn) for turn in turns] == [TURN_KEYS]
    assert [set(edge) for edge in result["edges"]] == [EDGE_KEYS]
    assert (result["edges"][0]["from"], result["edges"][0]["to"]) == ("reader", "solver")


def test_run_json_counts_each_prompt_token_once(workflow: Path) -> None:
    """The prompt is the sum of what was prefilled, recomputed, projected and reused."""
    result = run_json(workflow, *INPUTS)
    for (turn,) in result["agents"].values():
        kinds = ("prefilled", "recomputed", "projected", "reused")
        assert turn["prompt_tokens"] == sum(turn[f"{kind}_tokens"] for kind in kinds) > 0
    assert result["agents"]["solver"][0]["reused_tokens"] > 0
    assert result["agents"]["solver"][0]["generated_tokens"] == 6


def test_quiet_shows_the_outputs_alone(workflow: Path) -> None:
    """With --quiet nothing is said of what goes on and what it cost."""
    result = call("run", "--quiet", workflow, *INPUTS)
    assert result.exit_code == 0
    assert result.stdout
    assert result.stderr == ""


def test_run_prints_outputs_alone_on_stdout(workflow: Path) -> None:
    """Without --json stdout is the bare output, and stderr says what went on and what it cost."""
    expected = run_json(workflow, *INPUTS)["outputs"]["answer"]
    result = call("run", workflow, *INPUTS)
    assert result.exit_code == 0
    assert result.stdout == expected + "\n"
    for words in (
        "reader: turn 1 started",
        "reader -> solver: same_model_cache",
        "prefilled",
        "ran in",
    ):
        assert words in result.stderr


def test_run_reads_an_input_from_a_file(workflow: Path, tmp_path: Path) -> None:
    """NAME=@FILE gives the same run as the file's text."""
    file = tmp_path / "document.txt"
    file.write_text(INPUTS[1].partition("=")[2] + "\n", encoding="utf-8")
    from_file = run_json(workflow, "-i", f"document=@{file}", *INPUTS[2:])
    assert from_file["outputs"] == run_json(workflow, *INPUTS)["outputs"]


def test_an_input_may_have_any_name(workflow: Path) -> None:
    """An input called self is an input like others."""
    text = workflow.read_text(encoding="utf-8").replace("question: text", "self: text")
    workflow.write_text(text.replace("inputs.question", "inputs.self"), encoding="utf-8")
    assert run_json(workflow, *INPUTS[:3], "self=what is a key")["outputs"]["answer"]
    assert call("plan", workflow, *INPUTS[:3], "self=what is a key").exit_code == 0


def test_skipped_agents_and_fallbacks_are_told(tmp_path: Path, model: Path) -> None:
    """The tables name a skipped agent and an edge that fell back to text."""
    other = tiny_llama(tmp_path / "other", seed=1)
    file = tmp_path / "flow.yaml"
    file.write_text(
        f"name: w\nmodels: {{m: {model}, o: {other}}}\nagents:\n"
        "  a: {model: m, prompt: the key, generate: {max_new_tokens: 4}}\n"
        "  b: {model: o, prompt: the value, generate: {max_new_tokens: 4}}\n"
        "  c: {model: m, prompt: never}\n"
        "edges:\n  - {from: a, to: b, channel: same_model_cache}\n"
        '  - {from: a, to: c, when: "false"}\n',
        encoding="utf-8",
    )
    result = call("run", file, "--report")
    assert result.exit_code == 0, result.stderr
    assert "c: skipped" in result.stderr
    assert "! a → b fell back to text: " in result.stderr
    assert [line.split()[:2] for line in result.stderr.splitlines() if " skipped" in line][-1] == [
        "c",
        "skipped",
    ]


def test_a_loop_that_never_agrees_is_warned_of(tmp_path: Path, model: Path) -> None:
    """The limit of a loop whose condition still held is told on stderr, and in the JSON as data."""
    file = tmp_path / "flow.yaml"
    file.write_text(
        f"name: w\nmodels: {{m: {model}}}\nagents:\n"
        "  draft: {model: m, prompt: write, max_turns: 2, generate: {max_new_tokens: 4}}\n"
        "  printer: {model: m, prompt: print}\n"
        "edges:\n"
        "  - {from: draft, to: draft, loop: true, when: \"'ZQ' not in draft.text\"}\n"
        "  - {from: draft, to: printer, when: \"'ZQ' in draft.text\"}\n",
        encoding="utf-8",
    )
    result = call("run", file)
    assert result.exit_code == 0, result.stderr
    assert "! draft → draft: the loop ended at its limit" in result.stderr
    assert "! there is no output; skipped: printer" in result.stderr
    ended = {"from": "draft", "to": "draft", "when": "'ZQ' not in draft.text", "turns": 2}
    assert run_json(file)["loops_ended"] == [ended]


def test_events_are_lines_of_json(workflow: Path, tmp_path: Path) -> None:
    """--events writes every event from the start to the outputs, in order."""
    file = tmp_path / "events.jsonl"
    outputs = run_json(workflow, *INPUTS, "--events", file)["outputs"]
    events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("RunStarted", "RunFinished")
    assert kinds.count("TurnFinished") == 2
    assert "TokenWritten" in kinds
    assert "MessageCarried" in kinds
    assert events[-1]["outputs"] == outputs


def test_events_to_stdout_take_the_place_of_the_outputs(workflow: Path) -> None:
    """With --events - every line of stdout is an event."""
    result = call("run", workflow, *INPUTS, "--events", "-")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines[-1]["event"] == "RunFinished"


def test_log_level_logs_to_stderr_alone(workflow: Path) -> None:
    """--log-level shows the library's log on stderr and leaves stdout to the outputs."""
    result = call("run", workflow, *INPUTS, "--log-level", "info", "--json")
    assert json.loads(result.stdout)["outputs"]
    assert "run started" in result.stderr
    assert "workflow=pair" in result.stderr


def test_failed_run_exits_with_1(tmp_path: Path, model: Path) -> None:
    """A run that fails names the agent and how to fix it on stderr, and exits with 1."""
    result = call("run", write_workflow(tmp_path, model, 1500, timeout="0.001"), *INPUTS)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "agent 'solver' took longer than its timeout" in result.stderr
    assert "fix: raise the agent's timeout" in result.stderr


def test_a_failed_run_prints_what_had_finished(tmp_path: Path, model: Path) -> None:
    """With --json, stdout has the error beside it; else stderr has the agents' words."""
    file = write_workflow(tmp_path, model, timeout="1.0e-6")
    result = call("run", file, *INPUTS)
    assert "what had finished" in result.stderr and "reader: who is it" in result.stderr
    result = call("run", file, *INPUTS, "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["error"]["kind"], told["error"]["agent"]) == (
        1,
        "RunTimeout",
        "solver",
    )
    assert told["finished"]["reader"]["text"].startswith("who is it")
    assert told["outputs"] == {} and len(told["agents"]["reader"]) == 1


def test_ctrl_c_cancels_a_run(tmp_path: Path, model: Path) -> None:
    """Ctrl-C while an agent writes ends the run with 130 and without a traceback."""
    events = tmp_path / "events.jsonl"
    file = write_workflow(tmp_path, model, 1900)
    command = [
        sys.executable,
        "-m",
        "unspoken.agents.cli",
        "run",
        file,
        *INPUTS,
        "--events",
        events,
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A test run in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        until(lambda: events.exists() and "TokenWritten" in events.read_text(encoding="utf-8"))
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    assert "RunFinished" not in events.read_text(encoding="utf-8")


def run_here(monkeypatch: pytest.MonkeyPatch, stdout: TextIO, *args: object) -> int:
    """The exit code of the console script, called in this process with that stdout."""
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "argv", ["unspoken", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_full_disk_is_no_fault_of_unspoken(
    workflow: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Outputs or events that have no room end with an error that says so."""
    told = call("run", workflow, *INPUTS, "--events", "/dev/full")
    command = [sys.executable, "-m", "unspoken.agents.cli", "schema"]  # imports next to nothing
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=environment(), text=True, check=False
        )
        ended = run_here(monkeypatch, full, "run", workflow, *INPUTS, "--json")
    for code, stderr in (
        (told.exit_code, told.stderr),
        (process.returncode, process.stderr),
        (ended, capfd.readouterr().err),
    ):
        assert code == 1
        assert "No space left on device" in stderr and "free some space" in stderr
        assert "fault of unspoken" not in stderr


def test_nothing_but_results_goes_to_stdout(
    workflow: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Libraries that print, warn or draw while models are loaded and run do so on stderr."""
    load = AutoModelForCausalLM.from_pretrained

    def noisy(*args: Any, **settings: Any) -> Any:
        print("noise of a library")  # noqa: T201
        os.write(1, b"noise of a library in C\n")
        return load(*args, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noisy)
    with open(1, "w", closefd=False) as stdout:
        assert run_here(monkeypatch, stdout, "run", workflow, *INPUTS, "--json") == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out)["outputs"]
    assert printed.err.count("noise") >= 2
