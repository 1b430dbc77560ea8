"""Keys of packets: where they come from, and which protect nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
from packets import read, written

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import InputError
from unspoken.channels.message import Message
from unspoken.channels.packets.signing import KEY_FILE_VARIABLE, KEY_VARIABLE, packet_key


def test_a_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    with pytest.raises(InputError, match="no key"):
        packet_key()
    file = tmp_path / "packet.key"
    file.write_bytes(b"0123456789abcdef\n")
    file.chmod(0o600)
    assert packet_key(file) == b"0123456789abcdef"
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(file))
    assert packet_key() == b"0123456789abcdef"
    monkeypatch.setenv(KEY_VARIABLE, "another key, long enough")
    assert packet_key() == b"another key, long enough"
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(InputError, match="5 bytes"):
        packet_key()
    assert packet_key(str(file)) == b"0123456789abcdef"
    for nowhere in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "", "null\0byte"):
        with pytest.raises(InputError, match="cannot be read"):
            packet_key(nowhere)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o602, 0o601])
def test_a_key_file_that_is_open_to_others_is_refused(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is named; the fix is the command."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    file = tmp_path / "a packet.key"
    file.write_bytes(b"0123456789abcdef\n")
    file.chmod(mode)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(file))
    for given in (file, None):
        with pytest.raises(InputError, match=f"its mode is {mode:04o}") as caught:
            packet_key(given)
        assert f"chmod 600 '{file}'" in caught.value.fix
        assert "0123456789abcdef" not in str(caught.value)
    for private in (0o600, 0o400):
        file.chmod(private)
        assert packet_key(file) == b"0123456789abcdef"


@pytest.mark.parametrize("file", [7, b"a key that is long enough"])
def test_a_key_file_is_named_by_a_path(file: Any) -> None:
    """A key given in its place is not shown to whoever reads the error."""
    with pytest.raises(InputError, match="the packet key's file is") as caught:
        packet_key(file)
    assert caught.value.expected == "a path as str or Path"
    assert "long enough" not in str(caught.value)


@pytest.mark.parametrize("key", [b"", b"short", "a str, however long it is"])
def test_a_key_that_protects_nothing_is_refused_at_both_ends(
    key: bytes, model: LocalModel, message: Message, packet: bytes
) -> None:
    """An empty or a short key would make a packet that only looks signed."""
    with pytest.raises(InputError, match="packet key is"):
        written(message, key)
    with pytest.raises(InputError, match="packet key is"):
        read(packet, model, key)
