"""Messages of several senders in one context: what not repairing, sinks and deviation leave of a
full recompute.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from study import TEXT, Measured, Progress, run
from unspoken.agents.bench.forced import distance, forced_logs, recomputed, without
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import make_message
from unspoken.agents.engines.turn import Inbound, assemble
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.message import Message
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

__all__ = ["measure"]

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

WAYS: dict[str, Channel] = {
    "text": TextChannel(share="prompt"),
    "none": SameModelCacheChannel(share="prompt", sink=0),
    "sink": SameModelCacheChannel(share="prompt"),
    "sink 16": SameModelCacheChannel(share="prompt", sink=16),
    "deviation": SameModelCacheChannel(share="prompt", deviation=0.15),
    "all recomputed": SameModelCacheChannel(share="prompt", sink=10**6),
}


@dataclass(frozen=True, slots=True)
class _Case:
    """Messages in one context, with what is forced after it, and what a full recompute says of
    that.
    """

    messages: tuple[Message, ...]
    context: Context
    ids: tuple[int, ...]
    forced: tuple[int, ...]
    full: Tensor


def measure(model: LocalModel, *, text: Path | None = None, progress: Progress) -> Measured:
    """Rows per number of messages and way; at four messages, the figures of the three repairs."""
    rows: list[dict[str, Any]] = []
    passages = cut_passages(model, text, GROUPS * MOST, TOKENS + FORCED)
    for count in COUNTS:
        layer_ranges = [passages[at * MOST : at * MOST + count] for at in range(GROUPS)]
        cases = [_case(model, group) for group in layer_ranges]
        for name, channel in WAYS.items():
            rows.append(
                _row(count, name, [_carried(model, case, channel) for case in cases], cases)
            )
        others = [
            _carried(model, case, WAYS["sink"], cases[(i + 1) % len(cases)])
            for i, case in enumerate(cases)
        ]
        rows.append(_row(count, "another example's messages", others, cases))
        absent = [(without(model, PROMPT, None, case.forced), 0.0, 0) for case in cases]
        rows.append(_row(count, "no message", absent, cases))
        progress(
            f"{count} messages: "
            + ", ".join(f"{r['way']} {r['mean_kl']:.5f}" for r in rows if r["messages"] == count)
        )
    at = {row["way"]: row for row in rows if row["messages"] == MOST}
    summary = {
        f"{figure}_{way.replace(' ', '_')}_{MOST}": at[way][key]
        for figure, key in (("kl", "mean_kl"), ("top1", "top1"))
        for way in ("none", "sink", "deviation")
    }
    return rows, summary


def _row(
    count: int, way: str, found: Sequence[tuple[Tensor, float, int]], cases: Sequence[_Case]
) -> dict[str, Any]:
    scores = [distance(case.full, logs) for (logs, _, _), case in zip(found, cases, strict=True)]
    return {
        "messages": count,
        "way": way,
        "mean_kl": mean(kl for kl, _ in scores),
        "top1": mean(top for _, top in scores),
        "computed_share": round(
            mean(new / len(case.ids) for (_, _, new), case in zip(found, cases, strict=True)), 3
        ),
        "seconds": round(median(seconds for _, seconds, _ in found), 4),
        "groups": len(cases),
        "message_tokens": TOKENS,
        "forced_tokens": FORCED,
    }


def _case(model: LocalModel, passages: Sequence[tuple[int, ...]]) -> _Case:
    messages = tuple(
        make_message(model, ids[:TOKENS], SENDERS[number], "user", "")
        for number, ids in enumerate(passages)
    )
    quotes = [ChatTurn("user", (Quote(one, one.segments[0]),)) for one in messages]
    context = model.context_builder.compose([*quotes, ChatTurn("user", (PROMPT,))])
    ids = context.ids + model.context_builder.ask(context)
    forced = passages[-1][TOKENS:]
    return _Case(messages, context, ids, forced, recomputed(model, ids, forced))


@torch.no_grad()
def _carried(
    model: LocalModel, case: _Case, channel: Channel, state_of: _Case | None = None
) -> tuple[Tensor, float, int]:
    """The forced distributions, the seconds until the context was there, and how many tokens were
    computed.
    """
    began = perf_counter()
    deliveries = []
    for number, message in enumerate(case.messages):
        sent = message
        if state_of is not None:
            sent = replace(message, state=state_of.messages[number].state)
        arrival = Arrival(sent, case.context.spans(message), case.context.ids)
        deliveries.append(Inbound(number, f"sender {number}", channel, arrival, fallback=False))
    parts = assemble(model, case.ids, deliveries)
    new = model.tensor([case.ids[position] for position in parts.missing])
    state = model.prefill(new, parts.states, model.tensor(parts.missing)).state
    seconds = perf_counter() - began
    return forced_logs(model, state, case.ids[-1], case.forced), seconds, len(parts.missing)


def main() -> None:
    """Run the study from the command line."""
    run(measure, __doc__, pair=False, files={"text": TEXT})


if __name__ == "__main__":
    main()
