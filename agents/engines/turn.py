"""One turn on one model: carry the messages' state, prefill what has none, decode, close the turn."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from unspoken.agents.engines.assembly import Assembly, Inbound, assemble
from unspoken.agents.engines.sampling import Sampler
from unspoken.agents.models.decoder import CHUNK
from unspoken.agents.models.hf import Capture
from unspoken.agents.models.hf_cache import ContextCache
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.prompts.tokenizer import Detokenizer
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.channels.base import CarryReport
from unspoken.channels.errors import ContextLengthError
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Segment

__all__ = [
    "Assembly",
    "Carried",
    "Inbound",
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
class TurnRequest:
    """What a turn is to do.

    Attributes:
        context: The composed context, without the ids that ask for the assistant's words.
        deliveries: Messages whose state may serve it.
        history: State of this agent's earlier turns, with the ids it belongs to.
        generate: Generation settings; None writes nothing.
        keep_state: Whether the state is wanted afterwards, by a reader or by a later turn.
        capture: Layers whose inputs the state is to keep, for readers with other weights.
    """

    context: Context
    deliveries: tuple[Inbound, ...] = ()
    history: tuple[tuple[int, ...], KVState] | None = None
    generate: GenerateSpec | None = None
    keep_state: bool = False
    capture: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Carried:
    """The messages are in the context: per delivery, its edge, its report and the seconds its carry
    took.
    """

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
    """Token counts of a turn, each prompt token once, by its dearest treatment, and times in
    seconds of work.

    Attributes:
        prompt_tokens: Tokens of the context, those that ask for the assistant's words included.
        prefilled_tokens: Computed because no state was at hand, by a channel in fuse mode too.
        reused_tokens: Taken over.
        recomputed_tokens: State was at hand but computed anew (repair), or some layers of it were.
        projected_tokens: Mapped from another model's state.
        generated_tokens: Sampled, the one that ends the turn included.
        layer_tokens_computed: Layers times prompt tokens computed, for a bridge too.
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

    context: Context
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
    ids = context.ids + (model.context_builder.ask(context) if request.generate else ())
    if len(ids) >= model.max_positions:
        raise ContextLengthError(
            f"the context has {len(ids)} tokens",
            expected=f"fewer than the {model.max_positions} of {model.ref or 'the model'}",
            fix="shorten the inputs, share output instead of context, or use a model with a longer "
            "context",
        )
    assembly = assemble(model, ids, request.deliveries, request.history)
    budget = request.generate.max_new_tokens if request.generate else 0
    cache = model.open(assembly.states, assembly.missing, spare=min(budget, 256) + 16)
    logits: Tensor | None = None
    new = model.tensor([ids[position] for position in assembly.missing])
    hidden: Capture = {layer: [] for layer in request.capture}
    done, total = 0, len(assembly.missing)
    clock.pause()
    yield Carried(assembly.carries)
    yield Prefilling(done, total)
    clock.resume()
    for logits in model.prefill_steps(new, assembly.missing, cache, hidden):
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
        if state is not None:
            state = _with_hidden(state, hidden, assembly.missing, assembly.states)
        usage = _usage(model, ids, assembly, 0, None, clock)
        return TurnOutcome(context, "", state, assembly.carries, usage, "none")
    detokenizer = Detokenizer(model.text, request.generate.stop)
    count, ttft, finish = yield from _decode(
        model, cache, logits, request.generate, detokenizer, clock, hidden
    )
    context = _closed(model, context, ids, detokenizer)
    state = None
    if request.keep_state:
        state = _finish_state(model, cache, ids, context, detokenizer, hidden)
        computed = (*assembly.missing, *range(len(ids), state.stop))
        state = _with_hidden(state, hidden, computed, assembly.states)
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
    projected, fused = len(assembly.projected), len(assembly.fused)
    partly = len(assembly.recomputed)
    return Usage(
        prompt_tokens=len(ids),
        prefilled_tokens=missing - repaired + fused,
        reused_tokens=len(ids) - missing - projected - fused - partly,
        recomputed_tokens=repaired + partly,
        projected_tokens=projected,
        generated_tokens=generated,
        layer_tokens_computed=missing * len(model.geometry.layers) + assembly.layer_tokens,
        ttft_s=ttft,
        seconds=clock.now(),
    )


def _decode(
    model: LocalModel,
    cache: ContextCache,
    logits: Tensor,
    settings: GenerateSpec,
    detokenizer: Detokenizer,
    clock: _Clock,
    hidden: Capture,
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
        after = model.backbone.forward(token, cache, capture=hidden)
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
    model: LocalModel, context: Context, ids: tuple[int, ...], detokenizer: Detokenizer
) -> Context:
    """The context with the assistant's turn, closed as the template closes it."""
    words, _ = detokenizer.kept()
    ask = ids[len(context.ids) :]
    segment = Segment(
        "assistant",
        (*ask, *words, *model.context_builder.close()),
        (len(ask), len(ask) + len(words)),
        detokenizer.text,
        len(context.ids),
        detokenizer.ends(),
    )
    return context.extended(segment)


def _finish_state(
    model: LocalModel,
    cache: ContextCache,
    ids: tuple[int, ...],
    context: Context,
    detokenizer: Detokenizer,
    hidden: Capture,
) -> KVState:
    """Crop the state to the last kept token, then compute what the closed turn still lacks."""
    _, sampled = detokenizer.kept()
    valid = min(cache.length, len(ids) + sampled)
    for parts in hidden.values():
        del parts[len(parts) - (cache.length - valid) :]  # a decoded token is a part of its own
    cache.truncate(valid)
    missing = range(valid, len(context.ids))
    new = model.tensor(context.ids[valid:])
    _drain(model.prefill_steps(new, missing, cache, hidden))
    return cache.snapshot(model.identity)


def _with_hidden(
    state: KVState, hidden: Capture, computed: Sequence[int], states: Sequence[KVState]
) -> KVState:
    """The state with the captured inputs of its last rows, as far back as there are any without a
    gap.

    Args:
        state: The state of the whole context.
        hidden: What was captured, in the order of computing.
        computed: The positions it belongs to, ascending.
        states: What was in place before; the one right before the captured rows may have such
            inputs too.
    """
    if not hidden:
        return state
    rows = 0
    while rows < len(computed) and computed[-1 - rows] == state.stop - 1 - rows:
        rows += 1
    kept = {layer: torch.cat(parts)[-rows:] for layer, parts in hidden.items()} if rows else {}
    for one in states:
        if not rows or one.stop != state.stop - rows or not set(hidden) <= set(one.hidden):
            continue
        # Rows of it that were computed anew (repair) have other hidden states than those it
        # brought.
        anew = max((at for at in computed if at < one.stop), default=-1) + 1
        back = one.stop - max(one.hidden_first, anew)
        if back > 0:
            kept = {layer: torch.cat((one.hidden[layer][-back:], kept[layer])) for layer in hidden}
    return replace(state, hidden=kept)


def _drain(steps: Iterator[object]) -> None:
    for _ in steps:
        pass
