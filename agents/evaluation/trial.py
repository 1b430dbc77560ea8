"""One row under one arm: run, and told as an outcome."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

from pydantic_core import to_jsonable_python

from unspoken.agents.evaluation.arms import FORCED, REFERENCE, Arm, before
from unspoken.agents.evaluation.outcome import OWN_FAILURES, Outcome
from unspoken.agents.evaluation.rows import EvalRow
from unspoken.agents.evaluation.words import cut_to
from unspoken.agents.execution import How
from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.context import ChatTurn
from unspoken.agents.prompts.jinja import references, render
from unspoken.agents.runtime.report import RunReport, RunResult
from unspoken.agents.session import Session
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import AgentError, UnspokenError
from unspoken.channels.message import Message, Segment


class _NoPace(AgentError):
    """It is not known how much would be read in the plan's time."""


@dataclass(slots=True, kw_only=True)
class Known:
    """What is known of a row while its arms run.

    Attributes:
        row: The row.
        others: Whose messages stand in for its own, by what they are.
        outcomes: Its outcomes so far, by arm.
        read: What was sent to the target in the reference arm, by edge; None before it ran.
    """

    row: EvalRow
    others: Mapping[str, EvalRow]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    read: dict[int, Message] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Runs rows under arms.

    Attributes:
        spec: The workflow as it is.
        target: The agent whose answers count.
        arms: The arms, by name.
    """

    spec: WorkflowSpec
    target: str
    arms: Mapping[str, Arm]

    async def run(self, arm: Arm, known: Known) -> Outcome:
        """A row's outcome under an arm; a run that fails is one with an error."""
        began = perf_counter()
        try:
            result = await self._run(arm, known)
        except OWN_FAILURES as error:
            return failed(arm.name, known.row, error, perf_counter() - began)
        return told(arm, known.row, result, self.target)

    async def _run(self, arm: Arm, known: Known) -> RunResult:
        if arm.messages != "sent":
            received = await self._received(arm, known)
            return await arm.flow.arun_as(How(), known.row.inputs, received)
        sent: dict[int, Message] = {}

        def heard(number: int, message: Message) -> None:
            if arm.flow.spec.edges[number].to == self.target:
                sent[number] = replace(message, state=None)

        inputs, others = known.row.inputs, dict[str, Mapping[str, object]]()
        if arm.whose != "own":
            theirs = known.others[arm.whose].inputs
            inputs = theirs if arm.whole else inputs
            others = dict.fromkeys(before(self.spec, self.target), theirs)
        if arm.session:
            with Session(memory=self.spec.memory) as session:
                return await arm.flow.arun_as(How(session=session), inputs)
        result = await arm.flow.arun_as(How(others=others, on_message=heard), inputs)
        if arm.name == REFERENCE:
            known.read = sent
        return result

    async def _received(self, arm: Arm, known: Known) -> dict[str, Message]:
        """The messages of the agents that the target hears, as the arm has them, by agent."""
        spec, models = arm.flow.spec, arm.flow.models
        texts: Mapping[str, str] = {}
        if arm.messages == "cut":
            texts = await self._cut(known)
        received = {}
        for edge in spec.edges:
            name = edge.from_
            # A cut message that is not among the texts was not sent: its condition did not hold.
            text = "" if arm.messages == "empty" else texts.get(name)
            whole = spec.share_of(edge) == "context"
            received[name] = made(name, models[spec.agents[name].model], text, whole=whole)
        return received

    async def _cut(self, known: Known) -> dict[str, str]:
        """What is sent to the target, cut to what it reads in the plan's time to the first token.

        The target's pace is that of the reference arm, in which it reads everything, as it was
        measured with the plan.
        """
        plan, read = known.outcomes["plan"], known.outcomes[REFERENCE]
        if plan.first_token_s is None or not read.first_token_s:
            raise _NoPace(f"no time to the first token is known of {self.target!r}")
        affordable = plan.first_token_s / read.first_token_s * read.target_computed
        if known.read is None:  # where an evaluation goes on, the words are not at hand any more
            await self._run(self.arms[REFERENCE], known)
        assert known.read is not None
        sent = known.read
        tokens = sum(message.tokens for message in sent.values())
        budget = max(0, int(affordable) - (read.target_tokens - tokens))
        flow = self.arms[REFERENCE].flow
        words = flow.models[self.spec.agents[self.target].model].text
        kept = cut_to(
            {number: message.text for number, message in sent.items()},
            asked(self.spec, self.target, known.row.inputs),
            budget,
            lambda text: len(words.encode_words(text)),
        )
        texts: dict[str, str] = {}
        for number, text in kept.items():
            name = self.spec.edges[number].from_
            texts[name] = f"{texts[name]}\n\n{text}" if name in texts else text
        return texts


def asked(spec: WorkflowSpec, target: str, inputs: Mapping[str, object]) -> str:
    """What an agent asks of its messages: its prompt without them."""
    prompt = spec.agents[target].prompt
    roots = {reference.root for reference in references(prompt)} - {"inputs", "turn"}
    absent = {name: Absent() for name in roots}
    return render(prompt, {**absent, "inputs": dict(inputs), "turn": 1})


def made(sharer: str, model: AgentModel, text: str | None, *, whole: bool) -> Message:
    """A message of these words, as a text edge brings it; with None, one that is not there."""
    segments, ids = tuple[Segment, ...](), tuple[int, ...]()
    if text is not None:
        context = model.context_builder.compose([ChatTurn("user", (text,))])
        segments, ids = context.segments[-1:], context.ids
    return Message(
        sharer=sharer, segments=segments, whole=whole, context=ids, identity=model.identity
    )


def told(arm: Arm, row: EvalRow, result: RunResult, target: str) -> Outcome:
    """The outcome of a run that ended."""
    report, answer = result.report, result[target]
    turns = [turn for every in report.agents.values() for turn in every]
    own = report.agents[target]
    return Outcome(
        row=row.id,
        context=row.context,
        arm=arm.name,
        answer=answer.text,
        data=to_jsonable_python(answer.data),
        likelihoods=answer.likelihoods,
        gold=row.gold,
        first_token_s=own[-1].ttft_s if own else None,
        seconds=report.seconds,
        computed=sum(turn.prefilled_tokens + turn.recomputed_tokens for turn in turns),
        reused=sum(turn.reused_tokens + turn.projected_tokens for turn in turns),
        decoded=sum(turn.generated_tokens for turn in turns),
        carried_bytes=sum(edge.bytes for edge in report.edges),
        peak_bytes=report.peak_state_bytes,
        target_tokens=own[-1].prompt_tokens if own else 0,
        target_computed=own[-1].prefilled_tokens if own else 0,
        fallbacks=(
            *(f"{edge}: {reason}" for edge, reason in report.fallbacks),
            *_otherwise(arm, report),
        ),
        all_text=all(edge.mode == "text" for edge in report.edges),
    )


def _otherwise(arm: Arm, report: RunReport) -> Iterator[str]:
    """Why messages count as fallen back that went by a cache, and not by the arm's own way.

    What a plan promises may be kept otherwise: a message that was to be spliced is continued where
    the receiver's prompt begins with it.
    """
    if arm.name not in FORCED:
        return
    channel, modes = FORCED[arm.name]
    asked_for = {(e.from_, e.to) for e in arm.flow.spec.edges if e.channel == channel}
    for edge in report.edges:
        own = (edge.sharer, edge.receiver) in asked_for
        if own and edge.mode not in modes and edge.mode != "text":
            yield f"{edge.sharer} -> {edge.receiver}: went by {edge.mode}"


def failed(arm: str, row: EvalRow, error: UnspokenError, seconds: float) -> Outcome:
    """The outcome of a run that failed."""
    return Outcome(
        row=row.id, context=row.context, arm=arm, gold=row.gold, seconds=seconds, error=str(error)
    )
