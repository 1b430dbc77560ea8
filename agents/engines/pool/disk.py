"""Blocks on their way to disk and back; all of it may be called from any thread."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unspoken.agents.engines.pool.blocks import Block, Blocks, Entry
from unspoken.agents.engines.pool.spill_file import Region, SpillFile
from unspoken.agents.engines.pool.tensors import State
from unspoken.channels.errors import StateError
from unspoken.channels.storage.forks import ForkLock, renewed_when_forked


class Disk:
    """The disk beside a pool's memory. One thread at a time reads or writes.

    The pool's lock is never held while bytes move, so that nobody waits for the disk who does not
    need it.

    Args:
        folder: Where the file is; None for the system's folder for temporary files.
        blocks: The pool's blocks.
        lock: The pool's lock.

    Attributes:
        busy: Number of threads that write, or wait to; whoever reads it has the pool's lock.
    """

    def __init__(self, folder: Path | None, blocks: Blocks, lock: ForkLock) -> None:
        self._folder, self._blocks, self._lock = folder, blocks, lock
        self._file = SpillFile(folder)
        self._moving = ForkLock()
        self._to_free: deque[Region] = deque()
        self.busy = 0
        self._closing = False
        renewed_when_forked(self)

    @property
    def used(self) -> int:
        """Bytes of states on disk."""
        return self._file.used - sum(region.nbytes for region in self._to_free)

    def renew(self) -> None:
        """In a forked child the file is the parent's: what lies in it cannot be read here."""
        self._file.close()
        self._to_free.clear()
        self._file = SpillFile(self._folder)

    def spill(self, victims: Iterable[Block]) -> int:
        """Write blocks, and give their memory up unless a turn has come to need it.

        Returns:
            Bytes of memory that were given up.

        Raises:
            OSError: They cannot be written; those that are left stay in memory.
        """
        with self._lock:
            self.busy += 1
        try:
            with self._moved():
                return sum(self._spill(block) for block in victims)
        finally:
            with self._lock:
                self.busy -= 1

    @contextmanager
    def _moved(self) -> Iterator[None]:
        """One thread at a time; the last one out closes what was to be closed meanwhile."""
        with self._moving:
            while self._to_free:
                region = self._to_free.popleft()
                if region.file is self._file:
                    self._file.free(region)
            yield
        if self._closing:
            self.close()

    def _spill(self, block: Block) -> int:
        with self._lock:
            storage = block.storage
            if storage is None or block.pinned or not block.entries:
                return 0
        region = block.region or self._file.write(storage)
        with self._lock:
            block.region = region
            if not block.entries:  # freed meanwhile
                self._to_free.append(region)
                block.region = None
                return 0
            if block.pinned:
                return 0
            self._blocks.drop(block)
            return block.nbytes

    def fetch(self, entry: Entry) -> State:
        """The state of an entry, read from disk where it is there alone.

        Raises:
            StateError: It cannot be read.
        """
        with self._moved():
            with self._lock:
                missing = entry.missing()
            for block in missing:
                if block.region is None:
                    raise StateError("a state is gone", expected="a pool that is open")
                storage = block.region.file.read(block.region, block.device)
                with self._lock:
                    self._blocks.restore(block, storage)
            with self._lock:
                return entry.state or self._blocks.rebuild(entry)

    def free_later(self, regions: Iterable[Region]) -> None:
        """Give regions up before the next bytes move."""
        self._to_free.extend(region for region in regions if region.file is self._file)

    def close(self) -> None:
        """Remove the file, or have the thread do it that moves bytes just now."""
        self._closing = True
        if self._moving.acquire(blocking=False):
            try:
                self._to_free.clear()
                self._file.close()
            finally:
                self._moving.release()
