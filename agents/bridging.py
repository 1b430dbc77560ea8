"""Where a workflow's bridges come from: the store, or a fit for a pair that has none."""

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel
    from unspoken.channels.geometry import ModelIdentity
    from unspoken.channels.projected import Bridge

__all__ = ["BridgeShelf", "Progress"]

Progress = Callable[[str, float], None]
"""Called with a stage and a fraction."""


class BridgeShelf:
    """The bridges one workflow has met, each looked up or fitted once."""

    def __init__(self) -> None:
        self._known: dict[tuple[ModelIdentity, ModelIdentity], Bridge] = {}
        self._lock = Lock()

    def find(self, sharer: "LocalModel", receiver: "LocalModel") -> "Bridge | None":
        """The bridge stored for two models, or None; one that is missing is looked for again next time."""
        key = sharer.identity, receiver.identity
        with self._lock:
            found = self._known.get(key) or _lookup(sharer, receiver)
            if found is not None:
                self._known[key] = found
            return found

    def fit(
        self, sharer: "LocalModel", receiver: "LocalModel", progress: Progress | None = None
    ) -> "Bridge":
        """The bridge of two models, fitted, audited and stored where there is none yet.

        Raises:
            InputError: The two models cannot be bridged.
        """
        found = self.find(sharer, receiver)
        if found is not None:
            return found
        with self._lock:  # two first runs at once fit a pair once
            key = sharer.identity, receiver.identity
            if key not in self._known:
                self._known[key] = _fit(sharer, receiver, progress or (lambda stage, part: None))
            return self._known[key]


def _lookup(sharer: "LocalModel", receiver: "LocalModel") -> "Bridge | None":
    """The stored bridge of a pair. TO COMPLETE: `unspoken.channels.bridges.store.BridgeStore.find`."""
    return None


def _fit(sharer: "LocalModel", receiver: "LocalModel", progress: Progress) -> "Bridge":
    """Fit, audit and store a bridge. TO COMPLETE: the fit function of the bridges."""
    raise InputError(
        f"no bridge can be fitted from {sharer.ref} to {receiver.ref} here",
        fix=f"fit it with `unspoken bridge fit {sharer.ref} {receiver.ref}`",
    )
