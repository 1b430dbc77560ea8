"""What a turn asks of its device, and how the device answers several turns at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from unspoken.agents.engines.sampling import Sampler, sample
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.ragged.segment import Rows, Segment


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Compute:
    """New tokens of a turn, to be computed all or as many as there is time for.

    Attributes:
        model: The turn's model.
        rows: The turn's rows.
        ids: The tokens.
        positions: Their positions, ascending.
        sampler: Chooses the token after the last one; None for none.
        drafts: Tokens that may follow the last one. Those that the sampler would have chosen are
            kept, the rows of the others are forgotten.
        capture: Layers whose inputs are wanted; each forward appends (tokens, hidden_size).
    """

    model: TurnModel
    rows: Rows
    ids: Sequence[int]
    positions: Sequence[int]
    sampler: Sampler | None = None
    drafts: tuple[int, ...] = ()
    capture: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def decodes(self) -> bool:
        """Whether this is a step of decoding."""
        return len(self.ids) == 1 and self.sampler is not None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was computed of an ask.

    Attributes:
        count: How many of its tokens; drafts not counted.
        tokens: What follows the last of them: the drafts that were right, and one token more. Empty
            unless all tokens were computed and a sampler was given.
        seconds: Seconds of the forward, whatever else it computed.
    """

    count: int
    tokens: tuple[int, ...]
    seconds: float


def compute(asks: Sequence[tuple[Compute, int]]) -> list[Answer]:
    """Compute the first so many tokens of each ask, in one forward of their model.

    Args:
        asks: Asks of models of one `batch_key`, each with a number of tokens.
    """
    began = perf_counter()
    segments = [_segment(ask, count) for ask, count in asks]
    logits = asks[0][0].model.compute(segments)
    wanted = [
        (number, ask.sampler, rows)
        for number, ((ask, _), rows) in enumerate(zip(asks, logits, strict=True))
        if rows is not None and ask.sampler is not None
    ]
    chosen = dict(
        zip(
            (number for number, _, _ in wanted),
            sample([(sampler, rows) for _, sampler, rows in wanted]),
            strict=True,
        )
    )
    seconds = perf_counter() - began
    return [
        Answer(count, _accepted(ask, chosen.get(number, ())), seconds)
        for number, (ask, count) in enumerate(asks)
    ]


def compute_alone(ask: Compute, most: int) -> Answer:
    """Compute at most so many tokens of one ask."""
    return compute([(ask, min(most, len(ask.ids)))])[0]


def _segment(ask: Compute, count: int) -> Segment:
    whole = count == len(ask.ids)
    drafts = ask.drafts if whole else ()
    positions: Sequence[int] = ask.positions[:count]
    if drafts:
        positions = range(positions[0], positions[0] + count + len(drafts))
    return Segment(
        rows=ask.rows,
        ids=[*ask.ids[:count], *drafts],
        positions=positions,
        wanted=1 + len(drafts) if whole and ask.sampler is not None else 0,
        capture=ask.capture,
    )


def _accepted(ask: Compute, chosen: Sequence[int]) -> tuple[int, ...]:
    """The tokens up to the first that was not drafted; the rows of wrong drafts go."""
    right = 0
    while right < len(ask.drafts) and chosen[right] == ask.drafts[right]:
        right += 1
    wrong = len(ask.drafts) - right
    if wrong and chosen:
        ask.rows.truncate(ask.rows.length - wrong)
        for parts in ask.capture.values():
            parts[-1] = parts[-1][:-wrong]
    return tuple(chosen[: right + 1])


def slices(asks: Sequence[Compute]) -> list[int]:
    """How many tokens of each ask of one model are computed in the next round.

    Every step of decoding takes part, and prefill as far as there is room, in the order of the
    asks. Beside decoding there is little room, so that nobody waits long for the next token.
    """
    decodes = any(ask.decodes for ask in asks)
    room = most_prefilled(asks[0].model.device, beside=decodes)
    counts = []
    for ask in asks:
        count = len(ask.ids) if ask.decodes else min(room, len(ask.ids))
        room -= 0 if ask.decodes else count
        counts.append(count)
    return counts


def most_prefilled(device: torch.device, *, beside: bool) -> int:
    """Most tokens of prefill in one round, alone or beside decoding."""
    if device.type == "cpu":
        return 64 if beside else 256
    return 512 if beside else 2048
