"""A team while it decodes: what its engine writes in token ids, and what stands in memory."""

from collections.abc import Sequence
from statistics import median

import anyio

from unspoken.agents.bench.engine.copies import count_copies, sample_row
from unspoken.agents.bench.engine.team import Ids, Team
from unspoken.agents.engines.base import History, Sampling, TurnRequest
from unspoken.agents.engines.event_loop import run_anywhere
from unspoken.agents.engines.worker import Workers
from unspoken.agents.loading import engines_for
from unspoken.agents.runtime.events import TokenWritten, TurnFinished
from unspoken.agents.runtime.states import StateStore

__all__ = ["copies_while_decoding", "written_by_engine"]


def written_by_engine(team: Team, prompts: Sequence[Ids], *, together: bool) -> list[Ids]:
    """What each prompt's turn writes on the engine that a workflow would have.

    Args:
        team: The team; its message is in place, and the prompts begin with it.
        prompts: The context of each turn.
        together: Whether all turns are under way at a time, or one after another.
    """
    model, message = team.model, team.message
    states = StateStore()
    engine = engines_for({"agent": model}, states, Workers())["agent"]
    shared = states.put(message.require_state(), message.context, "reader")
    most = Sampling(max_tokens=team.tokens, min_tokens=team.tokens, stop_ids=model.stop_ids)
    written: dict[int, Ids] = {}

    async def turn(number: int) -> None:
        prompt = prompts[number]
        request = TurnRequest(ids=prompt, history=History(message.context, shared), sampling=most)
        outcome = await engine.turn(request, lambda event: None)
        written[number] = outcome.ids[len(prompt) :][: team.tokens]

    async def all_turns() -> None:
        if not together:
            for number in range(len(prompts)):
                await turn(number)
            return
        async with anyio.create_task_group() as tasks:
            for number in range(len(prompts)):
                tasks.start_soon(turn, number)

    run_anywhere(all_turns)
    return [written[number] for number in range(len(prompts))]


def copies_while_decoding(team: Team, size: int) -> float:
    """How many times the message's rows are in memory while so many agents decode over them.

    A row of its middle is looked for in all memory, a few times while all agents write; the median
    counts, since an operation under way may hold a copy for a moment.
    """
    state = team.message.require_state()
    row = sample_row(state, state.stop // 2)
    flow = team.flow(range(size))

    async def follow() -> list[int]:
        writing: set[str] = set()
        counts: list[int] = []
        async for event in flow.stream({"reader": team.message}, document=team.document):
            if isinstance(event, TurnFinished):
                writing.discard(event.agent)
            if not isinstance(event, TokenWritten):
                continue
            begins = event.agent not in writing
            writing.add(event.agent)
            if len(writing) == size and (begins or len(counts) < 5):
                counts.append(count_copies(row))
        return counts

    return float(median(run_anywhere(follow) or [0]))
