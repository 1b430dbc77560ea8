"""How fast a model reads on this machine: what a time budget buys in tokens."""

from functools import partial

import torch

from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.machine import clock
from unspoken.channels.model import CausalModel

TOKENS = 64
"""Tokens of a trial: few, since the first plan with a budget waits for it."""

TRIALS = 3
"""How often it is tried. The fastest counts: other work makes the rest slower."""

# Models of one identity on one device are as fast as each other, so they are tried once.
_KNOWN: dict[tuple[ModelIdentity, torch.dtype, torch.device], float] = {}


def affordable_tokens(model: CausalModel, milliseconds: float) -> int:
    """How many tokens a model computes in a time, beside others of one prefill."""
    return int(tokens_per_second(model) * milliseconds / 1000) if milliseconds else 0


def tokens_per_second(model: CausalModel) -> float:
    """How many tokens a second a model computes in a prefill, measured once in a process."""
    key = model.identity, model.dtype, model.device
    if key not in _KNOWN:
        _KNOWN[key] = _measured(model)
    return _KNOWN[key]


def _measured(model: CausalModel) -> float:
    count = min(TOKENS, model.geometry.max_positions)
    ids = torch.zeros(count, dtype=torch.long, device=model.device)
    return count / min(clock(partial(model.prefill, ids), model.device) for _ in range(TRIALS))
