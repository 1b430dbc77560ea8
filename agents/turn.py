"""One turn on one model: carry the messages' state, prefill what has none, decode, close the turn."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from unspoken.agents._hf import ContextCache
from unspoken.agents.compose import Composed
from unspoken.agents.model import CHUNK, LocalModel
from unspoken.agents.sampling import Sampler
from unspoken.agents.spec import GenerateSpec
from unspoken.agents.tokens import Detokenizer
from unspoken.channels.base import Arrival, Carry, CarryReport, Channel
from unspoken.channels.errors import (
    ChannelError,
    ContextLengthError,
    ModelSupportError,
    RunError,
    StateError,
)
from unspoken.channels.message import Segment, common_prefix
from unspoken.channels.state import KVState
from unspoken.channels.text import TextChannel

__all__ = [
    "Assembly",
    "Carried",
    "Delivery",
    "Prefilling",
    "Step",
    "TurnOutcome",
    "TurnRequest",
    "Usage",
    "Written",
    "assemble",
    "run_turn",
]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way into a turn.

    Attributes:
        edge: Number of the edge.
        name: The edge, as ``sharer -> receiver``.
        channel: What carries it.
        arrival: The message in its place.
        fallback: Whether a channel that fails gives way to text.
    """

    edge: int
    name: str
    channel: Channel
    arrival: Arrival
    fallback: bool = True


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a turn is to do.

    Attributes:
        context: The composed context, without the ids that ask for the assistant's words.
        deliveries: Messages whose state may serve it.
        own: State of this agent's earlier turns, with the ids it belongs to.
        generate: Generation settings; None writes nothing.
        keep_state: Whether the state is wanted afterwards, by a reader or by a later turn.
    """

    context: Composed
    deliveries: tuple[Delivery, ...] = ()
    own: tuple[tuple[int, ...], KVState] | None = None
    generate: GenerateSpec | None = None
    keep_state: bool = False


@dataclass(frozen=True, slots=True)
class Carried:
    """The messages are in the context: per delivery, its edge, its report and the seconds its carry took."""

    carries: tuple[tuple[int, CarryReport, float], ...]


@dataclass(frozen=True, slots=True)
class Prefilling:
    """Prefill goes on: `done` of `total` tokens to compute are computed."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Written:
    """A token was sampled; `text` is what is newly certain to be shown."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a turn, each prompt token once, by its dearest treatment, and times in seconds of work.

    Attributes:
        prompt_tokens: Tokens of the context, those that ask for the assistant's words included.
        prefilled_tokens: Computed because no state was at hand.
        reused_tokens: Taken over.
        recomputed_tokens: State was at hand but computed anew (repair).
        projected_tokens: Mapped from another model's state.
        generated_tokens: Sampled, the one that ends the turn included.
        layer_tokens_computed: Layers times prompt tokens computed.
        ttft_s: From all inputs there to the first token sampled; None where nothing is generated.
        seconds: Work of the whole turn; waiting for the device is not in it.
    """

    prompt_tokens: int
    prefilled_tokens: int
    reused_tokens: int
    recomputed_tokens: int
    generated_tokens: int
    layer_tokens_computed: int
    ttft_s: float | None
    seconds: float
    projected_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TurnOutcome:
    """What a turn left behind.

    Attributes:
        context: The context with the assistant's closed turn.
        text: What was written; empty where nothing is generated.
        state: State of the whole context, where it was asked for.
        carries: Per delivery, its edge, its report and the seconds its carry took.
        usage: Counts and times.
        finish: Why it ended: ``stop``, ``length`` or ``none``.
    """

    context: Composed
    text: str
    state: KVState | None
    carries: tuple[tuple[int, CarryReport, float], ...]
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


@dataclass(frozen=True, slots=True, eq=False)
class Assembly:
    """States in place for a context, and what is left to compute.

    Attributes:
        states: States at their positions.
        missing: Positions to compute, ascending.
        repaired: Those of them that have a state all the same.
        carries: Per delivery, its edge, its report and the seconds its carry took.
    """

    states: tuple[KVState, ...]
    missing: tuple[int, ...]
    repaired: frozenset[int]
    carries: tuple[tuple[int, CarryReport, float], ...]


Step = Carried | Prefilling | Written
Steps = Generator[Step, None, TurnOutcome]


def run_turn(model: LocalModel, request: TurnRequest) -> Steps:
    """Run a turn step by step, one model operation each; gradients must be off around every step.

    Raises:
        ContextLengthError: More tokens than the model's context holds.
        RunError: A message that cannot be carried, on an edge that does not fall back.
    """
    clock = _Clock()
    context = request.context
    ids = context.ids + (model.composer.ask(context) if request.generate else ())
    if len(ids) >= model.max_positions:
        raise ContextLengthError(
            f"the context has {len(ids)} tokens",
            expected=f"fewer than the {model.max_positions} of {model.ref or 'the model'}",
            fix="shorten the inputs, share output instead of context, or use a model with a longer context",
        )
    assembly = assemble(model, ids, request.deliveries, request.own)
    budget = request.generate.max_new_tokens if request.generate else 0
    cache = model.open(assembly.states, assembly.missing, spare=min(budget, 256) + 16)
    logits: Tensor | None = None
    new = model.tensor([ids[position] for position in assembly.missing])
    done, total = 0, len(assembly.missing)
    clock.pause()
    yield Carried(assembly.carries)
    yield Prefilling(done, total)
    clock.resume()
    for logits in model.prefill_steps(new, assembly.missing, cache):
        done = min(done + CHUNK, total)
        if logits is None:
            clock.pause()
            yield Prefilling(done, total)
            clock.resume()
    if request.generate is None or logits is None:
        if (
            model.device.type != "cpu"
        ):  # nothing was sampled, so nothing has waited for the device yet
            torch.accelerator.synchronize(model.device)
        state = cache.snapshot(model.identity) if request.keep_state else None
        usage = _usage(model, ids, assembly, 0, None, clock)
        return TurnOutcome(context, "", state, assembly.carries, usage, "none")
    detokenizer = Detokenizer(model.codec, request.generate.stop)
    count, ttft, finish = yield from _decode(
        model, cache, logits, request.generate, detokenizer, clock
    )
    context = _closed(model, context, ids, detokenizer)
    state = _finish_state(model, cache, ids, context, detokenizer) if request.keep_state else None
    usage = _usage(model, ids, assembly, count, ttft, clock)
    return TurnOutcome(context, detokenizer.text, state, assembly.carries, usage, finish)


def _usage(
    model: LocalModel,
    ids: Sequence[int],
    assembly: Assembly,
    generated: int,
    ttft: float | None,
    clock: _Clock,
) -> Usage:
    missing, repaired = len(assembly.missing), len(assembly.repaired)
    return Usage(
        prompt_tokens=len(ids),
        prefilled_tokens=missing - repaired,
        reused_tokens=len(ids) - missing,
        recomputed_tokens=repaired,
        generated_tokens=generated,
        layer_tokens_computed=missing * len(model.geometry.layers),
        ttft_s=ttft,
        seconds=clock.now(),
    )


def assemble(
    model: LocalModel,
    ids: tuple[int, ...],
    deliveries: Sequence[Delivery],
    own: tuple[tuple[int, ...], KVState] | None = None,
) -> Assembly:
    """Find state for a context: the longest exact prefix of all at hand, then splices, then what is missing."""
    carries: list[tuple[int, CarryReport, float]] = []
    offers: list[Carry] = []
    for delivery in deliveries:
        began = perf_counter()
        carry = _carry(delivery, model)
        carries.append((delivery.edge, carry.report, perf_counter() - began))
        offers.append(carry)
    prefixes = [carry.prefix for carry in offers if carry.prefix is not None]
    if own is not None:
        known, state = own
        prefixes.append(state.slice(0, min(common_prefix(ids, known), state.stop)))
    best = max(prefixes, key=len, default=None)
    # The last token is always computed: its logits choose the first new one.
    reach = min(len(best), len(ids) - 1) if best is not None else 0
    states = [best.slice(0, reach)] if best is not None and reach else []
    repaired: set[int] = set()
    for carry in offers:
        for piece in carry.spliced:
            start, stop = max(piece.start, reach), min(piece.stop, len(ids) - 1)
            if start < stop:
                states.append(piece.slice(start, stop))
        repaired.update(position for position in carry.repair if position >= reach)
    covered = {position for state in states for position in range(state.start, state.stop)}
    missing = tuple(p for p in range(len(ids)) if p not in covered or p in repaired)
    return Assembly(tuple(states), missing, frozenset(repaired & covered), tuple(carries))


def _carry(delivery: Delivery, model: LocalModel) -> Carry:
    try:
        carry = delivery.channel.carry(delivery.arrival, model)
        if _moves_keys(carry, delivery.arrival) and not model.shifts_keys:
            raise StateError(
                "this model's keys cannot be moved to other positions",
                expected="the same tokens before the message at both ends",
                fix="let the message come first in the receiver's context, or use a text channel",
            )
        return carry
    except (ChannelError, ModelSupportError) as error:
        if not delivery.fallback:
            raise RunError(
                error.found, edge=delivery.name, expected=error.expected, fix=error.fix
            ) from error
        carry = TextChannel().carry(delivery.arrival, model)
        reason = f"fallback from {delivery.channel.name}: {error.found}"
        return replace(carry, report=replace(carry.report, reason=reason))


def _moves_keys(carry: Carry, arrival: Arrival) -> bool:
    return bool(carry.spliced) and any(span.at != span.source for span in arrival.spans)


def _decode(
    model: LocalModel,
    cache: ContextCache,
    logits: Tensor,
    settings: GenerateSpec,
    detokenizer: Detokenizer,
    clock: _Clock,
) -> Generator[Written, None, tuple[int, float, str]]:
    """Sample token after token; how many, the time to the first, and why it ended."""
    sampler = Sampler(settings, logits.device)
    ttft: float | None = None
    count = 0
    while True:
        token = sampler(logits)
        value = int(token.item())  # the one sync with the host that a decoded step has
        count += 1
        ttft = clock.now() if ttft is None else ttft
        if value in model.stop_ids:
            finish = "stop"
            break
        text = detokenizer.push(value)
        full = count >= settings.max_new_tokens or cache.length + 1 >= model.max_positions
        if detokenizer.stopped or full:
            finish = "stop" if detokenizer.stopped else "length"
            clock.pause()
            yield Written(text)
            clock.resume()
            break
        clock.pause()
        yield Written(text)
        clock.resume()
        after = model.backbone.forward(token, cache)
        if (
            after is None
        ):  # pragma: no cover - the backbone gives logits whenever it is asked for some
            raise RuntimeError("no logits")
        logits = after[-1]
    rest = detokenizer.finish()
    if rest:
        clock.pause()
        yield Written(rest)
        clock.resume()
    return count, ttft, finish


def _closed(
    model: LocalModel, context: Composed, ids: tuple[int, ...], detokenizer: Detokenizer
) -> Composed:
    """The context with the assistant's turn, closed as the template closes it."""
    words, _ = detokenizer.kept()
    ask = ids[len(context.ids) :]
    segment = Segment(
        "assistant",
        (*ask, *words, *model.composer.close()),
        (len(ask), len(ask) + len(words)),
        detokenizer.text,
        len(context.ids),
    )
    return context.extended(segment)


def _finish_state(
    model: LocalModel,
    cache: ContextCache,
    ids: tuple[int, ...],
    context: Composed,
    detokenizer: Detokenizer,
) -> KVState:
    """Crop the state to the last kept token, then compute what the closed turn still lacks."""
    _, sampled = detokenizer.kept()
    valid = min(cache.length, len(ids) + sampled)
    cache.truncate(valid)
    missing = range(valid, len(context.ids))
    new = model.tensor(context.ids[valid:])
    _drain(model.prefill_steps(new, missing, cache))
    return cache.snapshot(model.identity)


def _drain(steps: Iterator[object]) -> None:
    for _ in steps:
        pass
