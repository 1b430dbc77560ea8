"""What a run is expected to take: the works of all agents, timed together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING

import networkx as nx

from unspoken.agents.costs.pace import Pace
from unspoken.agents.costs.rounds import Member, Taken, taken_by
from unspoken.agents.costs.store import Lengths
from unspoken.agents.costs.tokens import PieceTokens
from unspoken.agents.costs.work import TurnWork, Works
from unspoken.agents.delegates.model import Delegate
from unspoken.agents.planning.forecast import AgentForecast, EdgeForecast, Forecast
from unspoken.agents.planning.plan import Plan
from unspoken.agents.spec.graph import build_graph, forward_graph
from unspoken.agents.spec.spec import AgentSpec, WorkflowSpec
from unspoken.agents.spec.turns import FirstSpec
from unspoken.channels.projected import ProjectedCacheChannel
from unspoken.channels.storage.side import pair_digest

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel

TEXT_BYTES = 4
"""Bytes of a token of text, about."""


@dataclass(eq=False, kw_only=True)
class Forecaster:
    """Foretells the runs of a workflow for given inputs.

    Attributes:
        spec: The workflow.
        models: The model of every agent.
        plan: Its plan.
        inputs: All of its inputs.
        paces: By agent, the pace of its model; none of one that computes elsewhere.
        lengths: What agents did in earlier runs.
    """

    spec: WorkflowSpec
    models: "Mapping[str, AgentModel]"
    plan: Plan
    inputs: Mapping[str, object]
    paces: Mapping[str, Pace]
    lengths: Lengths

    def forecast(self) -> Forecast:
        """What a run is expected to take."""
        expected, most = _Run(self, self.lengths), _Run(self, Lengths())
        edges = tuple(expected.edge(number) for number in range(len(self.spec.edges)))
        return Forecast(
            seconds=expected.seconds,
            most_seconds=max(most.seconds, expected.seconds),
            bytes=sum(edge.bytes for edge in edges),
            agents={name: expected.agent(name) for name in self.spec.agents},
            edges=edges,
            runs=self.lengths.runs,
            calibrated={
                self.spec.agents[name].model: pace.calibration for name, pace in self.paces.items()
            },
            uncounted=tuple(self._uncounted()),
        )

    def _uncounted(self) -> Iterator[str]:
        for name, agent in self.spec.agents.items():
            model = self.models[name]
            if isinstance(model, Delegate):
                yield f"{name}, which is {model.kind}"
            elif name not in self.paces:
                yield f"{name}, whose model computes elsewhere"
            if agent.tools:
                yield f"the tools of {name}, and what it reads and writes between calls"
            if agent.ask is not None:
                yield f"the time that people take to answer {name}"
        yield from self._unpaced()
        if any(edge.ask is not None for edge in self.spec.edges):
            yield "the time that people take to answer"

    def _unpaced(self) -> Iterator[str]:
        """Bridges that came after the calibration."""
        for number, channel in self.plan.channels.items():
            pace = self.paces.get(self.spec.edges[number].to)
            if isinstance(channel, ProjectedCacheChannel) and pace is not None:
                ends = channel.bridge.manifest
                pair = pair_digest(ends.sharer.to_identity(), ends.receiver.to_identity())
                if pair not in pace.project:
                    edge = self.spec.edges[number]
                    yield f"the bridge from {edge.from_} to {edge.to}, which is not calibrated"


class _Run:
    """A run whose agents write so much and take so many turns.

    Args:
        of: Whose run.
        lengths: What agents do.
    """

    def __init__(self, of: Forecaster, lengths: Lengths) -> None:
        self._of, self._lengths, self._spec = of, lengths, of.spec
        written = {name: self._written(name, agent) for name, agent in of.spec.agents.items()}
        tokens = PieceTokens(spec=of.spec, models=of.models, inputs=of.inputs, written=written)
        works = Works(
            spec=of.spec,
            models=dict(of.models),
            plan=of.plan,
            tokens=tokens,
            paces=dict(of.paces),
            lengths=lengths,
        )
        self._items = {name: len(rows) for name, rows in tokens.items.items()}
        forward = forward_graph(build_graph(of.spec))
        targets = dict.fromkeys(edge.to for edge in of.spec.edges if edge.loop)
        self._regions = {to: {to, *nx.descendants(forward, to)} for to in targets}
        self._first = {name: works.first(name) for name in of.spec.agents}
        self._later = {name: works.later(name) for name in targets}

    @cached_property
    def turns(self) -> dict[str, float]:
        """Turns of each agent: as in earlier runs, else as many as it may take."""
        known = self._lengths.agents
        turns = {name: known[name].turns for name in self._spec.agents if name in known}
        for name, agent in self._spec.agents.items():
            if name in turns:
                continue
            limits = [
                (self._spec.agents[to].max_turns or 1) - 1
                for to, region in self._regions.items()
                if name in region
            ]
            turns[name] = min(1.0 + sum(limits), agent.max_turns or inf)
        return turns

    @cached_property
    def _rounds(self) -> list[tuple[float, dict[str, TurnWork]]]:
        """How often each round is gone through, and its agents' works, the first round first."""
        first = {name: work.times(min(self.turns[name], 1.0)) for name, work in self._first.items()}
        rounds = [(1.0, first)]
        for target, region in self._regions.items():
            extra = self.turns[target] - 1
            if extra <= 0:
                continue
            works = {}
            for name in region:
                work = self._later[name] if name == target else self._first[name]
                works[name] = work.times(min(max(self.turns[name] - 1, 0.0) / extra, 1.0))
            rounds.append((extra, works))
        return rounds

    @cached_property
    def _taken(self) -> list[Taken]:
        return [taken_by(self._members(works)) for _, works in self._rounds]

    @property
    def seconds(self) -> float:
        """From the first turn to the end of the last."""
        pairs = zip(self._rounds, self._taken, strict=True)
        return sum(times * taken.seconds for (times, _), taken in pairs)

    def agent(self, name: str) -> AgentForecast:
        """What an agent takes."""
        pairs = zip(self._rounds, self._taken, strict=True)
        seconds = sum(times * taken.works.get(name, 0.0) for (times, _), taken in pairs)
        works = self._works_of(name)
        model = self._of.models[name]
        row = model.geometry.bytes_per_token(model.dtype.itemsize)
        ends = [(times, work.prompt + work.written) for times, work in works]
        return AgentForecast(
            turns=self.turns[name],
            prompt_tokens=round(sum(times * work.prompt for times, work in works)),
            computed_tokens=round(sum(times * work.computed for times, work in works)),
            generated_tokens=round(sum(times * work.written for times, work in works)),
            seconds=seconds,
            bytes=round(sum(times * tokens for times, tokens in ends) * row),
        )

    def edge(self, number: int) -> EdgeForecast:
        """What an edge takes."""
        planned, receiver = self._of.plan.edges[number], self._spec.edges[number].to
        share = min(self.turns[receiver], 1.0)
        parts = [
            (times * (share if at == 0 else 1.0), work.edges[number])
            for at, (times, work) in enumerate(self._works_of(receiver))
            if number in work.edges
        ]
        tokens = sum(times * part.tokens for times, part in parts)
        return EdgeForecast(
            number=number,
            tokens=round(tokens),
            seconds=sum(times * part.seconds for times, part in parts),
            bytes=round(tokens * (planned.bytes_per_token or TEXT_BYTES)),
        )

    def _works_of(self, name: str) -> list[tuple[float, TurnWork]]:
        """How often an agent does a work in all rounds, its items included, and the work."""
        items = self._items.get(name, 1)
        return [(times * items, works[name]) for times, works in self._rounds if name in works]

    def _written(self, name: str, agent: AgentSpec) -> float:
        """Tokens that an agent writes in a turn: as in earlier runs, else as many as it may."""
        known, settings = self._lengths.agents.get(name), agent.generate
        if known is not None and known.turns:
            return known.generated
        if settings is None:
            return 0.0
        if settings.choices:
            model = self._of.models[name]
            return max(len(model.text.encode_words(choice)) for choice in settings.choices)
        return float(settings.max_new_tokens)

    def _members(self, works: Mapping[str, TurnWork]) -> dict[str, Member]:
        members = {}
        for name, work in works.items():
            agent, model = self._spec.agents[name], self._of.models[name]
            waits = frozenset(
                edge.from_
                for edge in self._spec.edges
                if edge.to == name and not edge.loop and edge.from_ in works
            )
            match agent.join:
                case "any":
                    needed = 1
                case FirstSpec(first=first):
                    needed = min(first, len(waits))
                case _:
                    needed = len(waits)
            members[name] = Member(
                works=(work,) * self._items.get(name, 1),
                waits=waits,
                needed=needed,
                pace=self._of.paces.get(name),
                model=getattr(model, "batch_key", model),
                device=model.device,
            )
        return members
