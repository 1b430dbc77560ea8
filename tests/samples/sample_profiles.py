"""A profile of two models, as tests need it: points of a given KL."""

import datetime as dt

from unspoken.channels.bridges.manifest import ModelDescription
from unspoken.channels.finetunes.profile import Estimate, Point, Profile
from unspoken.channels.finetunes.recompute import LayerRanges
from unspoken.channels.model import CausalModel
from unspoken.channels.storage.side import AuditFile


def point(
    layer_ranges: LayerRanges,
    kl: float,
    layers: int,
    *,
    moved: float | None = None,
    speedup: float = 2.0,
) -> Point:
    """A point whose intervals end a tenth above its KL; `moved` is the KL behind other tokens."""
    places = {"prefix": kl, "after 24": kl if moved is None else moved}
    return Point(
        layer_ranges=layer_ranges,
        share=sum(last - first for first, last in layer_ranges) / layers,
        bytes_per_token=64,
        places={
            name: Estimate(kl=kl, low=0.9 * kl, high=1.1 * kl, top1=0.9)
            for name, kl in places.items()
        },
        speedup=speedup,
    )


def profile_of(sharer: CausalModel, receiver: CausalModel, *points: Point) -> Profile:
    """A profile with these points."""
    return Profile(
        unspoken="0",
        created=dt.date(2026, 1, 1),
        sharer=ModelDescription.of(sharer, "sharer"),
        receiver=ModelDescription.of(receiver, "receiver"),
        data=AuditFile(name="builtin", digest="0", rows=2),
        settings={
            "message_tokens": 8,
            "forced_tokens": 2,
            "judged_on": 1,
            "searched_on": 1,
            "timed_tokens": 8,
            "seed": 0,
            "sink": 4,
        },
        machine={"device": "cpu"},
        points=points,
        searched=len(points),
    )
