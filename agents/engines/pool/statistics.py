"""What a pool tells of itself."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldState:
    """A state that is kept.

    Attributes:
        holders: Who holds tickets for it, one entry a ticket; none where it is kept in case a later
            turn begins as it does.
        tokens: Number of tokens.
        nbytes: Bytes of its rows; what it shares with other states counts here too.
        on_disk: Whether some of it is on disk.
    """

    holders: tuple[str, ...]
    tokens: int
    nbytes: int
    on_disk: bool = False


@dataclass(slots=True, kw_only=True)
class Usage:
    """What was used from one moment on, by a run or by all of a session.

    Attributes:
        peak_bytes: The most memory that states held at a time, each storage once.
        peak_reserved_bytes: The most at a time with what turns under way had leased.
        peak_shared_bytes: The most of it that several tickets were for when a turn began.
        spilled_bytes: Bytes of memory that were given up for a copy on disk.
        prefix_hits: Turns that took over more from the index than their messages brought.
        prefix_misses: Turns for which the index had nothing.
        prefix_tokens: Tokens that were taken over from the index.
    """

    peak_bytes: int = 0
    peak_reserved_bytes: int = 0
    peak_shared_bytes: int = 0
    spilled_bytes: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    prefix_tokens: int = 0

    def count(self, tokens: int) -> None:
        """Count a turn for which the index had so many tokens."""
        self.prefix_hits += tokens > 0
        self.prefix_misses += tokens == 0
        self.prefix_tokens += tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """What a pool holds, and what it has done.

    Attributes:
        bytes_held: Bytes of the memory that all states together keep alive, each storage once.
        bytes_leased: Bytes that turns under way may take besides.
        bytes_cached: Of those held, what no ticket is for: it goes when others need the room.
        shared_bytes: Of those held, what several tickets are for.
        bytes_on_disk: Bytes of states on disk.
        budget_bytes: Most bytes by device, as far as devices were used; None for no limit.
        peak_bytes, peak_reserved_bytes, peak_shared_bytes, spilled_bytes, prefix_hits,
            prefix_misses, prefix_tokens: As in `Usage`.
        tickets: Number of tickets.
        states: The states and who holds them.
    """

    bytes_held: int
    bytes_leased: int
    bytes_cached: int
    shared_bytes: int
    bytes_on_disk: int
    budget_bytes: dict[str, int | None]
    peak_bytes: int
    peak_reserved_bytes: int
    peak_shared_bytes: int
    spilled_bytes: int
    prefix_hits: int
    prefix_misses: int
    prefix_tokens: int
    tickets: int
    states: tuple[HeldState, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
