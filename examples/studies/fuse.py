"""Fuse mode on questions with options, against the receiver alone, text, and its own cache.

Every condition reads ``Question: …`` and ``Answer:`` on two lines, without the options. An option
is scored by its log-likelihood over its characters (``acc_norm`` of lm-eval), and beside that by
its log-likelihood alone. Text-to-text gets its best prompt and message length: they are chosen on
rows that it is then measured on, in its favour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import join
from statistics import fmean
from typing import Any

import torch

from fitted_fusers import FUSED, SELF, FusePlan, fusers
from multiple_choice import ASKS, Chosen, answer_text, choose, write_hints
from study import BRIDGE, QA, Measured, Progress, run
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.fuse_audit import ending_as, read_both
from unspoken.channels.bridges.fit.fuse_example import FuseInput, fused_context
from unspoken.channels.bridges.fit.fuse_samples import choice_prompt
from unspoken.channels.bridges.fuser import Fuser
from unspoken.channels.data.rows import ChoiceRow, builtin_choice, read_choice, sample
from unspoken.channels.metrics import paired, wilson

__all__ = ["FusePlan", "compare", "measure"]

LENGTHS = (16, 48)
TUNED = 40
RECEIVER, SHARER, TEXT = "receiver alone", "sharer alone", "text-to-text"
OTHER = "fused, another row's sharer"
KEYS = {
    "receiver": RECEIVER,
    "sharer": SHARER,
    "text": TEXT,
    "self_fused": SELF,
    "fused": FUSED,
    "mismatched": OTHER,
}
"""The conditions in the order of the table, each by its key in the summary."""


def measure(
    sharer: LocalModel,
    receiver: LocalModel,
    *,
    qa: Path | None = None,
    bridge: Path | None = None,
    self_bridge: Path | None = None,
    keep: Path | None = None,
    progress: Progress,
) -> Measured:
    """`compare` with the options of the command line."""
    script = ["python", "examples/studies/fuse.py"]
    command = join([*script, sharer.ref, receiver.ref, "--keep", str(keep)])
    plan = FusePlan(bridge=bridge, self_bridge=self_bridge, keep=keep, command=command)
    return compare(sharer, receiver, qa, progress, plan)


def compare(
    sharer: LocalModel,
    receiver: LocalModel,
    qa: Path | None,
    progress: Progress,
    plan: FusePlan | None = None,
) -> Measured:
    """A row per condition with its accuracy, and what fusing gains over each of the others.

    Raises:
        InputError: A file that is not as it should be.
        BridgeError: A folder without a fuser, one that fusers cannot be kept in, or models that
            cannot be bridged.
    """
    plan = plan or FusePlan()
    rows = read_choice(qa) if qa else builtin_choice(plan.rows, plan.seed)
    rows = sample(rows, plan.rows, plan.seed)
    (fuser, fit), (control, control_fit) = fusers(sharer, receiver, plan, progress)
    texts, setting = _texts(sharer, receiver, rows, progress)
    chosen = {TEXT: texts, **_caches(sharer, receiver, rows, fuser, control, progress)}
    steps, control_steps = fit.get("fuse_steps"), control_fit.get("fuse_steps")
    words = f"{setting['text_prompt']}, {setting['text_message_tokens']} tokens"
    more: dict[str, dict[str, Any]] = {
        TEXT: {"setting": words},
        SELF: {"steps": control_steps},
        FUSED: {"steps": steps},
        OTHER: {"steps": steps},
    }
    table = [_line(condition, chosen) | more.get(condition, {}) for condition in KEYS.values()]
    for line in table:
        progress(f"{line['way']}: {line['accuracy']:.3f} ({line['low']:.3f} to {line['high']:.3f})")
    taken = {"steps_fused": steps, "steps_self_fused": control_steps}
    return table, _summary(chosen) | setting | taken


# Conditions


def _texts(
    sharer: LocalModel, receiver: LocalModel, rows: Sequence[ChoiceRow], progress: Progress
) -> tuple[list[Chosen], dict[str, Any]]:
    """Text-to-text at the best of its settings, and that setting; the first rows try them all."""
    first, rest = rows[:TUNED], rows[TUNED:]
    tried: dict[tuple[str, int], list[Chosen]] = {}
    for ask in ASKS:
        hints = write_hints(sharer, [row.question for row in first], ask, max(LENGTHS))
        for length in LENGTHS:
            tried[ask, length] = _hinted(sharer, receiver, first, hints, length)
            share = _accuracy(tried[ask, length])
            progress(f"text, {ask}, {length} tokens: {share:.3f} of {len(first)}")
    ask, length = max(tried, key=lambda setting: _accuracy(tried[setting]))

    def written(count: int) -> None:
        progress(f"text: {len(first) + count} of {len(rows)} messages written")

    hints = write_hints(sharer, [row.question for row in rest], ask, length, written)
    chosen = [*tried[ask, length], *_hinted(sharer, receiver, rest, hints, length)]
    shares = {
        f"text_tried_{prompt}_{tokens}": round(_accuracy(choices), 4)
        for (prompt, tokens), choices in tried.items()
    }
    return chosen, {
        "text_prompt": ask,
        "text_message_tokens": length,
        "text_tried_on": len(first),
        **shares,
    }


def _hinted(
    sharer: LocalModel,
    receiver: LocalModel,
    rows: Sequence[ChoiceRow],
    hints: Sequence[tuple[int, ...]],
    length: int,
) -> list[Chosen]:
    """The receiver's choices after the first tokens of the sharer's hints."""
    chosen = []
    for row, ids in zip(rows, hints, strict=True):
        hint = " ".join(sharer.decode(ids[:length]).split())
        prompt = choice_prompt(row.question, hint)
        chosen.append(answer_text(receiver, prompt, row))
    return chosen


@torch.no_grad()
def _caches(
    sharer: LocalModel,
    receiver: LocalModel,
    rows: Sequence[ChoiceRow],
    fuser: Fuser,
    control: Fuser,
    progress: Progress,
) -> dict[str, list[Chosen]]:
    """The conditions without words: both models alone, and the receiver's cache fused."""
    chosen: dict[str, list[Chosen]] = {name: [] for name in KEYS.values() if name != TEXT}
    before = read_both(rows[-1], fuser, sharer, receiver).theirs
    for number, row in enumerate(rows, 1):
        pair = read_both(row, fuser, sharer, receiver)
        inputs: dict[str, tuple[Fuser | None, FuseInput]] = {
            RECEIVER: (None, pair),
            SELF: (control, read_both(row, control, receiver, receiver)),
            FUSED: (fuser, pair),
            OTHER: (fuser, replace(pair, theirs=ending_as(before, len(pair.theirs)))),
        }
        for condition, (module, read) in inputs.items():
            states = fused_context(module, read, receiver)
            last = read.sample.ids[-1]
            chosen[condition].append(choose(receiver, last, states, row))
        prompt = choice_prompt(row.question)
        chosen[SHARER].append(answer_text(sharer, prompt, row))
        before = pair.theirs
        if number % 20 == 0 or number == len(rows):
            progress(f"{number} of {len(rows)} rows fused")
    return chosen


# Figures


def _accuracy(chosen: Sequence[Chosen]) -> float:
    return fmean(_marks(chosen))


def _marks(chosen: Sequence[Chosen]) -> list[bool]:
    return [choice.by_characters for choice in chosen]


def _gap(name: str, fused: Sequence[Chosen], other: Sequence[Chosen]) -> dict[str, float]:
    """What fusing gains over another condition, and its interval."""
    figures = paired(_marks(fused), _marks(other))
    keys = (name, f"{name}_low", f"{name}_high")
    return {key: round(value, 4) for key, value in zip(keys, figures, strict=True)}


def _line(condition: str, chosen: Mapping[str, Sequence[Chosen]]) -> dict[str, Any]:
    marks = _marks(chosen[condition])
    low, high = wilson(sum(marks), len(marks))
    line: dict[str, Any] = {
        "way": condition,
        "accuracy": round(fmean(marks), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "accuracy_unnormalised": round(fmean(choice.by_sum for choice in chosen[condition]), 4),
        "n": len(marks),
    }
    if condition != FUSED:
        line |= _gap("fused_minus", chosen[FUSED], chosen[condition])
    return line


def _summary(chosen: Mapping[str, Sequence[Chosen]]) -> dict[str, Any]:
    best = max((RECEIVER, TEXT, SELF), key=lambda condition: _accuracy(chosen[condition]))
    shares = {f"accuracy_{key}": round(_accuracy(chosen[name]), 4) for key, name in KEYS.items()}
    gap = _gap("fused_minus_best", chosen[FUSED], chosen[best])
    return {**shares, **gap, "best": best, "n": len(chosen[FUSED])}


def main() -> None:
    """Run the study from the command line."""
    folders = {
        "bridge": BRIDGE,
        "self_bridge": "a bridge with fuse mode from the receiver to itself; fitted if left out",
        "keep": "keep what is fitted in DIR/fused and DIR/self-fused, and take what is there",
    }
    run(measure, __doc__, files={"qa": QA}, folders=folders)


if __name__ == "__main__":
    main()
