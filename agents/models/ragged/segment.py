"""New tokens of one turn, and the rows that they become."""

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from unspoken.agents.models.ragged.sequence import Sequence
from unspoken.channels.kv.state import KVState


class Rows(Protocol):
    """The growing rows of one turn."""

    @property
    def length(self) -> int:
        """Positions filled."""

    def truncate(self, stop: int) -> None:
        """Forget positions from `stop` on."""

    def mark(self) -> None:
        """Keep what recurrent layers have here, so that a state can be continued here."""

    def snapshot(self) -> KVState:
        """The state of all positions; it stays as it is, whatever becomes of the rows."""

    def close(self) -> None:
        """Let them go."""


@dataclass(eq=False, kw_only=True)
class Segment:
    """New tokens of one sequence.

    Attributes:
        rows: Where their rows go; a `Sequence` in a batch.
        ids: The tokens.
        positions: Their positions, ascending; between them may stand rows that are there.
        wanted: After how many of the last tokens logits are wanted.
        capture: Layers whose inputs are wanted; each forward appends (tokens, hidden_size).
    """

    rows: "Rows"
    ids: Listed[int]
    positions: Listed[int]
    wanted: int = 0
    capture: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def sequence(self) -> Sequence:
        """Its rows, in a batch."""
        assert isinstance(self.rows, Sequence)
        return self.rows

    @property
    def follows(self) -> bool:
        """Whether the tokens stand right after the rows that are there, without gaps."""
        return self.positions[0] == self.rows.length == self.positions[-1] + 1 - len(self.ids)

    @property
    def steps(self) -> bool:
        """Whether it is one token after others, whose logits are wanted and nothing else."""
        one = len(self.ids) == self.wanted == 1
        return one and self.follows and self.rows.length > 0 and not self.capture

    @property
    def reach(self) -> int:
        """Positions filled once these tokens are."""
        return max(self.rows.length, self.positions[-1] + 1)
