"""What of this process is alive: its memory, its tensors, its threads, its unfinished work."""

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType, GeneratorType
from typing import Literal

import torch

from unspoken import agents

__all__ = ["Living", "living", "resident_bytes", "resident_kind"]

_STATM = Path("/proc/self/statm")


def resident_kind() -> Literal["now", "peak", "unknown"]:
    """What `resident_bytes` tells: what there is now, the most that there was, or nothing."""
    if _STATM.exists():
        return "now"
    return "unknown" if sys.platform == "win32" else "peak"


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; its peak where the system tells no more than that.

    None where it tells nothing.
    """
    if resident_kind() == "now":
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Living:
    """What is alive at a moment.

    Attributes:
        tasks: Tasks of the event loop that runs; 0 without.
        threads: Threads of Python, without those that anyio keeps for a while and uses again.
        jobs: Unfinished generators and coroutines of this package, such as turns under way.
        tensor_bytes: Bytes of all tensors that Python can reach, each storage once.
    """

    tasks: int
    threads: int
    jobs: int
    tensor_bytes: int


def living() -> Living:
    """What is alive now, once what nothing refers to is gone."""
    gc.collect()
    objects = gc.get_objects()
    return Living(
        tasks=_tasks(),
        threads=sum(not _is_spare(thread) for thread in threading.enumerate()),
        jobs=sum(map(_is_job, objects)),
        tensor_bytes=sum(dict(_storages(objects)).values()),
    )


def _is_spare(thread: threading.Thread) -> bool:
    return thread.name.startswith("AnyIO worker")


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


_OURS = str(Path(agents.__file__).parent)


def _is_job(thing: object) -> bool:
    # By its type alone: whether a proxy is an instance of something may load a module.
    kind = type(thing)
    if kind is GeneratorType:
        frame, code = thing.gi_frame, thing.gi_code  # type: ignore[attr-defined]
    elif kind is CoroutineType:
        frame, code = thing.cr_frame, thing.cr_code  # type: ignore[attr-defined]
    else:
        return False
    return frame is not None and code.co_filename.startswith(_OURS)


def _storages(objects: list[object]) -> Iterator[tuple[tuple[torch.device, int], int]]:
    for thing in objects:
        if not issubclass(type(thing), torch.Tensor):
            continue
        assert isinstance(thing, torch.Tensor)
        if thing.layout is torch.strided and thing.device.type != "meta":
            storage = thing.untyped_storage()
            yield (thing.device, storage.data_ptr()), storage.nbytes()
