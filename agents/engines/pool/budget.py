"""How much memory states may take: what was asked for, else a share of what is free."""

import torch

from unspoken.channels.errors import InputError
from unspoken.channels.memory import free_host_bytes
from unspoken.channels.sizes import parse_bytes

SHARE = 0.5
"""Part of the memory that is free at first, where nothing was asked for."""


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
        return free_host_bytes()
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    asked = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    return None if asked is None else int(asked(device)[0])
