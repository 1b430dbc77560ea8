"""The user's cache folder, and what makes its files trustworthy."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any

import platformdirs
from blake3 import blake3

from unspoken.channels.storage.forks import hash_threads

CHUNK = 8 * 1024 * 1024

Progress = Callable[[str, float], None]
"""Called with the name of a stage and the fraction of it that is done, 0 to 1."""


def cache_root() -> Path:
    """``$UNSPOKEN_CACHE``, else the user's cache folder; it need not exist yet."""
    given = os.environ.get("UNSPOKEN_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    return platformdirs.user_cache_path("unspoken", appauthor=False)


def digest_blake3(file: Path) -> str:
    """BLAKE3 of the file's bytes, in hex, on all cores."""
    return blake3(max_threads=hash_threads()).update_mmap(file).hexdigest()


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
    """Let `write` make a file that takes the place of `file` at once: a reader finds old or new."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{token_hex(4)}")
    try:
        write(temporary)
        flush(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in `file`, or None where there is none that can be read."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `file` holds all of it or what it held before.

    Raises:
        OSError: the folder cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, sort_keys=True)
    replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))


def digest_sha256(
    files: tuple[Path, ...], into: Path | None = None, progress: Progress | None = None
) -> str:
    """SHA-256 in hex of `files` laid end to end; `into`, if given, gets the joined bytes.

    Progress is reported as the stage ``join`` where there is `into`, else ``check``.
    """
    total = max(1, sum(file.stat().st_size for file in files))
    stage, done, digest = ("join" if into else "check"), 0, hashlib.sha256()
    with open(into or os.devnull, "wb") as out:
        for file in files:
            with file.open("rb") as part:
                while chunk := part.read(CHUNK):
                    digest.update(chunk)
                    if into:
                        out.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(stage, done / total)
    return digest.hexdigest()
