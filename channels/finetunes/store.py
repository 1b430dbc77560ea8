"""The profiles at hand: one folder per pair of identities, beside the user's bridges and written as
they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unspoken.channels.errors import BridgeError, ProfileError
from unspoken.channels.finetunes.profile import AGAIN, FILE, Profile
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.atomic_folder import discard, present, settle, staged, steady
from unspoken.channels.storage.files import cache_root
from unspoken.channels.storage.pair_lock import pair_lock
from unspoken.channels.storage.side import pair_digest, short_name

__all__ = ["ProfileStore"]

FIGURE = "profile.png"
OURS = frozenset((FILE, FIGURE, ".DS_Store"))
LIMIT = 16 * 1024 * 1024


class ProfileStore:
    """Looks profiles up by the identities of their models, and keeps new ones.

    Args:
        root: Where they are; ``profiles`` in the user's cache folder if not given.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root() / "profiles"

    def find(self, sharer: ModelIdentity, receiver: ModelIdentity) -> Profile | None:
        """The pair's profile, or None.

        Raises:
            ProfileError: It is broken, or another pair's.
        """
        folder = self._under(pair_digest(sharer, receiver))
        return None if folder is None else self.read(folder)

    def read(self, folder: Path) -> Profile:
        """The profile in a folder.

        Raises:
            ProfileError: There is none, or it is broken, or another pair's than the folder's name
                says.
        """
        try:
            return steady(folder, _read)
        except BridgeError as error:
            raise _as_ours(error) from error

    def entry_layers(self) -> list[Path]:
        """The folders of all profiles."""
        return [path for path in present(self.root) if (path / FILE).exists()]

    def remove(self, folder: Path) -> None:
        """Remove a profile, broken or not, at one stroke.

        Raises:
            ProfileError: There is none, or the folder holds other things or cannot be removed.
        """
        try:
            discard(folder, _require_profile)
        except BridgeError as error:
            raise _as_ours(error) from error

    def folder(self, profile: Profile) -> Path:
        """Where a profile is or would be kept."""
        names = (short_name(side.ref) for side in (profile.sharer, profile.receiver))
        new = self.root / f"{'--'.join(names)}-{profile.pair}"
        return self._under(profile.pair) or new

    def save(self, profile: Profile, draw: Callable[[Path], object] | None = None) -> Path:
        """Keep a profile in place of the pair's former one. Gives its folder.

        Args:
            profile: The profile.
            draw: Called with the place for its figure.

        Raises:
            ProfileError: It cannot be written.
        """
        folder = self.folder(profile)
        try:
            with staged(folder, _require_ours) as made:
                (made / FILE).write_text(profile.to_json(), encoding="utf-8")
                if draw is not None:
                    draw(made / FIGURE)
        except BridgeError as error:
            raise _as_ours(error) from error
        return folder

    @contextmanager
    def lock(
        self,
        sharer: ModelIdentity,
        receiver: ModelIdentity,
        waiting: Callable[[str], None] = lambda line: None,
    ) -> Iterator[None]:
        """Be the only one, on this machine, that measures the pair. Look for its profile again once
        you are.

        Args:
            sharer: Whose state is read.
            receiver: Who computes some layers anew.
            waiting: Told, once, if another process has the lock.

        Raises:
            ProfileError: The store cannot be written.
        """
        try:
            with pair_lock(self.root, sharer, receiver, "measuring this pair", waiting):
                yield
        except BridgeError as error:
            raise _as_ours(error) from error

    def _under(self, pair: str) -> Path | None:
        for folder in present(self.root, f"*-{pair}"):
            if folder.exists() or not settle(folder) or folder.exists():
                return folder
        return None


def _as_ours(error: BridgeError) -> ProfileError:
    """What a bridge's folder would be told, of a profile's."""
    return ProfileError(error.found, expected=error.expected, fix=error.fix)


def _read(folder: Path) -> Profile:
    file = folder / FILE
    try:
        if file.stat().st_size > LIMIT:
            raise ProfileError(f"{file} has more than {LIMIT} bytes", fix=AGAIN)
        profile = Profile.from_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        # As the folder's readers expect: they look again where a writer was at work meanwhile.
        raise BridgeError(
            f"{file} cannot be read: {error}", expected="a profile.json in UTF-8", fix=AGAIN
        ) from error
    if not folder.name.endswith(profile.pair):
        raise ProfileError(
            f"{file} is for the pair {profile.pair} ({profile.sharer.ref} to "
            f"{profile.receiver.ref})",
            expected=f"a folder whose name ends with {profile.pair}",
            fix=AGAIN,
        )
    return profile


def _require_ours(folder: Path) -> None:
    """Refuse to replace a folder that holds other things."""
    if not folder.exists():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in OURS)
    if others:
        raise ProfileError(
            f"{folder} holds {others[0]}, which is no part of a profile",
            expected="a folder of its own for a profile",
            fix="move that away",
        )


def _require_profile(folder: Path) -> None:
    """Refuse to remove what is no profile."""
    _require_ours(folder)
    if not (folder / FILE).exists():
        raise ProfileError(
            f"there is no profile in {folder}",
            expected=f"a folder with a {FILE}",
            fix="see `unspoken profiles list`",
        )
