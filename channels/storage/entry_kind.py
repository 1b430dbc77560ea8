"""What the folders of a store hold, and what is refused of them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from unspoken.channels.errors import ChannelError
from unspoken.channels.storage.atomic_folder import discard, staged


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryKind:
    """What the entries of a store are.

    Attributes:
        what: What one is called, such as ``bridge``.
        making: What is done to get one, as in "another process is …".
        files: Its files, the manifest first.
        marks: Files of which any tells its folder from others.
        beside: What else may lie in its folder, and goes with it.
        error: Class of the errors that are raised about one.
        again: How to get one again, in errors.
    """

    what: str
    making: str
    files: tuple[str, ...]
    marks: tuple[str, ...]
    beside: tuple[str, ...]
    error: type[ChannelError]
    again: str

    def marked(self, folder: Path) -> bool:
        """Whether the folder holds an entry, or something like it."""
        return any((folder / name).exists() for name in self.marks)

    def staged(self, folder: Path) -> AbstractContextManager[Path]:
        """An empty folder that takes the place of `folder`; see `atomic_folder.staged`."""
        return staged(folder, self.require_ours, self.error)

    def discard(self, folder: Path) -> None:
        """Remove an entry, broken or not, at one stroke.

        Raises:
            ChannelError: There is none, or the folder holds other things or cannot be removed.
        """

        def guard(resolved: Path) -> None:
            self.require_ours(resolved)
            if not self.marked(resolved):
                raise self.missing(resolved)

        discard(folder, guard, self.error)

    def require_ours(self, folder: Path) -> None:
        """Refuse to replace or remove a folder that holds other things."""
        if not folder.exists():
            return
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        others = names - {*self.files, *self.beside}
        if folder.is_dir() and not others and (not names or names & {*self.marks}):
            return
        holds = f"holds {few(sorted(others) or sorted(names))}" if names else "is a file"
        another = folder / self.what if names else f"{folder}-{self.what}"
        raise self.error(
            f"{folder} is no {self.what}'s folder: it {holds}",
            expected=f"a new or empty folder, or one that holds a {self.what} and nothing else",
            fix=f"name another folder, such as {another}",
        )

    def missing(self, folder: Path) -> ChannelError:
        """The error of a folder without an entry."""
        return self.error(
            f"there is no {self.what} at {folder}",
            expected=f"a folder with {few(self.files)}",
            fix=self.again,
        )


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")
