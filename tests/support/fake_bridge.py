"""Where a workflow looks for bridges, in tests: among fake ones."""

from typing import Any

from unspoken.agents import LocalModel
from unspoken.agents.testing import FakeBridge


def finder(*bridges: FakeBridge) -> Any:
    """Looks for a bridge among these."""
    by_ends = {(one.sharer.identity, one.receiver.identity): one for one in bridges}

    def find(sharer: LocalModel, receiver: LocalModel) -> FakeBridge | None:
        return by_ends.get((sharer.identity, receiver.identity))

    return find
