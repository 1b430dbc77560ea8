"""The stored bridges: the user's store, and places that bring bridges along."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unspoken.channels.bridges import hub
from unspoken.channels.bridges.folder import BRIDGE, check, copy, read_manifest, verify, write
from unspoken.channels.bridges.manifest import BridgeManifest
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.files import cache_root
from unspoken.channels.storage.side import short_name
from unspoken.channels.storage.store import PairStore, StoreEntry

if TYPE_CHECKING:
    from torch import Tensor


VARIABLE = "UNSPOKEN_BRIDGES"

BridgeEntry = StoreEntry[BridgeManifest]
"""A stored bridge, whole or broken; its tensors' digest is compared on reading only."""


class BridgeStore(PairStore[BridgeManifest]):
    """Looks bridges up by the identities of their models, and keeps new ones.

    Args:
        root: Where new bridges go and where they are looked for first; ``bridges`` in the user's
            cache folder if not given.
        extra: More places to look in, last. Each is a store, or a folder with one bridge.

    After `root` and before `extra` come the places that ``$UNSPOKEN_BRIDGES`` lists.
    """

    kind = BRIDGE

    def __init__(self, root: Path | None = None, extra: Sequence[Path] = ()) -> None:
        super().__init__(root or cache_root() / "bridges")
        self.extra = tuple(extra)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where bridges are looked for, in this order."""
        listed = os.environ.get(VARIABLE, "").split(os.pathsep)
        given = (Path(place).expanduser() for place in listed if place.strip())
        return tuple(dict.fromkeys((self.root, *given, *self.extra)))

    def manifest(self, folder: Path) -> BridgeManifest:
        """The manifest of the bridge in a folder, which may lack files or be cut short."""
        return read_manifest(folder)

    def check(self, folder: Path) -> BridgeManifest:
        """The manifest of the bridge in a folder, its files and their sizes checked."""
        return check(folder)

    def find(self, sharer: ModelIdentity, receiver: ModelIdentity) -> Path | None:
        """The folder of the pair's bridge in the first place that has one, or None.

        Raises:
            BridgeError: The first one is broken or is another pair's.
        """
        return self.locate(sharer, receiver)

    def save(
        self,
        manifest: BridgeManifest,
        tensors: "Mapping[str, Tensor]",
        embeddings: "Mapping[str, Tensor] | None" = None,
    ) -> Path:
        """Keep a bridge, in place of the pair's former one. Gives its folder.

        Raises:
            BridgeError: As `write`.
        """
        with self.place(manifest) as folder:
            write(folder, manifest, tensors, embeddings)
        return folder

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
        self.require_pair(Path(folder.absolute().name if source else place), manifest)
        for wanted, side in ((sharer, manifest.sharer), (receiver, manifest.receiver)):
            if wanted is not None:
                wanted.require(side.to_identity(), f"the end {side.ref} of the bridge {place}")
        with self.place(manifest) as target:
            self.require_pair(target, copy(folder, target, links=source is None))
        return target
