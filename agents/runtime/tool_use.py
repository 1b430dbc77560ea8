"""A turn that calls tools: passes over one context, a result after each call."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from unspoken.agents.engines.base import Usage
from unspoken.agents.prompts.context import ChatTurn, Context
from unspoken.agents.prompts.tool_turns import ToolCall
from unspoken.agents.runs.records import CallRecord, ToolReport
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.runtime.recorder import Place, Recorder
from unspoken.agents.runtime.reply import TurnReply
from unspoken.agents.runtime.telemetry import executing_tool
from unspoken.agents.tools.functions import Tool
from unspoken.agents.tools.toolbox import Call, Toolbox


class ToolUse:
    """The calls of one try of a turn.

    Args:
        toolbox: Where calls are made.
        agent: Whose turn it is.
        place: Which turn it is.
        recorder: Told of every call.

    Attributes:
        place: Which turn it is.
        reports: What became of the calls so far.
    """

    def __init__(self, toolbox: Toolbox, agent: AgentRun, place: Place, recorder: Recorder) -> None:
        toolbox.begin(place.agent, place.turn, place.item)
        self._toolbox, self._agent, self.place = toolbox, agent, place
        self._recorder = recorder
        self._tools: tuple[Tool, ...] = toolbox.of(agent.spec.tools)
        self.reports: list[ToolReport] = []

    @property
    def open(self) -> tuple[Tool, ...]:
        """The tools that may still be called."""
        return self._tools if len(self.reports) < self._agent.spec.max_calls else ()

    @property
    def must_call(self) -> bool:
        """Whether the agent may not answer yet."""
        return len(self.reports) < self._agent.spec.min_calls

    async def after(self, reply: TurnReply) -> Context | None:
        """The context with the result of the call that was written; None where none was.

        Args:
            reply: What was written.
        """
        if not self.open:
            return None
        model, closed = self._agent.model, reply.closed_context()
        answer = reply.answered(closed.segments[-1])
        words = reply.text if answer is None else answer.text
        called = model.template.tools.read(words, model.text)
        if called is None or not self._calls(words, called):
            return None
        result = await self._made(called)
        turn = ChatTurn("tool", (result,), call=called)
        return model.context_builder.compose([turn], earlier=closed)

    def _calls(self, words: str, called: ToolCall) -> bool:
        """Whether a call is made; where nothing marks calls, it must be how the words begin."""
        model = self._agent.model
        before = model.text.encode(model.template.tools.call_texts(called.name)[0], "")
        head, said = "".join(model.text.decode(before).split()), "".join(words.split())
        bare = head.lstrip("[").startswith("{") or head == "".join(called.name.split())
        if bare:  # JSON or a name, which words may quote
            known = any(tool.name == called.name for tool in self._tools)
            return known and said.startswith(head)
        return head in said

    async def _made(self, called: ToolCall) -> str:
        place, number = self.place, len(self.reports) + 1
        item = "" if place.item is None else f".{place.item}"
        call = Call(
            id=f"{place.agent}.{place.turn}{item}.{number}",
            agent=place.agent,
            turn=place.turn,
            item=place.item,
            name=called.name,
            arguments=dict(called.arguments),
        )
        self._recorder.note_call(call)
        with executing_tool(call.name, call.id) as failed_by:
            done = await self._toolbox.call(self._tools, call)
            if done.failed:
                failed_by(done.result.partition(":")[0] if done.seconds else "_OTHER")
        report = ToolReport(
            id=call.id,
            tool=call.name,
            arguments=dict(call.arguments),
            result=done.result,
            failed=done.failed,
            seconds=done.seconds,
            unknown=done.unknown,
        )
        self.reports.append(report)
        self._recorder.note_result(place, report)
        return done.result


def unread(calls: Iterable[CallRecord]) -> tuple[ToolReport, ...]:
    """Calls whose result no turn has read, as a report has them."""
    return tuple(
        ToolReport(
            id=f"{call.agent}.{call.turn}{'' if call.item < 0 else f'.{call.item}'}.{call.number}",
            tool=call.tool,
            arguments=json.loads(call.arguments),
            result=call.result or "",
            failed=call.result is None,
            seconds=0.0,
            unknown=True,
        )
        for call in calls
    )


def summed(passes: Sequence[Usage]) -> Usage:
    """The counts and times of a turn's passes as one; its first token is that of the first."""
    first = passes[0]
    if len(passes) == 1:
        return first
    counts = (
        "prompt_tokens",
        "prefilled_tokens",
        "reused_tokens",
        "recomputed_tokens",
        "projected_tokens",
        "generated_tokens",
        "layer_tokens_computed",
        "seconds",
        "forwards",
    )
    forwards = sum(one.forwards for one in passes)
    company = sum(one.turns_per_forward * one.forwards for one in passes)
    return replace(
        first,
        **{name: sum(getattr(one, name) for one in passes) for name in counts},
        turns_per_forward=round(company / max(forwards, 1), 2),
    )
