"""``unspoken bridge plan``: what a bridge would be, before a weight is loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from unspoken.agents.cli.console import count, print_facts, print_json, shown, size, stdout
from unspoken.agents.cli.options import (
    Device,
    Dtype,
    Longest,
    Minutes,
    Receiver,
    Sharer,
    Sketch,
    TrainDtype,
    float_type,
    given,
)
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import ModelSupportError

if TYPE_CHECKING:
    import torch

    from unspoken.channels.bridges.estimate import BridgeEstimate
    from unspoken.channels.bridges.fit.settings import FitSettings

EXITS = {"worth it": 0, "refused": 1, "useless": 3}


def plan(
    sharer: Sharer,
    receiver: Receiver,
    minutes: Minutes = None,
    longest: Longest = None,
    sketch: Sketch = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    train_dtype: TrainDtype = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate what a bridge between two models would be, from their configurations alone.

    Its size, the minutes and steps of a fit on this machine, and the time to the first token. The
    exit code is 0 where it is worth it, 1 where the two cannot be bridged, and 3 where it saves
    time at no length.
    """
    from unspoken.channels.bridges.estimate import BridgeEstimate
    from unspoken.channels.bridges.fit.settings import FitSettings

    settings = FitSettings(**given(minutes=minutes, longest=longest, sketch=sketch))
    types = _Types(
        device=device,
        dtype=float_type(None if dtype == "auto" else dtype, "--dtype"),
        train=float_type(train_dtype, "--train-dtype"),
    )
    try:
        estimate = _estimate(sharer, receiver, settings, types)
    except ModelSupportError as error:
        estimate = BridgeEstimate(reason=str(error).splitlines()[0], gains={})
    if as_json:
        print_json({"sharer": sharer, "receiver": receiver, **estimate.to_dict()})
    else:
        _print(sharer, receiver, estimate)
    raise typer.Exit(EXITS[estimate.verdict])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Types:
    """Where, and in which float types, both models would compute; None for what loading chooses."""

    device: str
    dtype: "torch.dtype | None"
    train: "torch.dtype | None"


def _estimate(
    sharer: str, receiver: str, settings: "FitSettings", types: _Types
) -> "BridgeEstimate":
    import torch

    from unspoken.agents.models.headers import ModelHeader, read_header
    from unspoken.channels.bridges import estimate as estimates

    if sharer == receiver:
        return estimates.BridgeEstimate(reason="the two are one model", gains={})
    own = torch.accelerator.current_accelerator() or torch.device("cpu")
    place = own if types.device == "auto" else torch.device(types.device)

    def dtype_of(header: ModelHeader) -> torch.dtype:
        """As `LocalModel.load` chooses it."""
        stored = torch.float32 if place.type == "cpu" else header.dtype or torch.bfloat16
        return types.dtype or stored

    def end(header: ModelHeader) -> estimates.End:
        return estimates.End(
            geometry=header.geometry,
            size=header.size,
            itemsize=dtype_of(header).itemsize,
            copied=types.train.itemsize if types.train else 0,
            dynamic=header.dynamic,
        )

    headers = read_header(sharer), read_header(receiver)
    machine = estimates.calibrate(place, types.train or dtype_of(headers[1]))
    return estimates.estimate(end(headers[0]), end(headers[1]), machine, settings)


def _print(sharer: str, receiver: str, estimate: "BridgeEstimate") -> None:
    from unspoken.channels.bridges.estimate import FEW

    console = stdout()
    if estimate.reason is not None:
        console.print(shown(f"{sharer} -> {receiver}: refused: {estimate.reason}"), soft_wrap=True)
        return
    share, steps = estimate.sharer_share or 0.0, estimate.steps or 0
    few = f"; fewer than {FEW} train hardly anything" if steps < FEW else ""
    sketch = f", each brought to {estimate.sketch} columns" if estimate.sketch else ""
    gains = (
        f"{_length(length)}: {'–' if gain is None else f'{gain:.1f}x'}"
        for length, gain in estimate.gains.items()
    )
    even = "never" if estimate.break_even is None else f"{count(estimate.break_even)} tokens"
    facts = [
        ("bridge", f"{sharer} -> {receiver}"),
        ("verdict", estimate.verdict),
        ("columns", f"{count(estimate.columns)}, {share:.0%} of them the sharer's"),
        ("source layers", f"{estimate.source_layers}{sketch}"),
        ("rank", str(estimate.rank)),
        ("size on disk", size(estimate.bytes or 0)),
        ("memory at the peak", size(estimate.peak_bytes or 0)),
        ("closed form here", f"{estimate.closed_form_minutes:.1f} minutes"),
        ("training here", f"{count(steps)} steps in {estimate.minutes:.0f} minutes{few}"),
        ("message of the training", f"{count(estimate.message_tokens)} tokens on average"),
        ("second fit, to judge it", f"{estimate.judge_minutes:.0f} minutes"),
        ("first token against text", ", ".join(gains)),
        ("faster from", even),
    ]
    print_facts(console, facts)


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k"
