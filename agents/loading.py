"""The models of a workflow, loaded by reference: each once, however many names lead to it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from unspoken.agents.models.model import LocalModel
from unspoken.agents.spec.loader import LoadedWorkflow
from unspoken.agents.spec.spec import WorkflowSpec

__all__ = ["Progress", "load_models", "step_of"]

Progress = Callable[[str, str, float], None]
"""Called with a model's or an edge's name, a stage and a fraction."""


def load_models(
    spec: WorkflowSpec,
    models: dict[str, LocalModel],
    source: LoadedWorkflow | None,
    progress: Progress | None,
) -> None:
    """Load what is not loaded yet; one base serves all of its adapters.

    Args:
        spec: A valid workflow.
        models: The models loaded so far, by name; the others are put in.
        source: The workflow's file, where there is one; errors then name its lines.
        progress: Told of each model's stages.

    Raises:
        ModelReferenceError: A model that is not available.
    """
    loaded: dict[tuple[str, str, str, str | None], LocalModel] = {}
    adapted: dict[tuple[str | None, ...], LocalModel] = {}
    for name, model in spec.models.items():
        if name in models:
            continue
        key = (model.ref, model.dtype, model.device, model.revision)
        if key not in loaded:
            with _placing(source, f"models.{name}"):
                loaded[key] = LocalModel.load(
                    model.ref,
                    dtype=model.dtype,
                    device=model.device,
                    revision=model.revision,
                    progress=step_of(progress, name),
                )
        base = loaded[key]
        if model.adapter is not None:
            again = (*key, model.adapter)
            if again not in adapted:
                with _placing(source, f"models.{name}.adapter"):
                    adapted[again] = base.with_adapter(model.adapter)
            base = adapted[again]
        models[name] = base


def step_of(progress: Progress | None, name: str) -> Callable[[str, float], None] | None:
    """The part of `progress` that is told of one name."""
    if progress is None:
        return None
    return lambda stage, fraction: progress(name, stage, fraction)


def _placing(source: LoadedWorkflow | None, where: str) -> AbstractContextManager[None]:
    return nullcontext() if source is None else source.placing(where)
