"""What a store holds of a run: frozen values of plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["running", "paused", "finished", "failed", "cancelled"]
"""``running`` is also what a run is whose process has died."""

Kind = Literal["approve", "edit", "answer"]
"""What a person is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something that a run waits to hear from a person.

    Attributes:
        id: Its name in the run: ``AGENT.TURN``, with ``.EDGE`` behind it for a message on an edge,
            and ``.itemN`` for an item of ``for_each``, from 0.
        agent: Whose turn it is about; with ``AGENT.TURN/`` before it inside of a sub-workflow.
        turn: Which turn, from 1.
        kind: ``approve`` wants yes or no, ``edit`` the words that go in place of `text`, ``answer``
            words that answer it.
        text: What the person reads.
        receiver: Who reads the message next, on an edge; empty for the agent's own turn.
        answer: What the person said; None while the run waits for it.
    """

    id: str
    agent: str
    turn: int
    kind: Kind
    text: str
    receiver: str = ""
    answer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """One computed turn, or an item of it: what it takes to have it again without computing it.

    Attributes:
        agent: Whose it is.
        turn: Which turn, from 1.
        item: Number of the item of ``for_each``; -1 without.
        digest: Of the ids that it read and how it sampled.
        tokens: The ids that it sampled.
        finish: Why it ended.
        usage: Counts and times, as `unspoken.agents.engines.base.Usage` has them.
        likelihoods: Of the texts that it chose from, where it did.
        carried: How each message was carried, as (edge, `CarryReport`'s fields, seconds).
        state: Digest of the packet with its state; empty where none is kept.
    """

    agent: str
    turn: int
    item: int
    digest: str
    tokens: tuple[int, ...]
    finish: str
    usage: Mapping[str, Any]
    likelihoods: tuple[float, ...] = ()
    carried: tuple[tuple[int, Mapping[str, Any], float], ...] = ()
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call of a tool.

    Attributes:
        agent, turn, item: The turn that made it.
        number: Which call of the turn, from 1.
        tool: The tool's name.
        arguments: What it was called with, as JSON text.
        result: What it gave, as JSON text; None where it may have happened and nobody knows.
    """

    agent: str
    turn: int
    item: int
    number: int
    tool: str
    arguments: str
    result: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReport:
    """A call of a tool.

    Attributes:
        id: Names the call in its run.
        tool: The tool's name.
        arguments: What it was given.
        result: What it returned, as text; what went wrong, where it failed.
        failed: Whether it failed.
        seconds: How long it took.
        unknown: Whether nobody knows if it took effect: the run was interrupted during it.
    """

    id: str
    tool: str
    arguments: dict[str, Any]
    result: str
    failed: bool
    seconds: float
    unknown: bool = False

    def without_words(self) -> "ToolReport":
        """The same without what it was given and what it returned."""
        return replace(self, arguments={}, result="")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTurn:
    """A turn of the context that a model read.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        text: Its words, those of messages with them, without the template's markers.
    """

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a run was begun with; a run that goes on must have the same.

    Attributes:
        version: Of unspoken.
        workflow: The workflow, as plain data.
        models: By agent, the digests of its model's identity.
        inputs: Input values.
        received: By agent, the digest of a message that it published elsewhere.
        edges: By edge, its planned channel and mode, and a digest of the channel's settings and of
            its bridge.
        session: The session whose conversations its agents go on with; empty without.
        conversations: By agent that goes on with one, the digest of its context; empty where it was
            to begin anew.
        file: The workflow's file; empty without. It may be another.
    """

    version: str
    workflow: Mapping[str, Any]
    models: Mapping[str, Mapping[str, str]]
    inputs: Mapping[str, Any]
    received: Mapping[str, str] = field(default_factory=dict)
    edges: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    session: str = ""
    conversations: Mapping[str, str] = field(default_factory=dict)
    file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A run in a store.

    Attributes:
        id: Its id.
        status: Where it is; see `Status`.
        created, updated: Seconds since 1970.
        origin: What it was begun with.
        turns: How many turns of agents have ended.
        questions: What it asks, and what was answered.
        calls: Calls of tools that may have happened: begun, and not known to have ended.
        outputs: The workflow's outputs, where it has finished; they stay until it goes on.
        error: Why it failed; empty otherwise.
    """

    id: str
    status: Status
    created: float
    updated: float
    origin: Origin
    turns: int = 0
    questions: tuple[Question, ...] = ()
    calls: tuple[CallRecord, ...] = ()
    outputs: Mapping[str, str] | None = None
    error: str = ""

    @property
    def open(self) -> tuple[Question, ...]:
        """The questions that wait for an answer."""
        return tuple(question for question in self.questions if question.answer is None)
