"""What a run cost: per turn and per edge."""

from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from unspoken.agents.runs.records import PromptTurn, ToolReport
from unspoken.agents.spec.problems import listed, suggest
from unspoken.channels.base import Fallback, Mode
from unspoken.channels.errors import InputError

Sharer = Annotated[str, Field(alias="from")]
Receiver = Annotated[str, Field(alias="to")]
"""An edge's ends, as plain data calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReport:
    """Counts and times of one turn; see `unspoken.agents.engines.base.Usage` for each.

    Attributes:
        item: Number of the item of ``for_each`` that it was of, from 0; None without ``for_each``.
        thought_tokens: Tokens that it wrote before its answer, the markers of thoughts included.
        attempts: Tries that it took; what the others computed is not counted.
        likelihoods: Of an agent with ``choices``, how likely its model found each; together 1.
            None in a workflow that is private, since the likeliest is the answer.
        tool_calls: Calls of tools, in order. The counts are then those of all passes over the
            context: one to each call, and one to the answer.
        prompt: What the model read before it wrote this: the agent's whole context, turn by turn.
            Empty in a workflow that is private, where calls of tools tell no words either, and in
            the events of a store.
        text: What it wrote; empty where it only read, and in a workflow that is private.
    """

    turn: int
    prompt_tokens: int
    prefilled_tokens: int
    reused_tokens: int
    recomputed_tokens: int
    projected_tokens: int
    generated_tokens: int
    layer_tokens_computed: int
    ttft_s: float | None
    seconds: float
    forwards: int = 0
    turns_per_forward: float = 0.0
    finish: str = "none"
    item: int | None = None
    thought_tokens: int = 0
    attempts: int = 1
    likelihoods: dict[str, float] | None = None
    tool_calls: tuple[ToolReport, ...] = ()
    prompt: tuple[PromptTurn, ...] = ()
    text: str = ""

    def without_words(self) -> "TurnReport":
        """The same without anything that an agent, a person or a tool said."""
        calls = tuple(call.without_words() for call in self.tool_calls)
        return replace(self, prompt=(), text="", tool_calls=calls, likelihoods=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeReport:
    """How one message was carried.

    Attributes:
        sharer: Who made it.
        receiver: Who read it.
        turn: The receiver's turn.
        planned: Channel the plan chose.
        channel: Channel that carried it.
        mode: How; see `unspoken.channels.base.Mode`.
        exact: Whether the receiver got what it would have computed itself.
        reason: How, and why so, in a sentence for people.
        tokens: Tokens of the message.
        reused: Message tokens whose state was taken over.
        repaired: Message tokens computed again though there was a state.
        bytes: Bytes of state, or of text.
        seconds: Work of the carry.
        projected: Message tokens whose state a bridge made.
        layer_tokens: Layers times tokens that the receiver ran of its own to make or to choose the
            state.
        recomputed_layers: Of a message from other weights of one base, the layers that the receiver
            computed itself.
        fallback: Why a cache that was asked for did not serve; None where none was in vain.
        item: Number of the receiver's item of ``for_each``, from 0; None without ``for_each``.
    """

    sharer: Sharer
    receiver: Receiver
    turn: int
    planned: str
    channel: str
    mode: Mode
    exact: bool
    reason: str
    tokens: int
    reused: int
    repaired: int
    bytes: int
    seconds: float
    projected: int = 0
    layer_tokens: int = 0
    recomputed_layers: int = 0
    fallback: Fallback | None = None
    item: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the ends under ``from`` and ``to``."""
        data = asdict(self)
        return {"from": data.pop("sharer"), "to": data.pop("receiver"), **data}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedLoop:
    """A message that was dropped since its receiver had all its turns.

    Attributes:
        sharer: Who sent it.
        receiver: Who could not read it.
        when: The edge's condition, which held; None where it has none.
        turns: How many turns the receiver had: its `max_turns`.
    """

    sharer: Sharer
    receiver: Receiver
    when: str | None
    turns: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the ends under ``from`` and ``to``."""
        return {"from": self.sharer, "to": self.receiver, "when": self.when, "turns": self.turns}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedItem:
    """An item of ``for_each`` that failed, by ``on_error: skip`` or ``default``.

    Attributes:
        agent: Whose item.
        turn: The agent's turn.
        item: Number of the item in the list, from 0.
        error: What was wrong.
        default: Whether the agent's default stands in for it; else it was left out.
    """

    agent: str
    turn: int
    item: int
    error: str
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedTurn:
    """A turn that failed, by ``on_error: skip`` or ``default``.

    Attributes:
        agent: Whose turn.
        turn: The agent's turn.
        error: What was wrong, in the last try.
        attempts: How often it was tried.
        default: Whether the agent's default stands in for it; else its readers got skips.
    """

    agent: str
    turn: int
    error: str
    attempts: int = 1
    default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyTurn:
    """A turn of an agent with ``for_each`` that had nothing to hand on; its readers got skips.

    Attributes:
        agent: Whose turn.
        turn: The agent's turn.
        items: Items of the list, which all failed by ``on_error: skip``; 0 for an empty list.
    """

    agent: str
    turn: int
    items: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LateMessage:
    """A message that was dropped since its receiver had begun without it, by its ``join``.

    Attributes:
        sharer: Who sent it.
        receiver: Who had begun.
    """

    sharer: Sharer
    receiver: Receiver

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the ends under ``from`` and ``to``."""
        return {"from": self.sharer, "to": self.receiver}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A whole run.

    Attributes:
        run_id: Its id.
        workflow: The workflow's name.
        agents: Per agent, its turns; none for an agent that was skipped. The turns of items that
            end in another order stand in the order of the items, here and below. Agents of a
            workflow that is an agent stand behind, each as ``AGENT.TURN/NAME``.
        edges: Every message carried, in order.
        fallbacks: Reuse that was asked for and did not happen, as (edge, reason).
        seconds: Wall-clock time from the first firing to the last.
        peak_state_bytes: The most memory that states held at a time, shared memory counted once; in
            a session those of all its runs.
        shared_state_bytes: The most of it that several readers shared when a turn began.
        spilled_state_bytes: Bytes of states that went to disk to make room.
        prefix_hits: Turns that went on from a state which no message of theirs brought.
        loops_ended: Where a limit of turns ended a loop.
        failed_items: Items of ``for_each`` that failed and ended no run.
        failed_turns: Turns that failed and ended no run.
        empty_turns: Turns of ``for_each`` that had no items, or none that did not fail.
        late_messages: Messages that came after their receiver had begun without them.
        unknown_calls: Of a run that was interrupted, calls of tools that happened or may have, and
            whose result no turn has read.
        linears: Per agent whose model was computed here, how its linear layers were: ``packed``,
            ``plain`` or ``int8``; see `unspoken.agents.models.linears.packed.Linears`.
    """

    run_id: str
    workflow: str
    agents: dict[str, tuple[TurnReport, ...]]
    edges: tuple[EdgeReport, ...]
    seconds: float
    fallbacks: tuple[tuple[str, str], ...] = ()
    peak_state_bytes: int = 0
    shared_state_bytes: int = 0
    spilled_state_bytes: int = 0
    prefix_hits: int = 0
    loops_ended: tuple[EndedLoop, ...] = ()
    failed_items: tuple[FailedItem, ...] = ()
    failed_turns: tuple[FailedTurn, ...] = ()
    empty_turns: tuple[EmptyTurn, ...] = ()
    late_messages: tuple[LateMessage, ...] = ()
    unknown_calls: tuple[ToolReport, ...] = ()
    linears: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the shape that ``unspoken run --json`` prints, without the outputs."""
        return {
            "run_id": self.run_id,
            "workflow": self.workflow,
            "agents": {
                name: [asdict(turn) for turn in turns] for name, turns in self.agents.items()
            },
            "edges": [edge.to_dict() for edge in self.edges],
            "failed_items": [asdict(item) for item in self.failed_items],
            "failed_turns": [asdict(turn) for turn in self.failed_turns],
            "empty_turns": [asdict(turn) for turn in self.empty_turns],
            "late_messages": [message.to_dict() for message in self.late_messages],
            "loops_ended": [loop.to_dict() for loop in self.loops_ended],
            "fallbacks": [{"edge": edge, "reason": reason} for edge, reason in self.fallbacks],
            "seconds": self.seconds,
            "peak_state_bytes": self.peak_state_bytes,
            "shared_state_bytes": self.shared_state_bytes,
            "spilled_state_bytes": self.spilled_state_bytes,
            "prefix_hits": self.prefix_hits,
            "linears": self.linears,
            "unknown_calls": [asdict(call) for call in self.unknown_calls],
        }


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What an agent wrote.

    Attributes:
        text: Words of its last turn; its prompt where it only reads, empty where it was skipped.
        turns: Words of every turn; none where it was skipped.
        items: Words for each item of ``for_each``, in its last turn; empty for one that failed, or
            that had not ended when the run failed.
        data: With a schema, what its last turn says: an instance of the schema's type, or plain
            data; with ``for_each`` a list. None without a schema.
        likelihoods: With ``choices``, how likely its model found each in its last turn.
    """

    text: str = ""
    turns: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    data: Any = None
    likelihoods: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        outputs: The workflow's outputs, by name.
        agents: What each agent wrote; an agent that was skipped is not in it.
        report: What it cost.
    """

    outputs: dict[str, str]
    agents: dict[str, AgentResult]
    report: RunReport

    def __getitem__(self, agent: str) -> AgentResult:
        """What an agent wrote; nothing where it was skipped.

        Raises:
            InputError: There is no such agent.
        """
        known = {**dict.fromkeys(self.report.agents, AgentResult()), **self.agents}
        if agent not in known:
            found, fix = f"there is no agent {agent!r}", suggest(str(agent), known)
            raise InputError(found, expected=listed(known), fix=fix)
        return known[agent]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``unspoken run --json`` prints it."""
        report = self.report.to_dict()
        return {"run_id": report.pop("run_id"), "outputs": self.outputs, **report}
