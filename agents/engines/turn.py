"""One turn on one model: carry the messages' state, prefill what has none, decode, close the turn.

A turn is a generator. It asks its device for every forward and gets an answer, so that whoever
drives it can compute several turns in one. Between two steps of other work it yields None. All else
that it yields are events.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from unspoken.agents.engines.asks import Answer, Compute, compute_alone, most_prefilled
from unspoken.agents.engines.assembly import Assembly, Past, Resolve, assembling
from unspoken.agents.engines.base import (
    Prefilling,
    Sampled,
    Sampling,
    TurnEvent,
    TurnRequest,
    Usage,
)
from unspoken.agents.engines.captured import marks_of, with_hidden
from unspoken.agents.engines.drafts import Drafter
from unspoken.agents.engines.sampling import Sampler
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.hf import Capture
from unspoken.agents.models.ragged.segment import Rows
from unspoken.channels.errors import ContextLengthError, InputError, RunTimeout
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
    """

    ids: tuple[int, ...]
    state: KVState | None
    usage: Usage
    finish: str


class _Clock:
    """Seconds of work alone: paused while other jobs have the device."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = perf_counter()

    def pause(self) -> None:
        self.seconds += perf_counter() - self._since

    def resume(self) -> None:
        self._since = perf_counter()

    def now(self) -> float:
        return self.seconds + perf_counter() - self._since


Step = TurnEvent | Compute | None
Steps = Generator[Step, Answer | None, Computed]


@dataclass(slots=True, eq=False)
class _Turn:
    """A turn under way.

    Attributes:
        model: Its model.
        request: What it is to do.
        assembly: States in place.
        rows: Its growing rows.
        sampler: Chooses its tokens; None where it writes nothing.
        clock: Its seconds of work.
        hidden: What was captured of the layers asked for.
        sampled: Ids sampled, but for one that ended the turn by itself.
        count: Ids sampled, that one included.
        ttft: Seconds to the first of them.
        forwards: Forwards that it took part in.
        company: Turns that those computed, itself included, counted once a forward.
        drafts: Whether drafts are welcome in its next forward.
    """

    model: TurnModel
    request: TurnRequest
    assembly: Assembly
    rows: Rows
    sampler: Sampler | None
    clock: _Clock
    hidden: Capture
    sampled: list[int] = field(default_factory=list)
    count: int = 0
    ttft: float | None = None
    forwards: int = 0
    company: int = 0
    drafts: bool = True

    def step(self, event: TurnEvent | None) -> Generator[Step, Answer | None, None]:
        """Give the device away for a moment."""
        self.check_time()
        self.clock.pause()
        yield event
        self.clock.resume()

    def compute(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        sampler: Sampler | None = None,
        drafts: tuple[int, ...] = (),
    ) -> Generator[Step, Answer | None, Answer]:
        """Have some tokens computed, all or the first of them."""
        self.check_time()
        self.clock.pause()
        answer = yield Compute(
            model=self.model,
            rows=self.rows,
            ids=ids,
            positions=positions,
            sampler=sampler,
            drafts=drafts,
            capture=self.hidden,
        )
        self.clock.resume()
        assert answer is not None  # whoever drives a turn answers what it asks
        self.clock.seconds += answer.seconds
        self.forwards += 1
        self.company += answer.turns
        self.drafts = answer.drafts
        return answer

    def check_time(self) -> None:
        """Refuse to go on where the turn has worked for longer than it may."""
        limit, owner = self.request.limit_s, self.request.owner
        if limit is not None and self.clock.now() > limit:
            raise RunTimeout(
                f"agent {owner!r} took longer than its timeout of {limit:g} s",
                agent=owner,
                expected="at most so many seconds of its own work; waiting for others does not "
                "count",
                fix="raise the agent's timeout, or lower its max_new_tokens",
            )


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
    clock = _Clock()
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
        sampler = None if sampling is None else Sampler(sampling, ids, model.device)
        hidden: Capture = {layer: [] for layer in request.capture}
        turn = _Turn(model, request, assembly, rows, sampler, clock, hidden)
        tokens = yield from _prefill(turn)
        finish, final = "none", ids
        if sampling is not None:
            finish = yield from _decode(turn, tokens, sampling)
            reply = request.reply
            final = (*ids, *(turn.sampled if reply is None else reply.close()))
        elif model.device.type != "cpu":
            # Nothing was sampled, so nothing has waited for the device yet.
            torch.accelerator.synchronize(model.device)
        state = (yield from _finished_state(turn, final)) if request.keep_state else None
        turn.check_time()
        return Computed(final, state, _usage(turn), finish)
    finally:
        rows.close()


def _assembled(
    model: TurnModel,
    request: TurnRequest,
    past: Past | None,
    resolve: Resolve | None,
    clock: _Clock,
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


def _prefill(turn: _Turn) -> Generator[Step, Answer | None, tuple[int, ...]]:
    """Compute what has no state; the first token sampled, where any is wanted."""
    missing = turn.assembly.missing
    new = [turn.request.ids[position] for position in missing]
    done, total = 0, len(missing)
    marks = marks_of(turn.model, turn.request, missing)
    for carried in turn.assembly.carries:
        yield from turn.step(carried)
    yield from turn.step(Prefilling(done, total))
    while True:
        stop = next((count for count in marks if count > done), total)
        sampler = turn.sampler if stop == total else None
        answer = yield from turn.compute(new[done:stop], missing[done:stop], sampler)
        done += answer.count
        if done in marks:
            turn.rows.mark()
        if done == total:
            return answer.tokens
        yield from turn.step(Prefilling(done, total))


def _decode(
    turn: _Turn, tokens: tuple[int, ...], sampling: Sampling
) -> Generator[Step, Answer | None, str]:
    """Sample token after token; why it ended."""
    model, rows, reply = turn.model, turn.rows, turn.request.reply
    first = len(turn.request.ids)
    # What recurrent layers have read cannot be taken back, so nothing is guessed.
    guesses = turn.sampler is not None and turn.sampler.takes_likeliest
    guesses = guesses and not model.geometry.recurrent
    drafter = Drafter(turn.request.ids) if guesses else None
    while True:
        for value in tokens:
            turn.count += 1
            turn.ttft = turn.clock.now() if turn.ttft is None else turn.ttft
            if value in sampling.stop_ids:
                return "stop"
            turn.sampled.append(value)
            if drafter is not None:
                drafter.push(value)
            stopped = reply is not None and reply.push(value)
            stop = first + len(turn.sampled)
            full = turn.count >= sampling.max_tokens or stop >= model.max_positions
            yield from turn.step(Sampled(value))
            if stopped or full:
                return "stop" if stopped else "length"
        # A guess is never longer than what may still be written.
        room = min(sampling.max_tokens - turn.count, model.max_positions - stop) - 1
        drafts = drafter.guess(room) if drafter is not None and turn.drafts else ()
        answer = yield from turn.compute([tokens[-1]], [rows.length], turn.sampler, drafts)
        tokens = answer.tokens
        if drafter is not None:
            drafter.learn(len(tokens) - 1 if answer.drafted else None, answer.seconds)


def _finished_state(turn: _Turn, final: tuple[int, ...]) -> Generator[Step, Answer | None, KVState]:
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


def _usage(turn: _Turn) -> Usage:
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
