"""How a bridge is made: on what texts, with what settings, and what is measured of it."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.fit.settings import FitSettings, FuseSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """How a bridge is made.

    Attributes:
        sources: Texts to fit on; see `load_corpus`.
        settings: How it is fitted.
        audit: What it is measured on afterwards; None for no audit.
        refit: Whether to fit where there is a bridge already.
        out: A folder for the bridge, in place of the store.
        train_dtype: Float type to train and validate in, such as ``bfloat16``; None for the models'
            own. The closed form and the audit use the models as they are.
        command: The command to record.
        fuse: Fit the module of fuse mode too; None for no such module.
        embeddings: Whether the bridge of embeddings alone is fitted too, which an audit needs to
            say what the sharer adds. It takes as long again.
    """

    sources: tuple[str, ...] = ("builtin",)
    settings: FitSettings = field(default_factory=FitSettings)
    audit: AuditPlan | None = field(default_factory=AuditPlan)
    refit: bool = False
    out: Path | None = None
    train_dtype: torch.dtype | None = None
    command: str = ""
    fuse: FuseSettings | None = None
    embeddings: bool = True


DEFAULT = FitPlan()
"""How a workflow's missing bridge is made."""
