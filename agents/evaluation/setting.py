"""What is set and told before the first row of an evaluation, and how far it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is set before the first row runs, and stays.

    Attributes:
        agent: Whose answers count; None for the last agent.
        score: The scorer's name.
        margin: How much worse than text an arm may score and still count as no worse.
        alpha: How often chance alone may pass for a difference, over all arms.
        limit: How many rows; None for all.
        seed: Of the order of rows, and of all else that is drawn.
    """

    agent: str | None = None
    score: str = "exact"
    margin: float = 0.05
    alpha: float = 0.05
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beforehand:
    """What is told before the first row runs.

    Attributes:
        workflow: The workflow's name.
        agent: Whose answers count.
        rows: How many rows.
        contexts: How many contexts they are of.
        arms: The arms, with what each is.
        setting: What was set.
        smallest: The smallest difference in score that so many contexts can show, by chance of 0.8.
        done: How many outcomes are known already.
    """

    workflow: str
    agent: str
    rows: int
    contexts: int
    arms: Mapping[str, str]
    setting: Setting
    smallest: float
    done: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an evaluation is.

    Attributes:
        done: Outcomes that are known.
        total: Outcomes that there will be.
        arm: The arm of the last one.
        seconds_left: How long the rest will take; None before every arm has run.
    """

    done: int
    total: int
    arm: str
    seconds_left: float | None


@dataclass(slots=True)
class Clock:
    """How long each arm takes, to tell how long the rest will.

    Attributes:
        waiting: How many outcomes of each arm there will still be.
        total: Outcomes that there will be, those that are known included.
    """

    waiting: dict[str, int]
    total: int
    _seconds: dict[str, list[float]] = field(default_factory=dict)

    def took(self, arm: str, seconds: float) -> Progress:
        """Note how long an outcome took, and tell how far it is."""
        self._seconds.setdefault(arm, []).append(seconds)
        self.waiting[arm] -= 1
        done, left = self.total - sum(self.waiting.values()), None
        if all(name in self._seconds or not count for name, count in self.waiting.items()):
            left = sum(
                count * sum(self._seconds[name]) / len(self._seconds[name])
                for name, count in self.waiting.items()
                if count
            )
        return Progress(done=done, total=self.total, arm=arm, seconds_left=left)
