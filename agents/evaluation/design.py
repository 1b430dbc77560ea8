"""What is settled before the first row runs: margin, alpha, looks, and what can be seen at all."""

from dataclasses import dataclass
from math import ceil, log, sqrt

from unspoken.agents.evaluation.statistics import tails, z_of
from unspoken.channels.bootstrap import DRAWS, unseen
from unspoken.channels.errors import InputError

SHARES = (0.25, 0.5, 1.0)
PRIOR_SD = 0.5
"""Of contexts' differences, before any is known: a quarter of right-or-wrong answers changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The plan of a comparison of arms with text.

    Attributes:
        rows: How many rows.
        contexts: How many contexts they are of.
        arms: The arms that get a verdict; text and the controls are not among them.
        margin: The loss of score that does not matter.
        alpha: Chance of a false claim about any of the arms, both directions together.
        power: Chance to see a difference of the smallest size that is called visible.
        sd: Standard deviation of contexts' differences that is reckoned with.
        seed: Of the bootstrap's draws.
        draws: How many.

    Raises:
        InputError: A margin, alpha or power outside of what is possible.
    """

    rows: int
    contexts: int
    arms: tuple[str, ...]
    margin: float = 0.05
    alpha: float = 0.05
    power: float = 0.8
    sd: float = PRIOR_SD
    seed: int = 0
    draws: int = DRAWS

    def __post_init__(self) -> None:
        for name, most in (("margin", 1.0), ("alpha", 0.5), ("power", 1.0)):
            value = getattr(self, name)
            if not 0 < value < most:
                raise InputError(f"{name} is {value}", expected=f"above 0 and below {most}")

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many rows it is looked at: a quarter, half and all of them."""
        return tuple(dict.fromkeys(max(ceil(self.rows * share), 1) for share in SHARES))

    @property
    def tails(self) -> tuple[float, ...]:
        """One-sided alpha of each look, for all arms together."""
        return tails([look / max(self.rows, 1) for look in self.looks], self.alpha / 2)

    @property
    def strictest(self) -> float:
        """One-sided alpha at the last look of the arm that Holm's order asks most of."""
        return self.tails[-1] / max(len(self.arms), 1)

    def smallest(self, sd: float | None = None) -> float:
        """The smallest difference that is seen with the wanted power, at the last look.

        Args:
            sd: The standard deviation to reckon with, as measured after the first look; None for
                the one assumed beforehand.
        """
        spread = self.sd if sd is None else sd
        by_spread = (z_of(self.strictest) + z_of(1 - self.power)) * spread
        by_count = unseen(max(self.contexts, 1), self.strictest)
        return min(max(by_spread / sqrt(max(self.contexts, 1)), by_count), 1.0)

    def needed(self, mean: float, sd: float, tail: float) -> int | None:
        """About how many contexts would show that an arm is no worse than the margin.

        Args:
            mean: The mean difference, taken to be as measured.
            sd: The standard deviation of contexts' differences.
            tail: One-sided alpha of the claim.

        Returns:
            None where no number would, since the difference is beyond the margin.
        """
        room = self.margin + mean
        if room <= 0:
            return None
        by_spread = ((z_of(tail) + z_of(1 - self.power)) * sd / room) ** 2
        # The bootstrap's bound stays (mean + 1) * unseen below the mean however little they differ.
        reach = min(room / (1 + mean), 1.0) if mean > -1 else 1.0
        by_count = log(tail) / log(1 - reach) if reach < 1 else 1.0
        return max(ceil(by_spread), ceil(by_count), 2)

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        return {
            "rows": self.rows,
            "contexts": self.contexts,
            "arms": list(self.arms),
            "margin": self.margin,
            "alpha": self.alpha,
            "power": self.power,
            "assumed_sd": self.sd,
            "smallest_difference": self.smallest(),
            "looks": list(self.looks),
            "one_sided_alpha_of_looks": list(self.tails),
            "seed": self.seed,
        }

    def describe(self) -> str:
        """What is printed before the run."""
        looks = ", ".join(map(str, self.looks))
        return (
            f"{self.rows} rows of {self.contexts} contexts, which are the unit; {len(self.arms)} "
            f"arms against text; margin {self.margin:g}, α {self.alpha:g}, looks after {looks} "
            f"rows. The smallest difference that can be seen is {self.smallest():.3f} "
            f"(power {self.power:g}, standard deviation {self.sd:g})."
        )
