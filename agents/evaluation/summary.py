"""An evaluation in figures: per arm how good and how dear, and the rows on which it lost most."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from unspoken.agents.evaluation.arms import TARGET_ALONE
from unspoken.agents.evaluation.design import Design
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.statistics import context_means, paired_scores
from unspoken.agents.evaluation.verdict import Verdict, difference, verdicts
from unspoken.channels.bootstrap import Bootstrap

WORST = 10
REUSE = "text+reuse"
_TOKENS = ("computed", "reused", "decoded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A quantity over rows.

    Attributes:
        median: Its median.
        low: Its lower quartile.
        high: Its upper quartile.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm over all of its rows.

    Attributes:
        arm: The arm.
        rows: Rows that ran.
        failed: Rows whose run failed; they score 0.
        fell_back: Rows on which a cache that was asked for did not serve.
        score: Mean over contexts; None without one.
        score_low: Lower bound of its 95 % interval, or of 1 - alpha.
        score_high: Upper bound.
        difference: Mean difference of score over contexts, the arm's less text's; None for
            text, given for controls too.
        difference_low: Lower bound of its 95 % interval, or of 1 - alpha, by itself.
        difference_high: Upper bound.
        first_token_s: Seconds to the first token; None where no row has it. Times, tokens and bytes
            are of the rows that ran under every arm.
        seconds: Seconds of a run; None where the other agents take no turn, as in ``alone``.
        sooner: Median over rows of text's time to the first token over the arm's.
        faster: The same of the whole run.
        sooner_than_reuse: As `sooner`, beside text with a prefix cache; None where it did not run.
        faster_than_reuse: As `faster`.
        computed: Mean tokens of a row that were computed before the first was written.
        reused: Mean tokens whose state was taken over.
        decoded: Mean tokens written.
        carried_bytes: Mean bytes of a row's messages.
        peak_bytes: Most memory that states held at a time in any row.
    """

    arm: str
    rows: int
    failed: int
    fell_back: int
    score: float | None
    score_low: float | None
    score_high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    first_token_s: Spread | None
    seconds: Spread | None
    sooner: float | None
    faster: float | None
    sooner_than_reuse: float | None
    faster_than_reuse: float | None
    computed: float
    reused: float
    decoded: float
    carried_bytes: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstRow:
    """A row on which an arm lost.

    Attributes:
        row: The row.
        context: Its context.
        arm: The arm.
        gold: What is right.
        answer: The arm's answer, or why its run failed.
        reference: Text's.
        score: The arm's score.
        reference_score: Text's.
    """

    row: str
    context: str
    arm: str
    gold: Any
    answer: str
    reference: str
    score: float
    reference_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What an evaluation showed.

    Attributes:
        design: What was settled before.
        arms: Every arm, text first.
        verdicts: What each arm shows beside text; the controls have none.
        worst: The rows on which the plan lost most to text, at most ten; see `worst_arm`.
        worst_arm: The arm they are of; None where there is none but text.
        sd: Standard deviation of contexts' differences as measured, the largest of all arms.
        smallest: The smallest difference that can be seen with it.
    """

    design: Design
    arms: tuple[ArmSummary, ...]
    verdicts: Mapping[str, Verdict]
    worst: tuple[WorstRow, ...]
    worst_arm: str | None
    sd: float
    smallest: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "design": self.design.to_dict(),
            "arms": [asdict(arm) for arm in self.arms],
            "verdicts": {name: verdict.to_dict() for name, verdict in self.verdicts.items()},
            "worst_arm": self.worst_arm,
            "worst": [asdict(row) for row in self.worst],
            "measured_sd": self.sd,
            "smallest_difference": self.smallest,
        }


def summarise(
    outcomes: Iterable[Outcome], design: Design, order: Sequence[str], *, reference: str = "text"
) -> Summary:
    """Put outcomes in figures.

    Args:
        outcomes: Scored outcomes.
        design: What was settled before.
        order: The rows' names in the order in which they ran.
        reference: The arm that the others are compared with.
    """
    by_arm: defaultdict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        by_arm[one.arm].append(one)
    text = by_arm.get(reference, [])
    judged = verdicts(
        (one for group in by_arm.values() for one in group), design, order, reference=reference
    )
    others = [name for name in by_arm if name != reference]
    about = next((name for name in ("plan", *design.arms, *others) if name in others), None)
    common = _common(by_arm.values())
    sd = max((verdict.sd for verdict in judged.values()), default=0.0)
    return Summary(
        design=design,
        arms=tuple(
            _summary(name, by_arm, reference, common, design)
            for name in sorted(by_arm, key=lambda name: name != reference)
        ),
        verdicts=judged,
        worst=() if about is None else worst_rows(by_arm[about], text),
        worst_arm=about,
        sd=sd,
        smallest=design.smallest(sd),
    )


def worst_rows(
    arm: Iterable[Outcome], reference: Iterable[Outcome], most: int = WORST
) -> tuple[WorstRow, ...]:
    """The rows on which an arm's score is lowest beside the reference's, worst first."""
    theirs = {one.row: one for one in reference}
    lost = []
    for one in arm:
        other = theirs.get(one.row)
        if other is None or one.score is None or other.score is None or one.score >= other.score:
            continue
        lost.append(
            WorstRow(
                row=one.row,
                context=one.context,
                arm=one.arm,
                gold=one.gold,
                answer=_said(one),
                reference=_said(other),
                score=one.score,
                reference_score=other.score,
            )
        )
    return tuple(sorted(lost, key=lambda row: row.score - row.reference_score)[:most])


def _said(outcome: Outcome) -> str:
    return outcome.answer if outcome.error is None else f"(failed: {outcome.error})"


def _common(arms: Iterable[Sequence[Outcome]]) -> set[str]:
    """The rows that ran under every arm, leaving out arms under which none did."""
    ran = [{one.row for one in arm if one.error is None} for arm in arms]
    return set.intersection(*(rows for rows in ran if rows)) if any(ran) else set()


def _summary(
    name: str,
    by_arm: Mapping[str, Sequence[Outcome]],
    reference: str,
    common: set[str],
    design: Design,
) -> ArmSummary:
    outcomes, text, reuse = by_arm[name], by_arm.get(reference, ()), by_arm.get(REUSE, ())
    means = context_means(outcomes)
    bootstrap = Bootstrap(means, (0.0, 1.0), draws=design.draws, seed=design.seed)
    low, high = bootstrap.bounds(design.alpha / 2) if means else (None, None)
    ran = [one for one in outcomes if one.error is None]
    sound = [one for one in ran if one.row in common]
    pairs = paired_scores(outcomes, text) if name != reference else None
    beside = difference(pairs, design) if pairs and pairs.gaps else (None, None, None)
    tokens = {kind: _mean([getattr(one, kind) for one in sound]) for kind in _TOKENS}
    alone = name in TARGET_ALONE
    return ArmSummary(
        arm=name,
        rows=len(outcomes),
        failed=len(outcomes) - len(ran),
        fell_back=sum(bool(one.fallbacks) for one in outcomes),
        score=bootstrap.mean if means else None,
        score_low=low,
        score_high=high,
        difference=beside[0],
        difference_low=beside[1],
        difference_high=beside[2],
        first_token_s=_spread([one.first_token_s for one in sound]),
        seconds=None if alone else _spread([one.seconds for one in sound]),
        sooner=_ratio(sound, text, "first_token_s"),
        faster=None if alone else _ratio(sound, text, "seconds"),
        sooner_than_reuse=_ratio(sound, reuse, "first_token_s"),
        faster_than_reuse=None if alone else _ratio(sound, reuse, "seconds"),
        carried_bytes=_mean([one.carried_bytes for one in sound]),
        peak_bytes=max((one.peak_bytes for one in sound), default=0),
        **tokens,
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75]).tolist()
    return Spread(median=middle, low=low, high=high)


def _ratio(outcomes: Iterable[Outcome], text: Iterable[Outcome], field: str) -> float | None:
    """The median of text's value over the arm's, of the rows that both have."""
    theirs = {one.row: getattr(one, field) for one in text if one.error is None}
    pairs = [(theirs.get(one.row), getattr(one, field)) for one in outcomes]
    ratios = [other / own for other, own in pairs if other and own]
    return median(ratios) if ratios else None
