"""Messages of several senders in one context: how far each repair is from a full recompute.

Shared prompts are passages of text, each behind a system prompt of its own, and what follows the
last of them is forced. Outputs were written by agents that continue one document, and the words of
their judge are forced. Some repairs compute a quarter of the messages' tokens: the first of each
message, the last, those that deviate most, or whole messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

from study import TEXT, Measured, Progress, run
from unspoken.agents.bench.engine import panel
from unspoken.agents.bench.engine.panel import Case, Outcome
from unspoken.agents.bench.forced import means, recomputed, rotated, score
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import make_message
from unspoken.agents.engines.base import Inbound
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Quote
from unspoken.channels.base import Arrival, Carry, Channel
from unspoken.channels.model import CausalModel
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

GROUPS, TOKENS, FORCED, MOST = 10, 128, 40, 4
COUNTS = (1, 2, 4)
DOCUMENTS, DOCUMENT, WRITTEN = 4, 512, 256
SENDERS = (
    "You read the harbour's reports.",
    "You are the night clerk of a small hotel by the station, and you write down what happens.",
    "You collect letters of old sailors and copy them out without leaving anything away, in full "
    "sentences.",
    "You teach history.",
)
PROMPT = "Go on with the last text."

Timed = tuple[Outcome, float]
"""What came of a context, and the seconds that it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTokens(SameModelCacheChannel):
    """A splice whose last tokens are recomputed."""

    last: int

    def carry(self, arrival: Arrival, receiver: CausalModel) -> Carry:
        carry = SameModelCacheChannel(sink=0).carry(arrival, receiver)
        rows = [at for piece in carry.pieces for at in range(piece.state.start, piece.state.stop)]
        return replace(carry, repair=tuple(rows[-self.last :]))


def repairs(messages: int, tokens: int) -> Mapping[str, Sequence[Channel]]:
    """The channels of so many messages of so many tokens, by what is computed of them."""
    splice, quarter, text = SameModelCacheChannel(sink=0), tokens // 4, TextChannel()
    channels: dict[str, Channel] = {
        "text": text,
        "none": splice,
        "sink": SameModelCacheChannel(),
        "sink 16": SameModelCacheChannel(sink=16),
        "deviation": SameModelCacheChannel(deviation=0.15),
        "first quarter": SameModelCacheChannel(sink=quarter),
        "last quarter": LastTokens(last=quarter),
        "deviating quarter": SameModelCacheChannel(sink=0, deviation=0.25),
        "all recomputed": SameModelCacheChannel(sink=10**6),
    }
    every: dict[str, Sequence[Channel]] = {
        name: [channel] * messages for name, channel in channels.items()
    }
    if messages == MOST:  # one of four is a quarter
        every["first message"] = [text, *[splice] * (messages - 1)]
        every["last message"] = [*[splice] * (messages - 1), text]
    return every


def measure(model: LocalModel, *, text: Path | None = None, progress: Progress) -> Measured:
    """Rows per kind and number of messages and repair; at four of each, the figures of some."""
    rows: list[dict[str, Any]] = []
    passages = cut_passages(model, text, GROUPS * MOST, TOKENS + FORCED)
    for count in COUNTS:
        firsts = range(0, GROUPS * MOST, MOST)
        cases = [_prompts(model, passages[first : first + count]) for first in firsts]
        conditions = _conditions(model, cases, TOKENS) | _controls(model, cases)
        measured = _rows("prompt", TOKENS, cases, conditions)
        progress(f"{count} prompts: {_said(measured)}")
        rows += measured
    cases = _outputs(model, text)
    measured = _rows("output", WRITTEN, cases, _conditions(model, cases, WRITTEN))
    progress(f"{MOST} outputs: {_said(measured)}")
    rows += measured
    return rows, {
        f"kl_{row['way'].replace(' ', '_')}_{MOST}_{row['share']}": row["mean_kl"]
        for row in rows
        if row["messages"] == MOST
    }


def _conditions(model: LocalModel, cases: Sequence[Case], tokens: int) -> dict[str, list[Timed]]:
    """Every repair; a document before the messages is continued, or text where all are."""
    placed = cases[0].placed
    edges = [one.edge for one in placed if one.sharer != panel.READER]
    conditions = {}
    for name, channels in repairs(len(edges), tokens).items():
        first = TextChannel() if name == "text" else SameModelCacheChannel()
        by_edge: dict[int, Channel] = {one.edge: first for one in placed}
        by_edge |= zip(edges, channels, strict=True)
        conditions[name] = [_timed(model, case, case.by(by_edge)) for case in cases]
    return conditions


def _controls(model: LocalModel, cases: Sequence[Case]) -> dict[str, list[Timed]]:
    """Others' messages in the place of these, and none."""
    empty = model.context_builder.compose([ChatTurn("user", (PROMPT,))]).ids
    empty += model.context_builder.ask()
    return {
        "another example's messages": [
            _timed(model, case, _swapped(case.placed, other.placed))
            for case, other in zip(cases, rotated(cases), strict=True)
        ],
        "no message": [(Outcome(recomputed(model, empty, case.forced), 0), 0.0) for case in cases],
    }


def _rows(
    share: str, tokens: int, cases: Sequence[Case], conditions: Mapping[str, Sequence[Timed]]
) -> list[dict[str, Any]]:
    rows = []
    for name, timed in conditions.items():
        pairs = [(case, outcome) for case, (outcome, _) in zip(cases, timed, strict=True)]
        computed = mean(outcome.computed / len(case.ids) for case, outcome in pairs)
        row = {
            "share": share,
            "messages": sum(one.sharer != panel.READER for one in cases[0].placed),
            "way": name,
            **means(score(case.full, outcome.logs) for case, outcome in pairs),
            "computed_share": round(computed, 3),
            "seconds": round(median(seconds for _, seconds in timed), 4),
            "groups": len(cases),
            "message_tokens": tokens,
            "forced_tokens": FORCED,
        }
        rows.append(row)
    return rows


def _said(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['way']} {row['mean_kl']:.5f}" for row in rows)


def _prompts(model: LocalModel, passages: Sequence[tuple[int, ...]]) -> Case:
    """Passages as prompts of senders with system prompts of their own."""
    messages = [
        make_message(model, ids[:TOKENS], SENDERS[number], "user", "")
        for number, ids in enumerate(passages)
    ]
    quotes = [ChatTurn("user", (Quote(message, message.segments[0]),)) for message in messages]
    context = model.context_builder.compose([*quotes, ChatTurn("user", (PROMPT,))])
    placed = tuple(
        Inbound(
            edge=number,
            sharer=f"sender {number}",
            receiver="receiver",
            channel=TextChannel(),
            message=message,
            arrival=Arrival(message=message, spans=context.spans(message), context=context.ids),
            fallback=False,
        )
        for number, message in enumerate(messages)
    )
    ids, forced = context.ids + model.context_builder.ask(), passages[-1][TOKENS:]
    return Case(placed=placed, ids=ids, forced=forced, full=recomputed(model, ids, forced))


def _outputs(model: LocalModel, text: Path | None) -> list[Case]:
    """Outputs of agents that continue one document, which their judge has too."""
    documents = cut_passages(model, text, DOCUMENTS, DOCUMENT)
    spec, cases = panel.workflow(MOST, WRITTEN), []
    outputs = panel.written(model, documents, MOST, WRITTEN)
    for number, (document, words) in enumerate(zip(documents, outputs, strict=True)):
        senders = panel.senders_of(model, document, words)
        cases.append(panel.case_of(model, spec, senders, forced=FORCED, seed=number))
    return cases


def _swapped(placed: Sequence[Inbound], others: Sequence[Inbound]) -> list[Inbound]:
    """Messages with the states of another group's, spliced."""
    sent = []
    for one, other in zip(placed, others, strict=True):
        assert one.arrival is not None  # it is placed
        theirs = replace(one.arrival.message, state=other.message.state)
        arrival = replace(one.arrival, message=theirs)
        sent.append(replace(one, channel=SameModelCacheChannel(), arrival=arrival))
    return sent


def _timed(model: LocalModel, case: Case, placed: Sequence[Inbound]) -> Timed:
    began = perf_counter()
    outcome = panel.carried(model, case, placed)
    return outcome, perf_counter() - began


def main() -> None:
    """Run the study from the command line."""
    run(measure, __doc__, pair=False, files={"text": TEXT})


if __name__ == "__main__":
    main()
