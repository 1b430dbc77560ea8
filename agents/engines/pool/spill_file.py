"""Bytes of states in a file that has no name.

A temporary file without a name is its owner's alone. The system takes it away when it is closed,
also after a crash. Freed regions are filled again before the file grows.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import finalize

import torch

from unspoken.channels.errors import StateError


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """Bytes of a file."""

    start: int
    nbytes: int
    file: "SpillFile" = field(compare=False, repr=False)

    @property
    def stop(self) -> int:
        """The byte after the last."""
        return self.start + self.nbytes


class SpillFile:
    """A file for the bytes of storages; whoever calls keeps other threads away.

    Args:
        folder: Where the file is; None for the system's folder for temporary files.

    Attributes:
        used: Bytes that are in use.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.used = 0
        self._folder = folder
        self._file: Any = None
        self._closed = False
        self._stop = 0
        self._free: list[Region] = []

    def write(self, storage: torch.UntypedStorage) -> Region:
        """Put a storage's bytes into the file.

        Raises:
            OSError: They cannot be written; the file is as before.
        """
        if self._file is None:
            if self._closed:
                raise OSError("the file is closed")
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            finalize(self, self._file.close)
        region = self._take(storage.nbytes())
        left = _bytes_of(storage).cpu().numpy().data
        try:
            self._file.seek(region.start)
            while left.nbytes:
                left = left[self._file.write(left) :]
        except OSError:
            self.free(region)
            raise
        return region

    def read(self, region: Region, device: torch.device) -> torch.UntypedStorage:
        """Bytes that were written, in new memory of a device.

        Raises:
            StateError: They cannot be read.
        """
        host = torch.empty(region.nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        left = host.numpy().data
        try:
            if self._file is None:
                raise OSError("the file is closed")
            self._file.seek(region.start)
            while left.nbytes:
                count = self._file.readinto(left)
                if not count:
                    raise OSError(f"{left.nbytes} bytes are missing")
                left = left[count:]
        except OSError as error:
            raise StateError(
                f"a state that was put on disk cannot be read again: {error}",
                expected="the bytes that were written",
                fix="give the run more memory, so that no state is put on disk",
            ) from error
        return host.to(device).untyped_storage()

    def free(self, region: Region) -> None:
        """Give a region up."""
        self.used -= region.nbytes
        merged: list[Region] = []
        for one in sorted([*self._free, region]):
            if merged and merged[-1].stop == one.start:
                before = merged.pop()
                one = Region(before.start, before.nbytes + one.nbytes, self)
            merged.append(one)
        if merged[-1].stop == self._stop:
            self._stop = merged.pop().start
            if self._file is not None:
                self._file.truncate(self._stop)
        self._free = merged

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._closed, self.used = None, True, 0

    def _take(self, nbytes: int) -> Region:
        """A region for so many bytes: the first free one that is large enough, else at the end."""
        self.used += nbytes
        for number, free in enumerate(self._free):
            if free.nbytes >= nbytes:
                rest = Region(free.start + nbytes, free.nbytes - nbytes, self)
                self._free[number : number + 1] = [rest] if rest.nbytes else []
                return Region(free.start, nbytes, self)
        start, self._stop = self._stop, self._stop + nbytes
        return Region(start, nbytes, self)


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
