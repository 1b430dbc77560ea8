"""The bridge that stands where a new one would go."""

from pathlib import Path

from unspoken.channels.bridges.folder import BRIDGE, MANIFEST, check, read_manifest
from unspoken.channels.bridges.plan import FitPlan
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.bridges.trust import measured_here
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.side import pair_digest


def check_place(folder: Path, sharer: ModelIdentity, receiver: ModelIdentity) -> None:
    """Refuse, before anything is fitted, a folder that the pair's bridge cannot go to.

    Raises:
        BridgeError: It holds another pair's bridge, or other things.
    """
    BRIDGE.require_ours(folder)
    if not (folder / MANIFEST).exists():
        return
    theirs = read_manifest(folder)
    if theirs.pair != pair_digest(sharer, receiver):
        raise BridgeError(
            f"{folder} holds the bridge {theirs.sharer.ref} -> {theirs.receiver.ref}",
            expected="a new folder, or one with a bridge of the pair that is fitted",
            fix="name another folder",
        )


def standing_bridge(
    store: BridgeStore, plan: FitPlan, sharer: ModelIdentity, receiver: ModelIdentity
) -> Path | None:
    """The pair's bridge where the new one would go; a broken one is none where it is refitted."""
    try:
        if plan.out is None:
            return store.find(sharer, receiver)
        if not (plan.out / MANIFEST).exists():
            return None
        check(plan.out)
        return plan.out
    except BridgeError:
        if plan.refit:
            return None
        raise


def is_ours(standing: Path | None) -> bool:
    """Whether what a new bridge takes over from the one that stands was made here too."""
    return standing is None or measured_here(read_manifest(standing))
