"""Folders that are there whole or not at all.

A folder is written beside its place and put there by rename. Where another was there before, that
takes two renames; a writer that dies between them leaves both folders aside, and whoever comes next
finishes what it began.
"""

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from unspoken.channels.errors import ChannelError
from unspoken.channels.storage.files import flush, flush_folder

WRITE_LIMIT_S = 600.0
TRIES, PAUSE_S = 200, 0.01

_Seen = TypeVar("_Seen")


@contextmanager
def staged(
    folder: Path, guard: Callable[[Path], None], error: type[ChannelError] = ChannelError
) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the place of `folder` when the block ends well.

    Args:
        folder: Where; its parents are made.
        guard: Called with `folder` while nobody else writes it; raises if it must not be replaced.
        error: Class of what is raised.

    Raises:
        ChannelError: The place cannot be written.
    """
    folder = folder.resolve()
    with _writing(folder, error):
        guard(folder)
        staging = _staging(folder)
        new = staging / "new"
        new.mkdir()
        yield new
        for file in new.iterdir():
            file.chmod(0o644)  # safetensors writes 0600; the folder's own mode is the user's umask
        flush_folder(new)
        if folder.exists():
            os.replace(folder, staging / "old")
        os.replace(new, folder)
        flush(folder.parent)


def discard(
    folder: Path, guard: Callable[[Path], None], error: type[ChannelError] = ChannelError
) -> None:
    """Remove `folder` at one stroke, unless `guard` raises.

    Raises:
        ChannelError: It cannot be removed.
    """
    folder = folder.resolve()
    with _writing(folder, error):
        guard(folder)
        os.replace(folder, _staging(folder) / "old")
        flush(folder.parent)


def steady(folder: Path, look: Callable[[Path], _Seen]) -> _Seen:
    """What `look` finds in `folder`; where a writer changed the folder meanwhile, it looks again.

    Raises:
        ChannelError: What `look` raises for a folder that stays as it is.
    """
    folder = folder.expanduser().resolve()
    for _ in range(TRIES):
        before = _mark(folder)
        try:
            return look(folder)
        except ChannelError:
            waiting = any(map(_is_between, _left(folder)))  # asked first: a swap may end meanwhile
            if waiting and not folder.exists():
                if not settle(folder):
                    time.sleep(PAUSE_S)
            elif _mark(folder) == before:
                raise
    return look(folder)


def settle(folder: Path) -> bool:
    """Finish or clear away what a writer of `folder` left when it died, unless one is at work.

    Returns:
        Whether nobody was at work.
    """
    try:
        with _lock(folder, timeout=0):
            _settle(folder)
    except Timeout:
        return False
    except OSError:  # a place that cannot be written: what is there stays
        return True
    return True


def present(root: Path, pattern: str = "*") -> list[Path]:
    """What `root` holds by a pattern that starts with ``*``; what is being replaced is there too.

    Hidden folders are left out.
    """
    paths: set[Path] = set()
    for _ in range(3):  # a folder may be away at each look, and nowhere between two of them
        paths.update(root.glob(f"[!.]{pattern}"))
        paths.update(unfinished(root, pattern, between=True))
    return sorted(paths)


def unfinished(root: Path, pattern: str = "*", *, between: bool = False) -> list[Path]:
    """Folders that writers are at work on, or died writing; with `between`, those moved away."""
    left = root.glob(f".{pattern}.tmp-*")
    names = {path.name for path in left if not between or _is_between(path)}
    return sorted(root / name[1:].rpartition(".tmp-")[0] for name in names)


@contextmanager
def _writing(folder: Path, error: type[ChannelError]) -> Iterator[None]:
    """Be the only writer of `folder`, with nothing left beside it before and after."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, timeout=WRITE_LIMIT_S):
            _settle(folder)
            try:
                yield
            finally:
                _settle(folder)
    except Timeout:
        raise error(
            f"another process has been writing {folder} for {WRITE_LIMIT_S:.0f} s",
            expected=f"the lock {_lock_file(folder)} to be released",
            fix="end that process, then try again",
        ) from None
    except OSError as cause:
        raise error(
            f"{folder} cannot be written: {cause}",
            expected="a folder that you may write, on a disk with room",
            fix="free some space, or choose another place ($UNSPOKEN_CACHE moves the store)",
        ) from cause


def _lock_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.write.lock"


def _lock(folder: Path, timeout: float) -> Any:
    return FileLock(_lock_file(folder)).acquire(timeout=timeout, poll_interval=PAUSE_S)


def _staging(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))


def _left(folder: Path) -> list[Path]:
    """What writers of `folder` have left, or are at work in."""
    return sorted(folder.parent.glob(f".{glob.escape(folder.name)}.tmp-*"))


def _is_between(staging: Path) -> bool:
    """Whether the old folder has been moved away, and the new one, complete, not yet moved in."""
    return (staging / "old").exists() and (staging / "new").exists()


def _settle(folder: Path) -> None:
    """With the lock held: finish a swap that was begun, and clear the rest away."""
    for staging in _left(folder):
        if _is_between(staging) and not folder.exists():
            os.replace(staging / "new", folder)
            flush(folder.parent)
        shutil.rmtree(staging, ignore_errors=True)


def _mark(folder: Path) -> tuple[int, int] | None:
    """Tells a folder from another that takes its place; None where there is none."""
    with suppress(OSError):
        about = folder.stat()
        return about.st_ino, about.st_mtime_ns
    return None
