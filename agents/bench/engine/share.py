"""How much of the processor a measurement had: beside every timing, so that a busy machine shows.

Two threads that wait for each other are much slower beside another program than their share of the
processor says. A timing that had less than nine tenths of it is called contended: measure again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import process_time
from typing import Any

import torch

from unspoken.channels.machine import Key, clock, in_turn

__all__ = [
    "CONTENDED_BELOW",
    "Timing",
    "figures",
    "median_seconds",
    "said",
    "timed",
    "timed_in_turn",
    "total",
]

CONTENDED_BELOW = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A piece of work, timed.

    Attributes:
        seconds: From its begin to its end.
        cpu_share: User and system time of this process, over `seconds` times torch's threads; None
            where an accelerator computes.
    """

    seconds: float
    cpu_share: float | None


def timed(run: Callable[[], object], device: torch.device) -> Timing:
    """Time a computation, all that it started on its device included."""
    began = process_time()
    seconds = clock(run, device)
    work = process_time() - began
    share = work / (seconds * torch.get_num_threads()) if device.type == "cpu" else None
    return Timing(seconds=seconds, cpu_share=share)


def timed_in_turn(
    ways: Mapping[Key, Callable[[], object]],
    rounds: int,
    device: torch.device,
    on_round: Callable[[float], None] = lambda fraction: None,
    *,
    warm_up: bool = True,
) -> dict[Key, list[Timing]]:
    """The timings of each way, one a round; see `unspoken.channels.machine.in_turn`."""

    def clock_of(run: Callable[[], object]) -> Callable[[], Timing]:
        return lambda: timed(run, device)

    clocks = {way: clock_of(run) for way, run in ways.items()}
    return in_turn(clocks, rounds, on_round, warm_up=warm_up)


def total(parts: Sequence[Timing]) -> Timing:
    """Pieces of work that were done one after another, as one."""
    seconds = sum(part.seconds for part in parts)
    shares = [part.cpu_share for part in parts if part.cpu_share is not None]
    if not shares:
        return Timing(seconds=seconds, cpu_share=None)
    work = sum(part.seconds * (part.cpu_share or 0.0) for part in parts)
    return Timing(seconds=seconds, cpu_share=work / seconds)


def median_seconds(timings: Sequence[Timing]) -> float:
    """The median of their seconds."""
    return median(timing.seconds for timing in timings)


def figures(timings: Sequence[Timing]) -> dict[str, Any]:
    """What a row says of one condition's timings.

    Returns:
        ``seconds`` (their median), ``fastest_s``, ``rounds``, and on a CPU ``cpu_share`` (the
        median) and ``contended``.
    """
    row: dict[str, Any] = {
        "seconds": round(median_seconds(timings), 4),
        "fastest_s": round(min(timing.seconds for timing in timings), 4),
        "rounds": len(timings),
    }
    share = _share(timings)
    if share is not None:
        row |= {"cpu_share": round(share, 3), "contended": share < CONTENDED_BELOW}
    return row


def said(timings: Sequence[Timing]) -> str:
    """The same in words, for a line of progress."""
    words = f"{median_seconds(timings):.3f} s"
    share = _share(timings)
    if share is None:
        return words
    return f"{words} (CPU share {share:.2f}{', contended' if share < CONTENDED_BELOW else ''})"


def _share(timings: Sequence[Timing]) -> float | None:
    shares = [timing.cpu_share for timing in timings if timing.cpu_share is not None]
    return median(shares) if shares else None
