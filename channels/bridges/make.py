"""Making a bridge for a pair of models: fit it, quantize its weights, audit it, keep it."""

import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import structlog
import torch

from unspoken.channels.bridges.audit.audit import audit
from unspoken.channels.bridges.audit.fuse_audit import with_fuse
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.audit.rows import AuditRows
from unspoken.channels.bridges.bridge import Bridge, tensors_of
from unspoken.channels.bridges.embeddings import Alone, fit_beside, projector_of_alone
from unspoken.channels.bridges.estimate import FEW, End, calibrate, estimate
from unspoken.channels.bridges.fit.checkpoint import forget, peak_memory_gb
from unspoken.channels.bridges.fit.fuse_training import FuserFit
from unspoken.channels.bridges.fit.loop import Fitted, Models, check_pair
from unspoken.channels.bridges.fit.progress import FitProgress
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.fit.sizing import peak_gigabytes
from unspoken.channels.bridges.fit.training import ProjectorFit
from unspoken.channels.bridges.folder import read, read_embeddings, read_manifest, write
from unspoken.channels.bridges.fuser import Fuser, fuse_tensors, fuser_of, load_fuser
from unspoken.channels.bridges.manifest import Audit, BridgeManifest, FitData
from unspoken.channels.bridges.plan import DEFAULT, FitPlan
from unspoken.channels.bridges.projector import Projector
from unspoken.channels.bridges.standing import check_place, is_ours, standing_bridge
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.bridges.trust import record
from unspoken.channels.data.text import Corpus, load_corpus
from unspoken.channels.errors import InputError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.model import Hold, Report, TextModel
from unspoken.channels.model_size import size_of
from unspoken.channels.storage.side import ModelDescription, pair_digest

if TYPE_CHECKING:
    from torch import Tensor


log = structlog.wrap_logger(logging.getLogger("unspoken.bridges"))

DTYPE = "int8"


def fit_bridge(
    sharer: TextModel,
    receiver: TextModel,
    plan: FitPlan = DEFAULT,
    *,
    store: BridgeStore | None = None,
    hold: Hold = nullcontext,
    report: Report = lambda stage, fraction: None,
    watch: Callable[[FitProgress], None] = lambda progress: None,
) -> Path:
    """Fit, quantize, audit and keep a bridge; one process at a time per pair. Gives its folder.

    A fit that was killed goes on from what it left in the store. A pair that has a bridge keeps it
    unless `plan.refit`. With `plan.fuse`, a missing fuser is added. A refit without `plan.fuse`
    keeps the fuser.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is made.
        plan: How.
        store: Where bridges are; the user's if not given.
        hold: Keeps the models' devices from other work meanwhile.
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
    with store.lock(*ends, waiting=lambda line: report(line, 0.0)), hold():
        work = work_folder(store, *ends)
        job = _Job(sharer=sharer, receiver=receiver, plan=plan, work=work, report=report)
        return job.run(store, watch)


def work_folder(store: BridgeStore, sharer: ModelIdentity, receiver: ModelIdentity) -> Path:
    """Where a pair's fit keeps what it goes on from after a kill."""
    return store.root / ".fits" / pair_digest(sharer, receiver)


def _end(model: TextModel, dtype: torch.dtype) -> End | None:
    """A model as estimates take it; None of one that does not show its size."""
    size = size_of(model)
    if size is None:
        return None
    return End(geometry=model.geometry, size=size, itemsize=dtype.itemsize)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """The making of one bridge: its two models, how it is made, and who is told."""

    sharer: TextModel
    receiver: TextModel
    plan: FitPlan
    work: Path
    report: Report

    def run(self, store: BridgeStore, watch: Callable[[FitProgress], None]) -> Path:
        """The bridge's folder, in which it is by then."""
        standing = standing_bridge(store, self.plan, self.sharer.identity, self.receiver.identity)
        if standing is None or self.plan.refit:
            ours = self.plan.fuse is not None or is_ours(standing)
            manifest, tensors, alone = self.make(standing, watch)
            self.report("saving", 0.0)
            if self.plan.out is None:
                folder = store.save(manifest, tensors, alone)
            else:
                folder = self.plan.out
                write(folder, manifest, tensors, alone)
            if ours:
                record(read_manifest(folder))
            shutil.rmtree(self.work, ignore_errors=True)
            return folder
        if self.plan.fuse is None or "fuse" in read_manifest(standing).config:
            self.report(f"there already: {standing}", 1.0)
            return standing
        ours = is_ours(standing)
        manifest, tensors = self.add_fuser(standing, self.plan.fuse)
        self.report("saving", 0.0)
        written = write(standing, manifest, tensors, read_embeddings(standing))
        if ours:
            record(written)
        forget(self.work, "fuse")  # what a killed refit of the projector left stays
        return standing

    def make(
        self, standing: Path | None, watch: Callable[[FitProgress], None]
    ) -> "tuple[BridgeManifest, dict[str, Tensor], dict[str, Tensor] | None]":
        """A new bridge, audited where the plan says so; one that stands may lend its fuser.

        The last is the weights of the bridge of embeddings alone.
        """
        began, plan = monotonic(), self.plan
        peak = peak_gigabytes(plan.settings, self.sharer, self.receiver)
        self.report(f"at most {peak:.1f} GB for the closed form", 0.0)
        self.warn_of_few_steps()
        if self.judged:
            self.report("two fits: the bridge, then one of embeddings alone to judge it by", 0.0)
        corpus = self._corpus()
        rows = self._rows(plan.audit, corpus) if plan.audit else None
        if rows is not None:  # here, so that bad rows fail now and not after the fit
            rows.check(self.receiver)
        fitted, fused = self._fit(corpus, standing, watch)
        tensors = tensors_of(fitted.module, DTYPE, fused.module if fused else None)
        manifest = self._describe(corpus, fitted, fused, tensors)
        alone = self._fit_alone(corpus, fitted) if self.judged else None
        measured = self._audit(manifest, tensors, rows, corpus, alone)
        minutes = {"minutes_with_audit": round((monotonic() - began) / 60, 2)}
        last: dict[str, object] = {"audit": measured}  # known only now, as the minutes are
        last["fit"] = {**manifest.fit, **minutes}
        if alone is None:
            return manifest.model_copy(update=last), tensors, None
        last["embeddings"] = alone.manifest
        return manifest.model_copy(update=last), tensors, alone.tensors

    @property
    def judged(self) -> bool:
        """Whether a bridge of embeddings alone is fitted too."""
        return self.plan.audit is not None and self.plan.embeddings

    def _fit_alone(self, corpus: Corpus, fitted: Fitted[Projector]) -> Alone:
        """A bridge of embeddings alone, as large and as long trained as the bridge."""

        def on_progress(progress: FitProgress) -> None:
            self.report(f"embeddings alone: {progress.stage}", progress.fraction)

        return fit_beside(
            fitted,
            (self.sharer, self.receiver),
            corpus,
            self.plan.settings,
            report=on_progress,
            work=self.work,
            train_models=self._train_models(),
        )

    def warn_of_few_steps(self) -> None:
        """Say, before a fit that a clock ends, where its minutes buy too few steps here."""
        settings, dtype = self.plan.settings, self.plan.train_dtype or self.receiver.dtype
        ends = _end(self.sharer, dtype), _end(self.receiver, dtype)
        if settings.steps is not None or not settings.minutes or not ends[0] or not ends[1]:
            return
        machine = calibrate(self.receiver.device, dtype)
        steps = estimate(ends[0], ends[1], machine, settings).steps or 0
        if steps < FEW:
            log.warning(
                "the fit's minutes buy few steps on this machine; give it more minutes, or fit it "
                "on another",
                steps=steps,
                wanted=FEW,
                minutes=settings.minutes,
            )

    def add_fuser(
        self, folder: Path, settings: FuseSettings
    ) -> "tuple[BridgeManifest, dict[str, Tensor]]":
        """A stored bridge with a new fuser; its other weights stay, its audit is added to."""
        corpus = self._corpus()
        fused = self._fit_fuser(corpus, settings, self._train_models())
        manifest, tensors = read(folder)
        added = fuse_tensors(fused.module, DTYPE)
        config = {**manifest.config, "fuse": fused.module.config.to_dict()}
        measured = manifest.audit
        if self.plan.audit is not None and measured is not None:
            ends = self.sharer.geometry, self.receiver.geometry
            fuser, rows = fuser_of(config, added, *ends), self._rows(self.plan.audit, corpus)
            measured = with_fuse(
                measured, fuser, self.sharer, self.receiver, rows, self._report_audit
            )
        update = {"config": config, "fit": {**manifest.fit, **fused.figures}, "audit": measured}
        return manifest.model_copy(update=update), tensors | added

    def _corpus(self) -> Corpus:
        return load_corpus(self.plan.sources, seed=self.plan.settings.seed)

    def _rows(self, audit: AuditPlan, corpus: Corpus) -> AuditRows:
        """What is measured on, none of it in the corpus."""
        return audit.rows(corpus, fitted=True, fit_seed=self.plan.settings.seed)

    def _train_models(self) -> Models | None:
        """Both models in the dtype to train in, where that is another than their own."""
        dtype = self.plan.train_dtype
        return None if dtype is None else (self.sharer.cast(dtype), self.receiver.cast(dtype))

    def _fit(
        self, corpus: Corpus, standing: Path | None, watch: Callable[[FitProgress], None]
    ) -> tuple[Fitted[Projector], Fitted[Fuser] | None]:
        """A projector, and a fuser where there is to be one."""

        def on_progress(progress: FitProgress) -> None:
            watch(progress)
            self.report(progress.stage, progress.fraction)

        sharer, receiver, plan = self.sharer, self.receiver, self.plan
        models = self._train_models()
        fitted = ProjectorFit(
            sharer,
            receiver,
            corpus,
            plan.settings,
            report=on_progress,
            work=self.work,
            train_models=models,
        ).run()
        if plan.fuse is not None:
            return fitted, self._fit_fuser(corpus, plan.fuse, models)
        if standing is None or "fuse" not in read_manifest(standing).config:
            return fitted, None
        fuser, figures = load_fuser(standing, sharer, receiver)  # it depends on no projector
        fuse_figures = {name: value for name, value in figures.items() if name.startswith("fuse_")}
        return fitted, Fitted(fuser, fuse_figures, 0)

    def _fit_fuser(
        self, corpus: Corpus, settings: FuseSettings, models: Models | None
    ) -> Fitted[Fuser]:
        def on_progress(progress: FitProgress) -> None:
            self.report(f"fuse: {progress.stage}", progress.fraction)

        return FuserFit(
            self.sharer,
            self.receiver,
            corpus,
            settings,
            report=on_progress,
            work=self.work,
            train_models=models,
        ).run()

    def _describe(
        self,
        corpus: Corpus,
        fitted: Fitted[Projector],
        fused: Fitted[Fuser] | None,
        tensors: "dict[str, Tensor]",
    ) -> BridgeManifest:
        """The manifest, but for what an audit finds."""
        figures = {**fitted.figures, **(fused.figures if fused else {})}
        figures["peak_memory_gb"] = peak_memory_gb()
        if self.plan.command:
            figures["command"] = self.plan.command
        config = fitted.module.config.to_dict()
        if fused is not None:
            config["fuse"] = fused.module.config.to_dict()
        data = FitData(
            sources=corpus.sources,
            digest=corpus.digest,
            tokens=fitted.tokens,
            seed=self.plan.settings.seed,
        )
        return BridgeManifest.new(
            ModelDescription.of(self.sharer, self.sharer.ref),
            ModelDescription.of(self.receiver, self.receiver.ref),
            config=config,
            dtype=DTYPE,
            data=data,
            fit=figures,
            bytes=sum(tensor.nbytes for tensor in tensors.values()),
        )

    def _audit(
        self,
        manifest: BridgeManifest,
        tensors: "dict[str, Tensor]",
        rows: AuditRows | None,
        corpus: Corpus,
        alone: Alone | None,
    ) -> Audit | None:
        """What the bridge does as it will be read back from the disk."""
        if rows is None or self.plan.audit is None:
            return None
        return audit(
            Bridge.from_tensors(manifest, tensors, self.receiver.device),
            self.sharer,
            self.receiver,
            rows,
            corpus=corpus,
            report=self._report_audit,
            settings=self.plan.audit.settings,
            alone=None if alone is None else projector_of_alone(manifest, alone),
        )

    def _report_audit(self, stage: str, fraction: float) -> None:
        self.report(f"audit: {stage}", fraction)
