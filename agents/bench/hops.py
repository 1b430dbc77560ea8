"""What is left of a message after several hand-overs in a row, by each way to hand it over.

A reader reads a passage. Agent after agent takes over all that was said, adds a note of its own and
hands everything on: the passage's state is carried as often as there are hops. The last agent is
asked about the passage. Its distribution over the tokens of text's own answer is compared with that
of a full recompute, and so are the answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.forced import forced_logs, prefilled, recomputed, score
from unspoken.agents.bench.scene import Scene, make_message
from unspoken.agents.engines.assembly import Past, assemble
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Quote
from unspoken.channels.base import Channel
from unspoken.channels.data.rows import QaRow, builtin_qa, read_qa, sample
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.metrics import f1
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

CHAINS, NEW = 30, 16
HOPS = (1, 2, 3, 5)
SYSTEMS = (
    "You read reports for the harbour office and keep their facts ready for colleagues.",
    "You are a careful assistant who answers from what others have read.",
    "You check what colleagues hand you, and pass it on.",
    "You keep the archive, and never change what is in it.",
    "You prepare the files for the people who answer questions.",
    "You answer questions about what you were given, in few words.",
)
NOTE = "Noted by desk {}. Hand it on as it is."

CONTINUATION, SPLICE, NOTHING = "continuation", "splice, sink 4", "no message"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What the last agent of a chain makes of what reached it.

    Attributes:
        kl: Mean KL(full || reached) in nats over the tokens of text's answer.
        equal: Whether its answer is text's, token by token.
        f1: Of its answer.
        text_f1: Of text's.
    """

    kl: float
    equal: bool
    f1: float
    text_f1: float


def measure(model: LocalModel, *, qa: Path | None = None, progress: Progress) -> Measured:
    """Rows per way and number of hops; how KL grows by hops, and what continuation keeps."""
    asked = builtin_qa(CHAINS) if qa is None else sample(read_qa(qa), CHAINS)
    # A system prompt of its own at each desk is what makes a hand-over a splice.
    ways: dict[str, Callable[[QaRow], dict[int, Reached]]] = {
        CONTINUATION: partial(_chain, model, [None] * len(SYSTEMS)),
        SPLICE: partial(_chain, model, SYSTEMS),
        NOTHING: partial(_chain, model, SYSTEMS, kept=False),
    }
    rows: list[dict[str, Any]] = []
    for way, chain in ways.items():
        chains = [chain(row) for row in asked]
        for hops in HOPS:
            reached = [one[hops] for one in chains]
            rows.append(
                {
                    "way": way,
                    "hops": hops,
                    "mean_kl": mean(one.kl for one in reached),
                    "answers_equal": mean(one.equal for one in reached),
                    "f1": mean(one.f1 for one in reached),
                    "text_f1": mean(one.text_f1 for one in reached),
                    "chains": len(reached),
                }
            )
        told = ", ".join(f"{row['mean_kl']:.6f}" for row in rows[-len(HOPS) :])
        progress(f"{way}: KL after {HOPS} hops {told}")
    return rows, _summary(rows)


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by = {(row["way"], row["hops"]): row for row in rows}
    one, five = by[SPLICE, HOPS[0]], by[SPLICE, HOPS[-1]]
    return {
        "splice_kl_1": one["mean_kl"],
        "splice_kl_5": five["mean_kl"],
        "splice_kl_5_over_1": five["mean_kl"] / one["mean_kl"] if one["mean_kl"] else None,
        "splice_f1_5_less_text": five["f1"] - five["text_f1"],
        "continuation_equal_5": by[CONTINUATION, HOPS[-1]]["answers_equal"],
        "continuation_kl_5": by[CONTINUATION, HOPS[-1]]["mean_kl"],
    }


@torch.no_grad()
def _chain(
    model: LocalModel, systems: Sequence[str | None], row: QaRow, *, kept: bool = True
) -> dict[int, Reached]:
    """One passage handed on, and what is known of it after each number of hops.

    Args:
        model: The model of all agents.
        systems: Their system prompts, the reader's first.
        row: The passage, a question about it, and its answers.
        kept: Whether the message comes at all.
    """
    words = model.text.encode_words(row.context)
    message = make_message(model, words, systems[0], "user", "")
    reached = {}
    for hop in range(1, HOPS[-1] + 1):
        if hop in HOPS:
            scene = _scene(model, message, f"Question: {row.question}", systems[hop])
            reached[hop] = _asked(model, scene, row, kept=kept)
        scene = _scene(model, message, NOTE.format(hop), systems[hop])
        state = _carried(model, scene) if kept else None
        message = _handed_on(model, scene, state)
    return reached


def _scene(model: LocalModel, message: Message, prompt: str, system: str | None) -> Scene:
    """A receiver that quotes all that it was handed, and has a prompt of its own."""
    builder = model.context_builder
    quotes = [ChatTurn(part.role, (Quote(message, part),)) for part in message.segments]
    own = ChatTurn("user", (prompt,))
    context = builder.compose([*quotes, own], system=system)
    empty = builder.compose([own], system=system)
    opening, asks = builder.opening(system).ids, builder.ask()
    return Scene(
        message=message,
        context=context,
        ids=context.ids + asks,
        empty_ids=empty.ids + asks,
        history=Past(opening, model.read(opening)) if opening else None,
    )


def _carried(model: LocalModel, scene: Scene) -> KVState:
    """The state of the receiver's context with the message's own state in it."""
    inbound = scene.delivery(SameModelCacheChannel(share="context"))
    parts = assemble(model, scene.ids, [inbound], scene.history)
    return prefilled(model, scene.ids, parts.states, parts.missing)


def _handed_on(model: LocalModel, scene: Scene, state: KVState | None) -> Message:
    """What the receiver hands on: all turns but its system's, with their state in its context."""
    context = scene.context
    return Message(
        sharer="sharer",
        segments=tuple(part for part in context.segments if part.role != "system"),
        whole=True,
        context=context.ids,
        identity=model.identity,
        state=None if state is None else state.slice(0, len(context.ids)),
    )


def _asked(model: LocalModel, scene: Scene, row: QaRow, *, kept: bool) -> Reached:
    text = _answer(model, scene, scene.ids, TextChannel())
    forced = text or scene.ids[-1:]
    full = recomputed(model, scene.ids, forced)
    if kept:
        answer = _answer(model, scene, scene.ids, SameModelCacheChannel(share="context"))
        logs = forced_logs(model, _carried(model, scene), scene.ids[-1], forced)
    else:
        answer = _answer(model, scene, scene.empty_ids, None)
        logs = recomputed(model, scene.empty_ids, forced)

    def graded(ids: Sequence[int]) -> float:
        return f1(model.text.decode(tuple(ids)), row.answers)

    return Reached(
        kl=score(full, logs).kl, equal=answer == text, f1=graded(answer), text_f1=graded(text)
    )


def _answer(
    model: LocalModel, scene: Scene, ids: tuple[int, ...], channel: Channel | None
) -> tuple[int, ...]:
    """The likeliest words of the last agent, as a turn writes them."""
    inbound = () if channel is None else (scene.delivery(channel),)
    sampling = Sampling(max_tokens=NEW, stop_ids=frozenset(model.stop_ids))
    request = TurnRequest(ids=ids, inbound=inbound, sampling=sampling)
    computed = drive_turn(model, request, scene.history)[1]
    written = computed.ids[len(ids) :]
    stop = next((n for n, token in enumerate(written) if token in model.stop_ids), len(written))
    return written[:stop]
