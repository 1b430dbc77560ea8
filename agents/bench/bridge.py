"""A bridge between two models: what it carries, and how fast; the same figures as its audit."""

from pathlib import Path
from typing import Any

from unspoken.agents.bench import Files, Measured, Progress
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.stored import AuditPlan, audit_bridge
from unspoken.channels.bridges.folder import read_manifest
from unspoken.channels.bridges.make import fit_bridge
from unspoken.channels.bridges.plan import FitPlan
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError

__all__ = ["measure"]


def measure(
    sharer: LocalModel,
    receiver: LocalModel,
    files: Files,
    progress: Progress,
    *,
    bridge: Path | None = None,
    refit: bool = False,
) -> Measured:
    """The audit of a stored bridge, or with `refit` of a new one, which then takes its place.

    Raises:
        BridgeError: There is none.
    """
    plan = AuditPlan(files.text, files.qa, files.recall)
    told = _stages(progress)
    if refit:
        again = FitPlan(audit=plan, refit=True, out=bridge)
        folder = fit_bridge(sharer, receiver, again, report=told)
        measured = read_manifest(folder).audit
        if measured is not None:
            return [dict(row) for row in measured.rows], dict(measured.summary)
    folder = bridge or _stored(sharer, receiver)
    found = audit_bridge(folder, sharer, receiver, plan, report=told)
    return [dict(row) for row in found.rows], dict(found.summary)


def _stages(progress: Progress) -> Any:
    """Tell of every stage once."""
    seen: set[str] = set()

    def told(stage: str, fraction: float) -> None:
        if stage not in seen:
            seen.add(stage)
            progress(stage)

    return told


def _stored(sharer: LocalModel, receiver: LocalModel) -> Path:
    found = BridgeStore().find(sharer.identity, receiver.identity)
    if found is None:
        raise BridgeError(
            f"there is no bridge from {sharer.ref} to {receiver.ref}",
            expected="a stored bridge, or --bridge DIR",
            fix=f"unspoken bridge fit {sharer.ref} {receiver.ref}, or give --refit",
        )
    return found
