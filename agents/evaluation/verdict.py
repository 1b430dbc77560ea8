"""What an arm's outcomes show beside text's: a claim that the data bear out, or none.

There is no verdict "no difference": data can only bound one. Holm's order (Holm 1979) shares alpha
among the arms. An arm that is settled at one look stays settled, and asks no more of the others.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from unspoken.agents.evaluation.arms import FORCED
from unspoken.agents.evaluation.design import Design
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.statistics import Pairs, mcnemar, paired_scores
from unspoken.channels.bootstrap import Bootstrap

Kind = Literal["better", "no worse", "worse", "not shown"]

WITHOUT = ("alone", "stranger")
"""Arms whose agent does not get its message. Where they do as well as text, rows show little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of an arm beside the reference.

    Attributes:
        arm: The arm.
        kind: What the data show.
        margin: The loss that does not matter.
        difference: Mean difference of score over contexts, the arm's less the reference's.
        low: Lower bound of the 95 % interval, or of 1 - alpha, of this arm by itself.
        high: Upper bound.
        worst: Lower bound at the level on which the verdict stands.
        best: Upper bound at this level.
        p: McNemar's exact p, of scores 0 and 1 with one row a context; else None.
        sd: Standard deviation of contexts' differences.
        contexts: How many contexts.
        rows: How many rows.
        wins: Rows that are better under the arm.
        losses: Rows that are worse.
        by_text: Rows on which every message went by text, though the arm is about caches; all of
            them where no row carried one. They count as they are: as text.
        fell_back: Rows on which some message did.
        carried: Mean difference over contexts of the rows on which none did; None without one.
        needs_rows: About how many rows would show "no worse"; None where none would, or it is.
        settled: Whether later rows change nothing.
        planned: How many rows were to run.
        needless: Arms without the messages that are not shown worse than text either, on any row.
    """

    arm: str
    kind: Kind
    margin: float
    difference: float
    low: float
    high: float
    worst: float
    best: float
    p: float | None
    sd: float
    contexts: int
    rows: int
    wins: int
    losses: int
    by_text: int
    fell_back: int
    carried: float | None
    needs_rows: int | None
    settled: bool
    planned: int
    needless: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The verdict, in a sentence."""
        text = self._claim()
        if self.fell_back and self.by_text < self.rows:
            text += f" ({self.fell_back} of {self.rows} rows fell back, and count so)"
        if self.settled and self.rows < self.planned:
            text += f" (settled after {self.rows} rows)"
        return text

    def _claim(self) -> str:
        if self.kind == "better":
            return f"better, by {self.worst:.3f} to {self.best:.3f}"
        if self.kind == "worse":
            return f"worse, by {-self.best:.3f} to {-self.worst:.3f}"
        if self.kind == "no worse":
            tail = f", though worse by {-self.best:.3f} and more" if self.best < 0 else ""
            tail += f"; nor is {' or '.join(self.needless)} shown worse" if self.needless else ""
            return f"no worse than {self.margin:g}{tail}"
        if self.rows and self.by_text == self.rows:
            return "not shown: every message of every row went by text"
        text = f"not shown: could be as bad as {max(-self.worst, 0.0):.3f} less"
        if self.needs_rows is not None:
            return f"{text}; needs about {self.needs_rows:,} rows"
        return f"{text}; no number of rows would show it, if the difference is as measured"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "words": self.words}


class _Arm:
    """One arm beside the reference, over the rows of one look."""

    def __init__(
        self, name: str, outcomes: Sequence[Outcome], reference: Sequence[Outcome], design: Design
    ) -> None:
        self.name, self.design = name, design
        self._outcomes, self._reference = outcomes, reference
        self.pairs: Pairs = paired_scores(outcomes, reference)
        self._bootstrap = Bootstrap(self.pairs.gaps, draws=design.draws, seed=design.seed)
        self._p = mcnemar(self.pairs.wins, self.pairs.losses) if self.pairs.binary else None
        self._fell_back = sum(bool(one.fallbacks) for one in outcomes)
        # A plan may be text without any fallback, and a run that failed carried nothing either.
        carries = name == "plan" or name in FORCED
        sound = [one for one in outcomes if one.error is None]
        self._by_text = sum(carries and one.all_text for one in sound)
        self._nothing_carried = carries and 0 < len(sound) == self._by_text

    def bounds(self, tail: float, left: int) -> tuple[float, float]:
        """Bounds at a look's alpha, of which the lower has what Holm's order gives to those left.

        An arm leaves as "no worse" and may be called worse all the same. So the claims of its upper
        side are not used up when it leaves, and share alpha among all arms.
        """
        low, _ = self._bootstrap.bounds(tail / left)
        _, high = self._bootstrap.bounds(tail / max(len(self.design.arms), 1))
        return low, high

    def kind(self, tail: float, left: int) -> Kind:
        """What is shown with a look's alpha on each side, where so many arms are left."""
        low, high = self.bounds(tail, left)
        if self.pairs.rows and self._nothing_carried:
            return "not shown"
        # Both must say so of scores that are right or wrong: the interval, and the exact test.
        better = self._p is None or self._p <= 2 * tail / left
        worse = self._p is None or self._p <= 2 * tail / max(len(self.design.arms), 1)
        if low > 0 and better:
            return "better"
        if low > -self.design.margin:
            return "no worse"
        return "worse" if high < 0 and worse else "not shown"

    def verdict(self, tail: float, left: int, *, settled: bool) -> Verdict:
        """What is shown, and what else is known."""
        pairs, kind = self.pairs, self.kind(tail, left)
        worst, best = self.bounds(tail, left)
        low, high = self._bootstrap.bounds(self.design.alpha / 2)
        kept = paired_scores((one for one in self._outcomes if not one.fallbacks), self._reference)
        contexts = None
        if kind == "not shown" and pairs.gaps and not self._nothing_carried:
            contexts = self.design.needed(pairs.mean, pairs.sd, tail / left)
            # So many did not show it.
            contexts = None if contexts is None else max(contexts, len(pairs.gaps) + 1)
        ratio = pairs.rows / max(len(pairs.gaps), 1)
        return Verdict(
            arm=self.name,
            kind=kind,
            margin=self.design.margin,
            difference=pairs.mean,
            low=low,
            high=high,
            worst=worst,
            best=best,
            p=self._p,
            sd=pairs.sd,
            contexts=len(pairs.gaps),
            rows=pairs.rows,
            wins=pairs.wins,
            losses=pairs.losses,
            by_text=pairs.rows if self._nothing_carried else self._by_text,
            fell_back=self._fell_back,
            carried=kept.mean if kept.gaps else None,
            needs_rows=None if contexts is None else round(contexts * ratio),
            settled=settled,
            planned=self.design.rows,
        )


def verdicts(
    outcomes: Iterable[Outcome], design: Design, order: Sequence[str], *, reference: str = "text"
) -> dict[str, Verdict]:
    """The verdicts after all looks whose rows are done.

    It is a function of the outcomes alone: called after each look, it says whether to go on. Before
    the first look is done, and between two looks, what is known is said and nothing is settled.

    Args:
        outcomes: Scored outcomes.
        design: What was settled before.
        order: The rows' names in the order in which they run.
        reference: The arm that the others are compared with.

    Returns:
        A verdict per arm of the design, in its order.
    """
    by_arm: defaultdict[str, dict[str, Outcome]] = defaultdict(dict)
    for one in outcomes:
        if one.score is not None:
            by_arm[one.arm][one.row] = one
    settled: dict[str, Verdict] = {}
    for look, tail in zip(design.looks, design.tails, strict=True):
        rows = order[:look]
        waiting = [name for name in design.arms if name not in settled]
        if not _complete(by_arm, [reference, *waiting], rows):
            break
        arms = [_arm(by_arm, name, reference, rows, design) for name in waiting]
        settled |= _holm(arms, tail)
    done = len(settled) == len(design.arms) or _complete(by_arm, [reference, *design.arms], order)
    unsettled = [name for name in design.arms if name not in settled]
    for name in unsettled:
        arm = _arm(by_arm, name, reference, order, design)
        settled[name] = arm.verdict(design.tails[-1], len(unsettled), settled=done)
    needless = tuple(
        name
        for name in WITHOUT
        if name in by_arm and not _shown_worse(_arm(by_arm, name, reference, order, design))
    )
    return {
        name: replace(settled[name], needless=tuple(one for one in needless if one != name))
        for name in design.arms
    }


def _shown_worse(arm: _Arm) -> bool:
    """Whether an arm is worse by its own interval, outside of Holm's order."""
    return difference(arm.pairs, arm.design)[2] < 0


def difference(pairs: Pairs, design: Design) -> tuple[float, float, float]:
    """A mean difference and its 95 % interval, or that of 1 - alpha, by itself."""
    bootstrap = Bootstrap(pairs.gaps, draws=design.draws, seed=design.seed)
    return pairs.mean, *bootstrap.bounds(design.alpha / 2)


def _holm(arms: Sequence[_Arm], tail: float) -> dict[str, Verdict]:
    """The arms of which something is shown: at alpha over all of them, then over those left."""
    shown: dict[str, Verdict] = {}
    while len(shown) < len(arms):
        left = [arm for arm in arms if arm.name not in shown]
        passed = [arm for arm in left if arm.kind(tail, len(left)) != "not shown"]
        if not passed:
            break
        shown |= {arm.name: arm.verdict(tail, len(left), settled=True) for arm in passed}
    return shown


def _arm(
    by_arm: Mapping[str, Mapping[str, Outcome]],
    name: str,
    reference: str,
    rows: Sequence[str],
    design: Design,
) -> _Arm:
    def of(arm: str) -> list[Outcome]:
        known = by_arm.get(arm, {})
        return [known[row] for row in rows if row in known]

    return _Arm(name, of(name), of(reference), design)


def _complete(
    by_arm: Mapping[str, Mapping[str, Outcome]], names: Collection[str], rows: Sequence[str]
) -> bool:
    return all(row in by_arm.get(name, {}) for name in names for row in rows)
