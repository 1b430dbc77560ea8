"""For those who write an engine: something that computes turns elsewhere than `LocalEngine` does.

- `Engine` is the contract, and `EngineFacts` and `Footprint` are what an engine says of itself and
  of a turn. A model with `make_engine` (`HasEngine`) brings its own; it is an `AgentModel`.
- `TurnRequest` is what an engine gets: ids, each `Inbound` message in its place, the agent's
  `History`, the `Sampling`, and a `Reply` that looks at each sampled id.
- `TurnEvent` is what it tells meanwhile (`Carried`, `Prefilling`, `Sampled`).
- `TurnOutcome`, with its `Usage`, is what it returns.
- `States` is where it keeps states, each under a `StateRef`, as a `Keep` says; `StateStore` is
  the one of a run. Engines that share it take each other's tickets. A turn's memory is a `Lease`,
  by a `LeaseRequest`; a `PrefixQuery` in it asks for a state that begins as the context does.
"""

from unspoken.agents.engines.base import (
    Carried,
    Engine,
    EngineFacts,
    Footprint,
    HasEngine,
    History,
    Inbound,
    Keep,
    Lease,
    LeaseRequest,
    Prefilling,
    PrefixQuery,
    Reply,
    Sampled,
    Sampling,
    StateRef,
    States,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
    Usage,
)
from unspoken.agents.models.base import AgentModel
from unspoken.agents.runtime.states import StateStore

__all__ = [
    "AgentModel",
    "Carried",
    "Engine",
    "EngineFacts",
    "Footprint",
    "HasEngine",
    "History",
    "Inbound",
    "Keep",
    "Lease",
    "LeaseRequest",
    "Prefilling",
    "PrefixQuery",
    "Reply",
    "Sampled",
    "Sampling",
    "StateRef",
    "StateStore",
    "States",
    "TurnEvent",
    "TurnOutcome",
    "TurnRequest",
    "Usage",
]
