"""The command line: what it prints, where, and with which exit code."""

import errno
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command_line import INPUTS, call, done, write_workflow
from hybrids import make_hybrid
from processes import python
from ruamel.yaml import YAML
from tiny import tiny_llama
from transformers import GenerationConfig

from unspoken.agents import LocalModel
from unspoken.agents.cli import plan as plan_commands
from unspoken.agents.models.checkpoints.tokenizer import save_tokenizer
from unspoken.agents.models.embedded import EMBEDDED
from unspoken.agents.models.notes import cached_geometry

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "reader_solver" / "workflow.yaml"


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

    monkeypatch.setattr("unspoken.agents.cli.bench.run_bench", run_bench)
    assert json.loads(call("bench", "hop", "--json", "--model", "a/b").stdout) == bench_result()
    assert asked == [("hop", "a/b")]
    result = call("bench", "hop")
    assert "ratio_builtin" in result.stdout
    assert "7.25" in result.stdout
    assert "hop: measuring" in result.stderr
    assert "bench hop: 9 rounds" in result.stderr
    assert "all parts: 3 rounds" in call("bench", "hop", "--rows", 3, "--only", "512").stderr


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
    stdout = done("plan", workflow)
    assert "same_model_cache" in stdout
    assert "splice" in stdout
    assert "advice: put the instructions into the prompt" in stdout


def test_validate_accepts_the_example() -> None:
    """A valid file is said to be valid, with its size, and exits with 0."""
    stdout = done("validate", EXAMPLE)
    assert stdout == f"{EXAMPLE}: valid: 2 agents, 1 edge\n"


def test_problems_are_listed_with_their_places(tmp_path: Path) -> None:
    """validate lists every problem of a file; other commands keep to one screen."""
    file = tmp_path / "bad.yaml"
    agents = "\n".join(f"  a{n}: {{model: m, prompt: hi, genrate: none}}" for n in range(30))
    file.write_text(f"name: bad\nmodels: {{m: x/y}}\nagents:\n{agents}\n", encoding="utf-8")
    every, first = call("validate", file), call("run", file)
    assert every.exit_code == first.exit_code == 2
    assert every.stdout == first.stdout == ""
    for line in range(4, 34):
        assert f"{file}:{line}:" in every.stderr
    assert "and 20 more; `unspoken validate` lists all" in first.stderr
    assert len(first.stderr.splitlines()) <= 40


def test_graph_prints_mermaid() -> None:
    """graph prints a Mermaid flowchart and nothing else."""
    stdout = done("graph", EXAMPLE)
    assert stdout.startswith("flowchart LR\n")
    assert "reader" in stdout


def test_schema_is_valid_and_accepts_the_example() -> None:
    """schema prints a JSON schema that the example fits and a misspelt key does not."""
    schema = json.loads(call("schema").stdout)
    checker = jsonschema.validators.validator_for(schema)
    checker.check_schema(schema)
    example = YAML(typ="safe").load(EXAMPLE)
    checker(schema).validate(example)
    assert not checker(schema).is_valid(example | {"agnets": {}})


def test_models_list_has_the_embedded_models() -> None:
    """models list has a line for every model that comes in a package, as table and as JSON."""
    table = done("models", "list")
    lines = {line["ref"]: line for line in json.loads(done("models", "list", "--json"))}
    for embedded in EMBEDDED.values():
        assert embedded.ref in table
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
    assert call("plan", write_workflow(tmp_path, model)).exit_code == 0
    identity = json.loads(call("models", "show", model, "--json").stdout)["identity"]
    assert set(identity) == {"weights", "config", "tokenizer"}
    assert identity["weights"] in call("models", "show", model).stdout


def test_models_show_tells_whether_turns_are_batched(tmp_path: Path) -> None:
    """models show says so once a first load has tried it."""
    model = tiny_llama(tmp_path / "other", seed=6)
    assert json.loads(call("models", "show", model, "--json").stdout)["batches"] == {}
    assert call("plan", write_workflow(tmp_path, model)).exit_code == 0
    assert set(json.loads(call("models", "show", model, "--json").stdout)["batches"].values()) == {
        None
    }
    lines = [line.split() for line in call("models", "show", model).stdout.splitlines()]
    assert ["batched", "yes"] in lines and ["splice", "yes"] in lines


@pytest.mark.parametrize("name", ["falcon-h1", "qwen3-next", "deepseek-v3"])
def test_models_show_reads_every_kind_of_layer(tmp_path: Path, name: str) -> None:
    """Where a model cannot be asked without its weights, its shape is told once it was loaded."""
    made = make_hybrid(name)
    made.hf.save_pretrained(tmp_path)
    save_tokenizer(made.tokenizer, tmp_path)
    before = json.loads(done("models", "show", tmp_path, "--json"))
    assert before["layers"] is None or before["kinds"] == kinds_of(made)
    words = done("models", "show", tmp_path)
    assert ("known once the model is first loaded" in words) == (before["layers"] is None)
    loaded = LocalModel.load(tmp_path)
    assert cached_geometry(tmp_path) == loaded.backbone.geometry
    after = json.loads(done("models", "show", tmp_path, "--json"))
    assert after["kinds"] == kinds_of(made)
    row = loaded.geometry.bytes_per_token(4)
    assert after["bytes_per_token"]["float32"] == row
    (can,) = after["abilities"].values()
    refused = [can[name] for name in ("splice", "sharer", "receiver")]
    if loaded.geometry.recurrent:
        assert all(loaded.geometry.described_reading() in why for why in refused)


def kinds_of(model: LocalModel) -> list[str]:
    return [layer.kind for layer in model.geometry.layers]


def test_models_show_tells_what_a_checkpoint_asks_for(tmp_path: Path) -> None:
    """Settings of generation are told, with the key that applies them, or as not applied."""
    model = tiny_llama(tmp_path / "asking", seed=5)
    GenerationConfig(repetition_penalty=1.05, num_beams=3).save_pretrained(model)
    facts = json.loads(call("models", "show", model, "--json").stdout)
    assert facts["generation"] == {"repetition_penalty": 1.05, "num_beams": 3}
    text = " ".join(call("models", "show", model).stdout.split())
    assert "repetition_penalty 1.05, with generate: {defaults: checkpoint}" in text
    assert "num_beams 3, not applied" in text


def test_models_show_tells_how_to_get_what_is_not_prepared() -> None:
    """An embedded model that is not prepared is described, with the command that prepares it."""
    ref = "embedded:smollm2-135m-instruct"
    stdout = done("models", "show", ref)
    assert f"unspoken models prepare {ref}" in stdout


def test_models_prepare_prints_the_folder(model: Path) -> None:
    """models prepare prints the folder of a model, alone on stdout."""
    assert call("models", "prepare", model).stdout == f"{model}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "nope.yaml"], ["there is no file nope.yaml", "expected: a workflow file"]),
        (["run", EXAMPLE], ["input 'document' is missing", "expected: ", "fix: give each as -i"]),
        (["run", EXAMPLE, "-i", "document"], ["'document' is not an input", "NAME=VALUE"]),
        (["run", EXAMPLE, "--json", "--events", "-"], ["both want stdout", "expected: ", "fix: "]),
        (
            ["run", EXAMPLE, *INPUTS, "--events", "no/such/f"],
            ["'no/such/f'", "expected: ", "fix: "],
        ),
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


@pytest.mark.parametrize("debug", [False, True])
def test_unexpected_error_is_one_message(debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our own is one short message; --debug prints its traceback."""

    def fail(*_: object) -> None:
        raise LookupError("a [red]fault\nof ours")

    monkeypatch.setattr(plan_commands, "print_json", fail)
    result = call(*(["--debug"] if debug else []), "schema")
    assert result.exit_code == 1
    assert ("Traceback" in result.stderr) == debug
    if not debug:
        assert "unexpected LookupError: a [red]fault" in result.stderr
        assert "--debug" in result.stderr


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


LIGHT = """
import sys
from unspoken.agents.cli.main import app
from unspoken.agents.cli.progress import reporting
try:
    app(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = {"torch", "transformers", "networkx", "jinja2"} & set(sys.modules)
sys.stderr.write(f"{code} {sorted(heavy)}")
"""


@pytest.mark.parametrize(
    ("args", "heavy"),
    [
        (["--help"], []),
        (["run", "--help"], []),
        (["schema"], []),
        (["models", "list"], []),
        (["bridge", "list"], []),
        (["validate", str(EXAMPLE)], ["networkx"]),
    ],
)
def test_light_commands_import_no_torch(args: list[str], heavy: list[str]) -> None:
    """Commands that need no model import neither torch nor transformers."""
    assert python(LIGHT, *args).stderr == f"0 {heavy}"


def test_version_is_one_line() -> None:
    """--version prints the name and the version."""
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("unspoken")
    assert len(result.stdout.splitlines()) == 1
