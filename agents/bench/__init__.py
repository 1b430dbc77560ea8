"""Benchmarks anyone can run: each gives ``machine``, ``rows`` and ``summary``."""

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.agents.bench.scale import forecast, reduced, sized
from unspoken.agents.spec.problems import listed, suggest
from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.channels.model import TextModel

__all__ = [
    "ALONE",
    "BENCHES",
    "DEFAULT_MODEL",
    "DEFAULT_SHARER",
    "PAIRED",
    "STUDIES",
    "Measured",
    "Progress",
    "check_name",
    "forecast",
    "report",
    "require_file",
    "run_bench",
    "sized",
]

DEFAULT_MODEL = "embedded:smollm2-135m-instruct"
DEFAULT_SHARER = "embedded:gemma3-270m"

Progress = Callable[[str], None]

Measured = tuple[list[dict[str, Any]], dict[str, Any]]
"""Rows of figures, and their summary."""

ENGINE: Mapping[str, str] = {
    "budget": "a workflow whose states are four times over its memory: answers, peak and time",
    "cancel": "runs that are cancelled at any moment: how soon they are over, and what is left",
    "chain": "agents that go on from one conversation, end to end, beside the same in LangGraph",
    "decode": "token-for-token equality with transformers' generate, and the ratio of speeds",
    "fanout": "one message, many solvers: all at a time, beside the same one after another, "
    "generate and LangGraph",
    "overhead": "a thousand agents that compute nothing, in a row and side by side: our time over "
    "that of LangGraph's graph",
    "resume": "runs that are killed at any moment: how they end when they go on, and what was "
    "done twice",
    "schema": "answers that are bound to a schema: how many are valid, and what the shape costs",
    "session": "the second question about a document, in another run, beside a continuation",
    "soak": "thousands of small runs in one process, and how its memory grows",
    "stall": "how long a decoding agent waits for a token while a neighbour reads a document",
    "fan_in": "several senders on one document: distance to text and time to the first token, "
    "spliced, read again and with one exact",
}
"""Benchmarks in the folder ``engine``."""

BENCHES: Mapping[str, str] = {
    "bridge": "what a bridge between two models carries, with its controls, and its time to the "
    "first token",
    "hop": "time to the first token after a hand-over: text, continuation, splice, floor",
    "hops": "what is left of a message after one to five hand-overs in a row: continuation, "
    "splice, bridges",
    "peers": "four whole workflows, end to end, beside LangGraph, generate, AVP, vLLM, llama.cpp",
    "packet": "what a packet keeps of a cache, its size, and from which length on it beats "
    "the text",
    "predictions": "what plans foretell of ten workflows, beside what their runs take",
    "profile": "a base's cache in two fine-tunes: all reused, some layers recomputed, random ones; "
    "quality and speed",
    "splice": "how far a spliced cache is from a full recompute, with its controls",
    **ENGINE,
}

UNMOVED = (*ENGINE, "peers")
"""Benchmarks whose figures no text changes."""

STUDIES = ("ablation", "dial", "fuse", "hybrid_splice", "repairs")
"""Measurements in ``examples/studies`` of the repository, each with a script of its own."""

PAIRED = ("bridge", "predictions")
"""Benchmarks of two models."""

ALONE = ("overhead", "resume")
"""Benchmarks without a model."""

TAKES: Mapping[str, tuple[str, ...]] = {
    "bridge": ("text", "qa", "recall", "bridge", "refit"),
    "hops": ("qa", "bridge"),
    "peers": ("text", "environments"),
    "profile": ("text", "qa"),
    "overhead": (),
    "resume": (),
}
"""What a benchmark may be given, where it is more than a text."""


def run_bench(
    name: str,
    *,
    model: str = DEFAULT_MODEL,
    sharer: str = DEFAULT_SHARER,
    text: Path | None = None,
    qa: Path | None = None,
    recall: Path | None = None,
    bridge: Path | None = None,
    refit: bool = False,
    environments: Path | None = None,
    count: int | None = None,
    quick: bool = False,
    only: Collection[str] = (),
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Run a benchmark.

    Args:
        name: One of `BENCHES`.
        model: Reference of the model to measure; of the receiver, where there are two.
        sharer: Reference of the sharer, where there are two.
        text: Plain text to cut passages from.
        qa: Question-answering rows, for benchmarks that ask.
        recall: Recall rows, for benchmarks that recall.
        bridge: Folder of the bridge, or of several where both directions are measured; None for
            the store's.
        refit: Whether that benchmark fits the bridge again.
        environments: Folder of the environments of other engines; ``.peers`` where None.
        count: How many rows it measures, of the unit in `SCALES`; None for those of the published
            figures.
        quick: Whether it measures a few rows, to see that it runs.
        only: The parts of it that are measured; empty for all.
        progress: Called with a line now and then.

    Returns:
        ``machine``, ``rows`` and ``summary``; the keys of the summary end in ``_builtin`` where no
        file was given and the figures depend on one.

    Raises:
        InputError: No such benchmark, a file or an option that it does not read, or a file too
            short for it.
    """
    check_name(name)
    rows = {"text": text, "qa": qa, "recall": recall}
    for file in rows.values():
        require_file(file)
    given = {"bridge": bridge, "refit": refit or None, "environments": environments}
    options = _taken(name, {**rows, **given})
    size = sized(name, count=count, quick=quick, only=only)
    from unspoken.agents.models.model import LocalModel

    bench = import_module(_module(name))
    if name in ALONE:
        models = [bench.WordModel()]
    else:
        refs = (sharer, model) if name in PAIRED else (model,)
        models = [LocalModel.load(ref) for ref in refs]
    measured = bench.measure(*models, **options, **size, progress=progress)
    result = report(models, measured, builtin=name not in UNMOVED and not any(rows.values()))
    if left_out := reduced(name, size):
        result["machine"]["measured"] = left_out
    return result


def _module(name: str) -> str:
    """Where a benchmark is."""
    return f"{__name__}.engine.{name}" if name in ENGINE else f"{__name__}.{name}"


def require_file(file: Path | None) -> None:
    """Refuse a file that was named and is not there.

    Raises:
        InputError: There is none.
    """
    if file is not None and not file.is_file():
        raise InputError(f"there is no file {file}", expected="a text file", fix="check the path")


def _taken(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a benchmark takes; refuse others that were given."""
    takes = TAKES.get(name, ("text",))
    given = [option for option, value in options.items() if value is not None]
    if unread := [f"--{option}" for option in given if option not in takes]:
        raise InputError(
            f"the benchmark {name} takes no {' and no '.join(unread)}",
            expected=f"{listed(f'--{option}' for option in takes)}, or none",
            fix=f"leave {' and '.join(unread)} out",
        )
    return {option: options[option] for option in takes}


def report(models: "Sequence[TextModel]", measured: Measured, *, builtin: bool) -> dict[str, Any]:
    """``machine``, ``rows`` and ``summary`` of a measurement.

    Args:
        models: The model that was measured, its sharer before it where there are two.
        measured: The rows and the summary.
        builtin: Whether all rows were the built-in ones, which the summary's keys then say.
    """
    from unspoken.channels.machine import describe_machine

    rows, summary = measured
    machine = describe_machine(models[-1])
    if len(models) > 1:
        machine |= {"sharer": models[0].ref}
    if builtin:
        summary = {
            f"{key.removesuffix('_builtin')}_builtin": value for key, value in summary.items()
        }
    return {"machine": machine, "rows": rows, "summary": summary}


def check_name(name: str) -> None:
    """Refuse a name that is no benchmark's.

    Raises:
        InputError: There is none; for a study, with the command that runs it.
    """
    if name in STUDIES:
        raise InputError(
            f"{name} is a study, and no benchmark of the installed package",
            expected=listed(BENCHES),
            fix=f"python examples/studies/{name}.py, in a clone of the repository",
        )
    if name not in BENCHES:
        raise InputError(
            f"there is no benchmark {name!r}", expected=listed(BENCHES), fix=suggest(name, BENCHES)
        )
