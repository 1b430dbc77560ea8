"""A bridge between two models: what it carries, and how fast; the same figures as its audit."""

from pathlib import Path

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.audit.stored import audit_bridge
from unspoken.channels.bridges.folder import read_manifest
from unspoken.channels.bridges.make import fit_bridge
from unspoken.channels.bridges.plan import FitPlan
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError


def measure(
    sharer: LocalModel,
    receiver: LocalModel,
    *,
    text: Path | None = None,
    qa: Path | None = None,
    recall: Path | None = None,
    bridge: Path | None = None,
    refit: bool | None = None,
    progress: Progress,
) -> Measured:
    """The audit of a stored bridge, or with `refit` of a new one, which then takes its place.

    Raises:
        BridgeError: There is none.
    """
    plan = AuditPlan(text=text, qa=qa, recall=recall)

    def show(stage: str, fraction: float) -> None:
        progress(stage)

    again = FitPlan(audit=plan, refit=True, out=bridge)
    if refit:
        bridge = fit_bridge(sharer, receiver, again, report=show)
    folder = bridge or _stored(sharer, receiver)
    audit = read_manifest(folder).audit if refit else None
    audit = audit or audit_bridge(folder, sharer, receiver, plan, report=show)
    return [dict(row) for row in audit.rows], dict(audit.summary)


def _stored(sharer: LocalModel, receiver: LocalModel) -> Path:
    folder = BridgeStore().find(sharer.identity, receiver.identity)
    if folder is None:
        raise BridgeError(
            f"there is no bridge from {sharer.ref} to {receiver.ref}",
            expected="a stored bridge, or --bridge DIR",
            fix=f"unspoken bridge fit {sharer.ref} {receiver.ref}, or give --refit",
        )
    return folder
