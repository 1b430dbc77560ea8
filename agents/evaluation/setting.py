"""What is set and told before the first row of an evaluation, and how far it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from unspoken.agents.evaluation.design import Design


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
        arms: The arms, with what each is.
        setting: What was set.
        design: What that can show: rows, contexts, looks, the smallest difference that is seen.
        done: How many outcomes are known already.
        left_out: Usual arms that the workflow cannot have, with why.
        tools: Tools of its agents, which run in every row and arm.
        later: Arms of which no row is known while others are.
    """

    workflow: str
    agent: str
    arms: Mapping[str, str]
    setting: Setting
    design: Design
    done: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    later: tuple[str, ...] = ()

    def facts(self) -> list[tuple[str, str]]:
        """What is printed before the run, as names and values."""
        setting, design = self.setting, self.design
        looks = ", ".join(map(str, design.looks))
        facts = [
            ("answers", f"of {self.agent} in {self.workflow}, scored by {setting.score}"),
            ("rows", f"{design.rows} of {design.contexts} contexts, drawn by seed {setting.seed}"),
            *((f"arm {name}", what) for name, what in self.arms.items()),
            *((f"no arm {name}", why) for name, why in self.left_out.items()),
            ("margin", f"an arm is no worse than text where it loses less than {design.margin:g}"),
            ("alpha", f"{design.alpha:g}, over all arms and the looks after {looks} rows"),
            (
                "smallest difference",
                f"{design.smallest():.3f} in score, seen with power {design.power:g} at a standard "
                f"deviation of {design.sd:g}",
            ),
        ]
        if self.tools:
            facts.append(("tools", f"run in every row and arm: {', '.join(self.tools)}"))
        if self.done:
            facts.append(("goes on", f"{self.done} outcomes are known already"))
        if self.later:
            facts.append(
                (
                    "added",
                    f"{', '.join(self.later)}: times are set beside text's of another sitting, and "
                    "alpha holds only for arms that were named before",
                )
            )
        return facts


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
