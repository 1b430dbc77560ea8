"""What a run is expected to take: values that a plan shows."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeForecast:
    """What one edge is expected to take in a run.

    Attributes:
        number: Its number in the workflow.
        tokens: Tokens of its messages.
        seconds: To carry them, and to compute what of them has no state.
        bytes: Bytes of state, or of text at about four a token.
    """

    number: int
    tokens: int
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentForecast:
    """What one agent is expected to take in a run, all of its turns and items together.

    Attributes:
        turns: How many turns it takes; below 1 where runs pass it by.
        prompt_tokens: Tokens of its contexts.
        computed_tokens: Those of them that it computes.
        generated_tokens: What it writes.
        seconds: Work of its turns, as reports count it.
        bytes: Bytes of their state.
    """

    turns: float
    prompt_tokens: int
    computed_tokens: int
    generated_tokens: int
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """When a model was measured, and where.

    Attributes:
        at: Date and time, UTC.
        processor: What it was measured on.
        threads: Threads that it computed with.
        dtype: In which dtype.
    """

    at: str
    processor: str
    threads: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run is expected to take, from what was measured on this machine; loading not counted.

    Attributes:
        seconds: From the first turn to the end of the last.
        most_seconds: The same where every agent takes all its turns and writes all that it may.
        bytes: What all edges carry.
        agents: By agent.
        edges: In the order of the workflow.
        runs: How many earlier runs say what agents write and how often they are asked; 0 where
            `seconds` is by the limits, as `most_seconds` is.
        calibrated: By model, when and where it was measured.
        uncounted: What is not counted, in words for people.
    """

    seconds: float
    most_seconds: float
    bytes: int
    agents: dict[str, AgentForecast]
    edges: tuple[EdgeForecast, ...]
    runs: int
    calibrated: dict[str, Calibration]
    uncounted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what stands at the plan's edges."""
        agents = {
            name: {
                "predicted_seconds": one.seconds,
                "predicted_bytes": one.bytes,
                "turns": one.turns,
                "prompt_tokens": one.prompt_tokens,
                "computed_tokens": one.computed_tokens,
                "generated_tokens": one.generated_tokens,
            }
            for name, one in self.agents.items()
        }
        return {
            "predicted_seconds": self.seconds,
            "predicted_most_seconds": self.most_seconds,
            "predicted_bytes": self.bytes,
            "agents": agents,
            "earlier_runs": self.runs,
            "calibrated": {name: asdict(one) for name, one in self.calibrated.items()},
            "uncounted": list(self.uncounted),
        }
