"""Packets that are for one run, one reader, some time."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from architectures import make
from bad_packets import KEY, resigned
from packets import written

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import IdentityMismatch, InputError, PacketError
from unspoken.channels.message import Message
from unspoken.channels.packets.packet import read_packet, write_packet
from unspoken.channels.packets.reader import PacketReader

EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)
BEFORE, AFTER = EXPIRES - timedelta(seconds=1), EXPIRES + timedelta(seconds=1)


def bound(message: Message, file: Path, **bind: Any) -> Path:
    write_packet(message, file, key=KEY, bind=bind)  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize(
    ("bind", "good", "bad"),
    [
        ({"run": "a"}, {"run": "a"}, [{"run": "b"}, {}, {"run": "a", "agent": "solver"}]),
        ({"receiver": "solver"}, {"agent": "solver"}, [{"agent": "critic"}, {}, {"run": "a"}]),
        (
            {"run": "a", "receiver": "solver"},
            {"run": "a", "agent": "solver"},
            [{"run": "a"}, {"agent": "solver"}, {"run": "solver", "agent": "a"}],
        ),
    ],
)
def test_a_bound_packet_is_read_for_what_it_is_bound_to(
    model: LocalModel, message: Message, tmp_path: Path, bind: Any, good: Any, bad: list[Any]
) -> None:
    """And for nothing else: a packet that was meant for another run or agent is a replay."""
    file = bound(message, tmp_path / "message.packet", **bind)
    assert read_packet(file, model, key=KEY, **good).context == message.context
    for other in bad:
        with pytest.raises(PacketError, match="bound to") as caught:
            read_packet(file, model, key=KEY, **other)
        assert caught.value.kind == "bound" and caught.value.expected and caught.value.fix


def test_a_packet_that_is_bound_to_nothing_serves_only_who_asks_for_nothing(
    model: LocalModel, packet: bytes
) -> None:
    assert read_packet(packet, model, key=KEY, now=AFTER).state is not None
    for asked in ({"run": "a"}, {"agent": "solver"}):
        with pytest.raises(PacketError, match="bound to no") as caught:
            read_packet(packet, model, key=KEY, **asked)  # type: ignore[arg-type]
        assert caught.value.kind == "bound" and "bind=" in caught.value.fix


def test_a_packet_expires(model: LocalModel, message: Message, tmp_path: Path) -> None:
    """At the moment that was signed, by the clock or by the reader's own."""
    for expires in (EXPIRES, EXPIRES.timestamp()):
        file = bound(message, tmp_path / "message.packet", expires=expires)
        for now in (BEFORE, BEFORE.timestamp()):
            assert read_packet(file, model, key=KEY, now=now).context == message.context
        for now in (EXPIRES, AFTER, AFTER.timestamp()):
            with pytest.raises(PacketError, match="expired") as caught:
                read_packet(file, model, key=KEY, now=now)
            assert caught.value.kind == "expired"
    long_ago = bound(message, tmp_path / "message.packet", expires=1.0)
    with pytest.raises(PacketError, match="expired"):
        read_packet(long_ago, model, key=KEY)
    for now in (float("nan"), datetime(2030, 1, 1), "today"):
        with pytest.raises(InputError, match="a moment is given as"):
            read_packet(long_ago, model, key=KEY, now=now)  # type: ignore[arg-type]


def test_a_packet_may_be_for_one_model(model: LocalModel, message: Message, tmp_path: Path) -> None:
    file = bound(message, tmp_path / "message.packet", receiver=model.identity)
    assert read_packet(file, model, key=KEY).context == message.context
    other = make("llama", seed=1)
    file = bound(message, file, receiver=other.identity)
    with pytest.raises(IdentityMismatch, match="bound to a model"):
        read_packet(file, model, key=KEY)
    with pytest.raises(PacketError, match="bound to no agent"):
        read_packet(file, model, key=KEY, agent="solver")


def test_a_binding_is_signed(model: LocalModel, message: Message, tmp_path: Path) -> None:
    """Another name in the manifest is another manifest; without a signature there is no binding."""
    data = bound(message, tmp_path / "message.packet", run="a").read_bytes()
    at = data.index(b'run\\":\\"a') + len(b'run\\":\\"')
    with pytest.raises(PacketError) as caught:
        read_packet(data[:at] + b"b" + data[at + 1 :], model, key=KEY, run="b")
    assert caught.value.kind == "tampered"
    with pytest.raises(InputError, match="unsigned packet is to be bound"):
        write_packet(message, tmp_path / "x.packet", key=None, bind={"run": "a"})


def test_what_no_packet_is_bound_to_is_refused(message: Message, tmp_path: Path) -> None:
    for bind in (
        {}, {"runs": "a"}, {"run": ""}, {"run": 7}, {"run": "x" * 201}, {"receiver": 7},
        {"expires": "2030"}, {"expires": float("inf")}, {"expires": datetime(2030, 1, 1)},
        {"expires": 10**400}, {"expires": True}, ["run"], {"run": "\ud800"},
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            write_packet(message, tmp_path / "x.packet", key=KEY, bind=bind)  # type: ignore[arg-type]
        assert caught.value.expected
    assert list(tmp_path.iterdir()) == []


def test_a_packet_without_a_binding_is_of_the_first_version(
    packet: bytes, message: Message
) -> None:
    """Readers of that version take it, and packets of that version are read."""
    with PacketReader(packet, key=KEY) as reader:
        assert (reader.manifest.version, reader.manifest.bind) == (1, None)
    assert b'"bind' not in packet and b"bind" not in packet[: packet.index(b"layers.0.keys")]
    old = resigned(packet, lambda manifest: manifest.update(ends=manifest.pop("ends", None)))
    assert b"bind" not in old
    mixed = resigned(packet, lambda manifest: manifest.update(bind={"run": "a"}))
    with pytest.raises(PacketError, match="version 2"):
        PacketReader(mixed, key=KEY, run="a")
    assert json.loads(reader.manifest.to_json()).keys() >= {"version", "key"}
    assert written(message) == packet
