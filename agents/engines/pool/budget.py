"""How much memory states may take: what was asked for, else a share of what is free."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from unspoken.channels.errors import InputError
from unspoken.channels.sizes import parse_bytes

SHARE = 0.5
"""Part of the memory that is free at first, where nothing was asked for."""

_CGROUP = Path("/sys/fs/cgroup")


class Budget:
    """Most bytes of states on each device.

    Args:
        memory: Bytes, or a size such as ``2GB``; None for half of what is free when a device is
            first used. A turn that needs more than this half may then have the rest too, alone.

    Raises:
        InputError: It is no size.
    """

    def __init__(self, memory: int | str | None = None) -> None:
        self.asked = None if memory is None else _bytes(memory)
        self._free: dict[torch.device, int | None] = {}

    def of(self, device: torch.device) -> int | None:
        """The most bytes on a device; None where nothing says how much it has."""
        free = self.at_most(device)
        return free if free is None or self.asked is not None else int(free * SHARE)

    def at_most(self, device: torch.device) -> int | None:
        """The most bytes for one turn alone: what was asked for, else all that was free."""
        if self.asked is not None:
            return self.asked
        if device not in self._free:
            self._free[device] = free_bytes(device)
        return self._free[device]


def _bytes(memory: int | str) -> int:
    try:
        if isinstance(memory, str):
            return parse_bytes(memory)
        if isinstance(memory, bool) or memory < 1:
            raise ValueError
    except (ValueError, TypeError) as error:
        raise InputError(
            f"memory is {memory!r}",
            expected="a number of bytes, or a size such as 800MB, 2GB or 1.5GiB",
        ) from error
    return memory


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device now; None where nothing says so."""
    if device.type == "cpu":
        return _free_host_bytes()
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    asked = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    return None if asked is None else int(asked(device)[0])


def _free_host_bytes() -> int | None:
    found = [_linux_bytes(), _group_bytes()]
    known = [number for number in found if number is not None]
    if known:
        return min(known)
    if sys.platform == "win32":
        return _windows_bytes()
    with suppress(
        ValueError, OSError, AttributeError
    ):  # all there is, where nothing says what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _linux_bytes() -> int | None:
    """What Linux can give without swapping."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _group_bytes() -> int | None:
    """What is left to a container, by version 2 of Linux's control groups; files make room."""
    with suppress(OSError, ValueError, KeyError):  # "max" is no number: there is no limit
        most, used = (
            int((_CGROUP / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        kinds = dict(line.split() for line in lines)
        files = int(kinds["inactive_file"]) + int(kinds["active_file"])
        return max(most - max(used - files, 0), 0)
    return None


def _windows_bytes() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "p", "q", "v", "w", "x")),
        )

    status = Status()
    status.length = ctypes.sizeof(Status)
    library = getattr(ctypes, "windll").kernel32  # noqa: B009  # not there for a type checker
    return int(status.free) if library.GlobalMemoryStatusEx(ctypes.byref(status)) else None
