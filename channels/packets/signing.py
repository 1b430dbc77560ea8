"""The key that signs packets, and the check that a manifest is what was signed."""

import hashlib
import hmac
import os
import stat
from pathlib import Path
from shlex import quote

from pydantic import ValidationError

from unspoken.channels.errors import InputError, PacketError
from unspoken.channels.packets.files import reason_of
from unspoken.channels.packets.manifest import VERSIONS, PacketManifest
from unspoken.channels.storage.strict_json import parse_json

KEY_VARIABLE = "UNSPOKEN_PACKET_KEY"
KEY_FILE_VARIABLE = "UNSPOKEN_PACKET_KEY_FILE"
KEY_BYTES = 16


def packet_key(file: str | Path | None = None) -> bytes:
    """The key that signs packets, without white space at its ends.

    It is in `file`, else in ``$UNSPOKEN_PACKET_KEY``, else in the file that
    ``$UNSPOKEN_PACKET_KEY_FILE`` names.

    Raises:
        InputError: No key, one of fewer than 16 bytes, a file that is no path, or one that others
            can read or write.
    """
    if file is not None and not isinstance(file, str | Path):
        raise InputError(
            f"the packet key's file is an object of type {type(file).__name__}",
            expected="a path as str or Path",
            fix="pass a key in bytes to write_packet or read_packet directly",
        )
    given = os.environ.get(KEY_VARIABLE)
    named = os.environ.get(KEY_FILE_VARIABLE)
    fix = "make one that only you can read: (umask 077; openssl rand -hex 32 > packet.key)"
    if file is None and given is None and named is None:
        raise InputError(
            "there is no key to sign packets with",
            expected=f"a key file, or ${KEY_VARIABLE}, or ${KEY_FILE_VARIABLE}",
            fix=fix,
        )
    if file is None and given is not None:
        key, where = given.encode().strip(), f"${KEY_VARIABLE}"
    else:
        path = Path((named or "") if file is None else file).expanduser()
        where = str(path)
        try:
            key = _private_bytes(path).strip()
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            raise InputError(
                f"the packet key {where!r} cannot be read: {reason_of(error)}",
                expected="a file with the key",
                fix=fix,
            ) from error
    if len(key) < KEY_BYTES:
        raise InputError(
            f"the packet key in {where} has {len(key)} bytes",
            expected=f"at least {KEY_BYTES}, not guessable",
            fix=fix,
        )
    return key


def _private_bytes(path: Path) -> bytes:
    """What is in a file that its owner alone can read and write; other systems have no modes."""
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InputError(
                f"the packet key {str(path)!r} is open to others: its mode is {mode:04o}",
                expected="a file that only you can read, mode 0600",
                fix=f"chmod 600 {quote(str(path))}; if others may have read it, make a new key",
            )
        return file.read()


def signature_of(manifest: str, key: bytes | None) -> str:
    """The HMAC-SHA256 of a manifest; empty without a key."""
    if key is None:
        return ""
    return hmac.new(key, b"unspoken packet\0" + manifest.encode(), hashlib.sha256).hexdigest()


def key_id(key: object) -> str:
    """What tells keys apart without giving them away."""
    if not isinstance(key, bytes) or len(key) < KEY_BYTES:
        given = f"{len(key)} bytes" if isinstance(key, bytes) else f"a {type(key).__name__}"
        raise InputError(
            f"the packet key is {given}",
            expected=f"at least {KEY_BYTES} bytes, not guessable, or None for an unsigned packet",
            fix="take it from packet_key()",
        )
    return hmac.new(key, b"unspoken packet key id", hashlib.sha256).hexdigest()[:16]


def checked_manifest(text: str, signature: str, key: bytes | None) -> PacketManifest:
    """The manifest, once its version, its key and its signature are right."""
    try:
        raw = parse_json(text)
        version, signed_by = raw["version"], raw["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise PacketError(
            "the packet's manifest is not JSON with a version and a key",
            kind="format",
            expected="a manifest that write_packet made",
        ) from error
    if type(version) is not int or version not in VERSIONS:
        raise PacketError(
            f"the packet is of version {ascii(version)[:20]}",
            kind="version",
            expected=f"version {' or '.join(map(str, VERSIONS))}",
            fix="run the same version of unspoken at both ends",
        )
    _check_key(signed_by, key)
    if not hmac.compare_digest(signature.encode(), signature_of(text, key).encode()):
        raise PacketError(
            "the packet's manifest is not what was signed",
            kind="tampered",
            expected="an unchanged manifest" if key else "no signature, as the manifest says",
            fix="do not use it; have the sharer send it again",
        )
    try:
        return PacketManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ascii(".".join(map(str, first["loc"])))[1:-1][:80]
        raise PacketError(
            f"the packet's manifest is wrong at {where or 'its top'}: {first['msg']}",
            kind="shape",
            expected="a manifest that write_packet made",
        ) from error


def _check_key(signed_by: object, key: bytes | None) -> None:
    """Refuse a packet that another key than ours signed, or none."""
    named = ascii(str(signed_by))[1:-1][:16]
    if key is None and signed_by is not None:
        raise PacketError(
            f"the packet is signed with the key {named}, and no key was given",
            kind="key",
            expected="the key that signed it",
            fix=f"set {KEY_VARIABLE} or {KEY_FILE_VARIABLE}, or pass the key",
        )
    if key is not None and signed_by is None:
        raise PacketError(
            "the packet is unsigned",
            kind="unsigned",
            expected="a packet signed with your key",
            fix="have it signed; key=None accepts unsigned packets, where nobody else can write to "
            "the channel",
        )
    if key is not None and signed_by != key_id(key):
        raise PacketError(
            f"the packet is signed with the key {named}",
            kind="key",
            expected=f"the key {key_id(key)}",
            fix="give both ends the same key",
        )
