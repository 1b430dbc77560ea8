"""Packets in memory."""

import io

from bad_packets import KEY

from unspoken.agents.models.model import LocalModel
from unspoken.channels.kv.codec import Codec
from unspoken.channels.message import Message
from unspoken.channels.packets.packet import read_packet, write_packet

TEXT = "the key of the document is with the reader, and its value is that of the thing"


def written(message: Message, key: bytes | None = KEY, codec: Codec = "raw") -> bytes:
    stream = io.BytesIO()
    assert write_packet(message, stream, key=key, codec=codec) == len(stream.getvalue())
    return stream.getvalue()


def read(data: bytes, model: LocalModel, key: bytes | None = KEY) -> Message:
    return read_packet(io.BytesIO(data), model, key=key)
