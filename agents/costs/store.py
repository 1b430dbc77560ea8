"""What is kept between runs: how fast models are on this machine, and how long agents write."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from blake3 import blake3

from unspoken.agents.costs.pace import Pace
from unspoken.agents.runtime.report import RunReport, TurnReport
from unspoken.agents.spec.spec import WorkflowSpec, dump
from unspoken.channels.machine import describe_machine
from unspoken.channels.storage.files import cache_root, read_json, write_json

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel

REMEMBERED = 20
"""Earlier runs that count; older ones fade."""

_PLACE = ("processor", "device", "cores", "threads", "system", "torch", "transformers", "dtype")
"""What of a machine and its software decides a pace."""

_FREE = ("description", "timeout", "memory", "outputs")
"""What of a workflow changes nothing that its agents write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLengths:
    """What an agent did in earlier runs, on average.

    Attributes:
        turns: Turns a run, all items of ``for_each`` together one.
        generated: Tokens that it wrote a turn, or an item.
        forwards: Forwards that computed tokens of it.
    """

    turns: float
    generated: float
    forwards: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """What the agents of a workflow did in earlier runs.

    Attributes:
        runs: How many.
        agents: By agent.
    """

    runs: int = 0
    agents: dict[str, AgentLengths] = field(default_factory=dict)

    def with_run(self, turns: Mapping[str, Sequence[TurnReport]]) -> Self:
        """These, and one run more.

        Args:
            turns: The turns of its agents, as its report has them.
        """
        weight = 1 / min(self.runs + 1, REMEMBERED)
        agents = {
            name: _mixed(self.agents.get(name), each, weight)
            for name, each in turns.items()
            if "/" not in name  # inside of an agent that is a workflow
        }
        return type(self)(runs=self.runs + 1, agents=agents)


def _mixed(known: AgentLengths | None, turns: Sequence[TurnReport], weight: float) -> AgentLengths:
    count = float(len({turn.turn for turn in turns}))
    if known is None or not known.turns:
        known, weight_of_words = known or AgentLengths(turns=count, generated=0, forwards=0), 1.0
    else:
        weight_of_words = weight
    taken = known.turns + weight * (count - known.turns)
    if not turns:
        return AgentLengths(turns=taken, generated=known.generated, forwards=known.forwards)
    generated = sum(turn.generated_tokens for turn in turns) / len(turns)
    forwards = sum(turn.forwards for turn in turns) / len(turns)
    return AgentLengths(
        turns=taken,
        generated=known.generated + weight_of_words * (generated - known.generated),
        forwards=known.forwards + weight_of_words * (forwards - known.forwards),
    )


class CostStore:
    """Paces by model and machine, and lengths by workflow.

    Args:
        root: Its folder; ``costs`` in the user's cache folder if not given.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root() / "costs"

    def pace(self, model: "LocalModel") -> Pace | None:
        """A model's pace on this machine, with this software; None where it was not measured."""
        data = read_json(self._pace_file(model))
        return None if data is None else Pace.from_dict(data)

    def keep_pace(self, model: "LocalModel", pace: Pace) -> None:
        """Keep a model's pace in place of the former one.

        Raises:
            OSError: The folder cannot be written.
        """
        write_json(self._pace_file(model), pace.to_dict())

    def lengths(self, spec: WorkflowSpec) -> Lengths:
        """What a workflow's agents did in earlier runs; none where nothing is known."""
        data = read_json(self._lengths_file(spec))
        try:
            agents = {name: AgentLengths(**one) for name, one in (data or {})["agents"].items()}
            return Lengths(runs=int((data or {})["runs"]), agents=agents)
        except (KeyError, TypeError, ValueError, AttributeError):
            return Lengths()

    def keep_run(self, spec: WorkflowSpec, report: RunReport) -> None:
        """Keep what the agents of a workflow did in a run; a store that cannot be written has it
        not.
        """
        with suppress(OSError):
            more = self.lengths(spec).with_run(report.agents)
            write_json(self._lengths_file(spec), asdict(more))

    def _pace_file(self, model: "LocalModel") -> Path:
        machine = describe_machine(model)
        place = {name: machine[name] for name in _PLACE}
        told = repr(sorted(place.items())) + repr(asdict(model.identity))
        return self.root / f"pace-{_digest(told)}.json"

    def _lengths_file(self, spec: WorkflowSpec) -> Path:
        data = {key: value for key, value in dump(spec).items() if key not in _FREE}
        told = json.dumps(data, sort_keys=True, default=str)
        return self.root / f"lengths-{_digest(told)}.json"


def _digest(text: str) -> str:
    return blake3(text.encode()).hexdigest(length=12)
