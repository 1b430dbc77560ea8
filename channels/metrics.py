"""How far a context under one condition is from another, by what a model says after it."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from unspoken.channels.bootstrap import TAIL, Bootstrap, Estimate


def distance(full: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean KL(full || other) in nats a token, and the share of tokens with the same likeliest one.

    Args:
        full: Log-probabilities, (tokens, vocabulary).
        other: Likewise, of the same tokens.
    """
    kl = (full.exp() * (full - other)).sum(dim=-1)
    return kl.mean(), (full.argmax(dim=-1) == other.argmax(dim=-1)).float().mean()


DRAWS = 1000


LEVEL = 0.95


TRUSTED = 0.5
"""Least share of the draws in which the text must gain, for an interval to mean something."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a condition keeps of the text's gain.

    Attributes:
        retention: Gain over no message, as a share of the text's gain.
        specific: Retention less what another example's message gains, where that gains anything.
    """

    retention: Estimate
    specific: Estimate


def kept(
    none: Tensor, text: Tensor, loss: Tensor, mismatched: Tensor | None = None, *, seed: int = 0
) -> Kept:
    """Retention, pooled over rows: Σ(none - loss) / Σ(none - text).

    The interval is a paired bootstrap (Efron and Tibshirani 1993, chapter 13), which draws all
    losses of a row together. Where the text gains nothing the figures are None.

    Args:
        none: Loss per row without the message, (rows,).
        text: With the full text, (rows,).
        loss: Under the condition in question, (rows,).
        mismatched: With another example's message, (rows,); None leaves the specific figures out.
        seed: Of the draws.
    """
    losses = torch.stack([none, text, loss, loss if mismatched is None else mismatched])
    losses = losses.double().cpu()
    rows = losses.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(rows, (DRAWS, rows), generator=generator)
    sums = torch.cat([losses.sum(dim=1)[:, None], losses[:, drawn].sum(dim=2)], dim=1)
    gain = sums[0] - sums[1]
    share = (sums[0] - sums[2]) / gain
    lost = (sums[0] - sums[3]) / gain
    specific = share - lost.clamp_min(0)
    nothing = Estimate(None, None, None)
    return Kept(
        _estimate(share, gain > 0), nothing if mismatched is None else _estimate(specific, gain > 0)
    )


def _estimate(figures: Tensor, sound: Tensor) -> Estimate:
    """The first figure is that of all rows, the others are draws; only the sound ones count."""
    if not bool(sound[0]):
        return Estimate(None, None, None)
    draws = figures[1:][sound[1:]]
    value = float(figures[0])
    if len(draws) < TRUSTED * (len(figures) - 1):
        return Estimate(value, None, None)
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Estimate(value, low, high)


PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Lower case, no punctuation, no articles (Rajpurkar et al. 2016, section 6.1)."""
    bare = re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(PUNCTUATION))
    return " ".join(bare.split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 where the prediction is one of the answers once both are normalised, else 0.0."""
    return float(any(normalized(prediction) == normalized(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of the prediction's words against an answer's, 0 to 1; 0 without an answer."""
    return max((_f1(prediction, answer) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str) -> float:
    """F1 of two bags of words; two empty ones agree."""
    said, wanted = normalized(prediction).split(), normalized(answer).split()
    if not said or not wanted:
        return float(said == wanted)
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / (len(said) + len(wanted))


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z = 1.96
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half


def paired(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """Mean difference over the same rows, and its 95 % interval; see `Bootstrap`."""
    gaps = [float(one) - float(other) for one, other in zip(first, second, strict=True)]
    estimates = Bootstrap(gaps)
    return (estimates.mean, *estimates.bounds(TAIL))
