"""What a benchmark runs on, and its clock."""

import datetime
import os
import platform
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
import transformers

from unspoken.channels.model import TextModel

Key = TypeVar("Key", bound=Hashable)
Figure = TypeVar("Figure")


def describe_machine(model: TextModel) -> dict[str, Any]:
    """Processor, threads, versions, model and date."""
    device = model.device
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device": str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": model.ref,
        "dtype": str(model.dtype).removeprefix("torch."),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def medians(
    conditions: Mapping[Key, Callable[[], object]],
    rounds: int,
    device: torch.device,
    on_round: Callable[[float], None] = lambda fraction: None,
) -> dict[Key, float]:
    """Median seconds of each condition, measured as `in_turn` does."""
    clocks = {name: partial(clock, run, device) for name, run in conditions.items()}
    return {name: median(seconds) for name, seconds in in_turn(clocks, rounds, on_round).items()}


def in_turn(
    conditions: Mapping[Key, Callable[[], Figure]],
    rounds: int,
    on_round: Callable[[float], None] = lambda fraction: None,
    *,
    warm_up: bool = True,
) -> dict[Key, list[Figure]]:
    """What each condition returns, such as its seconds, one figure a round.

    In every round each condition has its turn, so that a busy machine slows all of them. With
    `warm_up` a round before the first is not counted.
    """
    figures: dict[Key, list[Figure]] = {name: [] for name in conditions}
    every = rounds + warm_up
    for number in range(every):
        for name, run in conditions.items():
            figure = run()
            if number >= warm_up:
                figures[name].append(figure)
        on_round((number + 1) / every)
    return figures


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a computation, all that it started on its device included."""
    wait(device)
    began = perf_counter()
    run()
    wait(device)
    return perf_counter() - began


def wait(device: torch.device) -> None:
    """Until the device has done all that was started on it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
