"""The contract of a channel, and what it needs of a model."""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.model import CausalModel

Share = Literal["output", "prompt", "context"]


Role = Literal["user", "assistant"]

Mode = Literal["text", "continuation", "splice", "recompute", "projected", "fused", "custom"]
"""How a message is carried; ``custom`` is a channel class of the workflow's own."""

Origin = Literal["reused", "computed", "recomputed", "projected", "fused"]
"""How rows of a receiver's context came to be.

``reused`` rows are the sharer's own, moved where need be. Of ``recomputed`` rows the receiver ran
some layers itself. ``projected`` rows a bridge made of another model's. ``computed`` rows the
receiver made while the channel worked, and ``fused`` ones are such rows that a bridge enriched:
both count as prefilled.
"""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens that stand, id for id, in both contexts.

    Attributes:
        at: First position in the receiver's context.
        source: First position in the sharer's context.
        length: Number of tokens.
    """

    at: int
    source: int
    length: int

    @property
    def stop(self) -> int:
        """Position after the last in the receiver's context."""
        return self.at + self.length


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Tokens that hold, in the receiver's own tokenizer, the text of one segment of a message.

    A token that joins the text with what stands around it belongs to no span.

    Attributes:
        at: First position in the receiver's context.
        segment: Index of the segment in the message.
        ends: Per token, the character of the segment's text where it ends.
    """

    at: int
    segment: int
    ends: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ends)

    @property
    def stop(self) -> int:
        """Position after the last in the receiver's context."""
        return self.at + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A message in its place in the receiver's composed context.

    Attributes:
        message: The message.
        spans: Where its tokens stand, ascending; empty where tokenizers differ or a template
            rewrote it.
        context: All ids of the receiver's context.
        texts: Where its words stand as tokens of the receiver's own, ascending; empty between equal
            tokenizers.
        before: States in place already, ascending and without overlap: the receiver's own past, and
            what messages that stand earlier have brought. A channel that computes in the receiver
            may build on them.
    """

    message: Message
    spans: tuple[Span, ...]
    context: tuple[int, ...]
    texts: tuple[TextSpan, ...] = ()
    before: tuple[KVState, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the message in the receiver's context, its turn's markers where kept."""
        return sum(span.length for span in self.placed) or self.message.tokens

    @property
    def placed(self) -> tuple[Span | TextSpan, ...]:
        """Both kinds of spans, ascending."""
        both: list[Span | TextSpan] = [*self.spans, *self.texts]
        return tuple(sorted(both, key=lambda span: span.at))

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the message's tokens in the receiver's context, ascending."""
        return tuple(place for span in self.placed for place in range(span.at, span.stop))


@dataclass(frozen=True, slots=True)
class Fallback:
    """A cache was asked for, and text took its place.

    Attributes:
        channel: The channel that was asked for.
        cause: Why it did not serve.
    """

    channel: str
    cause: str


def inexact_in_a_row(count: int) -> str:
    """Why a message goes by text that a cache could carry, as the plan and the report say it."""
    if not count:
        return "the edge takes no inexact hand-over"
    return f"{count} inexact hand-over{'' if count == 1 else 's'} in a row"


@dataclass(frozen=True, slots=True, kw_only=True)
class CarryReport:
    """What a channel did with one message.

    Attributes:
        channel: The channel's name.
        mode: How the message was carried.
        exact: Whether the receiver gets what it would have computed from the same ids itself.
        reason: One sentence for people on how the message was carried, and why so.
        tokens: Tokens of the message in the receiver's context.
        reused: Message tokens whose state is taken over.
        repaired: Message tokens that have a state but were computed again.
        bytes: Bytes of state handed over, or of UTF-8 text.
        projected: Message tokens whose state a bridge made and that are not computed again.
        layer_tokens: Layers times tokens that the receiver runs of its own to make that state.
        recomputed_layers: Of a message from other weights of one base, the layers that the receiver
            computed itself.
        fallback: The channel that gave way to this one, and its cause; None where none did.
    """

    channel: str
    mode: Mode
    exact: bool
    reason: str
    tokens: int
    reused: int = 0
    repaired: int = 0
    bytes: int = 0
    projected: int = 0
    layer_tokens: int = 0
    recomputed_layers: int = 0
    fallback: Fallback | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """State for some positions of a receiver's context.

    Attributes:
        state: Keys and values at the receiver's positions.
        origin: How they came to be; see `Origin`.
    """

    state: KVState
    origin: Origin = "reused"


@dataclass(frozen=True, slots=True, eq=False)
class Carry:
    """State for a receiver's context, at the receiver's positions.

    Attributes:
        report: What was done.
        prefix: Exact state from position 0 on, or None.
        pieces: What stands after the prefix, ascending; where two overlap, the first one counts.
        repair: Positions of `pieces` to compute again. Empty where the receiver has computed them
            already.
    """

    report: CarryReport
    _: KW_ONLY
    prefix: Piece | None = None
    pieces: tuple[Piece, ...] = ()
    repair: tuple[int, ...] = ()

    def of(self, *origins: Origin) -> tuple[KVState, ...]:
        """The states of `pieces` that came to be in one of these ways."""
        return tuple(piece.state for piece in self.pieces if piece.origin in origins)


class Channel(ABC):
    """How a message is carried into a receiver's context.

    Subclasses are frozen dataclasses whose fields are the options.
    """

    name: ClassVar[str]
    carries_state: ClassVar[bool]

    share: Share | None
    as_: Role

    @property
    def captures(self) -> tuple[int, ...]:
        """Layers whose inputs the sharer must keep in its state; none for most channels."""
        return ()

    @abstractmethod
    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        """Refuse, before anything runs, a pair of models this channel cannot serve.

        Raises:
            ChannelError: naming what differs.
        """

    @abstractmethod
    def carry(self, arrival: Arrival, receiver: CausalModel) -> Carry:
        """Supply state for the message's tokens; those without any are computed."""
