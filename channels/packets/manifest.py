"""What a packet says of itself."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unspoken.channels.kv.codec import Codec
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment

VERSIONS = (1, 2)
"""Of packets that are bound to nothing, which older readers take too, and of bound ones."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Count = Annotated[int, Field(ge=0, le=2**31)]
Size = Annotated[int, Field(ge=1, le=2**16)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Identity(_Strict):
    """`ModelIdentity` in JSON."""

    weights: Digest
    config: Digest
    tokenizer: Digest


class LayerShape(_Strict):
    """One layer: heads, head size, and the first position it holds."""

    kv_heads: Size
    head_dim: Size
    first: Count = 0


class TurnShape(_Strict):
    """One turn of the message: its place in the context, its words and their place in it."""

    role: Literal["system", "user", "assistant"]
    position: Count
    length: Count
    content: tuple[Count, Count]
    text: str
    ends: tuple[Count, ...] = ()


class Binding(_Strict):
    """What a packet is for; see `unspoken.channels.packets.binding.Bind`."""

    run: Label | None = None
    receiver: Label | Identity | None = None
    expires: Annotated[float, Field(allow_inf_nan=False)] | None = None


class PacketManifest(_Strict):
    """What a packet says of itself; see `unspoken.channels.packets.packet`."""

    version: Literal[1, 2]
    codec: Codec
    dtype: Literal["float32", "bfloat16", "float16"]
    made_by: Identity
    sharer: str
    whole: bool
    context: Annotated[tuple[Count, ...], Field(min_length=1)]
    turns: tuple[TurnShape, ...]
    approximate_from: Count | None
    layers: Annotated[tuple[LayerShape, ...], Field(min_length=1, max_length=1024)]
    hidden: tuple[Count, ...]
    hidden_first: Count
    hidden_size: Count
    digests: tuple[Digest, ...]
    key: str | None
    bind: Binding | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stop = len(self.context)
        if len(self.digests) != len(self.layers):
            raise ValueError(f"{len(self.digests)} digests of {len(self.layers)} layers")
        if any(layer.first > stop for layer in self.layers):
            raise ValueError(f"a layer that begins after the last of {stop} tokens")
        if any(number >= len(self.layers) for number in self.hidden):
            raise ValueError("hidden states of a layer that there is not")
        if self.hidden_first > stop:
            raise ValueError(f"hidden states that begin after the last of {stop} tokens")
        if self.approximate_from is not None and self.approximate_from > stop:
            raise ValueError(f"a state that is approximate after the last of {stop} tokens")
        if (self.bind is not None) != (self.version == 2):
            raise ValueError("a binding stands in version 2, and in no other")
        end = 0
        for turn in self.turns:
            if turn.position < end:
                raise ValueError("turns that overlap, or stand in another order")
            end = turn.position + turn.length
            if end > stop:
                raise ValueError(f"a turn that ends after the last of {stop} tokens")
            _check_words(turn)
        return self

    def to_json(self) -> str:
        """The text that is signed."""
        return self.model_dump_json(exclude={"bind"} if self.bind is None else None)

    @property
    def identity(self) -> ModelIdentity:
        """The model that made the state."""
        return ModelIdentity(**self.made_by.model_dump())

    def message(self, state: KVState | None) -> Message:
        """The message, with a state or without."""
        segments = tuple(
            Segment(
                role=turn.role,
                ids=self.context[turn.position : turn.position + turn.length],
                content=turn.content,
                text=turn.text,
                position=turn.position,
                ends=turn.ends,
            )
            for turn in self.turns
        )
        return Message(
            sharer=self.sharer,
            segments=segments,
            whole=self.whole,
            context=self.context,
            identity=self.identity,
            state=state,
        )


def _check_words(turn: TurnShape) -> None:
    """Words stand in their turn, and each of their tokens ends in the text, after the last one."""
    first, last = turn.content
    if not first <= last <= turn.length:
        raise ValueError("words that stand outside their turn")
    if not turn.ends:
        return
    if len(turn.ends) != last - first:
        raise ValueError(f"{len(turn.ends)} ends of {last - first} tokens")
    if list(turn.ends) != sorted(turn.ends) or turn.ends[-1] > len(turn.text):
        raise ValueError("ends of tokens that descend, or lie after the text")


def manifest_of(
    message: Message,
    state: KVState,
    codec: Codec,
    digests: Sequence[str],
    key: str | None,
    bind: Binding | None = None,
) -> PacketManifest:
    """The manifest of a message's packet.

    Args:
        message: The message.
        state: Its state.
        codec: How keys and values are stored.
        digests: BLAKE3 of each layer's bytes.
        key: What tells the signing key apart; None for an unsigned packet.
        bind: What the packet is for; None for anything.

    Raises:
        pydantic.ValidationError: A message that no packet can hold.
    """
    maker, names = state.identity, {dtype: name for name, dtype in DTYPES.items()}
    turns = [
        {
            "role": segment.role,
            "position": segment.position,
            "length": len(segment.ids),
            "content": segment.content,
            "text": segment.text,
            "ends": segment.ends,
        }
        for segment in message.segments
    ]
    layers = [
        {"kv_heads": layer.shape[0], "head_dim": layer.shape[2], "first": layer.first}
        for layer in state.layers
    ]
    return PacketManifest.model_validate(
        {
            "version": VERSIONS[bind is not None],
            "codec": codec,
            "dtype": names[state.dtype],
            "made_by": asdict(maker),
            "sharer": message.sharer,
            "whole": message.whole,
            "context": message.context,
            "turns": tuple(turns),
            "approximate_from": state.approximate_from,
            "layers": tuple(layers),
            "hidden": tuple(sorted(state.hidden)),
            "hidden_first": state.hidden_first,
            "hidden_size": next((t.shape[1] for t in state.hidden.values()), 0),
            "digests": tuple(digests),
            "key": key,
            "bind": bind,
        }
    )
