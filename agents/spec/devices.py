"""Where a model runs, as a workflow file says it: one device, or a map over several."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from unspoken.agents.spec.field_types import wrong
from unspoken.agents.spec.generate import Part

__all__ = ["Device", "DeviceMap"]

Strategy = Literal["auto", "balanced", "balanced_low_0", "sequential"]
_DEVICE = r"[a-z]+(:[0-9]+)?"


class DeviceMap(Part):
    """A model over several devices."""

    map: Strategy | dict[str, str] = Field(
        description="How the model is shared out by the memory of the accelerators, as "
        "transformers names it, or a device for each module."
    )


def _check(device: object) -> object:
    """Refuse what is neither, before the union of both would tell of it twice."""
    asked: Any = device.map if isinstance(device, DeviceMap) else device
    if isinstance(asked, Mapping):
        others, asked = set(asked) - {"map"}, asked.get("map")
        if others or not (isinstance(asked, Mapping) or asked in get_args(Strategy)):
            wrong(
                f"{dict(device)!r} is not a device",  # type: ignore[call-overload]
                f"map: {', '.join(get_args(Strategy))}, or a device for each module",
                "write {map: auto}, or name one device",
            )
    for one in asked.values() if isinstance(asked, Mapping) else [asked]:
        if not isinstance(one, str) or not re.fullmatch(_DEVICE, one):
            wrong(
                f"{one!r} is not a device", "auto, cpu, cuda, cuda:0, mps or another torch device"
            )
    return device


Device = Annotated[str | DeviceMap, BeforeValidator(_check)]
