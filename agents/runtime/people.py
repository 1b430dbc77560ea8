"""What people approve, edit and answer in a run, and the order in which turns are handed over."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from inspect import isawaitable

from unspoken.agents.engines.base import TurnOutcome, TurnRequest
from unspoken.agents.prompts.context import Context
from unspoken.agents.runs.answers import checked_answer
from unspoken.agents.runs.engine import KeptEngine
from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.records import Kind, Question
from unspoken.agents.runtime.agent_run import AgentRun, InFlight
from unspoken.agents.runtime.answers import data_in
from unspoken.agents.runtime.events import Event, QuestionAsked
from unspoken.agents.runtime.reply import TurnReply
from unspoken.agents.spec.generate import GenerateSpec
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.tools.functions import apart
from unspoken.channels.errors import RunError
from unspoken.channels.message import Message, Segment

Answer = str | bool | None
OnQuestion = Callable[[Question], Answer | Awaitable[Answer]]
"""Answers a question while the run goes on; None leaves it open, and the run pauses."""


class Waiting(BaseException):
    """A turn stops here until a person has answered.

    No `Exception`: a turn that waits has not failed, and is not tried again.
    """


class People:
    """Who is asked in one run.

    Args:
        spec: The workflow.
        emit: Called with every event.
        book: The run's book; None for a run that is not kept, which asks nobody.
        on_question: Who answers meanwhile.
        scope: What stands before the names of agents, in a run inside of another.

    Attributes:
        open: The questions that wait for an answer.
    """

    def __init__(
        self,
        spec: WorkflowSpec,
        emit: Callable[[Event], None],
        book: Journal | None = None,
        on_question: OnQuestion | None = None,
        scope: str = "",
    ) -> None:
        self.open: list[Question] = []
        self._spec, self._emit, self._scope = spec, emit, scope
        self._book, self._on_question = book, on_question

    async def turn(
        self,
        agent: AgentRun,
        request: TurnRequest,
        context: Context,
        compute: Callable[[], Awaitable[TurnOutcome]],
    ) -> tuple[TurnOutcome, TurnReply | None]:
        """Compute a turn, and let a person have a say in it.

        Args:
            agent: Whose turn it is.
            request: The turn.
            context: Its context, without what is written.
            compute: Has it computed.

        Returns:
            What it left behind, and its words; those of the person, where they are other ones.

        Raises:
            Waiting: The person has not answered.
            RunError: The person does not approve.
        """
        kind, reply = agent.spec.ask, request.reply
        assert reply is None or isinstance(reply, TurnReply)
        if kind is None or self._book is None or reply is None:
            return await compute(), reply
        if kind == "answer":
            asked = self._of_turn(agent, request, context.segments[-1].text)
            words = await self._ask(asked, agent.spec.generate)
            return await self._given(agent, request, context, words)
        outcome = await compute()
        written = _answer_of(reply)
        answer = await self._ask(self._of_turn(agent, request, written), agent.spec.generate)
        if kind == "approve" and answer == "no":
            raise RunError(
                f"a person refused what {agent.name!r} wrote in its turn {request.turn}",
                agent=agent.name,
                expected="a yes",
                fix="begin another run; `unspoken runs show` has the words",
            )
        if kind == "approve" or answer == written:
            return outcome, reply
        if outcome.state is not None:
            agent.engine.release(outcome.state)
        given, reply = await self._given(agent, request, context, answer)
        return replace(given, usage=outcome.usage), reply

    async def handed_over(
        self, agent: AgentRun, turn: int, sent: dict[int, InFlight | None]
    ) -> dict[int, InFlight | None]:
        """What a turn sends, after people have seen what they are to see.

        Raises:
            Waiting: A person has not answered.
        """
        if self._book is None:
            return sent
        sent = {number: await self._seen(agent, turn, number, one) for number, one in sent.items()}
        wrote = agent.texts and not agent.skipped  # a turn that failed has no words
        await self._book.handed_over(agent.name, turn, agent.texts[-1] if wrote else "")
        return sent

    async def _seen(
        self, agent: AgentRun, turn: int, number: int, sent: InFlight | None
    ) -> InFlight | None:
        """What an edge carries, once a person has seen it."""
        edge = self._spec.edges[number]
        if edge.ask is None or sent is None:
            return sent
        text = sent.message.text
        answer = await self._ask(
            Question(
                id=f"{self._scope}{agent.name}.{turn}.{number}",
                agent=f"{self._scope}{agent.name}",
                turn=turn,
                kind=edge.ask,
                text=text,
                receiver=edge.to,
            )
        )
        if (edge.ask == "approve" and answer == "yes") or answer == text:
            return sent
        if sent.state is not None:
            agent.engine.release(sent.state)
        if edge.ask == "approve":
            return None
        # The data is in what the agent wrote, so only other words for that are other data.
        told = dict(sent.told)
        if self._spec.share_of(edge) == "output":
            told = {} if (data := data_in(agent, answer)) is None else {"data": data}
            told |= {"items": [answer]} if "items" in sent.told else {}
        return InFlight(_reworded(agent, sent, answer), None, told)

    def _of_turn(self, agent: AgentRun, request: TurnRequest, text: str) -> Question:
        kind: Kind = agent.spec.ask or "approve"
        item = "" if request.item is None else f".item{request.item}"
        return Question(
            id=f"{self._scope}{agent.name}.{request.turn}{item}",
            agent=f"{self._scope}{agent.name}",
            turn=request.turn,
            kind=kind,
            text=text,
        )

    async def _given(
        self, agent: AgentRun, request: TurnRequest, context: Context, words: str
    ) -> tuple[TurnOutcome, TurnReply]:
        """A turn of these words."""
        assert isinstance(agent.engine, KeptEngine)  # of every run that is kept
        reply, text = TurnReply(agent.model, context), agent.model.text
        thoughts = agent.model.context_builder.template.thoughts
        tokens = text.encode_words(words)
        if thoughts is not None and thoughts.opened:  # a person answers, and thinks elsewhere
            tokens = (*text.encode(thoughts.closing), *tokens)
        outcome = await agent.engine.given(replace(request, reply=reply), tokens)
        reply.rest = ""
        return outcome, reply

    async def _ask(self, question: Question, settings: GenerateSpec | None = None) -> str:
        assert self._book is not None
        known = await self._book.answer_to(question)
        if known is not None:
            return known
        if self._on_question is not None:
            said = self._on_question(question)
            answer = await apart(lambda: said) if isawaitable(said) else said
            if answer is not None:
                words = checked_answer(question, answer, settings)
                counts = await self._book.note_question(replace(question, answer=words))
                return words if counts is None else counts
        meanwhile = await self._book.note_question(question)
        if meanwhile is not None:
            return meanwhile
        self.open.append(question)
        self._emit(QuestionAsked(question))
        raise Waiting


def _answer_of(reply: TurnReply) -> str:
    """What was written, without thoughts."""
    answered = reply.answered(reply.closed_context().segments[-1])
    return reply.text if answered is None else answered.text


def _reworded(agent: AgentRun, sent: InFlight, words: str) -> Message:
    """A message of other words."""
    ids = agent.model.text.encode_words(words)
    role = sent.message.segments[-1].role
    segment = Segment(role=role, ids=ids, content=(0, len(ids)), text=words, position=0)
    return replace(sent.message, segments=(segment,), context=ids, state=None)
