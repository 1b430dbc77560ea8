"""Agents over one document: what a workflow of ours runs, and the same prompts as token ids.

All that is measured against each other reads the same ids and writes as many of its own. Nothing
ends a turn before, so that every way does the same work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unspoken.agents.agent import Agent
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.agents.runtime.report import RunResult
from unspoken.agents.workflow import Workflow
from unspoken.channels.message import Message, Segment
from unspoken.channels.same_model import SameModelCacheChannel

__all__ = ["QUESTIONS", "STEPS", "Ids", "Relay", "Team", "exactly"]

Ids = tuple[int, ...]

QUESTIONS = (
    "What is the text about? Answer in two sentences.",
    "Which sentence of the text matters most, and why?",
    "List the names and the numbers that the text mentions.",
    "What would a reader not understand at once?",
    "Rewrite the beginning of the text in plain words.",
    "What does the text take for granted?",
    "Give the text a title and a subtitle.",
    "Which question does the text leave open?",
    "Who would need this text, and for what?",
    "Say what happens first and what happens last.",
    "Write three keywords and explain each of them.",
    "What is the longest word of the text, and what does it mean?",
    "Translate the main point into one short sentence for a child.",
    "Which part of the text could be left out?",
    "What should somebody check before they trust the text?",
    "Write a question that the text answers, and its answer.",
)
"""What the agents of a team ask, each its own."""

STEPS = (
    "Draft a short summary of the text above.",
    "Criticise the summary: what is missing?",
    "Write the summary again, with what was missing.",
    "Write one last sentence that a reader should remember.",
)
"""What the agents of a relay do, one after another."""


def exactly(tokens: int) -> dict[str, int]:
    """Settings of ``generate`` that write so many tokens, no more and no less."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Team:
    """A reader of a document, and agents that continue its cache, each with its own question.

    Attributes:
        model: The model of all.
        document: The document's words.
        message: The reader's message, its state in place.
        questions: What each agent asks.
        tokens: How many tokens each writes.
    """

    model: LocalModel
    document: str
    message: Message
    questions: tuple[str, ...]
    tokens: int

    @classmethod
    def make(cls, model: LocalModel, words: Ids, questions: Sequence[str], tokens: int) -> "Team":
        """The team of a document of `words`."""
        document = model.text.decode(words)
        return cls(
            model=model,
            document=document,
            message=model.message(document),
            questions=tuple(questions),
            tokens=tokens,
        )

    def flow(self, numbers: Sequence[int]) -> Workflow:
        """The workflow of the reader and of some of the agents, which run beside each other."""
        reader = Agent("reader", self.model, prompt="{{ inputs.document }}", generate=None)
        agents = [
            Agent(
                f"agent_{number}",
                self.model,
                prompt=self.questions[number],
                generate=exactly(self.tokens),
            )
            for number in numbers
        ]
        flow = Workflow("team", [reader, *agents])
        for agent in agents:
            flow.connect(reader, agent)
        return flow

    def run(self, flow: Workflow, *, read: bool = True) -> RunResult:
        """Run a flow of this team.

        Args:
            flow: The workflow.
            read: Whether the reader reads the document; if not, its message is there already.
        """
        received = {} if read else {"reader": self.message}
        return flow.run(received, document=self.document)

    @property
    def prompts(self) -> list[Ids]:
        """What each agent is given, as it stands in its context."""
        builder = self.model.context_builder
        quote = ChatTurn("user", (Quote(self.message, self.message.segments[0]),))
        turns = [[quote, ChatTurn("user", (question,))] for question in self.questions]
        return [builder.compose(pair).ids + builder.ask() for pair in turns]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relay:
    """Agents that go on from one conversation, one after another.

    Attributes:
        model: The model of all.
        document: What the first one reads before its task.
        steps: The task of each.
        tokens: How many tokens each writes.
    """

    model: LocalModel
    document: str
    steps: tuple[str, ...]
    tokens: int

    def flow(self) -> Workflow:
        """The workflow: each agent continues the whole context of the one before it."""
        agents = [
            Agent(f"agent_{number}", self.model, prompt=prompt, generate=exactly(self.tokens))
            for number, prompt in enumerate(
                ("{{ inputs.document }}\n\n" + self.steps[0], *self.steps[1:])
            )
        ]
        flow = Workflow("relay", agents)
        for sharer, receiver in pairwise(agents):
            flow.connect(sharer, receiver, SameModelCacheChannel(share="context"))
        return flow

    def run(self, flow: Workflow) -> RunResult:
        """Run the flow of this relay."""
        return flow.run(document=self.document)

    def asked(self, conversation: Context, number: int) -> Context:
        """The conversation with the task of agent `number` after it."""
        words = f"{self.document}\n\n{self.steps[0]}" if number == 0 else self.steps[number]
        earlier: Any = conversation if conversation.ids else None
        return self.model.context_builder.compose([ChatTurn("user", (words,))], earlier=earlier)

    def answered(self, conversation: Context, written: Ids) -> Context:
        """The conversation with what an agent wrote after it, as the template closes a turn."""
        builder = self.model.context_builder
        ask = builder.ask()
        return conversation.extended(
            Segment(
                role="assistant",
                ids=(*ask, *written, *builder.close()),
                content=(len(ask), len(ask) + len(written)),
                text=self.model.text.decode(written),
                position=len(conversation.ids),
            )
        )
