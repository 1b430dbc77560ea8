"""What a packet says of itself."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unspoken.channels.errors import PacketError
from unspoken.channels.kv.codec import Codec
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment

VERSIONS = (1, 2, 3)
"""Of packets that are bound to nothing, which older readers take too, of bound ones, and of states
that hold more than rows of keys and values of one size."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MAX_HEADER = 64 * 2**20
"""Bytes of the longest header."""

ENTRY = 60
"""Bytes that every tensor of a snapshot takes in a header at least."""

MAX_SNAPSHOTS = 2**12

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
    """One layer: heads, sizes of keys and of values, and the first position it holds.

    Without heads it holds no rows. Without `value_dim` values are of the size of keys.
    """

    kv_heads: Annotated[int, Field(ge=0, le=2**16)]
    head_dim: Annotated[int, Field(ge=0, le=2**16)]
    first: Count = 0
    value_dim: Size | None = None

    @property
    def values(self) -> int:
        """Size of one head's values."""
        return self.head_dim if self.value_dim is None else self.value_dim


class FoldedShape(_Strict):
    """One tensor that every snapshot holds of a recurrent layer."""

    layer: Count
    name: Annotated[str, Field(pattern=r"^(conv|recurrent)\.[0-9]{1,2}$")]
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)]
    dtype: Literal["float32", "bfloat16", "float16"]


class TurnShape(_Strict):
    """One turn of the message: its place in the context, its words and their place in it."""

    role: Literal["system", "user", "assistant", "tool"]
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

    version: Literal[1, 2, 3]
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
    hops: Count = 0
    folded: Annotated[tuple[FoldedShape, ...], Field(max_length=2**14)] = ()
    snapshots: Annotated[tuple[Count, ...], Field(max_length=MAX_SNAPSHOTS)] = ()

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
        self._check_kinds(stop)
        end = 0
        for turn in self.turns:
            if turn.position < end:
                raise ValueError("turns that overlap, or stand in another order")
            end = turn.position + turn.length
            if end > stop:
                raise ValueError(f"a turn that ends after the last of {stop} tokens")
            _check_words(turn)
        return self

    def _check_kinds(self, stop: int) -> None:
        """What stands in which version, and what recurrent layers have."""
        rows = [layer for layer in self.layers if layer.kv_heads and layer.value_dim is None]
        odd = bool(self.folded or self.snapshots or len(rows) < len(self.layers))
        if odd != (self.version == 3):
            raise ValueError("recurrent and latent layers stand in version 3, and nothing else")
        if self.version < 3 and (self.bind is not None) != (self.version == 2):
            raise ValueError("a binding stands in version 2, or in version 3")
        if any(bool(layer.kv_heads) != bool(layer.head_dim) for layer in self.layers):
            raise ValueError("heads without a size, or a size without heads")
        if any(part.layer >= len(self.layers) for part in self.folded):
            raise ValueError("a recurrent layer that there is not")
        names = [(part.layer, part.name) for part in self.folded]
        if len(set(names)) < len(names):
            raise ValueError("a tensor of a recurrent layer that stands there twice")
        ends = (0, *self.snapshots, stop + 1)
        if list(ends) != sorted(set(ends)):
            raise ValueError("snapshots that descend, or stand after the last token")
        if bool(self.snapshots) and not self.folded:
            raise ValueError("snapshots of nothing")
        if self.folds * ENTRY > MAX_HEADER:
            raise ValueError(f"{self.folds} tensors of snapshots, more than a header has room for")

    @property
    def folds(self) -> int:
        """How many tensors of recurrent layers there are, in all snapshots."""
        return len(self.folded) * len(self.snapshots)

    def to_json(self) -> str:
        """The text that is signed; what older readers do not know is left out where it is empty."""
        empty: dict[str, Any] = dict.fromkeys(("bind", "hops", "folded", "snapshots"), True)
        empty = {name: left for name, left in empty.items() if not getattr(self, name)}
        if all(layer.value_dim is None for layer in self.layers):
            empty["layers"] = {"__all__": {"value_dim"}}
        return self.model_dump_json(exclude=empty)

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
        PacketError: More snapshots than a packet has room for.
    """
    maker, names = state.identity, {dtype: name for name, dtype in DTYPES.items()}
    turns = [_turn(segment) for segment in message.segments]
    layers = [
        {
            "kv_heads": layer.shape[0],
            "head_dim": layer.shape[2],
            "first": layer.first,
            "value_dim": None if layer.value_dim == layer.shape[2] else layer.value_dim,
        }
        for layer in state.layers
    ]
    folded = _folded(state)
    _check_count(len(state.snapshots), len(folded))
    odd = bool(folded) or any(not one["kv_heads"] or one["value_dim"] for one in layers)
    return PacketManifest.model_validate(
        {
            "version": 3 if odd else VERSIONS[bind is not None],
            "codec": codec,
            "dtype": names[state.dtype],
            "made_by": asdict(maker),
            "sharer": message.sharer,
            "whole": message.whole,
            "context": message.context,
            "turns": tuple(turns),
            "approximate_from": state.approximate_from,
            # One follows from the rest, and older readers do not know the word.
            "hops": state.hops if state.hops > 1 else 0,
            "layers": tuple(layers),
            "hidden": tuple(sorted(state.hidden)),
            "hidden_first": state.hidden_first,
            "hidden_size": next((t.shape[1] for t in state.hidden.values()), 0),
            "digests": tuple(digests),
            "key": key,
            "bind": bind,
            "folded": folded,
            "snapshots": tuple(snapshot.at for snapshot in state.snapshots),
        }
    )


def _check_count(snapshots: int, folded: int) -> None:
    """Refuse more snapshots than a reader takes, each of so many tensors."""
    most = min(MAX_SNAPSHOTS, MAX_HEADER // (ENTRY * max(folded, 1)))
    if snapshots > most:
        raise PacketError(
            f"the state has {snapshots} snapshots of recurrent layers",
            kind="size",
            expected=f"at most {most} in a packet",
            fix="leave fewer, with a larger number under `snapshots` of the agent",
        )


def _turn(segment: Segment) -> dict[str, object]:
    return {
        "role": segment.role,
        "position": segment.position,
        "length": len(segment.ids),
        "content": segment.content,
        "text": segment.text,
        "ends": segment.ends,
    }


def _folded(state: KVState) -> tuple[dict[str, object], ...]:
    """What every snapshot of a state holds of its recurrent layers."""
    if not state.snapshots:
        return ()
    names = {dtype: name for name, dtype in DTYPES.items()}
    return tuple(
        {"layer": number, "name": name, "shape": tuple(tensor.shape), "dtype": names[tensor.dtype]}
        for number, parts in state.snapshots[0].layers.items()
        for name, tensor in parts.items()
    )
