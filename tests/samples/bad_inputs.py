"""What a person may get wrong outside the workflow file, each with the error it earns.

The tests hold the code to this table, and the documentation prints it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bad_workflows import GOOD
from tiny import tiny_llama
from torch.nn import Module

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.bench import run_bench
from unspoken.agents.spec.input_words import read_inputs
from unspoken.channels import (
    PacketReader,
    ProjectedCacheChannel,
    SameModelCacheChannel,
    packet_key,
    write_packet,
)
from unspoken.channels.errors import (
    AgentError,
    InputError,
    ModelReferenceError,
    ModelSupportError,
    RunTimeout,
    UnspokenError,
    WorkflowError,
)
from unspoken.channels.finetunes.measure import ProfilePlan, profile_pair


@dataclass(frozen=True)
class BadInput:
    """A mistake made in a folder that `furnish` has filled, and what it raises."""

    name: str
    do: Callable[[], object]
    error: type[UnspokenError]
    message: str


def furnish(folder: Path) -> None:
    """Fill a folder with what `BAD_INPUTS` refer to."""
    tiny_llama(folder / "model", max_position_embeddings=64)
    tiny_llama(folder / "other", seed=1, max_position_embeddings=64)
    (folder / "empty").mkdir()
    (folder / "notes.gguf").write_text("not a model")
    (folder / "big-00001-of-00002.gguf").write_bytes(b"GGUF")
    (folder / "flow.yaml").write_text(GOOD)


def _flow(prompt: str = "{{ inputs.words }}", model: str = "model", **settings: object) -> Workflow:
    writer = Agent("writer", model, prompt, generate={"max_new_tokens": 40}, **settings)  # type: ignore[arg-type]
    reader = Agent("reader", "model", "Why?", generate={"max_new_tokens": 2})
    return Workflow("pair", [writer, reader], inputs={"words": "text", "count": "integer"})


def _run(prompt: str = "{{ inputs.words }}", words: str = "a b", **settings: object) -> None:
    _flow(prompt, **settings).run(words=words, count=1)


def _read(*words: str) -> None:
    read_inputs(_flow().spec, list(words))


def _in_memory() -> None:
    loaded = LocalModel.load("model")
    model = LocalModel(loaded.hf, loaded.tokenizer)
    Workflow("one", [Agent("a", model, "Why?")]).to_yaml()


def _other_weights() -> None:
    flow = _flow(model="other")
    flow.connect("writer", "reader", "same_model_cache", fallback="error").plan()


def _packet(file: str, codec: Any = "raw") -> None:
    message = LocalModel.load("model").message("a b")
    write_packet(message, file, key=b"0123456789abcdef", codec=codec)


def _raising(
    error: type[UnspokenError], *rows: tuple[str, Callable[[], object], str]
) -> tuple[BadInput, ...]:
    return tuple(BadInput(name, do, error, message) for name, do, message in rows)


BAD_INPUTS: tuple[BadInput, ...] = (
    # Model references
    *_raising(
        ModelReferenceError,
        (
            "embedded model that is not there",
            lambda: LocalModel.load("embedded:smollm2"),
            "did you mean embedded:smollm2-135m-instruct?",
        ),
        (
            "model in the place of its reference",
            lambda: LocalModel.load(cast("Any", Module())),
            "a Module stands where a model reference stands",
        ),
        (
            "misspelt scheme",
            lambda: LocalModel.load("embeded:smollm2-135m-instruct"),
            "is not a model reference",
        ),
        (
            "model folder that is not there",
            lambda: LocalModel.load("./modle"),
            "there is no ./modle",
        ),
        (
            "folder without a model",
            lambda: LocalModel.load("./empty"),
            "a folder without a config.json",
        ),
        (
            "GGUF file that is not there",
            lambda: LocalModel.load("none.gguf"),
            "there is no GGUF file",
        ),
        ("file that only ends in .gguf", lambda: LocalModel.load("notes.gguf"), "is no GGUF file"),
        (
            "one part of a split GGUF",
            lambda: LocalModel.load("big-00001-of-00002.gguf"),
            "one part of a GGUF that was split",
        ),
        (
            "revision of a folder",
            lambda: LocalModel.load("model", revision="main"),
            "has no revisions",
        ),
        (
            "adapter folder that is not there",
            lambda: LocalModel.load("model", adapter="./adaptr"),
            "there is no adapter folder './adaptr'",
        ),
        (
            "folder without an adapter",
            lambda: LocalModel.load("model", adapter="./empty"),
            "it has no adapter_config.json",
        ),
    ),
    *_raising(
        ModelSupportError,
        (
            "unknown dtype",
            lambda: LocalModel.load("model", dtype="float7"),
            "dtype 'float7' is unknown",
        ),
    ),
    # Files and inputs
    *_raising(
        WorkflowError,
        (
            "workflow file that is not there",
            lambda: Workflow.from_yaml("flwo.yaml"),
            "there is no file",
        ),
        ("folder instead of a workflow file", lambda: Workflow.from_yaml("empty"), "is a folder"),
    ),
    *_raising(
        InputError,
        ("missing input", lambda: _flow().run(words="a"), "'count' is missing"),
        (
            "misspelt input",
            lambda: _flow().run(wrods="a", words="a", count=1),
            "did you mean 'words'?",
        ),
        ("input of another type", lambda: _flow().run(words="a", count="1"), "not of type integer"),
        ("-i without =", lambda: _read("words"), "'words' is not an input"),
        ("-i twice", lambda: _read("count=1", "count=2"), "is given twice"),
        (
            "-i with a file that is not there",
            lambda: _read("words=@none.txt"),
            "cannot be read from 'none.txt'",
        ),
        ("-i with a word for a number", lambda: _read("count=two"), "type integer"),
    ),
    # Python
    *_raising(
        WorkflowError,
        (
            "two agents of one name",
            lambda: Workflow("two", [Agent("a", "model", "Why?"), Agent("a", "model", "How?")]),
            "two agents are called 'a'",
        ),
        (
            "misspelt key of an agent's generate",
            lambda: Agent("a", "model", "Why?", generate={"max_token": 3}),
            "did you mean 'max_new_tokens'?",
        ),
        (
            "agent without a turn",
            lambda: Agent("a", "model", "Why?", max_turns=0),
            "expected: 1 or more",
        ),
        (
            "edge to an agent that is not there",
            lambda: _flow().connect("writer", "raeder"),
            "did you mean 'reader'?",
        ),
        (
            "function in the place of a condition",
            lambda: _flow().connect("writer", "reader", when=cast("Any", len)),
            "a condition is text",
        ),
        (
            "channel that is not there",
            lambda: _flow().connect("writer", "reader", "same_model_cach"),
            "did you mean 'same_model_cache'?",
        ),
    ),
    *_raising(
        InputError,
        (
            "no channel at all",
            lambda: _flow().connect("writer", "reader", 4),
            "the channel of an edge is int",
        ),
        (
            "number in the place of a model",
            lambda: Agent("a", cast("Any", 4), "Why?"),
            "the model of agent 'a' is of type int",
        ),
        (
            "transformers model in the place of a model",
            lambda: Agent("a", cast("Any", Module()), "Why?"),
            "fix: wrap it: LocalModel(model, tokenizer)",
        ),
        (
            "number among the models",
            lambda: Workflow("a", [], models=cast("Any", {"small": 4})),
            "the number 4 stands under the name 'small'",
        ),
        (
            "number in the place of an agent",
            lambda: _flow().connect(cast("Any", 4), "reader"),
            "the number 4 stands where an agent stands",
        ),
        (
            "bridge that is none",
            lambda: ProjectedCacheChannel(cast("Any", object())),
            "the bridge, of type object, has no manifest",
        ),
        ("negative repair", lambda: SameModelCacheChannel(sink=-1), "sink is -1"),
        ("writing out a model made in memory", _in_memory, "was made in memory"),
        ("unknown benchmark", lambda: run_bench("hopp"), "did you mean 'hop'?"),
        ("part of a benchmark", lambda: run_bench("hop", only=["9"]), "--only is '9'"),
        ("benchmark of no row", lambda: run_bench("hop", count=0), "--rows is 0"),
    ),
    # Packets
    *_raising(
        InputError,
        (
            "packet into a folder that is not there",
            lambda: _packet("none/message.packet"),
            "there is no folder 'none'",
        ),
        (
            "packet with an unknown codec",
            lambda: _packet("message.packet", "int2"),
            "there is no codec 'int2'",
        ),
        (
            "packet file that is not there",
            lambda: PacketReader("none.packet", key=None),
            "the packet 'none.packet' cannot be opened",
        ),
        (
            "key in the place of the key's file",
            lambda: packet_key(cast("Any", b"0123456789abcdef")),
            "the packet key's file is",
        ),
    ),
    # Plans and runs
    *_raising(
        WorkflowError,
        ("cache from other weights, no fallback", _other_weights, "no profile from other to model"),
    ),
    *_raising(
        InputError,
        (
            "layers to recompute that the model does not have",
            lambda: SameModelCacheChannel(layer_ranges=((1, 99),)).check(
                LocalModel.load("other"), LocalModel.load("model")
            ),
            "[1, 99]",
        ),
        (
            "profile of one model",
            lambda: profile_pair(LocalModel.load("model"), LocalModel.load("model")),
            "have the same weights",
        ),
        (
            "profile on messages longer than the context",
            lambda: profile_pair(
                LocalModel.load("other"),
                LocalModel.load("model"),
                ProfilePlan(data=Path("flow.yaml")),
            ),
            "may take 824 positions",
        ),
    ),
    *_raising(
        AgentError,
        (
            "prompt longer than the context",
            lambda: _run(words="what " * 100),
            "fewer than the 64 of model",
        ),
        (
            "prompt that reads an item that is not there",
            lambda: _run("{{ inputs.words.split()[9] }}"),
            "agent 'writer' failed",
        ),
    ),
    *_raising(
        RunTimeout,
        ("agent that takes too long", lambda: _run(timeout=0.001), "took longer than its timeout"),
    ),
)
