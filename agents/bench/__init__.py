"""Benchmarks anyone can run: each gives ``machine``, ``rows`` and ``summary``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.agents.spec.problems import listed, suggest
from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel

__all__ = [
    "BENCHES",
    "DEFAULT_MODEL",
    "DEFAULT_SHARER",
    "PAIRED",
    "STUDIES",
    "Files",
    "Measured",
    "Progress",
    "check_name",
    "report",
    "run_bench",
]

DEFAULT_MODEL = "embedded:smollm2-135m-instruct"
DEFAULT_SHARER = "embedded:gemma3-270m"

Progress = Callable[[str], None]

Measured = tuple[list[dict[str, Any]], dict[str, Any]]
"""Rows of figures, and their summary."""

BENCHES: Mapping[str, str] = {
    "bridge": "what a bridge between two models carries, with its controls, and its time to the "
    "first token",
    "decode": "token-for-token equality with transformers' generate, and the ratio of speeds",
    "hop": "time to the first token after a hand-over: text, continuation, splice, floor",
    "packet": "what a packet keeps of a cache, its size, and from which length on it beats "
    "the text",
    "profile": "a base's cache in two fine-tunes: all reused, some layers recomputed, random ones; "
    "quality and speed",
    "splice": "how far a spliced cache is from a full recompute, with its controls",
}

STUDIES = ("ablation", "dial", "fan_in", "fuse")
"""Measurements in ``examples/studies`` of the repository, each with a script of its own."""

PAIRED = ("bridge",)
"""Benchmarks of two models."""

READS: Mapping[str, tuple[str, ...]] = {
    "bridge": ("text", "qa", "recall"),
    "profile": ("text", "qa"),
}
"""Files that a benchmark reads, where it is more than a text."""


@dataclass(frozen=True, slots=True)
class Files:
    """Rows a person brings; None stands for the built-in ones.

    Attributes:
        text: Plain text to cut passages from.
        qa: Question-answering rows.
        recall: Key-value recall rows.
    """

    text: Path | None = None
    qa: Path | None = None
    recall: Path | None = None


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
        bridge: Folder of the bridge, for the benchmark of that name; None for the store's.
        refit: Whether that benchmark fits the bridge anew.
        progress: Called with a line now and then.

    Returns:
        ``machine``, ``rows`` and ``summary``; the keys of the summary end in ``_builtin`` where no
        file was given.

    Raises:
        InputError: No such benchmark, a file or an option that it does not read, or a file too
            short for it.
    """
    check_name(name)
    files = Files(text, qa, recall)
    _check_options(name, files, bridge, refit)
    from unspoken.agents.models.model import LocalModel

    measure = import_module(f"{__name__}.{name}").measure
    models = [LocalModel.load(model)]
    if name in PAIRED:
        models.insert(0, LocalModel.load(sharer))
        measured = measure(*models, files, progress, bridge=bridge, refit=refit)
    else:
        measured = measure(*models, files, progress)
    return report(models, measured, builtin=files == Files())


def report(models: "Sequence[LocalModel]", measured: Measured, *, builtin: bool) -> dict[str, Any]:
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


def _check_options(name: str, files: Files, bridge: Path | None, refit: bool) -> None:
    """Refuse files and options that a benchmark would not look at."""
    read = READS.get(name, ("text",))
    given = [key for key in ("text", "qa", "recall") if getattr(files, key) is not None]
    if unread := [f"--{key}" for key in given if key not in read]:
        raise InputError(
            f"the benchmark {name} reads no {' and no '.join(unread)} file",
            expected=f"{', '.join(f'--{key} FILE' for key in read)}, or no file",
            fix=f"leave {' and '.join(unread)} out",
        )
    for flag, asked, fault in (
        ("--refit", refit, "fits no bridge"),
        ("--bridge", bridge is not None, "reads no bridge"),
    ):
        if asked and name != "bridge":
            raise InputError(
                f"the benchmark {name} {fault}",
                expected=f"{flag} with the benchmark bridge alone",
                fix=f"leave {flag} out",
            )
