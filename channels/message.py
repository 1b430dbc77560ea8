"""What an agent publishes on its out-edges."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from unspoken.channels.errors import StateError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.state import KVState

SHOWN = 60
"""Most letters of its words that a message shows of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One turn's token ids.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        ids: The whole turn, wrapper included.
        content: Where the words stand in `ids`, as (start, stop).
        text: The words.
        position: Position of the turn's first token in its maker's context.
        ends: Character end of every word token in `text`, a token that joins words and wrapper
            clipped to the words; empty where it is not known.
    """

    role: str
    ids: tuple[int, ...]
    content: tuple[int, int]
    text: str
    position: int
    ends: tuple[int, ...] = field(default=(), compare=False)

    @property
    def words(self) -> tuple[int, ...]:
        """Token ids of the words alone."""
        return self.ids[slice(*self.content)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What one turn of an agent says on an edge.

    Attributes:
        sharer: Name of the agent.
        segments: The turns that travel, in order.
        whole: Whether whole turns are handed over (``share: context``), or their words alone.
        context: Token ids of the sharer's context from its start through the message's last token.
        identity: The model that wrote it; its tokenizer gives the ids their meaning.
        state: State of all of `context`; None where no edge asked for it.
    """

    sharer: str
    segments: tuple[Segment, ...]
    whole: bool
    context: tuple[int, ...]
    identity: ModelIdentity
    state: KVState | None = None

    def __repr__(self) -> str:
        """The beginning of its words, and how much there is of it."""
        words = repr(self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}…")
        return f"<Message of {self.sharer!r}: {words}, {self.tokens} tokens, {self.state!r}>"

    @property
    def text(self) -> str:
        """The words of all turns; the exact equivalent of the message on a text edge."""
        return "\n\n".join(segment.text for segment in self.segments)

    @property
    def tokens(self) -> int:
        """Number of tokens of words, or of whole turns where those travel."""
        return sum(len(segment.ids if self.whole else segment.words) for segment in self.segments)

    def require_state(self) -> KVState:
        """Its state.

        Raises:
            StateError: It has none.
        """
        if self.state is None:
            raise StateError(
                f"the message of {self.sharer!r} brings no state",
                expected="a message published with its state",
                fix="publish it with state, or use a text channel",
            )
        return self.state


def common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Number of leading tokens, or characters, that two sequences of one type share.

    It goes by halves, since comparing slices is many times as fast as comparing items.
    """
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
