"""Runs beside each other: whether what four hand on differs from what each hands on alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import mean
from typing import Any, ClassVar

import anyio

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Progress
from unspoken.agents.bench.forced import forced_logs, recomputed, score
from unspoken.agents.models.model import LocalModel
from unspoken.agents.workflow import Workflow
from unspoken.channels.base import Arrival, Carry
from unspoken.channels.bootstrap import Bootstrap
from unspoken.channels.data.rows import QaRow
from unspoken.channels.message import Message
from unspoken.channels.model import CausalModel
from unspoken.channels.same_model import SameModelCacheChannel

RUNS = 4


@dataclass(frozen=True, kw_only=True)
class Watched(SameModelCacheChannel):
    """A cache channel that remembers what it carried.

    Attributes:
        seen: The messages, with their states.
    """

    name: ClassVar[str] = "watched_cache"

    seen: list[Message] = field(default_factory=list)

    def carry(self, arrival: Arrival, receiver: CausalModel) -> Carry:
        """As the cache channel does."""
        self.seen.append(arrival.message)
        return super().carry(arrival, receiver)


def at_once(
    model: LocalModel, asked: Sequence[QaRow], systems: Sequence[str], note: str, progress: Progress
) -> list[dict[str, Any]]:
    """Whole runs of the chain, one after another and four at once, with the same questions.

    What the last desk is handed came through one hop less than there are. Its distributions over
    the question's words are compared with a recompute. Answers are compared with those alone.

    Args:
        model: The model of all desks.
        asked: The passages and questions; the first are used.
        systems: The desks' system prompts.
        note: What each adds.
        progress: Called with a line now and then.
    """
    rows = asked[:RUNS]
    alone = [_flow(model, row, systems, note) for row in rows]
    beside = [_flow(model, row, systems, note) for row in rows]
    answers = [
        flow.run(document=row.context).outputs for (flow, _), row in zip(alone, rows, strict=True)
    ]
    progress(f"{len(rows)} runs, one after another")
    together = anyio.run(_together, [flow for flow, _ in beside], rows)
    progress(f"{len(rows)} runs at once")
    made = []
    for way, flows, said in (
        ("splice, one after another", alone, answers),
        (f"splice, {len(rows)} at once", beside, together),
    ):
        kls = [
            _distance(model, channel.seen[-1], row)
            for (_, channel), row in zip(flows, rows, strict=True)
        ]
        kl = Bootstrap(kls, None).estimate()
        made.append(
            {
                "case": "at once",
                "way": way,
                "hops": len(systems) - 2,
                "mean_kl": kl.value,
                "kl_low": kl.low,
                "kl_high": kl.high,
                "answers_equal": mean(a == b for a, b in zip(said, answers, strict=True)),
                "chains": len(rows),
                "kl_by_chain": [round(one, 9) for one in kls],
            }
        )
    return made


async def _together(flows: Sequence[Workflow], rows: Sequence[QaRow]) -> list[Any]:
    said: list[Any] = [None] * len(flows)

    async def one(number: int) -> None:
        result = await flows[number].arun(document=rows[number].context)
        said[number] = result.outputs

    async with anyio.create_task_group() as group:
        for number in range(len(flows)):
            group.start_soon(partial(one, number))
    return said


def _flow(
    model: LocalModel, row: QaRow, systems: Sequence[str], note: str
) -> tuple[Workflow, Watched]:
    """The chain as a workflow, and the channel of its last hop."""
    last = Watched(share="context")
    reader = Agent(
        "desk_0", model, prompt="{{ inputs.document }}", system=systems[0], generate=None
    )
    desks = [
        Agent(f"desk_{n}", model, prompt=note.format(n), system=system, generate=None)
        for n, system in enumerate(systems[1:-1], 1)
    ]
    asked = Agent(
        f"desk_{len(systems) - 1}",
        model,
        prompt=f"Question: {row.question}",
        system=systems[-1],
        generate={"max_new_tokens": 16},
    )
    flow = Workflow("chain", [reader, *desks, asked])
    pairs = list(pairwise(flow.spec.agents))
    for sharer, receiver in pairs:
        end = (sharer, receiver) == pairs[-1]
        flow.connect(sharer, receiver, last if end else SameModelCacheChannel(share="context"))
    return flow, last


def _distance(model: LocalModel, message: Message, row: QaRow) -> float:
    """KL of a message's state from a recompute of its ids, over the words of the question."""
    forced = model.text.encode_words(row.question)
    full = recomputed(model, message.context, forced)
    state = message.require_state()
    return score(full, forced_logs(model, state, message.context[-1], forced)).kl
