"""The threads that torch computes with: each of ours that computes gives its own back.

OpenMP keeps a team of threads for every thread that ever computed in parallel. While libgomp has
more threads than there are cores, each of them sleeps in the kernel at the end of every operation
instead of waiting the moment until the next. A step of decoding is a thousand short operations, so
it then takes half as long again, or longer. So a thread ends its team when it hands over to a
device's thread, and that one ends its own before it rests. A team is there again at the next
operation.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from unspoken.channels.storage.forks import when_forked

__all__ = ["end_team", "ending_team"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_SOFT = 1
"""OpenMP's ``omp_pause_soft``: threads end, settings stay."""

_forked = False


def end_team() -> None:
    """End the threads that OpenMP keeps for the calling thread; nothing without libgomp."""
    pause = _pause()
    if pause is not None and not _forked:
        pause(_SOFT)


def ending_team(call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`call`, after which its thread ends its team."""

    @wraps(call)
    def ending(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return call(*args, **kwargs)
        finally:
            end_team()

    return ending


@cache
def _pause() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` (OpenMP 5.0) of the libgomp that torch has loaded."""
    if not hasattr(os, "RTLD_NOLOAD"):  # Windows, which has another OpenMP
        return None
    beside_torch = Path(torch.__file__).parent / "lib"
    for name in (*map(str, beside_torch.glob("libgomp*.so*")), "libgomp.so.1"):
        try:
            library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            return library.omp_pause_resource_all
        except (OSError, AttributeError):  # not loaded, or older than OpenMP 5.0
            continue
    return None


def _in_child() -> None:
    """The teams stayed behind, and to end one would wait for its threads for ever."""
    global _forked
    _forked = True


when_forked(_in_child)
