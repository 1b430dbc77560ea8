"""How much memory this process could still have."""

import os
import sys
from contextlib import suppress
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def free_host_bytes() -> int | None:
    """What the host, or a container's limit, has left without swapping; None where unknown."""
    found = [_linux_bytes(), _group_bytes()]
    known = [number for number in found if number is not None]
    if known:
        return min(known)
    if sys.platform == "win32":
        return _windows_bytes()
    # Half of all there is, where nothing says what is free.
    with suppress(ValueError, OSError, AttributeError):
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
