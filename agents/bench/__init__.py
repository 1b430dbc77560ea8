"""Benchmarks anyone can run: each gives ``machine``, ``rows`` and ``summary``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from unspoken.agents.spec.problems import listed, suggest
from unspoken.channels.errors import InputError

__all__ = ["BENCHES", "PAIRED", "Files", "Options", "Progress", "run_bench"]

Progress = Callable[[str], None]

BENCHES: Mapping[str, str] = {
    "ablation": "what each part of a bridge is worth: features, ranks, source layers, trained "
    "parts",
    "bridge": "what a bridge between two models carries, with its controls, and its time to the "
    "first token",
    "decode": "token-for-token equality with transformers' generate, and the ratio of speeds",
    "dial": "a bridge over the number of layers that its receiver runs itself: what is kept, and "
    "the speed",
    "fan_in": "messages of 1, 2 and 4 senders in one context: no repair, sinks, deviation, all "
    "recomputed",
    "fuse": "multiple-choice questions: the receiver alone, text, self-fused, fused, fused with "
    "another row's",
    "hop": "time to the first token after a hand-over: text, continuation, splice, floor",
    "packet": "what a packet keeps of a cache, what it weighs, and from which length on it beats "
    "the text",
    "profile": "a base's cache in two fine-tunes: all reused, some layers recomputed, random ones; "
    "quality and speed",
    "splice": "how far a spliced cache is from a full recompute, with its controls",
}

ALONE: Mapping[str, tuple[str, ...]] = {"profile": ("text", "qa")}
"""Files that a benchmark of one model reads, where it is more than a text."""

PAIRED: Mapping[str, tuple[str, ...]] = {
    "ablation": ("text", "qa"),
    "bridge": ("text", "qa", "recall"),
    "dial": ("text",),
    "fuse": ("qa",),
}
"""Benchmarks of two models, and the files that each reads. The others take one model and a text."""


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


@dataclass(frozen=True, slots=True)
class Options:
    """What a benchmark of two models may be told besides.

    Attributes:
        bridge: The bridge's folder; None for the store's.
        refit: Whether to fit the bridge anew.
        self_bridge: Folder of a bridge with fuse mode from the receiver to itself; None to fit that
            control.
        keep: Folder that keeps the fusers which the benchmark fits; None to keep none.
    """

    bridge: Path | None = None
    refit: bool = False
    self_bridge: Path | None = None
    keep: Path | None = None


def run_bench(
    name: str,
    *,
    model: str = "embedded:smollm2-135m-instruct",
    sharer: str = "embedded:gemma3-270m",
    text: Path | None = None,
    qa: Path | None = None,
    recall: Path | None = None,
    options: Options | None = None,
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
        options: What else a benchmark of two models may be told.
        progress: Called with a line now and then.

    Returns:
        ``machine``, ``rows`` and ``summary``; the keys of the summary end in ``_builtin`` where no
        file was given.

    Raises:
        InputError: No such benchmark, a file or an option that it does not read, or a file too
            short for it.
    """
    if name not in BENCHES:
        raise InputError(
            f"there is no benchmark {name!r}", expected=listed(BENCHES), fix=suggest(name, BENCHES)
        )
    files = Files(text, qa, recall)
    _check(name, files, options or Options())
    from unspoken.agents.models.model import LocalModel
    from unspoken.channels.machine import describe_machine

    measure = import_module(f"{__name__}.{name}").measure
    loaded = LocalModel.load(model)
    machine = describe_machine(loaded)
    if name in PAIRED:
        other = LocalModel.load(sharer)
        machine |= {"sharer": other.ref}
        rows, summary = measure(other, loaded, files, progress, options or Options())
    else:
        rows, summary = measure(loaded, files, progress)
    if files == Files():
        summary = {_builtin(key): value for key, value in summary.items()}
    return {"machine": machine, "rows": rows, "summary": summary}


def _check(name: str, files: Files, options: Options) -> None:
    """Refuse files and options that a benchmark would not look at."""
    read = PAIRED.get(name) or ALONE.get(name, ("text",))
    unread = [f"--{key}" for key in ("text", "qa", "recall") if getattr(files, key) is not None]
    unread = [flag for flag in unread if flag.removeprefix("--") not in read]
    if unread:
        raise InputError(
            f"the benchmark {name} reads no {' and no '.join(unread)} file",
            expected=f"{', '.join(f'--{key} FILE' for key in read)}, or no file",
            fix=f"leave {' and '.join(unread)} out",
        )
    if options.refit and name != "bridge":
        raise InputError(
            f"the benchmark {name} fits no bridge",
            expected="--refit with the benchmark bridge alone",
            fix="leave --refit out",
        )
    if options.self_bridge is not None and name != "fuse":
        raise InputError(
            f"the benchmark {name} has no control that reads the receiver itself",
            expected="--self-bridge with the benchmark fuse alone",
            fix="leave --self-bridge out",
        )
    if options.keep is not None and name != "fuse":
        raise InputError(
            f"the benchmark {name} keeps nothing that it fits",
            expected="--keep with the benchmark fuse alone",
            fix="leave --keep out",
        )
    if options.bridge is not None and name not in ("ablation", "bridge", "fuse"):
        raise InputError(
            f"the benchmark {name} reads no bridge",
            expected="--bridge with the benchmarks ablation, bridge and fuse",
            fix="leave --bridge out",
        )


def _builtin(key: str) -> str:
    return key if key.endswith("_builtin") else f"{key}_builtin"
