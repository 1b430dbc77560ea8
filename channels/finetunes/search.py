"""Which ranges of layers to recompute: a coarse grid first, then refinement around the front.

After the offline profile of DroidSpeak (arXiv 2411.02820), which looks at all ranges. What a range
computes depends on its entry alone, not on where it ends: one run from each entry to the last layer
serves every range that begins there.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise, zip_longest
from statistics import mean, stdev

import torch
from torch import Tensor

from unspoken.channels.base import Arrival
from unspoken.channels.errors import ProfileError
from unspoken.channels.finetunes.passages import Settings, Trial, arrival_of, prompt_of
from unspoken.channels.finetunes.profile import PREFIX, Estimate, front_of
from unspoken.channels.finetunes.recompute import LayerRanges, check_layer_ranges
from unspoken.channels.kv.state import KVState, LayerState
from unspoken.channels.metrics import distance
from unspoken.channels.model import TextModel

__all__ = [
    "Measured",
    "Scores",
    "estimate",
    "judge",
    "layers_of",
    "random_ranges",
    "search",
    "thinned",
]

COARSE = 6
MOST_A_ROUND = 40

Measured = dict[LayerRanges, float]
"""KL in nats by ranges, mean over the messages searched on."""

Scores = dict[str, list[tuple[float, float]]]
"""By place, KL and share of equal likeliest tokens per message."""


def layers_of(layer_ranges: LayerRanges) -> int:
    """How many layers are in ranges."""
    return sum(last - first for first, last in layer_ranges)


@torch.no_grad()
def search(
    sharer: TextModel,
    receiver: TextModel,
    trials: Sequence[Trial],
    report: Callable[[str, float], None] = lambda stage, part: None,
) -> Measured:
    """Measure ranges on a grid over the layers, then ever nearer to the front of what was found.

    Args:
        sharer: Whose state is read.
        receiver: Who recomputes ranges.
        trials: Messages to search on, at the same place at both ends.
        report: Told of the stage and a fraction.
    """
    layers = len(receiver.geometry.layers)
    step = max(layers // COARSE, 1)
    found: Measured = {}
    wanted = _grid(layers, step)
    while wanted:
        told = _told(report, f"search: {len(wanted)} ranges at a step of {step}")
        found |= _measured(sharer, receiver, trials, wanted, told)
        if step == 1:
            break
        step = max(step // 2, 1)
        front = [layer_ranges for layer_ranges, _, _ in front_of(_costed(found))]
        wanted = [one for one in _near(front, layers, step) if one not in found][:MOST_A_ROUND]
    return found


def _costed(found: Measured) -> Iterator[tuple[LayerRanges, int, float]]:
    return ((layer_ranges, layers_of(layer_ranges), kl) for layer_ranges, kl in found.items())


def _told(report: Callable[[str, float], None], stage: str) -> Callable[[float], None]:
    return lambda part: report(stage, part)


def _grid(layers: int, step: int) -> list[LayerRanges]:
    ends = sorted({*range(0, layers, step), layers})
    pairs = [((first, last),) for first in ends for last in ends if first < last]
    return [(), *pairs]


def _near(front: Sequence[LayerRanges], layers: int, step: int) -> list[LayerRanges]:
    """Ranges one step away from those on the front: an end moved, or a small range more, each
    point's in turn.
    """
    by_point = []
    for layer_ranges in front:
        made: dict[LayerRanges, None] = {}
        moved, more = _moved(layer_ranges, step), _with_one_more(layer_ranges, layers, step)
        for one in chain.from_iterable(zip_longest(moved, more)):
            if one is not None:
                _add(made, one, layers)
        by_point.append(list(made))
    turns = chain.from_iterable(zip_longest(*by_point))
    return list(dict.fromkeys(one for one in turns if one is not None))


def _moved(layer_ranges: LayerRanges, step: int) -> list[LayerRanges]:
    return [
        (*layer_ranges[:at], (first + a, last + b), *layer_ranges[at + 1 :])
        for at, (first, last) in enumerate(layer_ranges)
        for a, b in ((-step, 0), (step, 0), (0, -step), (0, step))
    ]


def _with_one_more(layer_ranges: LayerRanges, layers: int, step: int) -> list[LayerRanges]:
    return [
        tuple(sorted((*layer_ranges, (first, min(first + 2 * step, layers)))))
        for first in range(0, layers, 2 * step)
    ]


def _add(made: dict[LayerRanges, None], layer_ranges: LayerRanges, layers: int) -> None:
    inside = all(0 <= first < last <= layers for first, last in layer_ranges)
    if inside and all(a[1] <= b[0] for a, b in pairwise(layer_ranges)):
        made.setdefault(check_layer_ranges(layer_ranges, layers))


@torch.no_grad()
def _measured(
    sharer: TextModel,
    receiver: TextModel,
    trials: Sequence[Trial],
    wanted: Sequence[LayerRanges],
    told: Callable[[float], None],
) -> Measured:
    """Mean KL of each choice of ranges over the trials."""
    scores: dict[LayerRanges, list[float]] = {layer_ranges: [] for layer_ranges in wanted}
    for number, trial in enumerate(trials):
        sent = sharer.read(trial.ids, _entries(wanted))
        for layer_ranges, (kl, _) in _distances(
            receiver, arrival_of(trial, sent), trial, wanted, 0
        ):
            scores[layer_ranges].append(kl)
        told((number + 1) / len(trials))
    return {layer_ranges: mean(found) for layer_ranges, found in scores.items()}


def _entries(wanted: Sequence[LayerRanges]) -> list[int]:
    return sorted({first for layer_ranges in wanted for first, _ in layer_ranges if first})


@torch.no_grad()
def judge(
    sharer: TextModel,
    receiver: TextModel,
    trials: Sequence[Trial],
    chosen: Sequence[LayerRanges],
    settings: Settings,
    report: Callable[[str, float], None] = lambda stage, part: None,
) -> dict[LayerRanges, Scores]:
    """How far each choice is from the receiver's own prefill.

    At the prefix, and after each of `settings.prompts` tokens of the receiver's own.
    """
    found: dict[LayerRanges, Scores] = {layer_ranges: {} for layer_ranges in chosen}
    prompts = {PREFIX: ()} | {f"after {n}": prompt_of(receiver, n) for n in settings.prompts}
    for number, trial in enumerate(trials):
        sent = sharer.read(trial.ids, _entries(chosen))
        for place, prompt in prompts.items():
            arrival = arrival_of(trial, sent, prompt)
            skip = settings.sink if prompt else 0
            for layer_ranges, pair in _distances(receiver, arrival, trial, chosen, skip):
                found[layer_ranges].setdefault(place, []).append(pair)
        report("judge", (number + 1) / len(trials))
    return found


def _distances(
    receiver: TextModel,
    arrival: Arrival,
    trial: Trial,
    wanted: Sequence[LayerRanges],
    skip: int,
) -> list[tuple[LayerRanges, tuple[float, float]]]:
    """KL and share of equal likeliest tokens of each choice: what `carry_across` brings, composed
    from fewer runs.

    Args:
        receiver: Recomputes ranges.
        arrival: The message in its place, its state with hidden states at the entries.
        trial: The trial.
        wanted: Choices of ranges.
        skip: Tokens at the start of the message that the receiver computes itself.
    """
    ids, state = arrival.context, arrival.message.state
    assert state is not None
    span = arrival.spans[0]
    moved = span.at != span.source
    at = span.at + skip if moved else 0  # unmoved, what stands before the message travels with it
    own = receiver.read(ids)
    sent = state.slice(at - span.at + span.source, state.stop)
    sent = sent.shift(span.at - span.source, receiver.geometry, receiver.rotary)
    before = [own.slice(0, at)] if at else []
    positions = torch.arange(at, own.stop, device=receiver.device)
    runs: dict[int, tuple[LayerState, ...]] = {0: own.slice(at, own.stop).layers}
    for start in _entries(wanted):
        hidden = sent.hidden[start].to(receiver.device)
        layers = len(receiver.geometry.layers)
        runs[start] = receiver.run_layers(hidden, start, layers, positions, before)[1]
    full = _after(receiver, [own], ids[-1], trial.forced)
    pairs = []
    for layer_ranges in wanted:
        made = _composed(receiver, sent, runs, layer_ranges)
        pairs.append(distance(full, _after(receiver, [*before, made], ids[-1], trial.forced)))
    values = torch.stack([torch.stack(pair) for pair in pairs]).tolist()
    return [
        (layer_ranges, (kl, top)) for layer_ranges, (kl, top) in zip(wanted, values, strict=True)
    ]


def _composed(
    receiver: TextModel,
    sent: KVState,
    runs: dict[int, tuple[LayerState, ...]],
    layer_ranges: LayerRanges,
) -> KVState:
    layers = list(sent.to(receiver.device).layers)
    for first, last in layer_ranges:
        layers[first:last] = runs[first][: last - first]
    return KVState(
        layers=tuple(layers),
        start=sent.start,
        stop=sent.stop,
        identity=receiver.identity,
        approximate_from=sent.start,
    )


def _after(
    receiver: TextModel, states: Sequence[KVState], last: int, forced: Sequence[int]
) -> Tensor:
    """Log-probabilities after the context's last token and all forced ones but the last, (forced,
    vocabulary).
    """
    ids = torch.tensor((last, *forced[:-1]), device=receiver.device)
    cut = [*states[:-1], states[-1].slice(states[-1].start, states[-1].stop - 1)]
    return receiver.logits(ids, cut).float().log_softmax(dim=-1)


def estimate(scores: Sequence[tuple[float, float]], seed: int = 0, draws: int = 2000) -> Estimate:
    """Mean and 95 % interval over messages: the wider of a bootstrap's and Student's, since
    messages are few.

    Raises:
        ProfileError: A distance that is not finite.
    """
    values = [kl for kl, _ in scores]
    if not all(map(math.isfinite, values)):
        raise ProfileError(
            "the models' distance is not finite on some messages",
            expected="finite logits",
            fix="measure in another dtype",
        )
    rng = random.Random(seed)
    means = sorted(mean(rng.choices(values, k=len(values))) for _ in range(draws))
    low, high = means[int(0.025 * draws)], means[int(0.975 * draws)]
    kl, count = mean(values), len(values)
    half = 0.0
    if count > 1:
        half = (
            (1.96 + 2.5 / (count - 1)) * stdev(values) / math.sqrt(count)
        )  # Student's quantile, nearly
    low, high = max(min(low, kl - half), 0.0), max(high, kl + half)
    return Estimate(kl=kl, low=min(low, kl), high=high, top1=mean(top for _, top in scores))


def thinned(
    front: Sequence[tuple[LayerRanges, int, float]], least: float = 0.85
) -> list[LayerRanges]:
    """Points of a front, those left out that lower the KL by less than a factor of `least` from the
    one kept before.
    """
    kept: list[LayerRanges] = []
    last = float("inf")
    for layer_ranges, _, kl in front:
        if kl <= least * last:
            kept.append(layer_ranges)
            last = kl
    return kept


def random_ranges(layer_ranges: LayerRanges, layers: int, rng: random.Random) -> LayerRanges:
    """Ranges of the same sizes at places drawn again."""
    sizes = [last - first for first, last in layer_ranges]
    rng.shuffle(sizes)
    spare = layers - sum(sizes)
    cuts = sorted(rng.randint(0, spare) for _ in sizes)
    made, used = [], 0
    for cut, size in zip(cuts, sizes, strict=True):
        made.append((cut + used, cut + used + size))
        used += size
    return check_layer_ranges(made, layers)
