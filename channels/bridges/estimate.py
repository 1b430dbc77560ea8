"""What a bridge between two models would be, and whether it is worth it, before either is loaded.

Everything is counted from the shapes of both caches, the sizes of both models and the speed of the
machine. Times are estimates: products, or the bytes of the weights that they read, whichever takes
longer, and what starting the operations takes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from unspoken.channels.bridges.audit.timing import OWN
from unspoken.channels.bridges.features import width, widths
from unspoken.channels.bridges.fit.ridge import (
    OVERSAMPLING,
    PENALTIES,
    ROUNDS,
    gram_bytes,
    tokens_for,
)
from unspoken.channels.bridges.fit.samples import mean_length
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.sizing import (
    TOKENS,
    most_bytes,
    projector_bytes,
    widest_rank,
    within_columns,
)
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.machine import medians
from unspoken.channels.model_size import Size

LENGTHS = (1_024, 8_192, 32_768)
FEW = 500
"""Steps below which training has hardly begun."""

ASKED, ANSWERED = 150, 60
"""Tokens of what is asked of a message of the training, and of the answers, on average."""

OPERATIONS = 20
"""Operations that are started for one layer."""

PROJECTING = 1.4
"""Times its products that a projection takes; measured were 1.1 to 1.4."""

_SHORTEST, _LONGEST = 16, 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One of the two models.

    Attributes:
        geometry: The shape of its cache.
        size: The numbers among its weights.
        itemsize: Bytes of each, as it is computed with.
        copied: Bytes of each in a copy to train in; 0 for no copy.
        dynamic: Whether its rotary frequencies change with the length of the context.
    """

    geometry: CacheGeometry
    size: Size
    itemsize: int
    copied: int = 0
    dynamic: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How fast a machine is.

    Attributes:
        products: Multiplications with addition a second, in the type of the models.
        wide: The same in float32, which bridges compute in.
        read: Bytes read a second.
        start: Seconds that it takes to start an operation.
    """

    products: float
    wide: float
    read: float
    start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeEstimate:
    """What a bridge would be.

    Attributes:
        reason: Why there can be none; then all else is None or empty.
        source_layers: How many of the sharer's layers would be read.
        columns: Columns of the features.
        sharer_share: Share of them that is the sharer's.
        sketch: Columns that a source layer is brought to; 0 for all as they are.
        rank: Width of the code.
        bytes: On disk.
        peak_bytes: Memory that the closed form takes, the two models and their copies to train in.
        closed_form_minutes: Minutes of the closed form on this machine.
        steps: Training steps that the minutes buy on this machine.
        minutes: Minutes of training.
        message_tokens: Tokens of a message of the training, on average.
        judge_minutes: Minutes of the second fit, of the bridge of embeddings alone that an audit
            judges it by.
        gains: By length of the message, time to the first token by text over that by the bridge;
            None beyond the context of one of the models.
        break_even: Tokens of the shortest message that comes faster by the bridge; None where none
            does.
    """

    reason: str | None = None
    source_layers: int | None = None
    columns: int | None = None
    sharer_share: float | None = None
    sketch: int | None = None
    rank: int | None = None
    bytes: int | None = None
    peak_bytes: int | None = None
    closed_form_minutes: float | None = None
    steps: int | None = None
    minutes: float | None = None
    message_tokens: int | None = None
    judge_minutes: float | None = None
    gains: Mapping[int, float | None]
    break_even: int | None = None

    @property
    def verdict(self) -> Literal["worth it", "refused", "useless"]:
        """Whether it can be, and saves time at any length."""
        if self.reason is not None:
            return "refused"
        return "useless" if self.break_even is None else "worth it"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        gains = {str(length): gain for length, gain in self.gains.items()}
        return {"verdict": self.verdict, **asdict(self), "gains": gains}


def calibrate(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure a machine, in about a second."""
    small = device.type == "cpu"
    side, length = (768, 1 << 24) if small else (8_192, 1 << 28)
    plain = torch.ones(side, side, dtype=dtype, device=device)
    wide = torch.ones(side, side, device=device)
    row, one = torch.ones(length, device=device), torch.ones(1, device=device)
    conditions: dict[str, Callable[[], object]] = {
        "plain": lambda: plain @ plain,
        "wide": lambda: wide @ wide,
        "read": row.sum,
        "start": lambda: [one + 1 for _ in range(100)],
    }
    seconds = medians(conditions, 5, device)
    return Machine(
        products=side**3 / seconds["plain"],
        wide=side**3 / seconds["wide"],
        read=row.nbytes / seconds["read"],
        start=seconds["start"] / 100,
    )


def refusal(sharer: End, receiver: End) -> str | None:
    """Why two models cannot be bridged, as far as their configurations tell."""
    for name, end in (("sharer", sharer), ("receiver", receiver)):
        if not end.geometry.plain:
            return (
                "a bridge maps rows of keys and values, and of the "
                f"{name}'s layers {end.geometry.described()}"
            )
        if end.dynamic:
            return f"the {name}'s rotary frequencies change with the length of the context"
    return None


def estimate(
    sharer: End, receiver: End, machine: Machine, settings: FitSettings | None = None
) -> BridgeEstimate:
    """Estimate a bridge.

    Args:
        sharer: Whose cache would be read.
        receiver: Whose cache would be made.
        machine: Where it would be fitted and used.
        settings: How it would be fitted.
    """
    reason = refusal(sharer, receiver)
    if reason is not None:
        return BridgeEstimate(reason=reason, gains={})
    settings = settings or FitSettings()
    pair = _Pair(sharer, receiver, machine, settings, _config(sharer, receiver, settings))
    theirs, own = pair.config.inputs(sharer.geometry, receiver.geometry)
    weights = sum(end.size.weights * (end.itemsize + end.copied) for end in (sharer, receiver))
    return BridgeEstimate(
        source_layers=len(pair.config.source_layers),
        columns=theirs + own,
        sharer_share=theirs / (theirs + own),
        sketch=pair.config.sketch,
        rank=pair.config.rank,
        bytes=projector_bytes(pair.config, sharer.geometry, receiver.geometry),
        peak_bytes=weights + gram_bytes(pair.inputs, pair.outputs),
        closed_form_minutes=pair.closed_form(pair.inputs) / 60,
        steps=int(60 * settings.minutes / pair.step()),
        minutes=settings.minutes,
        message_tokens=pair.message,
        judge_minutes=pair.closed_form(own) / 60 + settings.minutes,
        gains={length: pair.gain(length) if length <= pair.longest else None for length in LENGTHS},
        break_even=pair.break_even(),
    )


def _config(sharer: End, receiver: End, settings: FitSettings) -> ProjectorConfig:
    """The shape that a fit would choose; which layers it chooses makes no difference here."""
    ends = sharer.geometry, receiver.geometry
    sizes = widths(sharer.geometry, range(len(sharer.geometry.layers)))
    shape = within_columns(settings, sizes, receiver.geometry)
    widest = sorted(range(len(sizes)), key=sizes.__getitem__)[-shape.layers :]
    config = ProjectorConfig(
        source_layers=tuple(sorted(widest)),
        native_layers=settings.native_layers,
        embeddings=shape.embeddings,
        hidden=settings.hidden,
        bottleneck=settings.bottleneck,
        sketch=shape.sketch,
    )
    rank = settings.rank or widest_rank(config, *ends, most_bytes(receiver.size))
    return ProjectorConfig(**{**config.to_dict(), "rank": rank})


@dataclass(frozen=True, slots=True)
class _Pair:
    sharer: End
    receiver: End
    machine: Machine
    settings: FitSettings
    config: ProjectorConfig

    @property
    def inputs(self) -> int:
        return sum(self.config.inputs(self.sharer.geometry, self.receiver.geometry))

    @property
    def sketched(self) -> int:
        """Multiplications of a sketch for one token; 0 without one."""
        blocks = self.config.blocks(self.sharer.geometry, self.receiver.geometry)
        return sum(size * kept for size, kept in blocks) if self.config.sketch else 0

    @property
    def outputs(self) -> int:
        geometry = self.receiver.geometry
        return width(geometry, self.config.target_layers(geometry))

    @property
    def products(self) -> int:
        """Multiplications that a projection takes for one token."""
        config = self.config
        residual = config.rank + 2 * config.bottleneck + self.outputs // 64
        rows = config.rank * (self.inputs + self.outputs) + config.bottleneck * self.outputs
        return self.sketched + rows + config.hidden * residual

    @property
    def longest(self) -> int:
        """Most tokens of a message that both models can read."""
        positions = (self.sharer.geometry.max_positions, self.receiver.geometry.max_positions)
        return min(positions) - OWN

    @property
    def message(self) -> int:
        """Tokens of a message of the training, on average."""
        longest = self.settings.longest
        return round(mean_length(None if longest is None else min(longest, self.longest)))

    def closed_form(self, inputs: int) -> float:
        """Seconds: both models read, sums, factors, and the cut to a rank.

        Args:
            inputs: Columns of the features; of fewer than the bridge's as many tokens are read.
        """
        outputs = self.outputs
        tokens = self.settings.gram_tokens or tokens_for(self.inputs, TOKENS)
        read = tokens * (self.sharer.size.products + self.receiver.size.products)
        sums = tokens * (self.sketched + inputs * (inputs + outputs))
        factors = (len(PENALTIES) + 1) * inputs**3 // 6 + inputs * inputs * outputs // 2
        wide = min(self.config.rank + OVERSAMPLING, inputs, outputs)
        cut = (2 * ROUNDS + 2) * inputs * outputs * wide + 4 * outputs * wide * wide
        return read / self.machine.products + (sums + factors + cut) / self.machine.wide

    def step(self) -> float:
        """Seconds of a training step; every few of them a message is new to both models."""
        message = self.message
        fresh = self.read(self.sharer, message, message)
        fresh += self.read(self.receiver, message + ASKED, message + ASKED)
        said = 2 * self.read(self.receiver, ASKED, message + ASKED)
        head = self.receiver.size.weights - self.receiver.size.products
        said += 2 * head * ANSWERED / self.machine.products
        return fresh / self.settings.fresh + said + 3 * self.products * message / self.machine.wide

    def read(self, end: End, tokens: int, context: int) -> float:
        """Seconds in which a model reads the last `tokens` of a context."""
        seen = sum(min(layer.window or context, context) for layer in end.geometry.layers)
        attention = 2 * end.geometry.hidden_size * seen * tokens
        if tokens == context:  # half of the pairs of tokens lie in the past
            attention //= 2
        products = end.size.products * tokens + attention
        started = len(end.geometry.layers) * OPERATIONS * self.machine.start
        stored = (end.size.products + end.size.idle) * end.itemsize
        return max(products / self.machine.products, stored / self.machine.read) + started

    def gain(self, length: int) -> float:
        """Time to the first token by text over that by the bridge."""
        receiver, machine = self.receiver, self.machine
        text = self.read(receiver, length + OWN, length + OWN)
        columns = sum(self.config.features(self.sharer.geometry, receiver.geometry))
        moved = 8 * length * columns + 2 * length * self.outputs * (4 + receiver.itemsize)
        layers = len(receiver.geometry.layers) + len(self.config.source_layers)
        stored = 4 * self.products / machine.read
        projected = PROJECTING * max(length * self.products / machine.wide, stored)
        projected += moved / machine.read + layers * OPERATIONS * machine.start
        return text / (projected + self.read(receiver, OWN + SINK, length + OWN))

    def break_even(self) -> int | None:
        """The shortest message that comes faster by the bridge."""
        most = min(self.longest, _LONGEST)
        lengths = [_SHORTEST << n for n in range(32) if _SHORTEST << n < most]
        first = next((n for n in [*lengths, most] if self.gain(n) > 1), None)
        if first is None or first == _SHORTEST:
            return first
        low, high = max(n for n in [*lengths, most] if n < first), first
        while high - low > max(high // 50, 1):
            middle = (low + high) // 2
            low, high = (low, middle) if self.gain(middle) > 1 else (middle, high)
        return high
