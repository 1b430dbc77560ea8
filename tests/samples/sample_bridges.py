"""Small bridges between models that do not exist, for the tests of their store."""

import datetime as dt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspoken.channels.bridges.manifest import Audit, BridgeManifest, FitData
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.side import AuditFile, ModelDescription

__all__ = ["ALPHA", "AUDIT", "BETA", "flip", "identity", "manifest", "same", "side", "tensors"]

AUDIT = Audit(
    date=dt.date(2026, 1, 2),
    machine={"cpu": "a tiny one", "cores": 2},
    files=(AuditFile(name="qa.jsonl", digest="ab" * 32, rows=40),),
    rows=(
        {"task": "qa", "message": "full text", "loss": 1.25, "accuracy": 0.75},
        {"task": "qa", "message": "a | b", "loss": 2.5, "accuracy": None},
    ),
    summary={"retention": 0.8125, "specific_retention": 0.75, "note": "on two files", "gap": None}
    | {
        "contexts": 120,
        "fitted_text_compared": "yes",
        "message_kept": 0.75,
        "message_kept_low": 0.7,
        "sharer_adds": 0.2,
    }
    | {"sharer_adds_low": 0.1, "task_difference_low": -0.01, "fuse_over_mismatched_low": 0.02}
    | {"fuse_n": 100},
    retention_lower_bound=0.7,
)


def identity(name: str) -> ModelIdentity:
    """Made-up digests, other ones for every name."""
    return ModelIdentity(f"{name}-weights", f"{name}-config", f"{name}-tokenizer")


ALPHA, BETA = identity("owner/Alpha"), identity("owner/Beta")


def side(ref: str) -> ModelDescription:
    """An end of a bridge with two rotary embeddings, whose frequencies have no short decimals."""
    frequencies = (1.0 / 10000 ** (torch.arange(4, dtype=torch.float32) / 4)).tolist()
    layer = {"kv_heads": 1, "head_dim": 8, "rope": "full", "window": None}
    return ModelDescription.model_validate(
        {
            "ref": ref,
            "identity": {
                name: getattr(identity(ref), name) for name in ("weights", "config", "tokenizer")
            },
            "geometry": {
                "layers": [layer, layer | {"rope": "sliding", "window": 16}],
                "hidden_size": 32,
                "max_positions": 64,
            },
            "rotary": {
                "full": {"inverse_frequencies": frequencies, "scale": 1.0, "dynamic": False},
                "sliding": {"inverse_frequencies": frequencies, "scale": 1.25, "dynamic": False},
            },
            "layer_dtype": "float32",
        }
    )


def manifest(sharer: str = "owner/Alpha", receiver: str = "owner/Beta", **fields: Any) -> Any:
    """A manifest before its tensors are written."""
    given: dict[str, Any] = {
        "config": {"rank": 8, "layers": [0, 1], "gate": "sigmoid"},
        "dtype": "float32",
        "data": FitData(sources=("built-in",), digest="cd" * 32, tokens=1234, seed=7),
        "fit": {"seconds": 12.5, "epochs": 2, "note": None},
    }
    return BridgeManifest.new(side(sharer), side(receiver), **(given | fields))


def tensors(seed: int = 0, size: int = 8) -> dict[str, Tensor]:
    """Random weights of a few dtypes and shapes."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "keys.0": torch.randn(2, size, size, generator=draw),
        "values.0": torch.randn(size, size, generator=draw).to(torch.bfloat16),
        "gate": torch.randn((), generator=draw),
        "layers": torch.tensor([0, 1]),
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether both hold the same names, dtypes and values."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def flip(bridge: Path) -> None:
    """Change the last bit of a bridge's weights."""
    data = bytearray((bridge / "bridge.safetensors").read_bytes())
    data[-1] ^= 1
    (bridge / "bridge.safetensors").write_bytes(data)
