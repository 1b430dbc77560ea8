"""The fusers that the fuse study measures: stored, kept from an earlier run, or fitted now."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from study import Progress
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.fit.checkpoint import forget
from unspoken.channels.bridges.fit.fuse_training import FuserFit
from unspoken.channels.bridges.fit.progress import FitProgress
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.folder import MANIFEST, write
from unspoken.channels.bridges.fuser import Fuser, fuse_tensors, load_fuser
from unspoken.channels.bridges.make import work_folder
from unspoken.channels.bridges.manifest import BridgeManifest, FitData
from unspoken.channels.bridges.standing import check_place
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.data.text import load_corpus
from unspoken.channels.errors import BridgeError
from unspoken.channels.storage.side import ModelDescription

__all__ = ["FUSED", "SELF", "Figures", "FusePlan", "fusers"]

FUSED, SELF = "fused", "self-fused"

DTYPE = "int8"
DAY = 1440.0
"""Minutes that a fit which counts its steps does not take."""

Figures = Mapping[str, float | int | str | None]
"""Of a fit, as a manifest's ``fit`` holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusePlan:
    """What the study runs on.

    Attributes:
        bridge: Folder of the pair's bridge; by default the stored one, and where there is none with
            fuse mode, a fuser is fitted.
        self_bridge: Folder of a bridge with fuse mode from the receiver to itself; fitted where it
            is not given.
        keep: Folder that keeps what is fitted, in ``fused`` and ``self-fused``; what lies there
            already is taken.
        settings: How fusers are fitted; a control gets the fuser's steps and widths.
        rows: Most rows.
        seed: Of the rows drawn.
        command: The command to record with what is kept.
    """

    bridge: Path | None = None
    self_bridge: Path | None = None
    keep: Path | None = None
    settings: FuseSettings = field(default_factory=FuseSettings)
    rows: int = 200
    seed: int = 0
    command: str = ""


def fusers(
    sharer: LocalModel, receiver: LocalModel, plan: FusePlan, progress: Progress
) -> tuple[tuple[Fuser, Figures], tuple[Fuser, Figures]]:
    """The pair's fuser and its control, the receiver fused with itself, with the figures of fits.

    A fit that was killed goes on from what it left in the user's store.

    Raises:
        BridgeError: A folder without a fuser, one that fusers cannot be kept in, or models that
            cannot be bridged.
    """
    if plan.keep is not None:
        for name, model in ((FUSED, sharer), (SELF, receiver)):
            check_place(plan.keep / name, model.identity, receiver.identity)
    fuser, fit = _stored(sharer, receiver, plan) or _fitted(
        sharer, receiver, plan, plan.settings, FUSED, progress
    )
    if plan.self_bridge is not None:
        return (fuser, fit), load_fuser(plan.self_bridge, receiver, receiver)
    settings = _control(plan.settings, fuser, fit)
    return (fuser, fit), _fitted(receiver, receiver, plan, settings, SELF, progress)


def _stored(
    sharer: LocalModel, receiver: LocalModel, plan: FusePlan
) -> tuple[Fuser, Figures] | None:
    """The fuser of the folder that was named, or of the store's bridge where that has one."""
    folder = plan.bridge or BridgeStore().find(sharer.identity, receiver.identity)
    try:
        return None if folder is None else load_fuser(folder, sharer, receiver)
    except BridgeError:
        if plan.bridge is not None:
            raise
        return None


def _fitted(
    sharer: LocalModel,
    receiver: LocalModel,
    plan: FusePlan,
    settings: FuseSettings,
    name: str,
    progress: Progress,
) -> tuple[Fuser, Figures]:
    """The fuser that was kept under a name, or one that is fitted now and kept there."""
    place = None if plan.keep is None else plan.keep / name
    if place is not None and (place / MANIFEST).exists():
        return load_fuser(place, sharer, receiver)
    store, ends = BridgeStore(), (sharer.identity, receiver.identity)
    work, corpus = work_folder(store, *ends), load_corpus()
    watch = _watch(progress, f"fitting {name}: {sharer.ref} -> {receiver.ref}")
    with store.lock(*ends, waiting=progress):
        fitted = FuserFit(sharer, receiver, corpus, settings, report=watch, work=work).run()
        if place is not None:
            manifest = BridgeManifest.new(
                ModelDescription.of(sharer, sharer.ref),
                ModelDescription.of(receiver, receiver.ref),
                config={"fuse": fitted.module.config.to_dict()},
                dtype=DTYPE,
                data=FitData(
                    sources=corpus.sources,
                    digest=corpus.digest,
                    tokens=fitted.tokens,
                    seed=settings.seed,
                ),
                fit={**fitted.figures, **({"command": plan.command} if plan.command else {})},
            )
            write(place, manifest, fuse_tensors(fitted.module, DTYPE))
        forget(work, "fuse")
    # What is kept is stored in few bits: it is measured as it was stored.
    return (fitted.module, fitted.figures) if place is None else load_fuser(place, sharer, receiver)


def _control(settings: FuseSettings, fuser: Fuser, fit: Figures) -> FuseSettings:
    """The fuser's widths and steps, so that its control does not get fewer."""
    config, steps = fuser.config, fit.get("fuse_steps")
    if isinstance(steps, int):
        settings = replace(settings, steps=steps, minutes=DAY, patience=max(steps, 1))
    return replace(
        settings,
        source_layers=len(config.own_layers),
        own_layers=len(config.own_layers),
        rank=config.rank,
        own_rank=config.own_rank,
        hidden=config.hidden,
        bottleneck=config.bottleneck,
        last=config.last,
    )


def _watch(progress: Progress, what: str) -> Callable[[FitProgress], None]:
    def show(step: FitProgress) -> None:
        if step.scores is not None:
            gains = step.scores.describe()
            progress(f"{what}: {step.fraction:.0%}, held-out loss taken off: {gains}")

    return show
