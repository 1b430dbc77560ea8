"""Which ranges of layers to recompute: a coarse grid first, then refinement around the front.

After the offline profile of DroidSpeak (arXiv 2411.02820), which looks at all ranges. What a range
computes depends on its first layer alone, not on where it ends. So one run from each first layer to
the model's last serves every range that begins there.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, pairwise, zip_longest
from statistics import mean, stdev

import torch
from torch import Tensor

from unspoken.channels.base import Arrival
from unspoken.channels.errors import ProfileError
from unspoken.channels.finetunes.passages import Settings, Trial, arrival_of, prompt_of
from unspoken.channels.finetunes.profile import PREFIX, Estimate
from unspoken.channels.finetunes.recompute import (
    LayerRanges,
    check_layer_ranges,
    entry_layers,
    layers_of,
)
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.metrics import distance
from unspoken.channels.model import TextModel, layer_devices
from unspoken.channels.sequences import distinct

COARSE = 6
MOST_A_ROUND = 40
DRAWS = 2000

THINNING = 0.85
"""Factor of `front_of` at which points that gain little are left out of a profile."""

Measured = dict[LayerRanges, float]
"""KL in nats by layer ranges, mean over the messages searched on."""

Distance = tuple[float, float]
"""KL in nats, and share of equal likeliest tokens."""

Scores = dict[str, list[Distance]]
"""By place, the distance from the receiver's own prefill per message."""

Report = Callable[[str, float], None]


def front_of(measured: Mapping[LayerRanges, float], factor: float = 1.0) -> list[LayerRanges]:
    """The Pareto front: choices by ascending layers, each with less KL than all before it.

    Args:
        measured: KL by choice.
        factor: A choice's KL must be at most this share of the KL of the one before it.
    """
    front: list[LayerRanges] = []
    last = math.inf
    for ranges, kl in sorted(measured.items(), key=lambda item: (layers_of(item[0]), item[1])):
        if kl < last and kl <= factor * last:
            front.append(ranges)
            last = kl
    return front


def choices_of(measured: Mapping[LayerRanges, float], layers: int) -> list[LayerRanges]:
    """What a profile holds: no layer recomputed, the thinned front, and all `layers`."""
    return distinct([(), *front_of(measured, factor=THINNING), ((0, layers),)])


def entries_of(choices: Iterable[LayerRanges]) -> list[int]:
    """The layers whose inputs the sharer must keep for any of the choices, ascending."""
    return sorted({layer for layer_ranges in choices for layer in entry_layers(layer_ranges)})


def search(
    sharer: TextModel,
    receiver: TextModel,
    trials: Sequence[Trial],
    report: Report = lambda stage, part: None,
) -> Measured:
    """Measure ranges on a grid over the layers, then ever nearer to the front that was measured.

    Args:
        sharer: Whose state is read.
        receiver: Who recomputes ranges.
        trials: Messages to search on, at the same place at both ends.
        report: Told of the stage and a fraction.
    """
    layers = len(receiver.geometry.layers)
    step = max(layers // COARSE, 1)
    measured: Measured = {}
    wanted = _grid(layers, step)
    while wanted:
        stage = f"search: {len(wanted)} choices at a step of {step}"
        scores = _scores(sharer, receiver, trials, wanted, {PREFIX: ()}, 0, (report, stage))
        for ranges in wanted:
            measured[ranges] = mean(kl for kl, _ in scores[ranges][PREFIX])
        if step == 1:
            break
        step = max(step // 2, 1)
        near = _near(front_of(measured), layers, step)
        wanted = [ranges for ranges in near if ranges not in measured][:MOST_A_ROUND]
    return measured


def assess(
    sharer: TextModel,
    receiver: TextModel,
    trials: Sequence[Trial],
    chosen: Sequence[LayerRanges],
    settings: Settings,
    report: Report = lambda stage, part: None,
) -> dict[LayerRanges, Scores]:
    """How far each choice is from the receiver's own prefill.

    At the prefix, and after each of `settings.prompts` tokens of the receiver's own.
    """
    prompts = {f"after {n}": prompt_of(receiver, n) for n in settings.prompts}
    places = {PREFIX: (), **prompts}
    return _scores(sharer, receiver, trials, chosen, places, settings.sink, (report, "assess"))


@torch.no_grad()
def _scores(
    sharer: TextModel,
    receiver: TextModel,
    trials: Sequence[Trial],
    choices: Sequence[LayerRanges],
    places: Mapping[str, Sequence[int]],
    sink: int,
    progress: tuple[Report, str],
) -> dict[LayerRanges, Scores]:
    """Per choice and place, the distances of all trials.

    Args:
        sharer, receiver, trials: As `search`.
        choices: Choices of layers.
        places: By name, the tokens of the receiver's own that stand before a message.
        sink: Tokens at the start of a shifted message that the receiver computes itself.
        progress: Whom to tell, and the name of the stage.
    """
    scores: dict[LayerRanges, Scores] = {ranges: {} for ranges in choices}
    for number, trial in enumerate(trials, 1):
        sent = sharer.read(trial.ids, entries_of(choices))
        for place, prompt in places.items():
            arrival = arrival_of(trial, sent, prompt)
            pairs = _distances(receiver, arrival, trial, choices, sink if prompt else 0)
            for ranges, pair in zip(choices, pairs, strict=True):
                scores[ranges].setdefault(place, []).append(pair)
        report, stage = progress
        report(stage, number / len(trials))
    return scores


def _grid(layers: int, step: int) -> list[LayerRanges]:
    ends = sorted({*range(0, layers, step), layers})
    return [(), *(((first, last),) for first in ends for last in ends if first < last)]


def _near(front: Sequence[LayerRanges], layers: int, step: int) -> list[LayerRanges]:
    """Choices one step away from those on the front, each point's in turn.

    An end is moved, or a small range is added.
    """
    by_point = []
    for ranges in front:
        moved = [
            (*ranges[:number], (first + a, last + b), *ranges[number + 1 :])
            for number, (first, last) in enumerate(ranges)
            for a, b in ((-step, 0), (step, 0), (0, -step), (0, step))
        ]
        more = [
            tuple(sorted((*ranges, (first, min(first + 2 * step, layers)))))
            for first in range(0, layers, 2 * step)
        ]
        near = (check_layer_ranges(r, layers) for r in _in_turn(moved, more) if _valid(r, layers))
        by_point.append(distinct(near))
    return distinct(_in_turn(*by_point))


def _in_turn(*lists: Sequence[LayerRanges]) -> Iterable[LayerRanges]:
    """The first of each list, then the second of each, and so on."""
    return (ranges for ranges in chain(*zip_longest(*lists)) if ranges is not None)


def _valid(ranges: LayerRanges, layers: int) -> bool:
    inside = all(0 <= first < last <= layers for first, last in ranges)
    return inside and all(left[1] <= right[0] for left, right in pairwise(ranges))


def _distances(
    receiver: TextModel, arrival: Arrival, trial: Trial, choices: Sequence[LayerRanges], skip: int
) -> list[Distance]:
    """KL and share of equal likeliest tokens of each choice.

    The states are those that `carry_across` brings, composed from fewer runs.

    Args:
        receiver: Recomputes ranges.
        arrival: The message in its place, its state with hidden states at the first layers.
        trial: The trial.
        choices: Choices of layers.
        skip: Tokens at the start of the message that the receiver computes itself.
    """
    ids, state = arrival.context, arrival.message.require_state()
    span = arrival.spans[0]
    moved = span.at != span.source
    start = span.at + skip if moved else 0  # unmoved, what stands before the message comes with it
    prefilled = receiver.read(ids)
    sent = state.slice(start - span.at + span.source, state.stop)
    sent = sent.shift(span.at - span.source, receiver.geometry, receiver.rotary)
    before = [prefilled.slice(0, start)] if start else []
    positions = torch.arange(start, prefilled.stop, device=receiver.device)
    count = len(receiver.geometry.layers)
    runs: dict[int, tuple[LayerState, ...]] = {0: prefilled.slice(start, prefilled.stop).layers}
    for first in entries_of(choices):
        hidden = sent.hidden[first].to(receiver.device)
        runs[first] = receiver.run_layers(hidden, first, count, positions, before)[1]
    full = _after(receiver, [prefilled], ids[-1], trial.forced)
    distances = []
    for ranges in choices:
        composed = _composed(receiver, sent, runs, ranges)
        after = _after(receiver, [*before, composed], ids[-1], trial.forced)
        distances.append(torch.stack(distance(full, after)))
    return [(kl, top1) for kl, top1 in torch.stack(distances).tolist()]


def _composed(
    receiver: TextModel,
    sent: KVState,
    runs: Mapping[int, tuple[LayerState, ...]],
    ranges: LayerRanges,
) -> KVState:
    layers = list(sent.to(layer_devices(receiver)).layers)
    for first, last in ranges:
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
    """Log-probabilities after the context's last token and all forced ones but the last.

    Shape (forced, vocabulary).
    """
    ids = torch.tensor((last, *forced[:-1]), device=receiver.device)
    cut = [*states[:-1], states[-1].slice(states[-1].start, states[-1].stop - 1)]
    return receiver.logits(ids, cut).float().log_softmax(dim=-1)


def estimate(scores: Sequence[Distance], seed: int = 0) -> Estimate:
    """Mean and 95 % interval over messages.

    Messages are few, so it is the wider of a bootstrap's interval and Student's.

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
    means = sorted(mean(rng.choices(values, k=len(values))) for _ in range(DRAWS))
    kl, count, half = mean(values), len(values), 0.0
    if count > 1:  # Student's quantile, nearly
        half = (1.96 + 2.5 / (count - 1)) * stdev(values) / math.sqrt(count)
    low = max(min(means[int(0.025 * DRAWS)], kl - half), 0.0)
    high = max(means[int(0.975 * DRAWS)], kl + half)
    return Estimate(kl=kl, low=min(low, kl), high=high, top1=mean(top1 for _, top1 in scores))


def random_ranges(ranges: LayerRanges, layers: int, rng: random.Random) -> LayerRanges:
    """Ranges of the same sizes at places drawn anew."""
    sizes = [last - first for first, last in ranges]
    rng.shuffle(sizes)
    spare = layers - sum(sizes)
    gaps = sorted(rng.randint(0, spare) for _ in sizes)
    drawn, used = [], 0
    for gap, size in zip(gaps, sizes, strict=True):
        drawn.append((gap + used, gap + used + size))
        used += size
    return check_layer_ranges(drawn, layers)
