"""Benchmarks anyone can run: each gives ``machine``, ``rows`` and ``summary``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from unspoken.agents._problems import listed, suggest
from unspoken.channels.errors import InputError

__all__ = ["BENCHES", "Files", "Progress", "run_bench"]

Progress = Callable[[str], None]

BENCHES: Mapping[str, str] = {
    "decode": "token-for-token equality with transformers' generate, and the ratio of speeds",
    "hop": "time to the first token after a hand-over: text, continuation, splice, floor",
    "splice": "how far a spliced cache is from a full recompute, with its controls",
}


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
    model: str = "embedded:smollm2-135m-instruct",
    text: Path | None = None,
    qa: Path | None = None,
    recall: Path | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, Any]:
    """Run a benchmark.

    Args:
        name: One of `BENCHES`.
        model: Reference of the model to measure.
        text: Plain text to cut passages from.
        qa: Question-answering rows, for benchmarks that ask.
        recall: Recall rows, for benchmarks that recall.
        progress: Called with a line now and then.

    Returns:
        ``machine``, ``rows`` and ``summary``; the keys of the summary end in ``_builtin`` where no file was given.

    Raises:
        InputError: No such benchmark, or a file too short for it.
    """
    if name not in BENCHES:
        raise InputError(
            f"there is no benchmark {name!r}", expected=listed(BENCHES), fix=suggest(name, BENCHES)
        )
    unread = [f"--{key}" for key, path in (("qa", qa), ("recall", recall)) if path is not None]
    if unread:
        raise InputError(
            f"the benchmark {name} reads no {' and no '.join(unread)} file",
            expected="--text FILE, or no file",
            fix=f"leave {' and '.join(unread)} out",
        )
    from unspoken.agents.bench.machine import describe_machine
    from unspoken.agents.model import LocalModel

    files = Files(text, qa, recall)
    loaded = LocalModel.load(model)
    rows, summary = import_module(f"{__name__}.{name}").measure(loaded, files, progress)
    if files == Files():
        summary = {f"{key}_builtin": value for key, value in summary.items()}
    return {"machine": describe_machine(loaded), "rows": rows, "summary": summary}
