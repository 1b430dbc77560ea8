"""Whether every turn can get the memory that it needs, as far as its tokens are known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from unspoken.agents.planning.plan import Plan
from unspoken.agents.prompts.context import ChatTurn
from unspoken.agents.prompts.jinja import references, render
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import Problem, TemplateError
from unspoken.channels.sizes import shown_bytes

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel

TurnBytes = Callable[[str, int, int, bool], int]
"""Bytes that a turn of an agent takes at least: by the tokens that it computes, those that it may
read where they lie, and whether its state is kept.
"""

_MARKERS = 64
"""Bytes that the markers of a turn take at most, or so."""


@dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """What is known of a workflow's turns before anything runs.

    Attributes:
        spec: A valid workflow.
        models: The model of every agent.
        plan: Its plan.
        inputs: Input values, all or some.
        takes: What a turn takes.
        shares: Whether an agent's own prompt may have been computed before, as in a session.
    """

    spec: WorkflowSpec
    models: Mapping[str, "AgentModel"]
    plan: Plan
    inputs: Mapping[str, object]
    takes: TurnBytes
    shares: bool

    def never_fit(self, limits: Mapping[str, int | None]) -> Iterator[Problem]:
        """The agents whose first turn needs more memory than there is.

        Args:
            limits: Most bytes for states, by agent; None for no limit.
        """
        for name, agent in self.spec.agents.items():
            limit = limits[name]
            # A token is a byte at least: most are far from the limit, and nothing is counted.
            if limit is None or self._least(name, self._bytes)[0] <= limit:
                continue
            needed, tokens = self._least(name, self._tokens)
            if needed <= limit:
                continue
            new = "" if agent.generate is None else f" and {agent.generate.max_new_tokens} new ones"
            yield Problem(
                f"a turn of {name} takes {shown_bytes(needed)} of state at least, for {tokens} "
                f"tokens{new}",
                f"agents.{name}",
                f"at most {shown_bytes(limit)}, the memory for states",
                "raise memory, lower max_new_tokens, or shorten what the agent reads",
            )

    def _least(self, name: str, count: Callable[[str], int]) -> tuple[int, int]:
        """What a turn takes at least, and its tokens, by a count of each agent's prompt."""
        own, led = count(name), sum(map(count, self._whole_prompts[name]))
        computed = 0 if self.shares else own
        return self.takes(name, computed, own + led - computed, self._is_kept(name)), own + led

    def _is_kept(self, name: str) -> bool:
        each = self.spec.agents[name].for_each is not None
        return not each and any(
            self.plan.channels[number].carries_state for number in self._out[name]
        )

    @cached_property
    def _out(self) -> dict[str, list[int]]:
        """By agent, the edges on which it sends."""
        edges: dict[str, list[int]] = {name: [] for name in self.spec.agents}
        for number, edge in enumerate(self.spec.edges):
            edges[edge.from_].append(number)
        return edges

    @cached_property
    def _whole_prompts(self) -> dict[str, list[str]]:
        """By agent, those whose whole prompt it reads, whatever happens before its turn."""
        spec = self.spec
        begun = {edge.to for edge in spec.edges if not edge.loop}
        sharers: dict[str, list[str]] = {name: [] for name in spec.agents}
        for edge in spec.edges:
            if (
                edge.when is None
                and not edge.loop
                and spec.share_of(edge) != "output"
                and spec.agents[edge.from_].for_each is None
                and spec.agents[edge.from_].on_error == "fail"
                and spec.agents[edge.to].join == "all"
                and edge.from_ not in begun
            ):
                sharers[edge.to].append(edge.from_)
        return sharers

    def _prompt(self, name: str) -> str | None:
        """An agent's prompt, where it depends on known inputs alone."""
        prompt = self.spec.agents[name].prompt
        reads = references(prompt)
        known = {reference.attribute for reference in reads} <= self.inputs.keys()
        if not known or {reference.root for reference in reads} - {"inputs"}:
            return None
        try:
            return render(prompt, {"inputs": dict(self.inputs)})
        except TemplateError:  # its turn tells of it, if there is one
            return None

    def _bytes(self, name: str) -> int:
        prompt = self._prompt(name)
        return 0 if prompt is None else len(prompt.encode()) + _MARKERS

    def _tokens(self, name: str) -> int:
        """Tokens of an agent's own prompt turn; 0 where they are not known."""
        prompt = self._prompt(name)
        if prompt is None:
            return 0
        context = self.models[name].context_builder.compose([ChatTurn("user", (prompt,))])
        return len(context.segments[-1].ids)
