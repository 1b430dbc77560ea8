"""What `Workflow.stream` tells: a frozen class per kind of event, and `to_dict` for plain data."""

from unspoken.agents.runtime.events import (
    AgentSkipped,
    Event,
    FallbackTaken,
    ItemFailed,
    LoopEnded,
    MessageCarried,
    MessageDropped,
    PrefillProgress,
    RunFinished,
    RunStarted,
    TokenWritten,
    TurnFailed,
    TurnFinished,
    TurnRetried,
    TurnStarted,
    to_dict,
)

__all__ = [
    "AgentSkipped",
    "Event",
    "FallbackTaken",
    "ItemFailed",
    "LoopEnded",
    "MessageCarried",
    "MessageDropped",
    "PrefillProgress",
    "RunFinished",
    "RunStarted",
    "TokenWritten",
    "TurnFailed",
    "TurnFinished",
    "TurnRetried",
    "TurnStarted",
    "to_dict",
]
