"""What a plan foretells of ten workflows, beside what their runs take.

The models are measured once. Every workflow is run once, so that its agents' lengths are known as
after any first run; then it is foretold, and then it is run and timed. All inputs are those of the
first run: the lengths are right, and what is judged is the time.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.share import timed
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.costs.store import CostStore
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.report import RunReport
from unspoken.agents.workflow import Workflow

TOKENS, ROUNDS = 320, SCALES["predictions"].rows
"""Tokens of a document, and how often each workflow is timed."""

GOOD = 0.25
"""The relative error that a forecast should keep."""

QUESTIONS = (
    "What is the text about? Answer in two sentences.",
    "Which sentence of the text matters most?",
    "List the names that the text mentions.",
    "Give the text a title.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A workflow, and what it is run on."""

    flow: Workflow
    inputs: dict[str, Any] = field(default_factory=dict)


def measure(
    sharer: LocalModel,
    model: LocalModel,
    *,
    text: Path | None = None,
    count: int | None = None,
    only: Collection[str] = (),
    progress: Progress,
) -> Measured:
    """Rows per workflow, and the worst relative error of all."""
    passages = cut_passages(model, text, 4, TOKENS)
    documents = [model.text.decode(words) for words in passages]
    rows = []
    with TemporaryDirectory() as folder:
        store = CostStore(Path(folder))
        for name, case in cases(sharer, model, documents):
            if only and name not in only:
                continue
            case.flow.costs = store
            models = case.flow.load().models.values()
            if any(isinstance(one, LocalModel) and store.pace(one) is None for one in models):
                case.flow.calibrate()
                progress("measured the pace of " + ", ".join(case.flow.models))
            row = _row(name, case, count or ROUNDS)
            rows.append(row)
            progress(
                f"{name}: {row['predicted_s']:.2f} s foretold, {row['measured_s']:.2f} s taken"
            )
    errors = [row["relative_error"] for row in rows]
    return rows, {
        "worst_relative_error": max(errors),
        "median_relative_error": median(errors),
        "within_25_percent": sum(error <= GOOD for error in errors),
        "workflows": len(rows),
    }


def _row(name: str, case: Case, rounds: int) -> dict[str, Any]:
    flow = case.flow
    first = flow.run(**case.inputs)
    flow.remember(first)
    forecast = flow.plan(case.inputs).forecast
    assert forecast is not None
    reports = list[RunReport]()

    def run() -> None:
        reports.append(flow.run(**case.inputs).report)

    device = next(iter(flow.models.values())).device
    timings = [timed(run, device) for _ in range(rounds)]
    seconds = median(report.seconds for report in reports)
    turns = [turn for each in reports[-1].agents.values() for turn in each]
    shares = [timing.cpu_share for timing in timings if timing.cpu_share is not None]
    return {
        "workflow": name,
        "predicted_s": forecast.seconds,
        "measured_s": seconds,
        "relative_error": abs(forecast.seconds - seconds) / seconds,
        "predicted_most_s": forecast.most_seconds,
        "predicted_computed": sum(one.computed_tokens for one in forecast.agents.values()),
        "computed": sum(turn.prefilled_tokens + turn.recomputed_tokens for turn in turns),
        "predicted_bytes": forecast.bytes,
        "bytes": sum(edge.bytes for edge in reports[-1].edges),
        "cpu_share": median(shares) if shares else None,
    }


def cases(
    sharer: LocalModel, model: LocalModel, documents: list[str]
) -> Iterator[tuple[str, Case]]:
    """The workflows by name, each with its inputs.

    Args:
        sharer: A second model, for the workflow of two.
        model: The model of all others.
        documents: What they read.
    """
    document: dict[str, Any] = {"document": documents[0]}
    for name, make in _ON_ONE_DOCUMENT.items():
        yield name, Case(flow=make(model), inputs=document)
    yield (
        "fan_in",
        Case(flow=_fan_in(model), inputs={f"part_{n}": documents[n] for n in range(3)}),
    )
    rows = [one[: len(one) // 4] for one in documents]
    yield "items", Case(flow=_items(model), inputs={"rows": rows})
    yield "two_models", Case(flow=_two_models(sharer, model), inputs=document)


def _reader(model: LocalModel) -> Agent:
    return Agent("reader", model, prompt="{{ inputs.document }}", generate=None)


def _agent(name: str, model: LocalModel, prompt: str, tokens: int = 32, **more: Any) -> Agent:
    return Agent(name, model, prompt=prompt, generate={"max_new_tokens": tokens}, **more)


def _reader_solver(model: LocalModel) -> Workflow:
    flow = Workflow("continuation", [_reader(model), _agent("solver", model, QUESTIONS[0])])
    return flow.connect("reader", "solver")


def _by_text(model: LocalModel) -> Workflow:
    flow = Workflow("text", [_reader(model), _agent("solver", model, QUESTIONS[0])])
    return flow.connect("reader", "solver", "text")


def _spliced(model: LocalModel) -> Workflow:
    solver = _agent("solver", model, QUESTIONS[1], system="You answer in one short sentence.")
    return Workflow("splice", [_reader(model), solver]).connect("reader", "solver")


def _chain(model: LocalModel) -> Workflow:
    names = ("draft", "critic", "editor", "title")
    agents = [_agent(name, model, ask) for name, ask in zip(names, QUESTIONS, strict=True)]
    flow = Workflow("chain", [_reader(model), *agents])
    flow.connect("reader", "draft")
    for left, right in pairwise(names):
        flow.connect(left, right, share="context")
    return flow


def _fan_out(model: LocalModel) -> Workflow:
    agents = [_agent(f"solver_{n}", model, ask) for n, ask in enumerate(QUESTIONS)]
    judge = _agent("judge", model, "Which of the answers above is the best?")
    flow = Workflow("fan-out", [_reader(model), *agents, judge])
    for agent in agents:
        flow.connect("reader", agent).connect(agent, "judge")
    return flow


def _loop(model: LocalModel) -> Workflow:
    drafter = _agent("drafter", model, "Write a sentence about the text.", max_turns=3)
    critic = _agent("critic", model, "Is it short? Answer yes or no.", 8, memory="turn")
    flow = Workflow("loop", [_reader(model), drafter, critic])
    flow.connect("reader", "drafter").connect("drafter", "critic", share="context")
    return flow.connect("critic", "drafter", loop=True)


def _router(model: LocalModel) -> Workflow:
    route = Agent(
        "route", model, prompt="Is the text about code?", generate={"choices": ["yes", "no"]}
    )
    code = _agent("code", model, "Name one function of the text.")
    words = _agent("words", model, "Name one topic of the text.")
    flow = Workflow("router", [_reader(model), route, code, words]).connect("reader", "route")
    flow.connect("route", "code", share="context", when="route.text == 'yes'")
    return flow.connect("route", "words", share="context", when="route.text == 'no'")


_ON_ONE_DOCUMENT: Mapping[str, Callable[[LocalModel], Workflow]] = {
    "continued": _reader_solver,
    "text": _by_text,
    "spliced": _spliced,
    "chain": _chain,
    "fan_out": _fan_out,
    "loop": _loop,
    "router": _router,
}


def _fan_in(model: LocalModel) -> Workflow:
    readers = [
        Agent(f"reader_{n}", model, prompt=f"{{{{ inputs.part_{n} }}}}", generate=None)
        for n in range(3)
    ]
    flow = Workflow("fan-in", [*readers, _agent("judge", model, "What do the texts share?")])
    for reader in readers:
        flow.connect(reader, "judge")
    return flow


def _items(model: LocalModel) -> Workflow:
    each = _agent("each", model, "{{ item }}\n\nSay it in one sentence.", for_each="inputs.rows")
    flow = Workflow(
        "items", [each, _agent("judge", model, "Put that together.")], inputs={"rows": "list"}
    )
    return flow.connect("each", "judge")


def _two_models(sharer: LocalModel, model: LocalModel) -> Workflow:
    writer = _agent("writer", sharer, "{{ inputs.document }}\n\nIn short:", 24)
    return Workflow("two", [writer, _agent("solver", model, QUESTIONS[3])]).connect(
        "writer", "solver", "text"
    )
