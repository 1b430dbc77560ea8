"""Runs a workflow over rows under several arms, row by row."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from random import Random
from time import perf_counter
from typing import Any

from unspoken.agents.evaluation.arms import (
    ARMS,
    FORCED,
    REFERENCE,
    Arm,
    before,
    make_arms,
    target_of,
    usual_arms,
)
from unspoken.agents.evaluation.controls import neighbours, strangers
from unspoken.agents.evaluation.design import Design
from unspoken.agents.evaluation.journal import Journal
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.rows import EvalRow, digests_of
from unspoken.agents.evaluation.setting import Beforehand, Clock, Progress, Setting
from unspoken.agents.evaluation.trial import Known, Trial
from unspoken.agents.prompts.jinja import references
from unspoken.agents.runs.origin import origin_of
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.workflow import Workflow

_COLD = frozenset({REFERENCE, "plan", *FORCED})
"""Arms whose first run does what later ones need not, such as a bridge's first projection."""

Scored = Callable[[Outcome, Known], Awaitable[Outcome]]
"""Gives an outcome its score, by what is known of its row."""


class Evaluator:
    """Runs rows under arms.

    Args:
        flow: The workflow; its models are loaded, and bridges fitted that it wants fitted.
        rows: The rows, in the order in which they run.
        arms: The arms' names; None for the usual ones that the workflow can have.
        setting: What was set.

    Attributes:
        target: The agent whose answers count.
        arms: The arms, by name.
        left_out: Usual arms that there are not, with why.

    Raises:
        InputError: Arms that the workflow or the rows cannot have, or no agent to score.
    """

    def __init__(
        self, flow: Workflow, rows: Sequence[EvalRow], arms: Sequence[str] | None, setting: Setting
    ) -> None:
        self.flow, self.rows, self.setting = flow, tuple(rows), setting
        self.target = target_of(flow.spec, setting.agent)
        self.left_out: dict[str, str] = {}
        if arms is None:
            contexts = len({row.context for row in self.rows})
            arms, self.left_out = usual_arms(flow, self.target, contexts)
        self.arms = {arm.name: arm for arm in make_arms(flow, arms, self.target)}
        self._others = self._found_others()
        self._trial = Trial(spec=flow.spec, target=self.target, arms=self.arms)

    def _found_others(self) -> dict[str, dict[str, EvalRow]]:
        """For every kind of other row that an arm needs, each row's, by its name."""
        wanted = {arm.whose for arm in self.arms.values()}
        others, spec = dict[str, dict[str, EvalRow]](), self.flow.spec
        if "stranger" in wanted:
            others["stranger"] = strangers(self.rows, self.setting.seed)
        if "neighbour" in wanted:
            read = reads(spec, before(spec, self.target))

            def text_of(row: EvalRow) -> str:
                return "\n".join(str(row.inputs[name]) for name in read)

            others["neighbour"] = neighbours(self.rows, self.setting.seed, text_of)
        return others

    def origin(self) -> dict[str, Any]:
        """What an evaluation is begun with, as plain data; arms may be added later."""
        flow = self.flow
        models = {
            name: flow.models[agent.model]
            for name, agent in flow.spec.agents.items()
            if agent.workflow is None
        }
        origin = asdict(origin_of(flow.spec, models, {}, {}, flow.plan()))
        forced = {
            name: asdict(origin_of(flow.spec, models, {}, {}, self.arms[name].flow.plan()))["edges"]
            for name in self.arms
            if name in FORCED
        }
        kept = {name: origin[name] for name in ("version", "workflow", "models", "edges")}
        setting = {**asdict(self.setting), "agent": self.target}
        return {**kept, "setting": setting, "rows": digests_of(self.rows), "arms": forced}

    def design(self) -> Design:
        """What the rows can show of the arms.

        Raises:
            InputError: A margin or alpha that is not possible.
        """
        return Design(
            rows=len(self.rows),
            contexts=len({row.context for row in self.rows}),
            arms=tuple(name for name in self.arms if name in ARMS and name != REFERENCE),
            margin=self.setting.margin,
            alpha=self.setting.alpha,
            seed=self.setting.seed,
        )

    def beforehand(self, journal: Journal) -> Beforehand:
        """What is told before the first row runs."""
        agents = self.flow.spec.agents.values()
        known = journal.of([row.id for row in self.rows], self.arms)
        there = {one.arm for one in known}
        return Beforehand(
            workflow=self.flow.spec.name,
            agent=self.target,
            arms={name: arm.what for name, arm in self.arms.items()},
            setting=self.setting,
            design=self.design(),
            done=sum(one.error is None for one in known),
            left_out=self.left_out,
            tools=tuple(sorted({tool.text for one in agents for tool in one.tools})),
            later=tuple(name for name in self.arms if known and name not in there),
        )

    async def run(
        self,
        journal: Journal,
        score: Scored,
        tell: Callable[[Progress], object],
        enough: Callable[[int], bool] = lambda rows: False,
        text_first: bool = False,
    ) -> None:
        """Run what is not known yet, row by row, each row's arms in an order of its own.

        What failed in another sitting runs again, for what failed may have been the machine. An
        outcome that has no score yet gets one, and does not run again.

        Args:
            journal: Where the outcomes are, and go.
            score: Gives an outcome its score.
            tell: Told of every outcome.
            enough: Asked after every row, by how many are through, whether to stop.
            text_first: Whether a row's text runs first, for a score needs it.
        """
        ids = [row.id for row in self.rows]
        sound = {
            name: [one for one in journal.of(ids, [name]) if one.error is None]
            for name in self.arms
        }
        waiting = {arm: len(ids) - len(sound[arm]) for arm in self.arms}
        clock, cold = Clock(waiting, len(ids) * len(self.arms)), set(_COLD)
        for number, row in enumerate(self.rows, 1):
            others = {whose: chosen[row.id] for whose, chosen in self._others.items()}
            known = Known(row=row, others=others)
            known.outcomes = {
                one.arm: one for one in journal.of([row.id], self.arms) if one.error is None
            }
            if text_first and REFERENCE not in known.outcomes:  # all are held against this one
                for name, one in known.outcomes.items():
                    known.outcomes[name] = replace(one, score=None)
            for arm in self._in_order(row, text_first):
                if arm.name in known.outcomes:
                    if known.outcomes[arm.name].score is None:
                        await _add(journal, known.outcomes[arm.name], score, known)
                    continue
                first = {REFERENCE, arm.name} & cold  # what only a first run takes counts for none
                for name in sorted(first):
                    await self._trial.run(self.arms[name], Known(row=row, others=others))
                cold -= first
                began = perf_counter()
                await _add(journal, await self._trial.run(arm, known), score, known)
                tell(clock.took(arm.name, perf_counter() - began))
            if enough(number):
                return

    def _in_order(self, row: EvalRow, text_first: bool) -> list[Arm]:
        """A row's arms in a drawn order, those last that need what others showed."""
        arms = list(self.arms.values())
        Random(f"{self.setting.seed} {row.id}").shuffle(arms)
        arms.sort(key=lambda arm: arm.name != REFERENCE if text_first else False)
        return sorted(arms, key=lambda arm: arm.messages == "cut")


async def _add(journal: Journal, outcome: Outcome, score: Scored, known: Known) -> None:
    """Write an outcome down with its score; without one where the scorer fails."""
    try:
        outcome = await score(outcome, known)
    finally:  # a turn that was paid for is kept, whatever becomes of its score
        journal.add(outcome)
    known.outcomes[outcome.arm] = outcome


def reads(spec: WorkflowSpec, agents: frozenset[str]) -> tuple[str, ...]:
    """The inputs that these agents read; all of them, where they read none."""
    read = {
        reference.attribute
        for name in agents
        for template in (spec.agents[name].prompt, spec.agents[name].system or "")
        for reference in references(template)
        if reference.root == "inputs"
    }
    return tuple(name for name in spec.inputs if name in read) or tuple(spec.inputs)
