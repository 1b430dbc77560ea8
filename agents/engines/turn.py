"""One turn on one model: carry the messages' state, prefill what has none, decode, close the turn.

A turn is a generator. It asks its device for every forward and gets an answer, so that whoever
drives it can compute several turns in one. Between two steps of other work it yields None. All else
that it yields are events.
"""

from collections.abc import Generator
from dataclasses import dataclass

import torch

from unspoken.agents.engines.asks import Answer, Compute, compute_alone, most_prefilled
from unspoken.agents.engines.assembly import Assembly, Past, assembling
from unspoken.agents.engines.base import Prefilling, TurnEvent, TurnRequest, Usage
from unspoken.agents.engines.captured import marks_of, with_hidden
from unspoken.agents.engines.decoding import choose, decode
from unspoken.agents.engines.offers import Resolve
from unspoken.agents.engines.sampling import Sampler, Scorer
from unspoken.agents.engines.stepping import Asking, Clock, Step, Turn
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.hf import Capture
from unspoken.channels.errors import ContextLengthError, InputError
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import common_prefix

CLOSING = 16
"""Rows for the ids that close a turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What a turn computed: as `TurnOutcome`, with the state itself.

    Attributes:
        ids: Ids of the finished context.
        state: Their state, where it was asked for.
        usage: Counts and times.
        finish: ``stop``, ``length`` or ``none``.
        likelihoods: Per text to choose from, how likely it was.
    """

    ids: tuple[int, ...]
    state: KVState | None
    usage: Usage
    finish: str
    likelihoods: tuple[float, ...] = ()


Steps = Generator[Step, Answer | None, Computed]


def run_turn(
    model: TurnModel, request: TurnRequest, past: Past | None = None, resolve: Resolve | None = None
) -> Steps:
    """Run a turn step by step; gradients must be off around every step.

    Args:
        model: The model.
        request: What to do.
        past: The agent's earlier turns, in place of `request.history`.
        resolve: Gives the state of a ticket.

    Raises:
        InputError: A context without a token.
        ContextLengthError: More tokens than the model's context holds.
        RunError: A message that cannot be carried, on an edge that does not fall back.
        RunTimeout: More work than `request.limit_s` allows.
    """
    clock = Clock()
    ids, sampling = request.ids, request.sampling
    if not ids:
        raise InputError(
            "the context is empty: its prompt renders to nothing",
            expected=f"a token to go on from; {model.ref or 'the model'} starts no context itself",
            fix="write words of its own into the prompt, or skip the agent with `when` on its edge",
        )
    if len(ids) >= model.max_positions:
        raise ContextLengthError(
            f"the context has {len(ids)} tokens",
            expected=f"fewer than the {model.max_positions} of {model.ref or 'the model'}",
            fix="shorten the inputs, share output instead of context, or use a model with a longer "
            "context",
        )
    assembly = yield from _assembled(model, request, past, resolve, clock)
    spare = (sampling.max_tokens if sampling else 0) + CLOSING
    rows = model.begin(
        assembly.states,
        assembly.missing,
        spare=min(spare, max(model.max_positions - len(ids), 0) + CLOSING),
    )
    try:
        hidden: Capture = {layer: [] for layer in request.capture}
        turn = _begun(Turn(model, request, assembly, rows, None, clock, hidden))
        answer = yield from _prefill(turn)
        finish, final = "none", ids
        likelihoods: tuple[float, ...] = ()
        if sampling is not None:
            if request.choices:
                finish = "stop"
                likelihoods = yield from choose(turn, answer.scores, request.choices, sampling)
            else:
                finish = yield from decode(turn, answer.tokens, sampling)
            reply = request.reply
            final = (*ids, *(turn.sampled if reply is None else reply.close()))
        elif model.device.type != "cpu":
            # Nothing was sampled, so nothing has waited for the device yet.
            torch.accelerator.synchronize(model.device)
        state = (yield from _finished_state(turn, final)) if request.keep_state else None
        turn.check_time()
        return Computed(final, state, _usage(turn), finish, likelihoods)
    finally:
        rows.close()


def _begun(turn: Turn) -> Turn:
    """A turn with what chooses its tokens; it writes none where it only chooses among texts."""
    request, sampling = turn.request, turn.request.sampling
    if sampling is not None and not request.choices:
        if request.grammar is not None:
            room = min(sampling.max_tokens, turn.model.max_positions - len(request.ids))
            turn.constraint = request.grammar.begin(room)
        turn.sampler = Sampler(sampling, request.ids, turn.model.device, turn.constraint)
    return turn


def _assembled(
    model: TurnModel, request: TurnRequest, past: Past | None, resolve: Resolve | None, clock: Clock
) -> Generator[Step, Answer | None, Assembly]:
    """The states in place; others may have the device between two carries."""
    steps = assembling(model, request.ids, request.inbound, past, resolve)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assembly: Assembly = end.value
            return assembly
        clock.pause()
        yield None
        clock.resume()


@torch.no_grad()
def drive_turn(
    model: TurnModel, request: TurnRequest, past: Past | None = None
) -> tuple[list[TurnEvent], Computed]:
    """Run a turn to its end on this thread: its events, and what it computed."""
    steps, events = run_turn(model, request, past), list[TurnEvent]()
    answer: Answer | None = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            computed: Computed = end.value
            return events, computed
        answer = None
        if isinstance(step, Compute):
            answer = compute_alone(step, most_prefilled(model.device, beside=False))
        elif step is not None:
            events.append(step)


def _prefill(turn: Turn) -> Asking:
    """Compute what has no state; the last answer has the first token, where any is wanted."""
    missing = turn.assembly.missing
    new = [turn.request.ids[position] for position in missing]
    done, total = 0, len(missing)
    marks = marks_of(turn.model, turn.request, missing)
    choices = turn.request.choices if turn.request.sampling is not None else ()
    last = Scorer((tuple(ids[0] for ids in choices),)) if choices else turn.sampler
    for carried in turn.assembly.carries:
        yield from turn.step(carried)
    yield from turn.step(Prefilling(done, total))
    while True:
        stop = next((count for count in marks if count > done), total)
        sampler = last if stop == total else None
        answer = yield from turn.compute(new[done:stop], missing[done:stop], sampler)
        done += answer.count
        if done in marks:
            turn.rows.mark()
        if done == total:
            return answer
        yield from turn.step(Prefilling(done, total))


def _finished_state(turn: Turn, final: tuple[int, ...]) -> Generator[Step, Answer | None, KVState]:
    """The state of the finished context.

    A stop string leaves more computed than was kept, and the last sampled token has no state yet:
    the rows are cropped to what both have, then the rest of the finished context is computed.
    """
    rows, prompt = turn.rows, len(turn.request.ids)
    valid = min(rows.length, prompt + common_prefix(tuple(turn.sampled), final[prompt:]))
    before = rows.length
    rows.truncate(valid)  # recurrent layers go back to a snapshot, which may stand earlier
    for layer, parts in turn.hidden.items():
        whole = torch.cat(parts)
        turn.hidden[layer] = [whole[: len(whole) - (before - rows.length)]]
    while rows.length < len(final):
        rest = range(rows.length, len(final))
        yield from turn.compute(final[rows.length :], rest)
    computed = (*turn.assembly.missing, *range(prompt, len(final)))
    return with_hidden(rows.snapshot(), turn.hidden, computed, turn.assembly.states)


def _usage(turn: Turn) -> Usage:
    assembly, prompt = turn.assembly, len(turn.request.ids)
    missing, repaired = len(assembly.missing), len(assembly.repaired)
    return Usage(
        prompt_tokens=prompt,
        prefilled_tokens=missing - repaired + len(assembly.positions("computed", "fused")),
        reused_tokens=len(assembly.positions("reused")),
        recomputed_tokens=repaired + len(assembly.positions("recomputed")),
        projected_tokens=len(assembly.positions("projected")),
        generated_tokens=turn.count,
        layer_tokens_computed=missing * len(turn.model.geometry.layers) + assembly.layer_tokens,
        ttft_s=turn.ttft,
        seconds=turn.clock.now(),
        forwards=turn.forwards,
        turns_per_forward=round(turn.company / max(turn.forwards, 1), 2),
    )
