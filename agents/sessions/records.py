"""What a session holds: frozen values, and the plain data that they are on disk."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from blake3 import blake3

from unspoken.agents.engines.base import StateRef
from unspoken.agents.prompts.context import Context
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Segment

VERSION = 1
"""Of the file; one of another version is refused."""

Key = tuple[str, str]
"""The names of a workflow and of its agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an agent goes on from.

    Attributes:
        context: Its turns so far.
        ids: What the state is of: the context's ids, with thoughts that the context may lack.
        state: The ticket for that state; None where it has to be computed.
    """

    context: Context
    ids: tuple[int, ...]
    state: StateRef | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The turns of one agent in a session.

    Attributes:
        workflow: The name of the agent's workflow.
        agent: The agent's name.
        identity: The model that they are of.
        system: The system prompt that they began with; empty without.
        context: The turns.
        ids: What the kept state is of; see `Earlier`.
        before: How many segments there were before the session's last run.
        state: Digest of the packet with the state; empty where none is on disk.
    """

    workflow: str
    agent: str
    identity: ModelIdentity
    system: str
    context: Context
    ids: tuple[int, ...]
    before: int = 0
    state: str = ""

    @property
    def key(self) -> Key:
        """Whose it is."""
        return self.workflow, self.agent

    @property
    def words(self) -> tuple[tuple[str, str], ...]:
        """What was said, as (role, text)."""
        return tuple((one.role, one.text) for one in self.context.segments if one.text)

    def begun(self) -> "Conversation":
        """The conversation as it was before the session's last run."""
        return replace(self, context=context_of(self.context.segments[: self.before]))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """A session and its conversations.

    Attributes:
        name: Its name.
        created, updated: Seconds since 1970.
        run: Id of its last run.
        conversations: One for each agent that remembers.
    """

    name: str
    created: float
    updated: float
    run: str = ""
    conversations: tuple[Conversation, ...] = ()

    def find(self, key: Key) -> Conversation | None:
        """The conversation of an agent."""
        return next((one for one in self.conversations if one.key == key), None)


def context_of(segments: tuple[Segment, ...]) -> Context:
    """The context that these turns make up."""
    context = Context()
    for segment in segments:
        context = context.extended(replace(segment, position=len(context.ids)))
    return context


def digest_of(context: Context) -> str:
    """Of the ids of a context."""
    return blake3(repr(context.ids).encode()).hexdigest(length=16)


def to_data(session: StoredSession) -> dict[str, Any]:
    """A session as plain data."""
    return {
        "version": VERSION,
        "name": session.name,
        "created": session.created,
        "updated": session.updated,
        "run": session.run,
        "conversations": [_told(one) for one in session.conversations],
    }


def _told(conversation: Conversation) -> dict[str, Any]:
    same = conversation.ids == conversation.context.ids
    return {
        "workflow": conversation.workflow,
        "agent": conversation.agent,
        "identity": asdict(conversation.identity),
        "system": conversation.system,
        "before": conversation.before,
        "state": conversation.state,
        "ids": None if same else conversation.ids,
        "turns": [
            {"role": one.role, "ids": one.ids, "content": one.content, "text": one.text}
            for one in conversation.context.segments
        ],
    }


def from_data(data: Mapping[str, Any]) -> StoredSession:
    """A session of plain data.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    return StoredSession(
        name=str(data["name"]),
        created=float(data["created"]),
        updated=float(data["updated"]),
        run=str(data["run"]),
        conversations=tuple(_read(one) for one in data["conversations"]),
    )


def _read(data: Mapping[str, Any]) -> Conversation:
    context = context_of(tuple(_segment(one) for one in data["turns"]))
    return Conversation(
        workflow=str(data["workflow"]),
        agent=str(data["agent"]),
        identity=ModelIdentity(**data["identity"]),
        system=str(data["system"]),
        before=int(data["before"]),
        state=str(data["state"]),
        context=context,
        ids=context.ids if data["ids"] is None else tuple(map(int, data["ids"])),
    )


def _segment(data: Mapping[str, Any]) -> Segment:
    start, stop = data["content"]
    return Segment(
        role=str(data["role"]),
        ids=tuple(map(int, data["ids"])),
        content=(int(start), int(stop)),
        text=str(data["text"]),
        position=0,
    )
