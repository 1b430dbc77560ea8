"""What is left of a message after several hand-overs in a row, by each way to hand it over.

A reader reads a passage. Desk after desk takes over all that was said, adds a note of its own and
hands everything on: the passage's state is carried as often as there are hops. After some hops the
desk is asked about the passage. Its distribution over the tokens of text's own answer is compared
with that of a full recompute of the same words, and so are the answers.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from unspoken.agents.bench import DEFAULT_SHARER, Measured, Progress
from unspoken.agents.bench.hop_chain import HOPS, NOTHING, TEXT, Chain, Desk, Way, chain
from unspoken.agents.bench.hops_at_once import at_once
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.channels.base import Channel
from unspoken.channels.bootstrap import Bootstrap, share
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.data.rows import QaRow, builtin_qa, read_qa
from unspoken.channels.errors import InputError
from unspoken.channels.projected import ProjectedCacheChannel
from unspoken.channels.same_model import SameModelCacheChannel

WRITES = 24
LONG: Mapping[int, int] = {2048: 3, 4096: 2, 7680: 1}
"""Tokens of long passages, and how many chains of them are measured."""

SYSTEMS = (
    "You read reports for the harbour office and keep their facts ready for colleagues.",
    "You are a careful assistant who answers from what others have read.",
    "You check what colleagues hand you, and pass it on.",
    "You keep the archive, and never change what is in it.",
    "You prepare the files for the people who answer questions.",
    "You answer questions about what you were given, in few words.",
)
NOTE = "Noted by desk {}. Hand it on as it is."
ASKED = "Say in one sentence what matters in this, for desk {}."

CONTINUATION, SPLICE, BRIDGE = "continuation", "splice, sink 4", "bridge"

GIVEN, GENERATED, HALF, EXTENDED, TEAM, FAMILIES = CASES = SCALES["hops"].parts
"""Notes that are given; that the desks write themselves; a model in bfloat16; long passages; four
runs at once; two families in turn."""


def measure(
    model: LocalModel,
    *,
    qa: Path | None = None,
    bridge: Path | None = None,
    count: int | None = None,
    only: Collection[str] = CASES,
    progress: Progress,
) -> Measured:
    """Rows per case, way and number of hops; how KL grows by hops, and what continuation keeps.

    Args:
        model: The model of all desks.
        qa: Question-answering rows; one chain per context. The built-in ones if not given.
        bridge: A folder of stored bridges, for the case of that name; your store's if not given.
        count: How many chains; a fifth of them for notes that desks write and for bfloat16.
        only: Which cases.
        progress: Called with a line now and then.

    Raises:
        InputError: The case of bridges alone, and they are not there.
    """
    chains = count or SCALES["hops"].rows
    asked = asked_rows(qa, chains)
    fewer = asked[: max(chains // 5, 2)]
    measured: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for name in only:
        match name:
            case "given":
                made = _rows(name, same_weights(model), asked, progress)
                summary = _summary(made)
            case "generated":
                made = _rows(name, same_weights(model, ASKED, WRITES)[1:], fewer, progress)
            case "bfloat16":
                half = same_weights(model.cast(torch.bfloat16))
                made = _rows(name, half, fewer, progress)
            case "long":
                made = _long(model, asked, progress)
            case "at once":
                made = at_once(model, fewer, SYSTEMS, NOTE, progress)
            case _:
                made = _families(model, bridge, asked, progress, named=len(only) == 1)
        measured += made
    return measured, summary


def asked_rows(qa: Path | None, count: int) -> list[QaRow]:
    """A question about each of so many contexts, spread evenly over a file's."""
    if qa is None:
        return builtin_qa(count)
    by_context: dict[str, QaRow] = {}
    for row in read_qa(qa):
        by_context.setdefault(row.context, row)
    every = list(by_context.values())
    return [every[number * len(every) // count] for number in range(min(count, len(every)))]


def same_weights(model: LocalModel, note: str = NOTE, writes: int = 0) -> list[Way]:
    """Continuation, where nobody has instructions; and splice, where each desk has its own."""
    cache = SameModelCacheChannel(share="context")

    def desks(systems: Sequence[str | None]) -> tuple[Desk, ...]:
        return tuple(
            Desk(model=model, system=system, channel=cache, note=note.format(number), writes=writes)
            for number, system in enumerate(systems)
        )

    return [
        Way(name=CONTINUATION, desks=desks([None] * len(SYSTEMS))),
        Way(name=SPLICE, desks=desks(SYSTEMS), controls=True),
    ]


def _families(
    model: LocalModel, folder: Path | None, asked: Sequence[QaRow], progress: Progress, named: bool
) -> list[dict[str, Any]]:
    """The two families in turn, each hop over the bridge from one to the other."""
    other = LocalModel.load(DEFAULT_SHARER)
    store = BridgeStore(folder)
    there, back = (
        store.find(one.identity, two.identity) for one, two in ((model, other), (other, model))
    )
    if there is None or back is None:
        missing = f"no bridges between {model.ref} and {other.ref} in both directions"
        if named:
            raise InputError(missing, expected="a store with both", fix="give --bridge DIR")
        progress(f"{missing}: left out")
        return []
    pair: list[tuple[LocalModel, Channel]] = [
        (model, ProjectedCacheChannel(Bridge.load(back), share="context")),
        (other, ProjectedCacheChannel(Bridge.load(there), share="context")),
    ]
    desks = tuple(
        Desk(model=desk, system=None, channel=channel, note=NOTE.format(number))
        for number, (desk, channel) in enumerate(pair * (len(SYSTEMS) // 2))
    )
    return _rows(FAMILIES, [Way(name=BRIDGE, desks=desks, controls=True)], asked, progress)


def _long(model: LocalModel, asked: Sequence[QaRow], progress: Progress) -> list[dict[str, Any]]:
    """Passages of thousands of tokens: other contexts stand around the one that is asked about."""
    rows = []
    for tokens, count in LONG.items():
        if tokens + 512 > model.max_positions:
            progress(f"{tokens} tokens are more than {model.max_positions} positions hold: not run")
            continue
        longer = [_around(model, asked, number, tokens) for number in range(min(count, len(asked)))]
        ways = [
            Way(name=way.name, desks=way.desks, hops=(HOPS[0], HOPS[-1]))
            for way in same_weights(model)
        ]
        rows += _rows(f"{EXTENDED}, {tokens} tokens", ways, longer, progress)
    return rows


def _around(model: LocalModel, asked: Sequence[QaRow], number: int, tokens: int) -> QaRow:
    """A row whose context other rows' contexts make so long, itself in the middle."""
    row, left = asked[number], tokens
    left -= len(model.text.encode_words(row.context))
    others = [one.context for one in asked if one is not row] or [row.context]
    before: list[str] = []
    after: list[str] = []
    for turn in range(10**6):
        words = model.text.encode_words(others[turn % len(others)])[: max(left, 0)]
        left -= len(words) + 1
        if left <= 0:
            break
        (before if turn % 2 else after).append(model.text.decode(words))
    return QaRow("\n\n".join([*before, row.context, *after]), row.question, row.answers)


def _rows(
    case: str, ways: Sequence[Way], asked: Sequence[QaRow], progress: Progress
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for way in ways:
        chains = []
        for number, row in enumerate(asked):
            chains.append(chain(way, row, asked[number - 1]))
            kls = ", ".join(
                f"{one.kl:.6f}" for (name, _), one in chains[-1].items() if name == way.name
            )
            progress(f"{case}, {way.name}, chain {number + 1} of {len(asked)}: KL {kls}")
        names = sorted(chains[0], key=lambda key: (key[0] != way.name, key[0] == NOTHING))
        made = [_row(case, *name, chains) for name in names if name[0] != TEXT]
        rows += made
    return rows


def _row(case: str, name: str, hops: int, chains: Sequence[Chain]) -> dict[str, Any]:
    """The figures of a way after so many hops, with 95 % intervals over chains."""
    ours = [one[name, hops] for one in chains]
    text = [one[TEXT, hops] for one in chains]
    kl = Bootstrap([one.kl for one in ours], None).estimate()
    gaps = [one.f1 - other.f1 for one, other in zip(ours, text, strict=True)]
    gap = Bootstrap(gaps).estimate()
    return {
        "case": case,
        "way": name,
        "hops": hops,
        "tokens": round(median(one.tokens for one in text)),
        "mean_kl": kl.value,
        "kl_low": kl.low,
        "kl_high": kl.high,
        "answers_equal": mean(one.equal for one in ours),
        "f1": mean(one.f1 for one in ours),
        "text_f1": mean(one.f1 for one in text),
        "f1_less_text": gap.value,
        "f1_less_text_low": gap.low,
        "f1_less_text_high": gap.high,
        "chains": len(ours),
        "kl_by_chain": [round(one.kl, 9) for one in ours],
    }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a splice grows from one hop to five, and what a continuation keeps."""
    by = {(row["way"], row["hops"]): row for row in rows}
    first, last = HOPS[0], HOPS[-1]
    pairs = [by[SPLICE, hops]["kl_by_chain"] for hops in (last, first)]
    ratio = Bootstrap(np.array(pairs).T, None, statistic=share).estimate()
    return {
        "splice_kl_1": by[SPLICE, first]["mean_kl"],
        "splice_kl_5": by[SPLICE, last]["mean_kl"],
        "splice_kl_5_over_1": ratio.value,
        "splice_kl_5_over_1_low": ratio.low,
        "splice_kl_5_over_1_high": ratio.high,
        "splice_f1_5_less_text": by[SPLICE, last]["f1_less_text"],
        "continuation_equal_5": by[CONTINUATION, last]["answers_equal"],
        "continuation_kl_5": by[CONTINUATION, last]["mean_kl"],
    }
