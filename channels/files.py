"""The user's cache folder, and what makes its files trustworthy."""

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs
from blake3 import blake3

__all__ = ["cache_root", "digest_blake3", "flush", "flush_folder", "replace_file"]


def cache_root() -> Path:
    """``$UNSPOKEN_CACHE``, else the user's cache folder; it need not exist yet."""
    given = os.environ.get("UNSPOKEN_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    return platformdirs.user_cache_path("unspoken", appauthor=False)


def digest_blake3(file: Path) -> str:
    """BLAKE3 of the file's bytes, in hex, on all cores."""
    return blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()


def flush(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    if os.name != "posix" and path.is_dir():
        return  # such systems keep no handle to a folder
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Make the folder's files, and then their names, survive a power cut."""
    for file in sorted(folder.iterdir()):
        if file.is_file():
            flush(file)
    flush(folder)


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `file`, then put it in its place at once: a reader finds the old or the new."""
    made = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(made)
        flush(made)
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)
