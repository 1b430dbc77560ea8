"""Messages of several senders in one context: how far each repair is from a full recompute."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any, NamedTuple

from torch import Tensor

from study import TEXT, Measured, Progress, run
from unspoken.agents.bench.forced import forced_logs, means, prefilled, recomputed, rotated, score
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import make_message
from unspoken.agents.engines.assembly import assemble
from unspoken.agents.engines.base import Inbound
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.message import Message
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

GROUPS, TOKENS, FORCED, MOST = 10, 128, 40, 4
COUNTS = (1, 2, 4)
SENDERS = (
    "You read the harbour's reports.",
    "You are the night clerk of a small hotel by the station, and you write down what happens.",
    "You collect letters of old sailors and copy them out without leaving anything away, in full "
    "sentences.",
    "You teach history.",
)
PROMPT = "Go on with the last text."

CHANNELS: dict[str, Channel] = {
    "text": TextChannel(share="prompt"),
    "none": SameModelCacheChannel(share="prompt", sink=0),
    "sink": SameModelCacheChannel(share="prompt"),
    "sink 16": SameModelCacheChannel(share="prompt", sink=16),
    "deviation": SameModelCacheChannel(share="prompt", deviation=0.15),
    "all recomputed": SameModelCacheChannel(share="prompt", sink=10**6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Messages in one context, and tokens forced after it.

    Attributes:
        messages: The messages.
        context: The receiver's context.
        ids: Its token ids, with those that ask for the assistant's words.
        forced: The ids that are forced.
        full: What a full recompute says of them.
    """

    messages: tuple[Message, ...]
    context: Context
    ids: tuple[int, ...]
    forced: tuple[int, ...]
    full: Tensor


class Outcome(NamedTuple):
    """The forced distributions, how long the context took, and how much of it was computed."""

    logs: Tensor
    seconds: float = 0.0
    computed: int = 0


def measure(model: LocalModel, *, text: Path | None = None, progress: Progress) -> Measured:
    """Rows per number of messages and channel; at four messages, the figures of three repairs."""
    rows: list[dict[str, Any]] = []
    passages = cut_passages(model, text, GROUPS * MOST, TOKENS + FORCED)
    empty = model.context_builder.compose([ChatTurn("user", (PROMPT,))])
    empty_ids = empty.ids + model.context_builder.ask()
    for count in COUNTS:
        groups = [
            _group(model, passages[first : first + count])
            for first in range(0, GROUPS * MOST, MOST)
        ]
        conditions = {
            name: [_carried(model, group, channel, group.messages) for group in groups]
            for name, channel in CHANNELS.items()
        }
        conditions["another example's messages"] = [
            _carried(model, group, CHANNELS["sink"], _swapped(group, other))
            for group, other in zip(groups, rotated(groups), strict=True)
        ]
        conditions["no message"] = [
            Outcome(recomputed(model, empty_ids, group.forced)) for group in groups
        ]
        measured = [_row(name, groups, outcomes) for name, outcomes in conditions.items()]
        figures = ", ".join(f"{row['way']} {row['mean_kl']:.5f}" for row in measured)
        progress(f"{count} messages: {figures}")
        rows += measured
    by_condition = {row["way"]: row for row in rows if row["messages"] == MOST}
    return rows, {
        f"{figure}_{name}_{MOST}": by_condition[name][key]
        for figure, key in (("kl", "mean_kl"), ("top1", "top1"))
        for name in ("none", "sink", "deviation")
    }


def _row(condition: str, groups: Sequence[Group], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    pairs = list(zip(groups, outcomes, strict=True))
    return {
        "messages": len(groups[0].messages),
        "way": condition,
        **means(score(group.full, outcome.logs) for group, outcome in pairs),
        "computed_share": round(mean(new.computed / len(group.ids) for group, new in pairs), 3),
        "seconds": round(median(outcome.seconds for outcome in outcomes), 4),
        "groups": len(groups),
        "message_tokens": TOKENS,
        "forced_tokens": FORCED,
    }


def _group(model: LocalModel, passages: Sequence[tuple[int, ...]]) -> Group:
    messages = tuple(
        make_message(model, ids[:TOKENS], SENDERS[number], "user", "")
        for number, ids in enumerate(passages)
    )
    quotes = [ChatTurn("user", (Quote(message, message.segments[0]),)) for message in messages]
    context = model.context_builder.compose([*quotes, ChatTurn("user", (PROMPT,))])
    ids = context.ids + model.context_builder.ask()
    forced = passages[-1][TOKENS:]
    return Group(
        messages=messages,
        context=context,
        ids=ids,
        forced=forced,
        full=recomputed(model, ids, forced),
    )


def _swapped(group: Group, other: Group) -> list[Message]:
    """A group's messages with the states of another's."""
    pairs = zip(group.messages, other.messages, strict=True)
    return [replace(message, state=theirs.state) for message, theirs in pairs]


def _carried(model: LocalModel, group: Group, channel: Channel, sent: Sequence[Message]) -> Outcome:
    """What comes of a context whose messages came by `channel`, `sent` in their place."""
    began = perf_counter()
    inbound = []
    for number, (message, instead) in enumerate(zip(group.messages, sent, strict=True)):
        arrival = Arrival(
            message=instead, spans=group.context.spans(message), context=group.context.ids
        )
        inbound.append(
            Inbound(
                edge=number,
                sharer=f"sender {number}",
                receiver="receiver",
                channel=channel,
                message=instead,
                arrival=arrival,
                fallback=False,
            )
        )
    parts = assemble(model, group.ids, inbound)
    state = prefilled(model, group.ids, parts.states, parts.missing)
    seconds = perf_counter() - began
    logs = forced_logs(model, state, group.ids[-1], group.forced)
    return Outcome(logs, seconds, len(parts.missing))


def main() -> None:
    """Run the study from the command line."""
    run(measure, __doc__, pair=False, files={"text": TEXT})


if __name__ == "__main__":
    main()
