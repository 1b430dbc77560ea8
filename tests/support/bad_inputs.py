"""What a person may get wrong outside the workflow file, each with the error it earns.

The tests hold the code to this table, and the documentation prints it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bad_workflows import GOOD
from tiny import tiny_llama

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.bench import run_bench
from unspoken.agents.spec.inputs import read_inputs
from unspoken.channels import PacketReader, SameModelCacheChannel, packet_key, write_packet
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

__all__ = ["BAD_INPUTS", "BadInput", "furnish"]


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


BAD_INPUTS: tuple[BadInput, ...] = (
    # Model references
    BadInput(
        "embedded model that is not there",
        lambda: LocalModel.load("embedded:smollm2"),
        ModelReferenceError,
        "did you mean embedded:smollm2-135m-instruct?",
    ),
    BadInput(
        "misspelt scheme",
        lambda: LocalModel.load("embeded:smollm2-135m-instruct"),
        ModelReferenceError,
        "is not a model reference",
    ),
    BadInput(
        "model folder that is not there",
        lambda: LocalModel.load("./modle"),
        ModelReferenceError,
        "there is no ./modle",
    ),
    BadInput(
        "folder without a model",
        lambda: LocalModel.load("./empty"),
        ModelReferenceError,
        "a folder without a config.json",
    ),
    BadInput(
        "GGUF file that is not there",
        lambda: LocalModel.load("none.gguf"),
        ModelReferenceError,
        "there is no GGUF file",
    ),
    BadInput(
        "file that only ends in .gguf",
        lambda: LocalModel.load("notes.gguf"),
        ModelReferenceError,
        "is no GGUF file",
    ),
    BadInput(
        "one part of a split GGUF",
        lambda: LocalModel.load("big-00001-of-00002.gguf"),
        ModelReferenceError,
        "one part of a GGUF that was split",
    ),
    BadInput(
        "revision of a folder",
        lambda: LocalModel.load("model", revision="main"),
        ModelReferenceError,
        "has no revisions",
    ),
    BadInput(
        "adapter folder that is not there",
        lambda: LocalModel.load("model", adapter="./adaptr"),
        ModelReferenceError,
        "there is no adapter folder './adaptr'",
    ),
    BadInput(
        "folder without an adapter",
        lambda: LocalModel.load("model", adapter="./empty"),
        ModelReferenceError,
        "it has no adapter_config.json",
    ),
    BadInput(
        "unknown dtype",
        lambda: LocalModel.load("model", dtype="float7"),
        ModelSupportError,
        "dtype 'float7' is unknown",
    ),
    # Files and inputs
    BadInput(
        "workflow file that is not there",
        lambda: Workflow.from_yaml("flwo.yaml"),
        WorkflowError,
        "there is no file",
    ),
    BadInput(
        "folder instead of a workflow file",
        lambda: Workflow.from_yaml("empty"),
        WorkflowError,
        "is a folder",
    ),
    BadInput("missing input", lambda: _flow().run(words="a"), InputError, "'count' is missing"),
    BadInput(
        "misspelt input",
        lambda: _flow().run(wrods="a", words="a", count=1),
        InputError,
        "did you mean 'words'?",
    ),
    BadInput(
        "input of another type",
        lambda: _flow().run(words="a", count="1"),
        InputError,
        "not of type integer",
    ),
    BadInput("-i without =", lambda: _read("words"), InputError, "'words' is not an input"),
    BadInput("-i twice", lambda: _read("count=1", "count=2"), InputError, "is given twice"),
    BadInput(
        "-i with a file that is not there",
        lambda: _read("words=@none.txt"),
        InputError,
        "cannot be read from 'none.txt'",
    ),
    BadInput("-i with a word for a number", lambda: _read("count=two"), InputError, "type integer"),
    # Python
    BadInput(
        "two agents of one name",
        lambda: Workflow("two", [Agent("a", "model", "Why?"), Agent("a", "model", "How?")]),
        WorkflowError,
        "two agents are called 'a'",
    ),
    BadInput(
        "misspelt key of an agent's generate",
        lambda: Agent("a", "model", "Why?", generate={"max_token": 3}),
        WorkflowError,
        "did you mean 'max_new_tokens'?",
    ),
    BadInput(
        "agent without a turn",
        lambda: Agent("a", "model", "Why?", max_turns=0),
        WorkflowError,
        "expected: 1 or more",
    ),
    BadInput(
        "edge to an agent that is not there",
        lambda: _flow().connect("writer", "raeder"),
        WorkflowError,
        "did you mean 'reader'?",
    ),
    BadInput(
        "channel that is not there",
        lambda: _flow().connect("writer", "reader", "same_model_cach"),
        WorkflowError,
        "did you mean 'same_model_cache'?",
    ),
    BadInput(
        "no channel at all",
        lambda: _flow().connect("writer", "reader", 4),  # type: ignore[arg-type]
        InputError,
        "the channel of an edge is int",
    ),
    BadInput("negative repair", lambda: SameModelCacheChannel(sink=-1), InputError, "sink is -1"),
    BadInput("writing out a model made in memory", _in_memory, InputError, "was made in memory"),
    BadInput("unknown benchmark", lambda: run_bench("hopp"), InputError, "did you mean 'hop'?"),
    # Packets
    BadInput(
        "packet into a folder that is not there",
        lambda: _packet("none/message.packet"),
        InputError,
        "there is no folder 'none'",
    ),
    BadInput(
        "packet with an unknown codec",
        lambda: _packet("message.packet", "int2"),
        InputError,
        "there is no codec 'int2'",
    ),
    BadInput(
        "packet file that is not there",
        lambda: PacketReader("none.packet", key=None),
        InputError,
        "the packet 'none.packet' cannot be opened",
    ),
    BadInput(
        "key in the place of the key's file",
        lambda: packet_key(cast("Any", b"0123456789abcdef")),
        InputError,
        "the packet key's file is",
    ),
    # Plans and runs
    BadInput(
        "cache from other weights, no fallback",
        _other_weights,
        WorkflowError,
        "no profile from other to model",
    ),
    BadInput(
        "layers to recompute that the model does not have",
        lambda: SameModelCacheChannel(layer_ranges=((1, 99),)).check(
            LocalModel.load("other"), LocalModel.load("model")
        ),
        InputError,
        "[1, 99]",
    ),
    BadInput(
        "profile of one model",
        lambda: profile_pair(LocalModel.load("model"), LocalModel.load("model")),
        InputError,
        "have the same weights",
    ),
    BadInput(
        "profile on messages longer than the context",
        lambda: profile_pair(
            LocalModel.load("other"), LocalModel.load("model"), ProfilePlan(Path("flow.yaml"))
        ),
        InputError,
        "may take 824 positions",
    ),
    BadInput(
        "prompt longer than the context",
        lambda: _run(words="what " * 100),
        AgentError,
        "fewer than the 64 of model",
    ),
    BadInput(
        "prompt that reads an item that is not there",
        lambda: _run("{{ inputs.words.split()[9] }}"),
        AgentError,
        "agent 'writer' failed",
    ),
    BadInput(
        "agent that takes too long",
        lambda: _run(timeout=0.001),
        RunTimeout,
        "took longer than its timeout",
    ),
)
