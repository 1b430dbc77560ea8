"""Where packets are written to and read from: paths, bytes and binary streams."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, BytesIO, TextIOBase
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from unspoken.channels.errors import InputError
from unspoken.channels.storage.files import replace_file


class Readable(Protocol):
    """A binary stream that reads into place, as files and ``socket.makefile("rb")`` do."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer's start; how many bytes came."""


@dataclass(frozen=True, slots=True)
class OpenPacket:
    """A packet that can be read.

    Attributes:
        stream: Where its bytes come from.
        size: How many they are; None where only the end of the stream will tell.
        file: The file to close when it has been read; None where somebody else opened it.
    """

    stream: Readable
    size: int | None = None
    file: BufferedReader | None = None


def open_packet(source: object) -> OpenPacket:
    """A packet's bytes, from a path, from the bytes themselves, or from a binary stream as it is.

    Raises:
        InputError: A file that cannot be opened, or something that no packet can be read from.
    """
    if isinstance(source, bytes):
        return OpenPacket(BytesIO(source), len(source))
    if isinstance(source, str | Path):
        file = _opened(Path(source))
        about = os.fstat(file.fileno())
        return OpenPacket(file, about.st_size if stat.S_ISREG(about.st_mode) else None, file)
    if not _can(source, "read", "readinto"):
        raise InputError(
            f"a packet cannot be read from {_named(source)}",
            expected="a path as str or Path, the packet's bytes, or a binary stream",
            fix=_binary(source, "rb") or "give the path of a file that write_packet made",
        )
    return OpenPacket(cast("Readable", source))


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise InputError(
            f"the packet {str(path)!r} cannot be opened: {reason_of(error)}",
            expected="a file that write_packet made",
            fix="check the path",
        ) from error


def packet_target(target: object) -> Path | BinaryIO:
    """Where a packet goes: a path, or a binary stream as it is.

    Raises:
        InputError: Something that no packet can be written to.
    """
    if isinstance(target, str | Path):
        return Path(target)
    if not _can(target, "write"):
        raise InputError(
            f"a packet cannot be written to {_named(target)}",
            expected="a path as str or Path, or a binary stream",
            fix=_binary(target, "wb") or "give the path of the file to make",
        )
    return cast("BinaryIO", target)


def save_whole(path: Path, write: Callable[[BinaryIO], int]) -> int:
    """Let `write` fill a file of mode 0600 that appears whole or not at all; what `write` gave.

    Raises:
        InputError: A folder that does not exist, or a path where no file can be made.
    """
    fault = f"the packet {str(path)!r} cannot be written"
    if path.is_dir():
        raise InputError(
            f"{fault}: it is a folder", expected="the path of a file", fix="name a file in it"
        )
    if not path.parent.is_dir():
        raise InputError(
            f"{fault}: there is no folder {str(path.parent)!r}",
            expected="a folder that exists",
            fix="make the folder first, or write to another one",
        )
    count = 0

    def fill(temporary: Path) -> None:
        nonlocal count
        with open(temporary, "wb", opener=_for_me_alone) as file:
            count = write(file)

    try:
        replace_file(path, fill)
    except OSError as error:  # its own message would name a file that nobody asked for
        raise InputError(
            f"{fault}: {reason_of(error)}",
            expected="a folder with room, where you may make files",
            fix="write to another folder",
        ) from error
    return count


def _for_me_alone(path: str, flags: int) -> int:
    """Open a file that nobody else can read: a cache gives its text away."""
    handle = os.open(path, flags, 0o600)
    if os.name == "posix":
        os.fchmod(handle, 0o600)  # where the file was there already
    return handle


def _can(stream: object, *methods: str) -> bool:
    text = isinstance(stream, TextIOBase)
    return not text and all(callable(getattr(stream, name, None)) for name in methods)


def _binary(stream: object, mode: str) -> str:
    return f"open it in binary, with mode {mode!r}" if isinstance(stream, TextIOBase) else ""


def _named(thing: object) -> str:
    if thing is None:
        return "None"
    if isinstance(thing, TextIOBase):
        return "a text stream"
    return f"an object of type {type(thing).__name__}"


def reason_of(error: OSError | ValueError) -> str:
    """What the system says of a file, without the file's name."""
    return getattr(error, "strerror", None) or str(error)
