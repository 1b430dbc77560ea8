"""A store that processes share: a folder with one folder per pair of models.

The name of a pair's folder ends with the digest of the pair, by which it is looked up; the rest of
the name is for people.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from filelock import FileLock, Timeout

from unspoken.channels.errors import ChannelError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.sequences import distinct
from unspoken.channels.storage.atomic_folder import present, settle, unfinished
from unspoken.channels.storage.entry_kind import EntryKind
from unspoken.channels.storage.side import ModelDescription, pair_digest, short_name

POLL_S = 0.2

_NAMED = re.compile(r"-([0-9a-f]{12})$")


class PairManifest(Protocol):
    """What an entry of a store says of itself, as far as a store asks."""

    @property
    def sharer(self) -> ModelDescription:
        """Whose cache is read."""

    @property
    def receiver(self) -> ModelDescription:
        """Whose cache is made."""

    @property
    def pair(self) -> str:
        """The digest of the pair."""


Manifest = TypeVar("Manifest", bound=PairManifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry(Generic[Manifest]):
    """An entry of a store, whole or broken.

    Attributes:
        path: Its folder.
        bytes: What the folder takes on disk.
        manifest: What it is; None where that cannot be read.
        error: What is wrong with it, or None.
    """

    path: Path
    bytes: int
    manifest: Manifest | None
    error: ChannelError | None


class PairStore(ABC, Generic[Manifest]):
    """Looks entries up by the identities of their models, and gives new ones their place.

    Attributes:
        root: Where new entries go and where they are looked for first. It need not exist yet.
    """

    kind: ClassVar[EntryKind]

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where entries are looked for, in this order; each a store, or a folder with one entry."""
        return (self.root,)

    @abstractmethod
    def manifest(self, folder: Path) -> Manifest:
        """What the entry in a folder is. Raises the kind's error where that cannot be read."""

    def check(self, folder: Path) -> Manifest:
        """The manifest of an entry that is whole. Raises the kind's error where it is not."""
        return self.manifest(folder)

    def locate(self, sharer: ModelIdentity, receiver: ModelIdentity) -> Path | None:
        """The folder of the pair's entry in the first of `roots` that has one, or None.

        Raises:
            ChannelError: The first one is broken or is another pair's. (A root that is itself a
                broken entry says nothing of its pair and is passed over; `entries` lists it.)
        """
        pair = pair_digest(sharer, receiver)
        for root in self.roots:
            if self._is_entry(root):
                manifest = self._entry(root).manifest
                if manifest and manifest.pair == pair:
                    return root
            elif (folder := _under(root, pair)) is not None:
                self.require_pair(folder, self.check(folder))
                return folder
        return None

    def entries(self) -> list[StoreEntry[Manifest]]:
        """Every entry, broken ones with their error; what dead writers left in `root` goes."""
        for folder in unfinished(self.root):
            settle(folder)
        folders = (folder.absolute() for root in self.roots for folder in self._folders(root))
        entries = map(self._entry, distinct(folders))
        return [entry for entry in entries if entry.error is None or entry.path.exists()]

    def folder(self, manifest: Manifest) -> Path:
        """Where the entry of the manifest's pair is or would be kept."""
        names = "--".join(short_name(end.ref) for end in (manifest.sharer, manifest.receiver))
        return _under(self.root, manifest.pair) or self.root / f"{names}-{manifest.pair}"

    @contextmanager
    def place(self, manifest: Manifest) -> Iterator[Path]:
        """The one folder of the manifest's pair, while nobody else gives it another.

        Raises:
            ChannelError: The store cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{manifest.pair}.save.lock"):
                yield self.folder(manifest)
        except OSError as error:
            raise self._unwritable(error) from error

    def remove(self, sharer: ModelIdentity, receiver: ModelIdentity) -> Path:
        """Remove the pair's entry, broken or not, from `root`. Gives the folder that was removed.

        Raises:
            ChannelError: `root` has none, or it cannot be removed.
        """
        pair, what = pair_digest(sharer, receiver), self.kind.what
        folder = _under(self.root, pair)
        if folder is None:
            raise self.kind.error(
                f"the store {self.root} has no {what} of the pair {pair}",
                expected=f"a {what} that `unspoken {what} list` shows there",
                fix=f"remove a {what} that lies elsewhere by its folder",
            )
        self.kind.discard(folder)
        return folder

    @contextmanager
    def lock(
        self,
        sharer: ModelIdentity,
        receiver: ModelIdentity,
        *,
        waiting: Callable[[str], object] | None = None,
        limit_s: float | None = None,
    ) -> Iterator[None]:
        """Be the only one, on this machine, that makes the pair's entry; then look for it again.

        Reading and saving need no lock. It goes with its process, however that ends, and does not
        nest.

        Args:
            sharer: Whose cache is read.
            receiver: Whose cache is made.
            waiting: Told, once, if another process has the lock.
            limit_s: The longest to wait, in seconds; None waits for as long as it takes.

        Raises:
            ChannelError: The wait was too long, or the store cannot be written.
        """
        file = self.root / f".{pair_digest(sharer, receiver)}.lock"
        making = self.kind.making
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(file, thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if waiting:
                    waiting(f"another process is {making}; waiting for it ({file})")
                lock.acquire(timeout=-1 if limit_s is None else limit_s, poll_interval=POLL_S)
        except Timeout:
            raise self.kind.error(
                f"another process has been {making} for more than {limit_s:g} s",
                expected=f"the lock {file} to be released",
                fix="wait for that process, or end it",
            ) from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def require_pair(self, folder: Path, manifest: Manifest) -> None:
        """Refuse an entry that lies under another pair's name."""
        named = _NAMED.search(folder.name)
        if named is None or named[1] == manifest.pair:
            return
        ends = f"{manifest.sharer.ref} to {manifest.receiver.ref}"
        raise self.kind.error(
            f"{folder} is named for the pair {named[1]}, and its {self.kind.files[0]} is for the "
            f"pair {manifest.pair} ({ends})",
            expected=f"a name that ends with -{manifest.pair}, or with no digest",
            fix=f"rename it, or {self.kind.again}",
        )

    def _is_entry(self, folder: Path) -> bool:
        return (folder / self.kind.files[0]).exists()

    def _folders(self, root: Path) -> list[Path]:
        """The folders in `root` that hold an entry, or something like it; or `root` itself."""
        if self._is_entry(root):
            return [root]
        folders = [path for path in present(root) if not path.is_file()]
        return [path for path in folders if _NAMED.search(path.name) or self.kind.marked(path)]

    def _entry(self, folder: Path) -> StoreEntry[Manifest]:
        manifest, problem, size = None, None, 0
        with suppress(OSError):
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        try:
            manifest = self.manifest(folder)
            self.require_pair(folder, self.check(folder))
        except ChannelError as error:
            problem = error
        return StoreEntry(path=folder, bytes=size, manifest=manifest, error=problem)

    def _unwritable(self, error: OSError) -> ChannelError:
        return self.kind.error(
            f"the store {self.root} cannot be written: {error}",
            expected="a folder that you may write, on a disk with room",
            fix="choose another place with $UNSPOKEN_CACHE, or free some space",
        )


def _under(root: Path, pair: str) -> Path | None:
    """The pair's folder in a store. One that is being replaced is there all the while."""
    for folder in present(root, f"*-{pair}"):
        if folder.exists() or not settle(folder) or folder.exists():
            return folder  # where its writer is at work, whoever reads it waits
    return None
