"""The command line: what it prints, where, and with which exit code."""

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from processes import environment, python, until
from ruamel.yaml import YAML
from tiny import tiny_llama
from typer.testing import CliRunner, Result

from unspoken.agents.bench import BENCHES
from unspoken.agents.cli import plan as plan_commands
from unspoken.agents.cli.main import app
from unspoken.agents.models.catalog import EMBEDDED

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "reader_solver" / "workflow.yaml"

WORKFLOW = """\
name: pair
models: {{tiny: {model}}}
inputs: {{document: text, question: text}}
agents:
  reader: {{model: tiny, prompt: "{{{{ inputs.document }}}}", generate: none}}
  solver:
    model: tiny
    prompt: "the question is {{{{ inputs.question }}}}"
    generate: {{max_new_tokens: {tokens}}}
    timeout: {timeout}
edges:
  - {{from: reader, to: solver, share: prompt, repair: {{sink: 2}}}}
outputs:
  answer: "{{{{ solver.text }}}}"
"""

TURN_KEYS = {
    "turn",
    "prompt_tokens",
    "prefilled_tokens",
    "reused_tokens",
    "recomputed_tokens",
    "projected_tokens",
    "generated_tokens",
    "layer_tokens_computed",
    "ttft_s",
    "seconds",
    "finish",
}
EDGE_KEYS = {"from", "to", "channel", "reason", "tokens", "bytes", "seconds"}
EDGE_KEYS |= {"turn", "planned", "exact", "reused", "repaired", "projected", "layer_tokens"}
EDGE_KEYS |= {"recomputed_layers"}
RUN_KEYS = {"run_id", "outputs", "agents", "edges", "seconds"}
RUN_KEYS |= {"workflow", "fallbacks", "peak_state_bytes"}

INPUTS = ("-i", "document=who is it that was on the document", "-i", "question=what is a key")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of our own, and colours that do not depend on who runs this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSPOKEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "UNSPOKEN_DEBUG", "COLUMNS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def workflow(tmp_path: Path, model: Path) -> Path:
    return write(tmp_path, model)


def write(folder: Path, model: Path, tokens: int = 6, timeout: str = "none") -> Path:
    file = folder / "pair.yaml"
    file.write_text(WORKFLOW.format(model=model, tokens=tokens, timeout=timeout), encoding="utf-8")
    return file


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run_json(*args: object) -> dict[str, Any]:
    result = call("run", *args, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def test_run_json_has_the_documented_keys(workflow: Path) -> None:
    """One JSON object, with the keys that docs and design promise, is all there is on stdout."""
    found = run_json(workflow, *INPUTS)
    assert set(found) == RUN_KEYS
    assert set(found["outputs"]) == {"answer"}
    assert set(found["agents"]) == {"reader", "solver"}
    for turns in found["agents"].values():
        assert [set(turn) for turn in turns] == [TURN_KEYS]
    assert [set(edge) for edge in found["edges"]] == [EDGE_KEYS]
    assert (found["edges"][0]["from"], found["edges"][0]["to"]) == ("reader", "solver")


def test_run_json_counts_each_prompt_token_once(workflow: Path) -> None:
    """The prompt is the sum of what was prefilled, recomputed, projected and reused."""
    found = run_json(workflow, *INPUTS)
    for (turn,) in found["agents"].values():
        kinds = ("prefilled", "recomputed", "projected", "reused")
        assert turn["prompt_tokens"] == sum(turn[f"{kind}_tokens"] for kind in kinds) > 0
    assert found["agents"]["solver"][0]["reused_tokens"] > 0
    assert found["agents"]["solver"][0]["generated_tokens"] == 6


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
    result = call("run", file)
    assert result.exit_code == 0, result.stderr
    assert "c: skipped" in result.stderr
    assert "! a → b fell back to text: " in result.stderr
    assert [line.split()[:2] for line in result.stderr.splitlines() if " skipped" in line][-1] == [
        "c",
        "skipped",
    ]


def bench_result() -> dict[str, Any]:
    rows = [{"length": 1024, "ratio": 7.25, "ok": True}, {"length": 2048, "ratio": None}]
    return {"machine": {"cpu": "x"}, "rows": rows, "summary": {"ratio_builtin": 7.25}}


def test_bench_prints_rows_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """bench prints machine, rows and summary as tables, or the whole as one JSON object."""
    asked: list[tuple[str, str]] = []

    def run_bench(name: str, *, model: str, progress: Any, **_: object) -> dict[str, Any]:
        asked.append((name, model))
        progress("measuring")
        return bench_result()

    monkeypatch.setattr("unspoken.agents.bench.run_bench", run_bench)
    assert json.loads(call("bench", "hop", "--json", "--model", "a/b").stdout) == bench_result()
    assert asked == [("hop", "a/b")]
    result = call("bench", "hop")
    assert "ratio_builtin" in result.stdout
    assert "7.25" in result.stdout
    assert "hop: measuring" in result.stderr


def test_bench_help_lists_the_benchmarks() -> None:
    """bench --help says what each benchmark measures."""
    result = call("bench", "--help")
    for name in BENCHES:
        assert f"{name}: " in result.stdout


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


def test_plan_json_says_channel_and_reason(workflow: Path) -> None:
    """plan --json names each edge's channel, and the tokens where inputs are given."""
    (edge,) = json.loads(call("plan", workflow, "--json").stdout)["edges"]
    assert (edge["from"], edge["to"], edge["channel"]) == ("reader", "solver", "same_model_cache")
    assert edge["reason"]
    assert edge["tokens"] is None
    (known,) = json.loads(call("plan", workflow, "--json", *INPUTS).stdout)["edges"]
    assert known["tokens"] > 0
    (partly,) = json.loads(call("plan", workflow, "--json", *INPUTS[:2]).stdout)["edges"]
    assert partly["tokens"] == known["tokens"]


def test_a_bad_model_is_found_by_line(workflow: Path, tmp_path: Path) -> None:
    """plan and run say in which line of the file a model or an adapter stands that is not there."""
    text = workflow.read_text(encoding="utf-8")
    ref = text.partition("models: {tiny: ")[2].partition("}")[0]
    for bad, place in (("none/here/at/all", "2:16"), (f"{{ref: {ref}, adapter: ./none}}", "2:")):
        workflow.write_text(text.replace(f"{{tiny: {ref}}}", f"{{tiny: {bad}}}"), encoding="utf-8")
        for command in (["plan"], ["run", *INPUTS]):
            result = call(command[0], workflow, *command[1:])
            assert result.exit_code == 2
            assert f"error: {workflow}:{place}" in result.stderr


def test_plan_prints_table_reason_and_advice(workflow: Path) -> None:
    """plan shows the channel, why, and what would be faster."""
    text = workflow.read_text(encoding="utf-8")
    text = text.replace("  solver:\n", '  solver:\n    system: "answer [bold]this"\n')
    workflow.write_text(text, encoding="utf-8")
    result = call("plan", workflow)
    assert result.exit_code == 0
    assert "same_model_cache" in result.stdout
    assert "splice" in result.stdout
    assert "advice: put the instructions into the prompt" in result.stdout


def test_validate_accepts_the_example() -> None:
    """A valid file is said to be valid, with its size, and exits with 0."""
    result = call("validate", EXAMPLE)
    assert result.exit_code == 0
    assert result.stdout == f"{EXAMPLE}: valid: 2 agents, 1 edge\n"


def test_validate_lists_all_problems_with_their_places(tmp_path: Path) -> None:
    """Every problem is on stderr with file, line and column; the exit code is 2."""
    file = tmp_path / "bad.yaml"
    agents = "\n".join(f"  a{n}: {{model: m, prompt: hi, genrate: none}}" for n in range(30))
    file.write_text(f"name: bad\nmodels: {{m: x/y}}\nagents:\n{agents}\n", encoding="utf-8")
    result = call("validate", file)
    assert result.exit_code == 2
    assert result.stdout == ""
    for line in range(4, 34):
        assert f"{file}:{line}:" in result.stderr
    assert "generate" in result.stderr


def test_other_commands_keep_problems_to_one_screen(tmp_path: Path) -> None:
    """run shows the first problems of a bad file and says how to see the others."""
    file = tmp_path / "bad.yaml"
    agents = "\n".join(f"  a{n}: {{model: m, prompt: hi, genrate: none}}" for n in range(30))
    file.write_text(f"name: bad\nmodels: {{m: x/y}}\nagents:\n{agents}\n", encoding="utf-8")
    result = call("run", file)
    assert result.exit_code == 2
    assert "and 20 more; `unspoken validate` lists all" in result.stderr
    assert len(result.stderr.splitlines()) <= 40


def test_graph_prints_mermaid() -> None:
    """graph prints a Mermaid flowchart and nothing else."""
    result = call("graph", EXAMPLE)
    assert result.exit_code == 0
    assert result.stdout.startswith("flowchart LR\n")
    assert "reader" in result.stdout


def test_schema_is_valid_and_accepts_the_example() -> None:
    """schema prints a JSON schema that the example fits and a misspelt key does not."""
    schema = json.loads(call("schema").stdout)
    checker = jsonschema.validators.validator_for(schema)
    checker.check_schema(schema)
    example = YAML(typ="safe").load(EXAMPLE)
    checker(schema).validate(example)
    assert not checker(schema).is_valid(example | {"agnets": {}})


def test_models_list_json_has_the_embedded_models() -> None:
    """models list --json has a line for every model that comes in a package."""
    result = call("models", "list", "--json")
    assert result.exit_code == 0
    lines = {line["ref"]: line for line in json.loads(result.stdout)}
    for embedded in EMBEDDED.values():
        assert lines[embedded.ref]["kind"] == "embedded"
        assert lines[embedded.ref]["prepared"] is False


def test_models_show_reads_a_folder(tmp_path: Path) -> None:
    """models show gives the cache's shape, and the identity once a first load has computed it."""
    model = tiny_llama(tmp_path / "other", seed=5)
    shape = json.loads(call("models", "show", model, "--json").stdout)
    assert (shape["layers"], shape["kv_heads"], shape["head_dim"]) == (2, [2], [8])
    assert shape["bytes_per_token"] == {"float32": 256, "bfloat16": 128}
    assert shape["max_positions"] == 2048
    assert shape["identity"] is None
    text = call("models", "show", model).stdout
    assert "256 B in float32" in text
    assert "computed when the model is first loaded" in text
    assert call("plan", write(tmp_path, model)).exit_code == 0
    identity = json.loads(call("models", "show", model, "--json").stdout)["identity"]
    assert set(identity) == {"weights", "config", "tokenizer"}
    assert identity["weights"] in call("models", "show", model).stdout


def test_models_show_tells_how_to_get_what_is_not_prepared() -> None:
    """An embedded model that is not prepared is described, with the command that prepares it."""
    ref = "embedded:smollm2-135m-instruct"
    result = call("models", "show", ref)
    assert result.exit_code == 0
    assert f"unspoken models prepare {ref}" in result.stdout


def test_models_prepare_prints_the_folder(model: Path) -> None:
    """models prepare prints the folder of a model, alone on stdout."""
    assert call("models", "prepare", model).stdout == f"{model}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "nope.yaml"], ["there is no file nope.yaml", "expected: a workflow file"]),
        (["run", EXAMPLE], ["input 'document' is missing", "expected: ", "fix: give each as -i"]),
        (["run", EXAMPLE, "-i", "document"], ["'document' is not an input", "NAME=VALUE"]),
        (["run", EXAMPLE, "-i", "documnt=x"], ["no input 'documnt'", "expected: ", "fix: "]),
        (["run", EXAMPLE, "-i", "document=@nope.txt"], ["'nope.txt'", "expected: ", "fix: "]),
        (["run", EXAMPLE, "--json", "--events", "-"], ["both want stdout", "expected: ", "fix: "]),
        (
            ["run", EXAMPLE, *INPUTS, "--events", "no/such/f"],
            ["'no/such/f'", "expected: ", "fix: "],
        ),
        (["plan", EXAMPLE, "-i", "a=b"], ["there is no input 'a'", "expected: ", "fix: "]),
        (["models", "show", "embeded:x"], ["not a model reference", "expected: ", "fix: "]),
        (["bench", "hopp"], ["no benchmark 'hopp'", "expected: ", "fix: "]),
        (["bench", "hop", "--text", "nope"], ["there is no file nope", "expected: ", "fix: "]),
        (["rnu"], ["No such command 'rnu'"]),
        (["run"], ["Missing argument"]),
    ],
)
def test_wrong_input_exits_with_2(args: list[object], words: list[str]) -> None:
    """What a person got wrong is explained on stderr, stdout stays empty, the exit code is 2."""
    result = call(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) <= 24
    for word in words:
        assert word in result.stderr


def test_failed_run_exits_with_1(tmp_path: Path, model: Path) -> None:
    """A run that fails names the agent and how to mend it on stderr, and exits with 1."""
    result = call("run", write(tmp_path, model, 1500, timeout="0.001"), *INPUTS, "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "agent 'solver' took longer than its timeout" in result.stderr
    assert "fix: raise the agent's timeout" in result.stderr


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError("a [red]fault\nof ours")

    monkeypatch.setattr(plan_commands, "print_json", fail)


@pytest.mark.usefixtures("broken")
def test_unexpected_error_is_one_message() -> None:
    """A fault of our own is one short message without a traceback, with a hint at --debug."""
    result = call("schema")
    assert result.exit_code == 1
    assert "unexpected LookupError: a [red]fault" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("broken")
def test_debug_shows_the_traceback() -> None:
    """--debug prints the traceback, with the same exit code."""
    result = call("--debug", "schema")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (OSError(errno.EPIPE, "pipe"), 1)]
)
def test_interrupt_and_closed_pipe_are_quiet(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C exits with 130, a pipe whose reader has gone with 1, neither with a traceback."""

    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(plan_commands, "print_json", stop)
    result = call("schema")
    assert result.exit_code == code
    assert result.stderr in ("", "interrupted\n")


def test_ctrl_c_cancels_a_run(tmp_path: Path, model: Path) -> None:
    """Ctrl-C while an agent writes ends the run with 130 and without a traceback."""
    events = tmp_path / "events.jsonl"
    file = write(tmp_path, model, 1900)
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
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.endswith("interrupted\n")
    assert "Traceback" not in stderr
    assert "RunFinished" not in events.read_text(encoding="utf-8")


LIGHT = """
import sys
from unspoken.agents.cli.main import app
from unspoken.agents.cli.progress import reporting
try:
    app(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = {"torch", "transformers", "networkx"} & set(sys.modules)
sys.stderr.write(f"{code} {sorted(heavy)}")
"""


@pytest.mark.parametrize(
    ("args", "heavy"),
    [
        (["--help"], []),
        (["run", "--help"], []),
        (["schema"], []),
        (["validate", str(EXAMPLE)], ["networkx"]),
        (["graph", str(EXAMPLE)], ["networkx"]),
    ],
)
def test_light_commands_import_no_torch(args: list[str], heavy: list[str]) -> None:
    """Commands that need no model import neither torch nor transformers."""
    assert python(LIGHT, *args).stderr == f"0 {heavy}"


def test_models_list_is_a_table() -> None:
    """models list names every embedded model and how to install those that are not here."""
    result = call("models", "list")
    assert result.exit_code == 0
    for embedded in EMBEDDED.values():
        assert embedded.ref in result.stdout


def test_version_is_one_line() -> None:
    """--version prints the name and the version."""
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("unspoken")
    assert len(result.stdout.splitlines()) == 1
