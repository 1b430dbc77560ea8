"""The bridge that a bridge is judged against: it gets the receiver's embeddings alone.

It is as large as the bridge, learns from the same text in as many steps, and never sees a sharer.
What the bridge does better is what its sharer adds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unspoken.channels.bridges.bridge import tensors_of
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fit.loop import Fitted, Models
from unspoken.channels.bridges.fit.progress import FitProgress
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.sizing import projector_bytes
from unspoken.channels.bridges.fit.training import ProjectorFit
from unspoken.channels.bridges.folder import read, read_embeddings, read_manifest, write
from unspoken.channels.bridges.manifest import BridgeManifest, EmbeddingsBridge
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.quantize import load_quantized
from unspoken.channels.bridges.trust import measured_here, record
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.model import TextModel


@dataclass(frozen=True, eq=False, kw_only=True)
class Alone:
    """A fitted bridge of embeddings alone.

    Attributes:
        manifest: What a bridge's manifest says of it.
        tensors: Its weights, as `folder.write` stores them.
    """

    manifest: EmbeddingsBridge
    tensors: dict[str, Tensor]


def alone_settings(
    settings: FitSettings,
    config: ProjectorConfig,
    steps: int,
    sharer: CacheGeometry,
    receiver: CacheGeometry,
) -> FitSettings:
    """How the bridge of embeddings alone is fitted: as a bridge was, at its size.

    Args:
        settings: The bridge's.
        config: Its projector's.
        steps: Training steps that it took; its patience does not end this fit sooner.
        sharer: Geometry of its sharer.
        receiver: Geometry of its receiver.
    """
    shape = replace(config, source_layers=(), embeddings=config.embeddings or 2, sketch=0)
    most = projector_bytes(config, sharer, receiver)
    return replace(
        settings,
        source_layers=0,
        sketch=0,
        native_layers=config.native_layers,
        embeddings=shape.embeddings,
        hidden=config.hidden,
        bottleneck=config.bottleneck,
        rank=_rank(shape, sharer, receiver, most),
        steps=steps,
        minutes=math.inf,
        patience=max(steps, 1),
    )


def _rank(
    config: ProjectorConfig, sharer: CacheGeometry, receiver: CacheGeometry, most: int
) -> int:
    """The widest code with which the weights take at most `most` bytes; 1 at least."""
    inputs = sum(config.inputs(sharer, receiver))
    low, high = 1, min(inputs, width(receiver, config.target_layers(receiver)))
    while low < high:
        middle = (low + high + 1) // 2
        if projector_bytes(replace(config, rank=middle), sharer, receiver) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def fit_alone(
    sharer: TextModel,
    receiver: TextModel,
    corpus: Corpus,
    settings: FitSettings,
    *,
    dtype: str,
    report: Callable[[FitProgress], None],
    work: Path | None,
    train_models: Models | None = None,
) -> Alone:
    """Fit it; a fit that was killed goes on.

    Args:
        sharer: The bridge's, of which nothing is learnt.
        receiver: Whose cache is made.
        corpus: The bridge's.
        settings: As `alone_settings` gives them.
        dtype: Element type of the stored weights.
        report: Told of its progress.
        work: A folder for what a killed fit goes on from.
        train_models: As `Fit` takes them.
    """
    fitted = ProjectorFit(
        sharer, receiver, corpus, settings, report=report, work=work, train_models=train_models
    ).run()
    manifest = EmbeddingsBridge(config=fitted.module.config.to_dict(), fit=fitted.figures)
    return Alone(manifest=manifest, tensors=tensors_of(fitted.module, dtype))


def fit_beside(
    fitted: Fitted[Projector],
    models: Models,
    corpus: Corpus,
    settings: FitSettings,
    *,
    report: Callable[[FitProgress], None],
    work: Path,
    train_models: Models | None,
) -> Alone:
    """The bridge of embeddings alone that belongs to a projector fitted just now.

    Args:
        fitted: The projector.
        models: Its sharer and its receiver.
        corpus: What it was fitted on.
        settings: How it was fitted.
        report: Told of progress.
        work: A folder for what a killed fit goes on from.
        train_models: As `Fit` takes them.
    """
    ends = models[0].geometry, models[1].geometry
    steps, tokens = fitted.figures.get("steps"), fitted.figures.get("closed_form_tokens")
    taken = steps if isinstance(steps, int) else 0
    alike = replace(settings, gram_tokens=int(tokens) if tokens else None)
    alone = alone_settings(alike, fitted.module.config, taken, *ends)
    return fit_alone(
        *models, corpus, alone, dtype="int8", report=report, work=work, train_models=train_models
    )


def load_alone(folder: Path, manifest: BridgeManifest) -> Projector | None:
    """The projector of a stored bridge's embeddings alone; None where it was not fitted.

    Raises:
        BridgeError: Its file is broken, or another than the manifest says.
    """
    tensors = read_embeddings(folder)
    if manifest.embeddings is None or tensors is None:
        return None
    return projector_of_alone(manifest, Alone(manifest=manifest.embeddings, tensors=tensors))


def projector_of_alone(manifest: BridgeManifest, alone: Alone) -> Projector:
    """The projector of stored weights."""
    config = ProjectorConfig.from_dict(alone.manifest.config)
    ends = manifest.sharer.to_geometry(), manifest.receiver.to_geometry()
    projector = load_quantized(lambda: Projector(config, *ends), alone.tensors, "embeddings")
    return projector.eval().requires_grad_(False)


def dtype_of(manifest: BridgeManifest) -> torch.dtype | None:
    """What a bridge was trained in; None where its manifest does not say."""
    dtype = getattr(torch, str(manifest.fit.get("train_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def add_alone(
    folder: Path,
    sharer: TextModel,
    receiver: TextModel,
    corpus: Corpus,
    *,
    report: Callable[[FitProgress], None],
    work: Path | None,
    train_dtype: torch.dtype | None = None,
) -> None:
    """Fit the bridge of embeddings alone of a stored bridge, and put it beside it.

    Args:
        folder: The bridge.
        sharer, receiver: Its models.
        corpus: What it was fitted on.
        report: Told of the fit's progress.
        work: A folder for what a killed fit goes on from.
        train_dtype: Float type to train in; None for what the bridge was trained in, or the
            models' own where its manifest does not say.

    Raises:
        BridgeError: Another corpus than the bridge's, or it is broken.
    """
    manifest, tensors = read(folder)
    if corpus.digest != manifest.data.digest:
        raise BridgeError(
            f"the text that the bridge was fitted on, {', '.join(manifest.data.sources)}, is not "
            "here as it was",
            expected="the same text, so that both learn from the same",
            fix="run the command where the files lie, or fit the bridge again",
        )
    ours = measured_here(manifest)
    steps = manifest.fit.get("steps")
    settings = alone_settings(
        FitSettings.from_figures(manifest.fit, manifest.data.seed),
        ProjectorConfig.from_dict({k: v for k, v in manifest.config.items() if k != "fuse"}),
        int(steps) if isinstance(steps, int) else 0,
        sharer.geometry,
        receiver.geometry,
    )
    cast_to = train_dtype or dtype_of(manifest)
    models = None if cast_to is None else (sharer.cast(cast_to), receiver.cast(cast_to))
    alone = fit_alone(
        sharer,
        receiver,
        corpus,
        settings,
        dtype=manifest.dtype,
        report=report,
        work=work,
        train_models=models,
    )
    if read_manifest(folder).tensors != manifest.tensors:
        raise BridgeError(
            f"the bridge in {folder} has been replaced meanwhile",
            expected="the bridge whose embeddings were fitted",
            fix="run the command again",
        )
    added = manifest.model_copy(update={"embeddings": alone.manifest})
    written = write(folder, added, tensors, alone.tensors)
    if ours:
        record(written)
