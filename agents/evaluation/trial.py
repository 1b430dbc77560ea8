"""One row under one arm: run, and told as an outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter

from pydantic_core import to_jsonable_python

from unspoken.agents.evaluation.arms import REFERENCE, Arm, before
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.rows import EvalRow
from unspoken.agents.evaluation.words import cut_to
from unspoken.agents.execution import How
from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.context import ChatTurn
from unspoken.agents.prompts.jinja import references, render
from unspoken.agents.runtime.report import RunResult
from unspoken.agents.session import Session
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import AgentError, RunError, RunTimeout
from unspoken.channels.message import Message, Segment


@dataclass(slots=True, kw_only=True)
class Known:
    """What is known of a row while its arms run.

    Attributes:
        row: The row.
        others: Whose messages stand in for its own, by what they are.
        outcomes: Its outcomes so far, by arm.
        read: The run of the reference arm, and what was sent to the target by edge; None before.
    """

    row: EvalRow
    others: Mapping[str, EvalRow]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    read: tuple[RunResult, dict[int, Message]] | None = None


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
        except (AgentError, RunTimeout) as error:
            return failed(arm.name, known.row, error, perf_counter() - began)
        return told(arm.name, known.row, result, self.target)

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
            known.read = result, sent
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
            text = None if arm.messages == "left out" else texts.get(name, "")
            whole = spec.share_of(edge) == "context"
            received[name] = made(name, models[spec.agents[name].model], text, whole=whole)
        return received

    async def _cut(self, known: Known) -> dict[str, str]:
        """What is sent to the target, cut to what it reads in the plan's time to the first token.

        The target's pace is that of the reference arm, in which it reads everything.
        """
        if known.read is None:  # where an evaluation goes on, the words are not at hand any more
            await self._run(self.arms[REFERENCE], known)
        assert known.read is not None
        result, sent = known.read
        turn, plan = result.report.agents[self.target][-1], known.outcomes["plan"]
        tokens = sum(message.tokens for message in sent.values())
        budget = tokens
        if turn.ttft_s and turn.prefilled_tokens and plan.first_token_s is not None:
            affordable = plan.first_token_s / turn.ttft_s * turn.prefilled_tokens
            budget = max(0, int(affordable) - (turn.prompt_tokens - tokens))
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


def told(arm: str, row: EvalRow, result: RunResult, target: str) -> Outcome:
    """The outcome of a run that ended."""
    report, answer = result.report, result[target]
    turns = [turn for every in report.agents.values() for turn in every]
    own = report.agents[target]
    return Outcome(
        row=row.id,
        context=row.context,
        arm=arm,
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
        fallbacks=tuple(f"{edge}: {reason}" for edge, reason in report.fallbacks),
        all_text=all(edge.mode == "text" for edge in report.edges),
    )


def failed(arm: str, row: EvalRow, error: RunError, seconds: float) -> Outcome:
    """The outcome of a run that failed."""
    return Outcome(
        row=row.id, context=row.context, arm=arm, gold=row.gold, seconds=seconds, error=str(error)
    )
