"""The bridges at hand: the user's store, and places that bring bridges along.

A store is a folder with one folder per pair of models. Its name ends with the digest of the pair,
by which it is looked up; the rest of it is for people.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from unspoken.channels.bridges import hub
from unspoken.channels.bridges.folder import (
    MANIFEST,
    check,
    copy,
    read,
    read_manifest,
    remove,
    verify,
    write,
)
from unspoken.channels.bridges.manifest import AGAIN, TENSORS, BridgeManifest
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.atomic_folder import present, settle, unfinished
from unspoken.channels.storage.files import cache_root
from unspoken.channels.storage.pair_lock import pair_lock, unwritable
from unspoken.channels.storage.side import pair_digest, short_name

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BridgeEntry",
    "BridgeStore",
    "default_root",
    "folder_name",
    "read",
    "read_manifest",
    "remove",
    "write",
]

VARIABLE = "UNSPOKEN_BRIDGES"

_NAMED = re.compile(r"-([0-9a-f]{12})$")


def default_root() -> Path:
    """The user's store: ``bridges`` in the user's cache folder. It need not exist yet."""
    return cache_root() / "bridges"


def folder_name(manifest: BridgeManifest) -> str:
    """Both models' short names and the digest of the pair."""
    names = (short_name(side.ref) for side in (manifest.sharer, manifest.receiver))
    return f"{'--'.join(names)}-{manifest.pair}"


@dataclass(frozen=True, slots=True)
class BridgeEntry:
    """A bridge at hand, whole or broken.

    Attributes:
        path: Its folder.
        bytes: What the folder takes on disk.
        manifest: What it is; None where that cannot be read.
        error: What is wrong with it, or None. Digests are compared on reading only.
    """

    path: Path
    bytes: int
    manifest: BridgeManifest | None
    error: BridgeError | None


class BridgeStore:
    """Looks bridges up by the identities of their models, and keeps new ones.

    Args:
        root: Where new bridges go and where they are looked for first; `default_root` if not given.
        extra: More places to look in, last. Each is a store, or a folder with one bridge.

    After `root` and before `extra` come the places that ``$UNSPOKEN_BRIDGES`` lists.
    """

    def __init__(self, root: Path | None = None, extra: Sequence[Path] = ()) -> None:
        self.root = root or default_root()
        self.extra = tuple(extra)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where bridges are looked for, in this order."""
        listed = os.environ.get(VARIABLE, "").split(os.pathsep)
        given = (Path(one).expanduser() for one in listed if one.strip())
        return tuple(dict.fromkeys((self.root, *given, *self.extra)))

    def find(self, sharer: ModelIdentity, receiver: ModelIdentity) -> Path | None:
        """The folder of the pair's bridge in the first place that has one, or None.

        Raises:
            BridgeError: The first found is broken or is another pair's. (A place that is itself a
                broken bridge says nothing of its pair and is passed over; `entries` lists it.)
        """
        pair = pair_digest(sharer, receiver)
        for root in self.roots:
            if (root / MANIFEST).exists():
                found = _entry(root)
                if found.manifest and found.manifest.pair == pair:
                    return root
            elif (folder := _under(root, pair)) is not None:
                _require_pair(folder, check(folder))
                return folder
        return None

    def entries(self) -> list[BridgeEntry]:
        """Every bridge at hand, broken ones with their error; what dead writers left in `root` is
        cleared away.
        """
        for folder in unfinished(self.root):
            settle(folder)
        found = (folder for root in self.roots for folder in _bridges(root))
        entries = [_entry(folder) for folder in dict.fromkeys(map(Path.absolute, found))]
        return [entry for entry in entries if entry.error is None or entry.path.exists()]

    def save(self, manifest: BridgeManifest, tensors: "Mapping[str, Tensor]") -> Path:
        """Keep a bridge, in place of the pair's former one. Gives its folder.

        Raises:
            BridgeError: As `write`.
        """
        with self._place(manifest) as folder:
            write(folder, manifest, tensors)
        return folder

    def remove(self, sharer: ModelIdentity, receiver: ModelIdentity) -> Path:
        """Remove the pair's bridge, broken or not, from `root`. Gives the folder that was removed.

        Raises:
            BridgeError: `root` has none, or it cannot be removed.
        """
        pair = pair_digest(sharer, receiver)
        folder = _under(self.root, pair)
        if folder is None:
            raise BridgeError(
                f"the store {self.root} has no bridge of the pair {pair}",
                expected="a bridge that `unspoken bridge list` shows there",
                fix="remove a bridge that lies elsewhere by its folder",
            )
        remove(folder)
        return folder

    @contextmanager
    def lock(
        self,
        sharer: ModelIdentity,
        receiver: ModelIdentity,
        *,
        waiting: Callable[[str], None] | None = None,
        limit_s: float | None = None,
    ) -> Iterator[None]:
        """Be the only one, on this machine, that makes the pair's bridge. Look for it again once
        you are.

        Reading and saving need no lock. It goes with its process, however that ends, and does not
        nest.

        Args:
            sharer: Whose cache the bridge reads.
            receiver: Whose cache it makes.
            waiting: Told, once, if another process has the lock.
            limit_s: The longest to wait, in seconds; None waits for as long as it takes.

        Raises:
            BridgeError: The wait was too long, or the store cannot be written.
        """
        with pair_lock(self.root, sharer, receiver, "making this bridge", waiting, limit_s):
            yield

    def push(
        self, folder: Path, place: str, *, private: bool | None = None, message: str = ""
    ) -> str:
        """Put a bridge, checked, on the Hub or into another folder.

        Args:
            folder: The bridge.
            place: A Hub id (``owner/name``), or the folder to make (one that is there, or starts
                with ``./``).
            private: Whether a new repository is; None takes the owner's default.
            message: Of the commit.

        Returns:
            The address of the repository, or the folder.

        Raises:
            BridgeError: The bridge is broken, or the place cannot be written.
        """
        target = hub.as_folder(place)
        if target is not None:
            copy(folder, target)
            return str(target)
        pair = verify(folder)
        names = f"{short_name(pair.sharer.ref)} to {short_name(pair.receiver.ref)}"
        message = message or f"Bridge from {names}"
        return hub.upload(folder, place, private=private, message=message)

    def pull(
        self,
        place: str,
        revision: str | None = None,
        *,
        sharer: ModelIdentity | None = None,
        receiver: ModelIdentity | None = None,
    ) -> Path:
        """Fetch a bridge from the Hub or a folder into `root`. Gives its folder there.

        All of it is checked before anything enters the store. Files beside a bridge's own stay
        behind.

        Args:
            place: A Hub id, or a folder.
            revision: A branch, tag or commit; Hub ids only.
            sharer: Refuse a bridge from another model.
            receiver: Refuse a bridge into another model.

        Raises:
            BridgeError: It is not available or broken, or belongs to another pair than expected or
                than its name says.
            IdentityMismatch: It belongs to other models than those given.
        """
        source = hub.as_folder(place)
        if source is not None and revision is not None:
            raise BridgeError(
                f"{place} is a folder and has no revisions", expected="a Hub id with a revision"
            )
        folder = source or hub.download(place, revision)
        manifest = read_manifest(folder)
        _require_pair(Path(folder.absolute().name if source else place), manifest)
        for wanted, side in ((sharer, manifest.sharer), (receiver, manifest.receiver)):
            if wanted is not None:
                wanted.require(side.to_identity(), f"the end {side.ref} of the bridge {place}")
        with self._place(manifest) as target:
            copied = copy(folder, target)
            _require_pair(target, copied)
        return target

    @contextmanager
    def _place(self, manifest: BridgeManifest) -> Iterator[Path]:
        """The one folder of the manifest's pair, while nobody else gives it another."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{manifest.pair}.save.lock"):
                folder = _under(self.root, manifest.pair) or self.root / folder_name(manifest)
                yield folder
        except OSError as error:
            raise unwritable(self.root, error) from error


def _bridges(root: Path) -> list[Path]:
    """The folders under `root` that hold a bridge, or something like it; `root` itself where it is
    one.
    """
    if (root / MANIFEST).exists():
        return [root]
    return [
        path
        for path in present(root)
        if not path.is_file()
        and (
            _NAMED.search(path.name) or any((path / name).exists() for name in (MANIFEST, TENSORS))
        )
    ]


def _entry(folder: Path) -> BridgeEntry:
    try:
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    except OSError:
        size = 0
    manifest = None
    try:
        manifest = read_manifest(folder)
        _require_pair(folder, check(folder))
    except BridgeError as error:
        return BridgeEntry(folder, size, manifest, error)
    return BridgeEntry(folder, size, manifest, None)


def _under(root: Path, pair: str) -> Path | None:
    """The pair's folder in a store. One that is being replaced is there all the while."""
    for folder in present(root, f"*-{pair}"):
        if folder.exists() or not settle(folder) or folder.exists():
            return folder  # where its writer is at work, whoever reads it waits
    return None


def _require_pair(folder: Path, manifest: BridgeManifest) -> None:
    """Refuse a bridge that lies under another pair's name."""
    named = _NAMED.search(folder.name)
    if named is None or named[1] == manifest.pair:
        return
    raise BridgeError(
        f"{folder} is named for the pair {named[1]}, and its {MANIFEST} is for the pair "
        f"{manifest.pair}"
        f" ({manifest.sharer.ref} to {manifest.receiver.ref})",
        expected=f"a name that ends with -{manifest.pair}, or with no digest",
        fix=f"rename it, or {AGAIN}",
    )
