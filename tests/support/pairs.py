"""Two tiny models of different makes, and plans of fits that take seconds."""

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_gemma3, tiny_llama, tiny_tokenizer

from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit import plan as audit_plan
from unspoken.channels.bridges.audit.plan import AuditPlan, AuditSettings
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.validation import ValidationSet
from unspoken.channels.bridges.plan import FitPlan
from unspoken.channels.data import sources

OTHER_WORDS = (" the", " and", " value", " of", "ing", " key", " with", " from", "tion", " is")

AUDIT = AuditPlan(
    passages=2,
    questions=2,
    records=2,
    choices=4,
    settings=AuditSettings(task=(), tokens=400, sizes=(32,), repeats=1, answered=1, written=3),
)


def folders(root: Path) -> tuple[Path, Path]:
    """A random Gemma 3 and a random Llama with another tokenizer, on disk."""
    gemma = tiny_gemma3(root / "gemma")
    return gemma, tiny_llama(root / "llama", tokenizer=tiny_tokenizer(OTHER_WORDS))


def load(root: Path) -> tuple[LocalModel, LocalModel]:
    """The two, loaded."""
    sharer, receiver = folders(root)
    return LocalModel.load(str(sharer)), LocalModel.load(str(receiver))


def text(count: int = 24) -> str:
    """A small text: some of Python's help topics, parted by form feeds."""
    from pydoc_data.topics import topics

    return "\f".join(topics[name] for name in sorted(topics)[:count])


def corpus(root: Path) -> str:
    """A small text to fit on, as a file."""
    file = root / "topics.txt"
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        file.write_text(text(60), encoding="utf-8")
    return str(file)


def quick_fits(patch: pytest.MonkeyPatch, count: int = 4) -> None:
    """Let fits validate on a few rows, and read a small text for the built-in one."""
    make: Any = ValidationSet.make
    patch.setattr(ValidationSet, "make", classmethod(lambda _, *args: make(*args, count)))
    for module in (audit_plan, sources):
        patch.setattr(module, "builtin_text", text)


def plan(source: str, audit: AuditPlan | None = AUDIT, **settings: Any) -> FitPlan:
    """A fit of a few steps on a small text; with ``every=0.0`` it saves itself after each."""
    small: dict[str, Any] = {
        "steps": 4,
        "gram_tokens": 600,
        "rank": 12,
        "hidden": 8,
        "bottleneck": 4,
        "every": 1e9,
        "patience": 100,
        "longest": 256,
    }
    return FitPlan(
        sources=(source,), settings=FitSettings(**(small | settings)), audit=audit, embeddings=False
    )
