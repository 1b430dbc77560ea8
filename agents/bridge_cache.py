"""Where a workflow's bridges come from: the store, or a fit for a pair that has none."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.weights import holding
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.make import fit_bridge
from unspoken.channels.bridges.plan import DEFAULT
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import ChannelError, ModelSupportError
from unspoken.channels.model import Report
from unspoken.channels.storage.forks import ForkLock

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel
    from unspoken.channels.kv.geometry import ModelIdentity
    from unspoken.channels.projected import Bridge as AnyBridge


_Key = tuple["ModelIdentity", "ModelIdentity", torch.device]


class BridgeCache:
    """The bridges one workflow has met, each looked up or fitted once.

    Args:
        folders: Where bridges are looked for besides the user's store.
        trust: Whether audits made on other machines are believed.
    """

    def __init__(self, folders: Sequence[Path] = (), *, trust: bool = False) -> None:
        self._folders, self._trust = tuple(folders), trust
        self._known: dict[_Key, AnyBridge] = {}
        self._refused: dict[_Key, ChannelError | ModelSupportError] = {}
        self._lock = ForkLock()

    def find(self, sharer: "AgentModel", receiver: "AgentModel") -> "AnyBridge | None":
        """The bridge stored for two models, or None; a missing one is looked for again next time.

        Raises:
            BridgeError: The one stored is broken, or a fit found that the two cannot be bridged.
        """
        key = _key(sharer, receiver)
        with self._lock:
            if key in self._refused:
                raise self._refused[key]
            bridge = self._known.get(key) or _stored(self._folders, sharer, receiver, self._trust)
            if bridge is not None:
                self._known[key] = bridge
            return bridge

    def fit(
        self, sharer: "AgentModel", receiver: "AgentModel", progress: Report | None = None
    ) -> "AnyBridge":
        """The bridge of two models, fitted, audited and stored where there is none yet.

        Raises:
            InputError: The two are one model.
            BridgeError: The two models cannot be bridged.
        """
        bridge = self.find(sharer, receiver)
        if bridge is not None:
            return bridge
        with self._lock:  # two first runs at once fit a pair once
            key = _key(sharer, receiver)
            if key not in self._known:
                try:
                    fitted = _fit(sharer, receiver, progress or (lambda stage, part: None))
                except (ChannelError, ModelSupportError) as error:
                    self._refused[key] = error
                    raise
                self._known[key] = fitted
            return self._known[key]


def _key(sharer: "AgentModel", receiver: "AgentModel") -> "_Key":
    """A bridge's weights are where its receiver is, so a receiver on two devices has two."""
    return sharer.identity, receiver.identity, receiver.device


def _stored(
    folders: Sequence[Path], sharer: "AgentModel", receiver: "AgentModel", trust: bool
) -> "AnyBridge | None":
    """The pair's bridge in the user's store, or in one of the folders that come with a workflow."""
    for store in (BridgeStore(), *map(BridgeStore, folders)):
        folder = store.find(sharer.identity, receiver.identity)
        if folder is not None:
            return Bridge.load(folder, receiver.device, trust=trust)
    return None


def _fit(sharer: "AgentModel", receiver: "AgentModel", progress: Report) -> "AnyBridge":
    """Fit, audit and store a bridge; no turn of a run computes on its models' devices meanwhile."""
    if not (isinstance(sharer, LocalModel) and isinstance(receiver, LocalModel)):
        raise ModelSupportError(
            "a bridge cannot be fitted between models without weights",
            expected="two models that were loaded here",
            fix="give the edge a bridge, or let it go by text",
        )
    hold = partial(holding, (sharer, receiver))
    folder = fit_bridge(sharer, receiver, DEFAULT, hold=hold, report=progress)
    return Bridge.load(folder, receiver.device)
