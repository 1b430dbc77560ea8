"""The second question about a document, in another run of a session, beside a continuation.

Both compute the question alone: the continuation takes over what an agent of its own run has read,
the second run finds what the first has read.
"""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import anyio

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.share import Timing, figures, timed
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.events import RunFinished, TokenWritten, TurnFinished
from unspoken.agents.session import Session
from unspoken.agents.workflow import Workflow
from unspoken.channels.machine import in_turn

TOKENS, NEW, ROUNDS = 1024, 8, SCALES["session"].rows
FIRST, SECOND = "What is the text about?", "Which names are in it? Give two of them."

TEXT, AGAIN, CONTINUED = "no session", "second run of a session", "continuation"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What was seen of one run.

    Attributes:
        ttft: Seconds to the first token of the turn that answers, by its own report.
        waited: The same from the start of the run or, for a continuation, from the reader's end.
        reused: Tokens that the turn took over.
        text: What it wrote.
        timing: Of the whole run.
    """

    ttft: float
    waited: float
    reused: int
    text: str
    timing: Timing


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """A row for each way to an answer, and the second run's time over the continuation's."""
    (words,) = cut_passages(model, text, 1, TOKENS)
    trial = _Trial(model, model.text.decode(words))
    ways = {TEXT: trial.alone, AGAIN: trial.again, CONTINUED: trial.continued}
    answers = in_turn(ways, count or ROUNDS)
    rows = [_row(way, taken) for way, taken in answers.items()]
    for row in rows:
        progress(f"{row['way']}: first token after {row['ttft_s']:.3f} s")
    ttft = {way: median(answer.ttft for answer in taken) for way, taken in answers.items()}
    waited = {way: median(answer.waited for answer in taken) for way, taken in answers.items()}
    texts = {answer.text for way in (TEXT, AGAIN) for answer in answers[way]}
    return rows, {
        "second_over_continuation": round(ttft[AGAIN] / ttft[CONTINUED], 3),
        "second_over_continuation_waited": round(waited[AGAIN] / waited[CONTINUED], 3),
        "second_over_no_session": round(ttft[AGAIN] / ttft[TEXT], 3),
        "answers_equal": len(texts) == 1,
    }


def _row(way: str, answers: Sequence[_Answer]) -> dict[str, Any]:
    return {
        "way": way,
        "ttft_s": round(median(answer.ttft for answer in answers), 5),
        "fastest_ttft_s": round(min(answer.ttft for answer in answers), 5),
        "waited_s": round(median(answer.waited for answer in answers), 5),
        "reused_tokens": answers[-1].reused,
        **figures([answer.timing for answer in answers]),
    }


class _Trial:
    """The runs of all ways on one document."""

    def __init__(self, model: LocalModel, document: str) -> None:
        self.model, self.document = model, document
        self._asked, self._chained = _asked(model), _chained(model)

    def alone(self, session: Session | None = None) -> _Answer:
        """The second question in a run of one agent."""
        return self._answer(self._asked, session)

    def again(self) -> _Answer:
        """The same, after the first question in an earlier run of a session."""
        with Session() as session:
            self._asked.run(document=self.document, question=FIRST, session=session)
            return self.alone(session)

    def continued(self) -> _Answer:
        """The second question to an agent that takes over what another has read."""
        return self._answer(self._chained, None)

    def _answer(self, flow: Workflow, session: Session | None) -> _Answer:
        waited: list[float] = []
        results: list[RunFinished] = []

        def run() -> None:
            results.append(anyio.run(self._follow, flow, session, waited.append))

        timing = timed(run, self.model.device)
        (turn,) = results[0].report.agents["solver"]
        assert turn.ttft_s is not None  # it has written
        return _Answer(
            ttft=turn.ttft_s,
            waited=waited[0],
            reused=turn.reused_tokens,
            text=results[0].outputs["solver"],
            timing=timing,
        )

    async def _follow(
        self, flow: Workflow, session: Session | None, waited: Callable[[float], None]
    ) -> RunFinished:
        """A run to its end; each token of the answer tells how long it was waited for."""
        given: dict[str, Any] = {"document": self.document, "question": SECOND}
        began, last = perf_counter(), None
        async with aclosing(flow.stream(**given, session=session)) as events:
            async for last in events:
                match last:
                    case TurnFinished(agent="reader"):  # then the answering turn is composed
                        began = perf_counter()
                    case TokenWritten(agent="solver"):
                        waited(perf_counter() - began)
        assert isinstance(last, RunFinished)
        return last


def _asked(model: LocalModel) -> Workflow:
    """One agent that is given the document and the question."""
    prompt = "{{ inputs.document }}\n\n{{ inputs.question }}"
    return Workflow("asked", [Agent("solver", model, prompt=prompt, generate=_write())])


def _chained(model: LocalModel) -> Workflow:
    """An agent that reads the document, and one that is asked about it."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", model, prompt="{{ inputs.question }}", generate=_write())
    return Workflow("chained", [reader, solver]).connect(reader, solver, "same_model_cache")


def _write() -> dict[str, Any]:
    return {"max_new_tokens": NEW}
