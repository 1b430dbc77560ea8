"""Transformers kept quiet: its progress bars as reports, its log off, its errors in a line."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

from unspoken.channels.storage.files import Progress
from unspoken.channels.storage.forks import ForkLock

_CALLING_TQDM = (
    "compressed_tensors.compressors.model_compressors.model_compressor",
    "compressed_tensors.quantization.lifecycle.apply",
)
"""Modules that print bars of their own while a model is read."""


def silent(stage: str, fraction: float) -> None:
    """Progress that nobody watches."""


def first_line(error: Exception) -> str:
    """The first line of what a library says, or the kind of its error where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


_ALONE = ForkLock(RLock)


class Stage:
    """The stage that transformers' own progress bars belong to."""

    def __init__(self, name: str, report: Progress) -> None:
        self.name, self.report = name, report
        report(name, 0.0)

    def enter(self, name: str) -> None:
        """Go on to another stage."""
        self.leave()
        self.name = name
        self.report(name, 0.0)

    def leave(self) -> None:
        """End the stage."""
        self.report(self.name, 1.0)

    def bar(self, items: Any = None, *_: Any, total: int | None = None, **__: Any) -> "_Bar":
        return _Bar(self, items, total)


class _Bar:
    """Stands where tqdm's bar would, and reports instead of printing."""

    def __init__(self, stage: Stage, items: Any, total: int | None) -> None:
        self.stage, self.items, self.done = stage, items, 0
        self.total = total or (len(items) if hasattr(items, "__len__") else 0)

    def __iter__(self) -> Iterator[Any]:
        for item in self.items or ():
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        self.done += count
        if self.total:
            self.stage.report(self.stage.name, min(1.0, self.done / self.total))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        return None


@contextmanager
def quiet_transformers(stage: Stage) -> Iterator[None]:
    """Turn transformers' bars into reports and its log lines off; all is put back at the end.

    One thread at a time: transformers itself sets what is the whole process's while it reads a
    model (torch's default dtype, functions of torch.nn), and so does this.
    """
    from transformers import modeling_gguf_pytorch_utils as older
    from transformers.utils import logging as theirs

    with _ALONE, ExitStack() as undo:
        undo.callback(theirs.set_verbosity, theirs.get_verbosity())
        theirs.set_verbosity(logging.CRITICAL)
        before = theirs.set_tqdm_hook(lambda _, args, settings: stage.bar(*args, **settings))
        undo.callback(theirs.set_tqdm_hook, before)
        if hasattr(older, "tqdm"):  # the reader of older architectures calls tqdm itself
            undo.callback(setattr, older, "tqdm", older.tqdm)
            older.tqdm = stage.bar
        for module in _CALLING_TQDM:
            if (loaded := sys.modules.get(module)) is not None:
                undo.callback(setattr, loaded, "tqdm", loaded.tqdm)
                vars(loaded)["tqdm"] = Stage("load", silent).bar
        yield
