"""Fitting a bridge for a pair of models: fitted, packed, audited, and kept in the store or a
folder.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from unspoken.agents.engines.local import holding
from unspoken.channels.bridges.audit.audit import audit
from unspoken.channels.bridges.audit.fuse_audit import with_fuse
from unspoken.channels.bridges.bridge import Bridge, tensors_of
from unspoken.channels.bridges.features import width, widths
from unspoken.channels.bridges.fit.checkpoint import forget, peak_memory_gb
from unspoken.channels.bridges.fit.fuse_training import FuseResult, fit_fuser
from unspoken.channels.bridges.fit.initialization import within_columns
from unspoken.channels.bridges.fit.progress import FitProgress, FuseProgress
from unspoken.channels.bridges.fit.ridge import gram_bytes
from unspoken.channels.bridges.fit.settings import FitSettings, FuseSettings
from unspoken.channels.bridges.fit.training import FitResult, check_pair, fit
from unspoken.channels.bridges.folder import (
    MANIFEST,
    check,
    read,
    read_manifest,
    require_ours,
    write,
)
from unspoken.channels.bridges.fuser import fuse_tensors, load_fuser
from unspoken.channels.bridges.manifest import BridgeManifest, FitData, ModelDescription, TensorFile
from unspoken.channels.bridges.plan import DEFAULT, FitPlan
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.data.text import Corpus, load_corpus
from unspoken.channels.errors import BridgeError, InputError
from unspoken.channels.machine import describe_machine
from unspoken.channels.storage.side import pair_digest

if TYPE_CHECKING:
    from torch import Tensor

    from unspoken.agents.models.model import LocalModel
    from unspoken.channels.kv.geometry import ModelIdentity

__all__ = [
    "Progress",
    "check_place",
    "fit_bridge",
    "work_folder",
]

Progress = Callable[[str, float], None]
"""Called with a stage and a fraction."""

DTYPE = "int8"


def fit_bridge(
    sharer: "LocalModel",
    receiver: "LocalModel",
    plan: FitPlan = DEFAULT,
    *,
    store: BridgeStore | None = None,
    report: Progress = lambda stage, fraction: None,
    watch: Callable[[FitProgress], None] = lambda progress: None,
) -> Path:
    """Fit, pack, audit and keep a bridge; one process at a time per pair. Gives its folder.

    Meanwhile no turn of a run takes place on the devices of the two; see `holding`. A fit that was
    killed goes on from what it left in the store. Where the pair has a bridge already (or another
    process made one while this one waited), that one is taken unless `plan.refit`; with
    `plan.fuse`, the module of fuse mode is added to it where it lacks one. A refit without
    `plan.fuse` keeps the module of fuse mode that there is.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is made.
        plan: How.
        store: Where bridges are; the user's if not given.
        report: Told of stages.
        watch: Told of the fit's progress.

    Raises:
        BridgeError: The two cannot be bridged, or the bridge cannot be stored.
        InputError: A source of text or rows that cannot be read.
    """
    check_pair(sharer, receiver)
    if sharer.identity == receiver.identity:
        raise InputError(
            f"{sharer.ref} and {receiver.ref} are one model, and a bridge leads between two",
            expected="two models with different weights",
            fix="use channel: same_model_cache between its agents",
        )
    store = store or BridgeStore()
    ends = sharer.identity, receiver.identity
    if plan.out is not None:
        check_place(plan.out, *ends)
    began = monotonic()
    devices = (sharer.device, receiver.device)
    with store.lock(*ends, waiting=lambda line: report(line, 0.0)), holding(devices):
        old = _standing(store, plan, *ends)
        work = work_folder(store, *ends)
        if old is not None and not plan.refit:
            if plan.fuse is None or "fuse" in read_manifest(old).config:
                report(f"there already: {old}", 1.0)
                return old
            return _with_fuser(old, sharer, receiver, plan, plan.fuse, report, work)
        manifest, tensors = _made(sharer, receiver, plan, old, work, report, watch)
        minutes = round((monotonic() - began) / 60, 2)
        figures = {**manifest.fit, "minutes_with_audit": minutes}
        manifest = manifest.model_copy(update={"fit": figures})
        report("saving", 0.0)
        if plan.out is None:
            folder = store.save(manifest, tensors)
        else:
            folder = plan.out
            write(folder, manifest, tensors)
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _made(
    sharer: "LocalModel",
    receiver: "LocalModel",
    plan: FitPlan,
    old: Path | None,
    work: Path,
    report: Progress,
    watch: Callable[[FitProgress], None],
) -> tuple[BridgeManifest, dict[str, "Tensor"]]:
    """A fitted bridge, audited where the plan says so; `old`, where there is one, may lend it its
    fuse mode.
    """
    report(f"at most {_peak(sharer, receiver, plan.settings):.1f} GB for the closed form", 0.0)
    corpus = load_corpus(plan.sources, seed=plan.settings.seed)
    rows = plan.audit.rows(corpus) if plan.audit else None
    if rows is not None:  # here, so that bad rows fail now and not after the fit
        rows.check(receiver)

    def on_progress(progress: FitProgress) -> None:
        watch(progress)
        report(progress.stage, progress.fraction)

    train_models = _train_models(sharer, receiver, plan)
    result = fit(
        sharer, receiver, corpus, plan.settings, work, on_progress, train_models=train_models
    )
    fuser = None
    if plan.fuse is not None:
        fuser = _fused(sharer, receiver, corpus, plan.fuse, report, work, train_models)
    elif old is not None and "fuse" in read_manifest(old).config:
        kept, figures = load_fuser(old, sharer, receiver)  # it does not depend on the projector
        mine = {name: value for name, value in figures.items() if name.startswith("fuse_")}
        fuser = FuseResult(kept, mine, 0)
    del train_models
    manifest, bridge = _packed(sharer, receiver, corpus, plan, result, fuser)
    if rows is not None and plan.audit is not None:
        measured = audit(
            bridge,
            sharer,
            receiver,
            rows,
            corpus=corpus,
            report=lambda stage, part: report(f"audit: {stage}", part),
            machine=describe_machine(receiver),
            settings=plan.audit.settings,
        )
        manifest = manifest.model_copy(update={"audit": measured})
    return manifest, tensors_of(result.projector, DTYPE, fuser.fuser if fuser else None)


def work_folder(store: BridgeStore, sharer: "ModelIdentity", receiver: "ModelIdentity") -> Path:
    """Where a pair's fit keeps what it goes on from after a kill."""
    return store.root / ".fits" / pair_digest(sharer, receiver)


def _train_models(
    sharer: "LocalModel", receiver: "LocalModel", plan: FitPlan
) -> "tuple[LocalModel, LocalModel] | None":
    """Both models in the dtype to train in, where that is another than their own."""
    if plan.train_dtype is None:
        return None
    return sharer.cast(plan.train_dtype), receiver.cast(plan.train_dtype)


def _fused(
    sharer: "LocalModel",
    receiver: "LocalModel",
    corpus: Corpus,
    settings: FuseSettings,
    report: Progress,
    work: Path,
    train_models: "tuple[LocalModel, LocalModel] | None",
) -> FuseResult:
    def on_progress(progress: FuseProgress) -> None:
        report(f"fuse: {progress.stage}", progress.fraction)

    return fit_fuser(
        sharer, receiver, corpus, settings, on_progress, work=work, train_models=train_models
    )


def _with_fuser(
    folder: Path,
    sharer: "LocalModel",
    receiver: "LocalModel",
    plan: FitPlan,
    settings: FuseSettings,
    report: Progress,
    work: Path,
) -> Path:
    """Fit the module of fuse mode for a bridge that lacks it; its other weights stay, its audit is
    added to.
    """
    corpus = load_corpus(plan.sources, seed=plan.settings.seed)
    train_models = _train_models(sharer, receiver, plan)
    made = _fused(sharer, receiver, corpus, settings, report, work, train_models)
    manifest, tensors = read(folder)
    config = {**manifest.config, "fuse": made.fuser.config.to_dict()}
    manifest = manifest.model_copy(
        update={"config": config, "fit": {**manifest.fit, **made.figures}}
    )
    tensors = {**tensors, **fuse_tensors(made.fuser, DTYPE)}
    if plan.audit is not None and manifest.audit is not None:
        bridge = Bridge.from_tensors(manifest, tensors, receiver.device)
        more = with_fuse(
            manifest.audit,
            bridge,
            sharer,
            receiver,
            plan.audit.rows(corpus),
            lambda stage, part: report(f"audit: {stage}", part),
        )
        manifest = manifest.model_copy(update={"audit": more})
    report("saving", 0.0)
    write(folder, manifest, tensors)
    forget(work, "fuse")  # what a killed refit of the projector left stays
    return folder


def _standing(
    store: BridgeStore, plan: FitPlan, sharer: "ModelIdentity", receiver: "ModelIdentity"
) -> Path | None:
    """The pair's bridge where the new one would go; with ``refit``, one that is broken counts for
    none.
    """
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


def check_place(folder: Path, sharer: "ModelIdentity", receiver: "ModelIdentity") -> None:
    """Refuse, before anything is fitted, a folder that the pair's bridge cannot go to.

    Raises:
        BridgeError: It holds another pair's bridge, or other things.
    """
    require_ours(folder)
    if not (folder / MANIFEST).exists():
        return
    theirs = read_manifest(folder)
    if theirs.pair != pair_digest(sharer, receiver):
        raise BridgeError(
            f"{folder} holds the bridge {theirs.sharer.ref} -> {theirs.receiver.ref}",
            expected="a new folder, or one with a bridge of the pair that is fitted",
            fix="name another folder",
        )


def _peak(sharer: "LocalModel", receiver: "LocalModel", settings: FitSettings) -> float:
    """GB that the closed form takes at most."""
    sizes = widths(sharer.geometry, range(len(sharer.geometry.layers)))
    layers, embeddings = within_columns(settings, sizes, receiver)
    extra = embeddings + (settings.native_layers > 0)
    inputs = sum(sorted(sizes)[-layers:]) + extra * receiver.geometry.hidden_size
    targets = range(settings.native_layers, len(receiver.geometry.layers))
    return gram_bytes(inputs, width(receiver.geometry, targets)) / 1e9


def _packed(
    sharer: "LocalModel",
    receiver: "LocalModel",
    corpus: Corpus,
    plan: FitPlan,
    result: FitResult,
    fused: FuseResult | None = None,
) -> tuple[BridgeManifest, Bridge]:
    """The manifest, and the bridge as it will be read back from the disk."""
    figures = {**result.figures, **(fused.figures if fused else {})}
    figures["peak_memory_gb"] = peak_memory_gb()
    if plan.command:
        figures["command"] = plan.command
    config = result.projector.config.to_dict()
    if fused is not None:
        config["fuse"] = fused.fuser.config.to_dict()
    tensors = tensors_of(result.projector, DTYPE, fused.fuser if fused else None)
    manifest = BridgeManifest.new(
        ModelDescription.of(sharer, sharer.ref),
        ModelDescription.of(receiver, receiver.ref),
        config=config,
        dtype=DTYPE,
        data=FitData(
            sources=corpus.sources,
            digest=corpus.digest,
            tokens=result.tokens,
            seed=plan.settings.seed,
        ),
        fit=figures,
    )
    size = TensorFile(bytes=sum(tensor.nbytes for tensor in tensors.values()))
    sized = manifest.model_copy(update={"tensors": size})
    return manifest, Bridge.from_tensors(sized, tensors, receiver.device)
