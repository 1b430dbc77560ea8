"""Small fusers, and bridges that have one."""

from pathlib import Path
from typing import Any

import torch

from unspoken.agents import LocalModel
from unspoken.channels.bridges.bridge import Bridge, tensors_of
from unspoken.channels.bridges.folder import write
from unspoken.channels.bridges.fuser import Fuser, FuserConfig
from unspoken.channels.bridges.manifest import BridgeManifest, FitData
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.storage.side import ModelDescription

PIECES = tuple(
    f"the key {n} of the cache was in the document that the reader from " * 14 for n in range(5)
)


CORPUS = Corpus(train=PIECES, validation=PIECES[:2], sources=("tiny",), digest="0")


SMALL: dict[str, Any] = {
    "source_layers": 2, "own_layers": 2, "rank": 12, "own_rank": 6, "hidden": 24, "bottleneck": 8,
    "gram_tokens": 700, "validation": 4, "minutes": 5, "every": 600, "batch": 2,
}  # fmt: skip


def fuser_between(sharer: LocalModel, receiver: LocalModel, *, trained: bool) -> Fuser:
    """A fuser of random weights that changes nothing yet, or something."""
    torch.manual_seed(0)
    config = FuserConfig(
        source_layers=(0, 1), own_layers=(1,), rank=8, own_rank=4, hidden=16, bottleneck=4
    )
    fuser = Fuser(config, sharer.geometry, receiver.geometry)
    with torch.no_grad():
        for weight in (fuser.encode, fuser.own_encode, *([fuser.spread] if trained else [])):
            weight.normal_(std=0.3)
    return fuser.eval().requires_grad_(False)


def bridge_between(
    sharer: LocalModel, receiver: LocalModel, folder: Path, fuser: Fuser | None, dtype: str = "int8"
) -> Bridge:
    """A bridge with an untrained projector, written and read again."""
    config = ProjectorConfig(source_layers=(0,), rank=8, hidden=8, bottleneck=4)
    projector = Projector(config, sharer.geometry, receiver.geometry)
    more = {} if fuser is None else {"fuse": fuser.config.to_dict()}
    manifest = BridgeManifest.new(
        ModelDescription.of(sharer, "their/model"),
        ModelDescription.of(receiver, "our/model"),
        config={**config.to_dict(), **more},
        dtype=dtype,
        data=FitData(sources=("tiny",), digest="00", tokens=1, seed=0),
        fit={},
    )
    write(folder, manifest, tensors_of(projector, dtype, fuser))
    return Bridge.load(folder)
