"""``evaluate``: a workflow over rows under several arms, and what that shows."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from inspect import isawaitable
from pathlib import Path
from typing import Any

from unspoken.agents.engines.event_loop import run_anywhere
from unspoken.agents.evaluation.arms import REFERENCE, before, target_of
from unspoken.agents.evaluation.design import Design
from unspoken.agents.evaluation.evaluator import Evaluator, Scored, reads
from unspoken.agents.evaluation.journal import Journal
from unspoken.agents.evaluation.judge import Judge
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.page import render_page
from unspoken.agents.evaluation.rows import Columns, EvalRow, drawn, make_rows, read_rows
from unspoken.agents.evaluation.scorers import check_gold, scorer, sound
from unspoken.agents.evaluation.setting import Beforehand, Progress, Setting
from unspoken.agents.evaluation.summary import Summary, summarise
from unspoken.agents.evaluation.trial import Known
from unspoken.agents.evaluation.verdict import Verdict, verdicts
from unspoken.agents.workflow import Workflow

Score = Callable[[Outcome], float | Awaitable[float]]
"""Says how good an answer is, 0 to 1."""

JUDGE = "judge:"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave.

    Attributes:
        beforehand: What was set and told before the first row ran.
        order: The rows' names, in the order in which they ran.
        outcomes: Every outcome, row by row.
    """

    beforehand: Beforehand
    order: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @cached_property
    def summary(self) -> Summary:
        """What that is in figures: quality, times, tokens and bytes by arm, and the verdicts."""
        return summarise(self.outcomes, self.beforehand.design, self.order, reference=REFERENCE)

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What is known of each arm beside text."""
        return self.summary.verdicts

    def page(self) -> str:
        """The report as one page of HTML, which needs nothing else."""
        title = f"{self.beforehand.workflow}: {self.beforehand.agent}"
        return render_page(self.summary, title=title, facts=self.beforehand.facts())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``unspoken eval --json`` prints it."""
        return {
            "workflow": self.beforehand.workflow,
            "agent": self.beforehand.agent,
            "setting": asdict(self.beforehand.setting),
            "what": dict(self.beforehand.arms),
            **self.summary.to_dict(),
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }


def evaluate(
    flow: Workflow, rows: str | Path | Sequence[Mapping[str, Any]], **how: Any
) -> Evaluation:
    """Run a workflow over rows under several arms; see `aevaluate` for the arguments.

    Where an event loop runs already, as in a notebook, it goes on another thread.
    """
    return run_anywhere(lambda: aevaluate(flow, rows, **how))


async def aevaluate(
    flow: Workflow,
    rows: str | Path | Sequence[Mapping[str, Any]],
    *,
    map: Mapping[str, str] | None = None,
    inputs: Mapping[str, object] | None = None,
    gold: str = "gold",
    context: str | None = None,
    id: str | None = None,
    topic: str | None = None,
    columns: Columns | None = None,
    agent: str | None = None,
    arms: Sequence[str] | None = None,
    score: str | Score = "exact",
    margin: float = 0.05,
    alpha: float = 0.05,
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    all_rows: bool = False,
    begin: Callable[[Beforehand], object] = lambda told: None,
    tell: Callable[[Progress], object] = lambda told: None,
) -> Evaluation:
    """Run a workflow over rows under several arms.

    Args:
        flow: The workflow.
        rows: Plain rows, or a JSON Lines file of them.
        map: Columns of inputs, each with the input's name.
        inputs: Inputs that all rows share.
        gold: The column of what is right.
        context: The column of what rows share; None for ``context`` where all rows have it, else
            for all that the agents before this one read.
        id: The column of rows' names; None for ``id`` where all rows have it.
        topic: The column of what rows are about, for the control ``neighbour``.
        columns: All columns, in place of `map`, `gold`, `context`, `id` and `topic`.
        agent: Whose answers count; None for the last agent.
        arms: Arms and controls; ``text`` is always among them. None for the usual ones that the
            workflow can have.
        score: A scorer's name, or a function of an `Outcome`, which may be awaited.
        margin: How much worse than text an arm may score and still count as no worse.
        alpha: How often chance alone may pass for a difference, over all arms.
        limit: How many rows, drawn by the seed; None for all.
        seed: Of all that is drawn.
        out: A folder in which every outcome is written down, and from which this goes on.
        all_rows: Whether all rows run, even where a part of them settles every arm.
        begin: Told what is set, before the first row.
        tell: Told of every outcome.

    Raises:
        InputError: Rows, arms or settings that do not fit the workflow.
        StoreError: The folder is of another evaluation, or in use.
        UnspokenError: As `Workflow.run`, where that is no row's own failure.
    """
    name, scored, judge = _scorer(score, flow)
    setting = Setting(agent=agent, score=name, margin=margin, alpha=alpha, limit=limit, seed=seed)
    columns = columns or Columns(inputs=map or {}, gold=gold, context=context, id=id, topic=topic)
    raw = read_rows(rows) if isinstance(rows, str | Path) else rows
    shared = reads(flow.spec, before(flow.spec, target := target_of(flow.spec, agent)))
    order = drawn(make_rows(flow.spec, raw, columns, inputs, shared), limit, seed)
    _check(setting, flow, target, order)
    flow.load().fit_bridges()
    evaluator = Evaluator(flow, order, arms, setting)
    journal = Journal(None if out is None else Path(out))
    origin = evaluator.origin() | ({} if judge is None else {"judge": judge.told()})
    with journal.open(origin):
        if judge is None:
            await _score_anew(journal, evaluator, scored)
        beforehand = evaluator.beforehand(journal)
        begin(beforehand)
        names = tuple(row.id for row in order)

        def enough(done: int) -> bool:
            if all_rows or done not in beforehand.design.looks:
                return False
            known = journal.of(names[:done], evaluator.arms)
            found = verdicts(known, beforehand.design, names, reference=REFERENCE)
            return bool(found) and all(verdict.settled for verdict in found.values())

        await evaluator.run(journal, scored, tell, enough, text_first=judge is not None)
        return Evaluation(beforehand, names, journal.of(names, evaluator.arms))


def _check(setting: Setting, flow: Workflow, target: str, rows: Sequence[EvalRow]) -> None:
    """Refuse what could be known before models load: a margin, and what a scorer cannot read."""
    Design(rows=len(rows), contexts=1, arms=(), margin=setting.margin, alpha=setting.alpha)
    writes = flow.spec.agents[target].generate
    golds = [(row.id, row.gold) for row in rows]
    check_gold(setting.score, golds, chooses=bool(writes and writes.choices))


async def _score_anew(journal: Journal, evaluator: Evaluator, scored: Scored) -> None:
    """Score what is known by the scorer as it is now: it may have been edited since."""
    for row in evaluator.rows:
        for one in journal.of([row.id], evaluator.arms):
            now = await scored(replace(one, gold=row.gold), Known(row=row, others={}))
            if now.score != one.score:
                journal.add(now)


def _scorer(score: str | Score, flow: Workflow) -> tuple[str, Scored, Judge | None]:
    """A scorer's name, what gives an outcome its score, and who judges; a failed run has 0."""
    if isinstance(score, str) and score.startswith(JUDGE):
        name = score.removeprefix(JUDGE)
        judge = Judge(flow.load().models.get(name) or name)

        async def judged(outcome: Outcome, known: Known) -> Outcome:
            text = known.outcomes.get(REFERENCE, outcome)
            found = await judge.score(outcome, text, known.row.inputs)
            return replace(outcome, score=found)

        return score, judged, judge
    called = score if isinstance(score, str) else getattr(score, "__qualname__", repr(score))
    measure: Score = scorer(score, flow) if isinstance(score, str) else score

    async def scored(outcome: Outcome, known: Known) -> Outcome:
        if outcome.error is not None:
            return replace(outcome, score=0.0)
        found = measure(outcome)
        number = float(await found if isawaitable(found) else found)
        return replace(outcome, score=sound(called, outcome, number))

    return called, scored, None
