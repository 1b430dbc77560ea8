"""What an engine tells of a turn: events as it goes, and what it left behind."""

from dataclasses import dataclass

from unspoken.channels.base import CarryReport


@dataclass(frozen=True, slots=True)
class StateRef:
    """A ticket for a state that an engine keeps; it goes with one `Engine.release`."""

    number: int


@dataclass(frozen=True, slots=True)
class Carried:
    """A message is in the context.

    Attributes:
        edge: Number of its edge.
        report: What its channel did.
        seconds: Work of the carry.
    """

    edge: int
    report: CarryReport
    seconds: float


@dataclass(frozen=True, slots=True)
class Prefilling:
    """Prefill goes on: `done` of `total` tokens to compute are computed."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token was sampled that ends no turn by itself."""

    token: int


TurnEvent = Carried | Prefilling | Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a turn, each prompt token once, by its dearest treatment, and times in
    seconds of work.

    Attributes:
        prompt_tokens: Tokens of the context, those that ask for the assistant's words included.
        prefilled_tokens: Computed because there was no state, by a channel too.
        reused_tokens: Taken over.
        recomputed_tokens: Computed though there was a state: repair, or some layers of it.
        projected_tokens: Mapped from another model's state.
        generated_tokens: Sampled, the one that ends the turn included.
        layer_tokens_computed: Layers times prompt tokens computed, for a bridge too.
        ttft_s: From all inputs there to the first token sampled; None where nothing is generated.
        seconds: Work of the whole turn; waiting for the device is not in it.
        forwards: Forwards of the model that computed tokens of it.
        turns_per_forward: How many turns those computed on average, this one included.
    """

    prompt_tokens: int
    prefilled_tokens: int
    reused_tokens: int
    recomputed_tokens: int
    projected_tokens: int
    generated_tokens: int
    layer_tokens_computed: int
    ttft_s: float | None
    seconds: float
    forwards: int = 0
    turns_per_forward: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnOutcome:
    """What a turn left behind.

    Attributes:
        ids: Ids of the finished context.
        state: The engine's ticket for their state, where it was asked for.
        usage: Counts and times.
        finish: Why it ended: ``stop``, ``length`` or ``none``.
        likelihoods: Per text to choose from, how likely the model found it; together they are 1.
        restored: Whether it was computed before and is had from a store; `usage` is of then.
    """

    ids: tuple[int, ...]
    state: StateRef | None
    usage: Usage
    finish: str
    likelihoods: tuple[float, ...] = ()
    restored: bool = False
