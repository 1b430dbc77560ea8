"""Copies of states on other devices, made once for all who read them there."""

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from unspoken.channels.kv.state import KVState

_COPIES: "WeakKeyDictionary[KVState, dict[tuple[torch.device, ...], KVState]]" = WeakKeyDictionary()


def rows_at(state: KVState, devices: Sequence[torch.device]) -> KVState:
    """A state's rows on other devices, without its hidden states: one copy however many ask.

    The copy lives as long as the state that it is of.

    Args:
        state: The state.
        devices: Where each layer is wanted.

    Returns:
        The state itself, hidden states included, where it is there already.
    """
    wanted = tuple(devices)
    if state.devices == wanted:
        return state
    copies = _COPIES.setdefault(state, {})
    if wanted not in copies:
        copies[wanted] = replace(state, hidden={}).to(wanted)
    return copies[wanted]
