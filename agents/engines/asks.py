"""What a turn asks of its device, and how the device answers several turns at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from torch import Tensor

from unspoken.agents.engines.sampling import Sampler, Scorer, sample
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.ragged.segment import Rows, Segment

MOST_DRAFTING = 2
"""Most turns that decode at a time while drafts are computed: beside more of them, a draft takes as
long as a row."""


SHORT = 256
"""Rows up to which a context costs less than the weights that compute it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Compute:
    """New tokens of a turn, to be computed all or as many as there is time for.

    Attributes:
        model: The turn's model.
        rows: The turn's rows.
        ids: The tokens.
        positions: Their positions, ascending.
        sampler: Chooses the token after the last one, or gives log-probabilities; None for neither.
        drafts: Tokens that may follow the last one. Those that the sampler would have chosen are
            kept, the rows of the others are forgotten.
        capture: Layers whose inputs are wanted; each forward appends (tokens, hidden_size).
        whole: Whether all tokens are computed in one forward, beside steps of decoding too.
    """

    model: TurnModel
    rows: Rows
    ids: Sequence[int]
    positions: Sequence[int]
    sampler: Sampler | Scorer | None = None
    drafts: tuple[int, ...] = ()
    capture: dict[int, list[Tensor]] = field(default_factory=dict)
    whole: bool = False

    @property
    def decodes(self) -> bool:
        """Whether this is a step of decoding."""
        return self.sampler is not None and (self.whole or len(self.ids) == 1)

    @property
    def steps(self) -> bool:
        """Whether it is one token, and nothing but the next is wanted of it."""
        bare = not self.drafts and not self.capture and isinstance(self.sampler, Sampler)
        return bare and len(self.ids) == 1 and self.rows.length > 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What was computed of an ask.

    Attributes:
        count: How many of its tokens; drafts not counted.
        drafted: How many drafts were computed; none beside many that decode.
        tokens: What follows the last of them: the drafts that were right, and one token more. Empty
            unless all tokens were computed and a sampler was given.
        seconds: Seconds of the forward, whatever else it computed.
        turns: How many turns it computed; 1 on a model that takes them one by one.
        drafts: Whether drafts are welcome in the next one: as far as this one tells, few decode.
        scores: Log-probabilities, where they were asked for in place of tokens.
    """

    count: int
    drafted: int
    tokens: tuple[int, ...]
    seconds: float
    turns: int = 1
    drafts: bool = True
    scores: tuple[float, ...] = ()


def compute(asks: Sequence[tuple[Compute, int]]) -> list[Answer | Exception]:
    """Compute the first so many tokens of each ask, in one forward of their model.

    Where the forward fails, each ask is tried alone, so that it fails for the one to blame.

    Args:
        asks: Asks of models of one `batch_key`, each with a number of tokens.

    Returns:
        Per ask, its answer or what went wrong.
    """
    model = asks[0][0].model
    if model.refuses_batches is not None and sum(ask.decodes for ask, _ in asks) > MOST_DRAFTING:
        asks = [(replace(ask, drafts=()), count) for ask, count in asks]
    groups = _groups(model, asks)
    if len(groups) > 1:
        found: dict[int, Answer | Exception] = {}
        for group in groups:
            found |= zip(group, compute([asks[number] for number in group]), strict=True)
        return [found[number] for number in range(len(asks))]
    began = perf_counter()
    few = sum(ask.decodes for ask, _ in asks) <= MOST_DRAFTING
    segments = [_segment(ask, count, drafts=few) for ask, count in asks]
    try:
        logits = model.compute(segments)
    except Exception as error:
        return [error] if len(asks) == 1 else [compute([ask])[0] for ask in asks]
    try:
        chosen = _sampled(asks, segments, logits)
    except Exception as error:  # such as a fault of the device, which nothing tells apart
        return [error] * len(asks)
    seconds = perf_counter() - began
    writing = sum(ask.sampler is not None and count == len(ask.ids) for ask, count in asks)
    answers: list[Answer | Exception] = []
    for number, ((ask, count), segment) in enumerate(zip(asks, segments, strict=True)):
        tokens = chosen.get(number, [])
        if isinstance(tokens, Exception):
            answers.append(tokens)
            continue
        drafted, right = _drafted(ask, count, segment, tokens)
        scores = isinstance(ask.sampler, Scorer)
        answers.append(
            Answer(
                count=count,
                drafted=drafted,
                tokens=() if scores else tuple(tokens[: right + 1]),
                seconds=seconds,
                turns=len(asks),
                drafts=writing <= MOST_DRAFTING,
                scores=Scorer.read(tokens) if scores else (),
            )
        )
    return answers


def _sampled(
    asks: Sequence[tuple[Compute, int]],
    segments: Sequence[Segment],
    logits: Sequence[Tensor | None],
) -> dict[int, list[int] | Exception]:
    """What the samplers give, by the number of the ask; none where no logits were wanted."""
    wanted = {
        number: (ask.sampler, rows, segments[number].ids[count:])
        for number, ((ask, count), rows) in enumerate(zip(asks, logits, strict=True))
        if rows is not None and ask.sampler is not None
    }
    return dict(zip(wanted, sample(list(wanted.values())), strict=True))


def _groups(model: TurnModel, asks: Sequence[tuple[Compute, int]]) -> list[list[int]]:
    """Numbers of asks that are computed in one forward each."""
    numbers = list(range(len(asks)))
    # Beyond the positions of a model, rotary frequencies may change for all of a forward.
    if any(ask.positions[count - 1] >= model.max_positions for ask, count in asks):
        return [[number] for number in numbers]
    if model.refuses_batches is None:
        return [numbers]
    steps = list[int]()
    if model.refuses_steps is None:
        # Whose rows take longer to copy than it takes to read the weights is computed alone.
        most = max(SHORT, model.most_stacked)
        steps = [n for n in numbers if asks[n][0].steps and asks[n][0].rows.length <= most]
    near = near_lengths([asks[number][0].rows.length for number in steps])
    alone = [[number] for number in numbers if number not in steps]
    return alone + [[steps[place] for place in group] for group in near]


def near_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of contexts in groups, in each of which padding at most doubles the rows.

    Stacked rows are as long as the longest, and models may compute all of them.
    """
    groups, rows = list[list[int]](), 0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        own = max(lengths[number], SHORT)
        if groups and own * (len(groups[-1]) + 1) <= 2 * (rows + own):
            groups[-1].append(number)
            rows += own
        else:
            groups.append([number])
            rows = own
    return groups


def compute_alone(ask: Compute, most: int) -> Answer:
    """Compute at most so many tokens of one ask.

    Raises:
        Exception: Whatever went wrong.
    """
    (answer,) = compute([(ask, min(most, len(ask.ids)))])
    if isinstance(answer, Exception):
        raise answer
    return answer


def _segment(ask: Compute, count: int, *, drafts: bool) -> Segment:
    whole = count == len(ask.ids)
    more = ask.drafts if whole and drafts else ()
    positions: Sequence[int] = ask.positions[:count]
    if more:
        positions = range(positions[0], positions[0] + count + len(more))
    return Segment(
        rows=ask.rows,
        ids=[*ask.ids[:count], *more],
        positions=positions,
        wanted=_wanted(ask.sampler) + len(more) if whole else 0,
        capture=ask.capture,
    )


def _wanted(sampler: Sampler | Scorer | None) -> int:
    """After how many of the last tokens a sampler needs logits, drafts not counted."""
    if sampler is None:
        return 0
    return len(sampler.ids) if isinstance(sampler, Scorer) else 1


def _drafted(ask: Compute, count: int, segment: Segment, chosen: Sequence[int]) -> tuple[int, int]:
    """How many drafts were computed, and how many of them were right; the others' rows go."""
    drafted = len(segment.ids) - count
    right = 0
    while right < drafted and chosen[right] == ask.drafts[right]:
        right += 1
    wrong = drafted - right
    if wrong:
        ask.rows.truncate(ask.rows.length - wrong)
        for parts in ask.capture.values():
            parts[-1] = parts[-1][:-wrong]
    return drafted, right


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
