"""The stored profiles: one folder per pair of models, stored as bridges are."""

from collections.abc import Callable
from pathlib import Path

from unspoken.channels.errors import ProfileError
from unspoken.channels.finetunes.profile import AGAIN, FILE, Profile
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.atomic_folder import steady
from unspoken.channels.storage.entry_kind import EntryKind
from unspoken.channels.storage.files import cache_root
from unspoken.channels.storage.store import PairStore

FIGURE = "profile.png"
LIMIT = 16 * 1024 * 1024


class ProfileStore(PairStore[Profile]):
    """Looks profiles up by the identities of their models, and keeps new ones.

    Args:
        root: Where they are; ``profiles`` in the user's cache folder if not given.
    """

    kind = EntryKind(
        what="profile",
        making="measuring this pair",
        files=(FILE,),
        marks=(FILE,),
        beside=(FIGURE, ".DS_Store"),
        error=ProfileError,
        again=AGAIN,
    )

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root or cache_root() / "profiles")

    def find(self, sharer: ModelIdentity, receiver: ModelIdentity) -> Profile | None:
        """The pair's profile, or None.

        Raises:
            ProfileError: It is broken, or another pair's.
        """
        folder = self.locate(sharer, receiver)
        return None if folder is None else self.manifest(folder)

    def manifest(self, folder: Path) -> Profile:
        """The profile in a folder.

        Raises:
            ProfileError: There is none, or it is broken.
        """
        return steady(folder, self._read)

    def save(self, profile: Profile, draw: Callable[[Path], object] | None = None) -> Path:
        """Keep a profile in place of the pair's former one. Gives its folder.

        Args:
            profile: The profile.
            draw: Called with the place for its figure.

        Raises:
            ProfileError: It cannot be written.
        """
        with self.place(profile) as folder, self.kind.staged(folder) as staging:
            (staging / FILE).write_text(profile.to_json(), encoding="utf-8")
            if draw is not None:
                draw(staging / FIGURE)
        return folder

    def _read(self, folder: Path) -> Profile:
        file = folder / FILE
        if not file.is_file():
            raise self.kind.missing(folder)
        try:
            if file.stat().st_size > LIMIT:
                raise ProfileError(f"{file} has more than {LIMIT} bytes", fix=AGAIN)
            return Profile.from_json(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(
                f"{file} cannot be read: {error}", expected="a profile.json in UTF-8", fix=AGAIN
            ) from error
