"""Fuse mode on questions with options, against all its rivals: the receiver alone, the sharer's
words, its own cache.

Every way reads ``Question: …\\nAnswer:`` without the options; an option is scored by its
log-likelihood over its
characters (lm-eval's ``acc_norm``), and beside that by its log-likelihood alone. Text-to-text is
given its best prompt and message length, chosen on rows that it is then measured on, in its favour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import join
from statistics import fmean
from typing import Any

import torch

from fitted_fusers import FUSED, SELF, FuseBench, fusers
from multiple_choice import ASKS, Chosen, answer_text, choose, write_hints
from study import BRIDGE, QA, Measured, Progress, run
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.fuse_audit import ending_as, read_both
from unspoken.channels.bridges.fit.fuse_example import fused_context
from unspoken.channels.bridges.fit.fuse_samples import choice_prompt
from unspoken.channels.bridges.fuser import Fuser
from unspoken.channels.data.rows import ChoiceRow, builtin_choice, read_choice, sample
from unspoken.channels.metrics import paired, wilson

__all__ = ["FuseBench", "compare", "measure"]

LENGTHS = (16, 48)
TUNED = 40
RECEIVER, SHARER, TEXT = "receiver alone", "sharer alone", "text-to-text"
OTHER = "fused, another row's sharer"


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
    plan = FuseBench(bridge, self_bridge, keep, command=command)
    return compare(sharer, receiver, qa, progress, plan)


def compare(
    sharer: LocalModel,
    receiver: LocalModel,
    qa: Path | None,
    progress: Progress,
    plan: FuseBench | None = None,
) -> Measured:
    """A row per way with its accuracy, and what fusing gains over each of the others.

    Raises:
        InputError: A file that is not as it should be.
        BridgeError: A folder without a fuser, one that fusers cannot be kept in, or models that
            cannot be bridged.
    """
    plan = plan or FuseBench()
    rows = read_choice(qa) if qa else builtin_choice(plan.rows, plan.seed)
    rows = sample(rows, plan.rows, plan.seed)
    (fuser, fit), (mine, fit_mine) = fusers(sharer, receiver, plan, progress)
    told, setting = _texts(sharer, receiver, rows, progress)
    found = {TEXT: told, **_caches(sharer, receiver, rows, fuser, mine, progress)}
    words = f"{setting['text_prompt']}, {setting['text_message_tokens']} tokens"
    steps, mine_steps = (one.get("fuse_steps") for one in (fit, fit_mine))
    more: dict[str, dict[str, Any]] = {TEXT: {"setting": words}, SELF: {"steps": mine_steps}}
    more |= {way: {"steps": steps} for way in (FUSED, OTHER)}
    order = (RECEIVER, SHARER, TEXT, SELF, FUSED, OTHER)
    table = [_line(way, found) | more.get(way, {}) for way in order]
    for line in table:
        progress(f"{line['way']}: {line['accuracy']:.3f} ({line['low']:.3f} to {line['high']:.3f})")
    taken = {"steps_fused": steps, "steps_self_fused": mine_steps}
    return table, _summary(found, setting) | taken


# Ways


def _texts(
    sharer: LocalModel, receiver: LocalModel, rows: Sequence[ChoiceRow], progress: Progress
) -> tuple[list[Chosen], dict[str, Any]]:
    """Text-to-text at the best of its settings, and that setting; the first rows try them all."""
    few = rows[:TUNED]
    questions = [row.question for row in rows]
    hints: dict[str, list[tuple[int, ...]]] = {}
    tried: dict[tuple[str, int], list[Chosen]] = {}
    for ask in ASKS:
        hints[ask] = write_hints(sharer, questions[: len(few)], ask, max(LENGTHS))
        for length in LENGTHS:
            tried[ask, length] = _hinted(sharer, receiver, few, hints[ask], length)
            progress(
                f"text, {ask}, {length} tokens: {_accuracy(tried[ask, length]):.3f} of {len(few)}"
            )
    ask, length = max(tried, key=lambda one: _accuracy(tried[one]))
    more = write_hints(
        sharer,
        questions[len(few) :],
        ask,
        length,
        lambda done: progress(f"text: {len(few) + done} of {len(rows)} messages written"),
    )
    rest = _hinted(sharer, receiver, rows[len(few) :], more, length)
    setting = {
        "text_prompt": ask,
        "text_message_tokens": length,
        "text_tried": {f"{a}_{n}": _accuracy(one) for (a, n), one in tried.items()},
        "text_tried_on": len(few),
    }
    return [*tried[ask, length], *rest], setting


def _hinted(
    sharer: LocalModel,
    receiver: LocalModel,
    rows: Sequence[ChoiceRow],
    hints: Sequence[tuple[int, ...]],
    length: int,
) -> list[Chosen]:
    found = []
    for row, ids in zip(rows, hints, strict=True):
        hint = " ".join(sharer.decode(ids[:length]).split())
        prompt = choice_prompt(row.question, hint)
        found.append(answer_text(receiver, prompt, row.options, row.answer))
    return found


@torch.no_grad()
def _caches(
    sharer: LocalModel,
    receiver: LocalModel,
    rows: Sequence[ChoiceRow],
    fuser: Fuser,
    mine: Fuser,
    progress: Progress,
) -> dict[str, list[Chosen]]:
    """The ways without words: both models alone, and the receiver's cache fused three ways."""
    found: dict[str, list[Chosen]] = {way: [] for way in (RECEIVER, SHARER, SELF, FUSED, OTHER)}
    before = read_both(rows[-1], fuser, sharer, receiver).theirs
    for number, row in enumerate(rows, 1):
        made = read_both(row, fuser, sharer, receiver)
        own = read_both(row, mine, receiver, receiver)
        other = replace(made, theirs=ending_as(before, len(made.theirs)))
        for way, module, one in (
            (RECEIVER, None, made),
            (SELF, mine, own),
            (FUSED, fuser, made),
            (OTHER, fuser, other),
        ):
            states = fused_context(module, one, receiver)
            last = one.case.ids[-1]
            found[way].append(choose(receiver, last, states, row.options, row.answer))
        found[SHARER].append(
            answer_text(sharer, choice_prompt(row.question), row.options, row.answer)
        )
        before = made.theirs
        if number % 20 == 0 or number == len(rows):
            progress(f"{number} of {len(rows)} rows fused")
    return found


# Figures


def _accuracy(found: Sequence[Chosen]) -> float:
    return fmean(one.by_characters for one in found)


def _marks(found: Sequence[Chosen]) -> list[bool]:
    return [one.by_characters for one in found]


def _line(way: str, found: Mapping[str, Sequence[Chosen]]) -> dict[str, Any]:
    marks = _marks(found[way])
    low, high = wilson(sum(marks), len(marks))
    line: dict[str, Any] = {
        "way": way,
        "accuracy": round(fmean(marks), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "accuracy_unnormalised": round(fmean(one.by_sum for one in found[way]), 4),
        "n": len(marks),
    }
    if way != FUSED:
        gap = paired(_marks(found[FUSED]), marks)
        names = ("fused_minus", "fused_minus_low", "fused_minus_high")
        line |= {name: round(value, 4) for name, value in zip(names, gap, strict=True)}
    return line


def _summary(found: Mapping[str, Sequence[Chosen]], setting: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "receiver": RECEIVER,
        "sharer": SHARER,
        "text": TEXT,
        "self_fused": SELF,
        "fused": FUSED,
        "mismatched": OTHER,
    }
    best = max((RECEIVER, TEXT, SELF), key=lambda way: _accuracy(found[way]))
    gap = paired(_marks(found[FUSED]), _marks(found[best]))
    keys = ("fused_minus_best", "fused_minus_best_low", "fused_minus_best_high")
    return {
        **{f"accuracy_{key}": round(_accuracy(found[way]), 4) for key, way in names.items()},
        **{key: round(value, 4) for key, value in zip(keys, gap, strict=True)},
        "best": best,
        "n": len(found[FUSED]),
        "text_prompt": setting["text_prompt"],
        "text_message_tokens": setting["text_message_tokens"],
        "text_tried_on": setting["text_tried_on"],
        **{f"text_tried_{key}": round(value, 4) for key, value in setting["text_tried"].items()},
    }


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
