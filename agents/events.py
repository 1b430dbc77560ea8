"""What `Workflow.stream` tells: a frozen class per kind of event.

`replay` gives the events of a run that was kept once more.

`to_dict` gives an event as plain data, `from_dict` takes it back, and `event_schema` is the JSON
schema of that.
"""

from unspoken.agents.runtime.event_data import event_schema, from_dict, replay, to_dict
from unspoken.agents.runtime.events import (
    AgentSkipped,
    Event,
    FallbackTaken,
    ItemFailed,
    LoopEnded,
    MessageCarried,
    MessageDropped,
    PrefillProgress,
    QuestionAsked,
    RunFinished,
    RunPaused,
    RunStarted,
    TokenWritten,
    ToolCalled,
    ToolReturned,
    TurnFailed,
    TurnFinished,
    TurnRetried,
    TurnStarted,
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
    "QuestionAsked",
    "RunFinished",
    "RunPaused",
    "RunStarted",
    "TokenWritten",
    "ToolCalled",
    "ToolReturned",
    "TurnFailed",
    "TurnFinished",
    "TurnRetried",
    "TurnStarted",
    "event_schema",
    "from_dict",
    "replay",
    "to_dict",
]
