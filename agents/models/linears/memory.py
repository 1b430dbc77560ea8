"""How much memory this process could still have."""

from contextlib import suppress
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """What the host, or the container's limit, has left without swapping; None where unknown."""
    known = [number for number in (_host(), _container()) if number is not None]
    return min(known, default=None)


def _host() -> int | None:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return (
            int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) << 10
        )
    return None


def _container() -> int | None:
    with suppress(OSError, ValueError):  # "max" is no number: there is no limit
        most = int((_GROUP / "memory.max").read_text(encoding="ascii"))
        return max(0, most - int((_GROUP / "memory.current").read_text(encoding="ascii")))
    return None
