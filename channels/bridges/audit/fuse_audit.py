"""What fuse mode adds: questions with options, answered alone, fused, and with another's state.

The options are not shown; each is scored by its log-likelihood over its characters (lm-eval's
``acc_norm``).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unspoken.channels.bridges.audit.answers import losses_of
from unspoken.channels.bridges.audit.rows import AuditRows, require_two
from unspoken.channels.bridges.fit.fuse_example import FuseInput, fuse_input, fused_context
from unspoken.channels.bridges.fit.fuse_samples import choice_prompt
from unspoken.channels.bridges.fit.samples import Sample, prepare
from unspoken.channels.bridges.fuser import Fuser
from unspoken.channels.bridges.manifest import Audit
from unspoken.channels.data.rows import ChoiceRow
from unspoken.channels.kv.state import KVState
from unspoken.channels.metrics import paired, wilson
from unspoken.channels.model import Report, TextModel

FUSE = "fuse"
ALONE, FUSED, OTHER = "receiver alone", "fused", "fused, another row's sharer"


def with_fuse(
    audit: Audit,
    fuser: Fuser | None,
    sharer: TextModel,
    receiver: TextModel,
    rows: AuditRows,
    report: Report = lambda stage, fraction: None,
) -> Audit:
    """An audit with what a fuser does added to its rows and summary; itself without a fuser.

    Raises:
        InputError: All questions are one.
    """
    if fuser is None:
        return audit
    require_two([Sample(choice_prompt(row.question), ()) for row in rows.choice])
    marks = _marks(fuser, sharer, receiver, rows.choice, report)
    end = "" if "choice" in rows.brought else "_builtin"
    summary = {"fuse_n": len(rows.choice), "fuse_accuracy": _share(marks[FUSED])}
    for name, condition in (("alone", ALONE), ("mismatched", OTHER)):
        gap = paired(marks[FUSED], marks[condition])
        names = (f"fuse_over_{name}{part}" for part in ("", "_low", "_high"))
        summary |= {f"fuse_accuracy_{name}": _share(marks[condition])}
        summary |= {key: round(value, 4) for key, value in zip(names, gap, strict=True)}
    table = []
    for condition, right in marks.items():
        low, high = (round(end, 4) for end in wilson(sum(right), len(right)))
        line = {"data": FUSE, "way": condition, "rows": len(right), "accuracy": _share(right)}
        table.append(line | {"accuracy_low": low, "accuracy_high": high})
    named = {name + end: value for name, value in summary.items()}
    both = {"rows": (*audit.rows, *table), "summary": {**audit.summary, **named}}
    return audit.model_copy(update=both)


@torch.no_grad()
def _marks(
    fuser: Fuser, sharer: TextModel, receiver: TextModel, rows: Sequence[ChoiceRow], report: Report
) -> dict[str, list[bool]]:
    """Per condition, whether each row was answered rightly."""
    fuser.to(receiver.device)
    marks: dict[str, list[bool]] = {condition: [] for condition in (ALONE, FUSED, OTHER)}
    before = read_both(rows[-1], fuser, sharer, receiver).theirs
    for number, row in enumerate(rows, 1):
        read = read_both(row, fuser, sharer, receiver)
        other = replace(read, theirs=ending_as(before, len(read.theirs)))
        for condition, module, given in (
            (ALONE, None, read),
            (FUSED, fuser, read),
            (OTHER, fuser, other),
        ):
            states = fused_context(module, given, receiver)
            sums = log_likelihoods(receiver, read.sample.ids[-1], states, row.options)
            marks[condition].append(likeliest(sums, row.options) == row.answer)
        before = read.theirs
        report(FUSE, number / len(rows))
    return marks


def read_both(row: ChoiceRow, fuser: Fuser, sharer: TextModel, receiver: TextModel) -> FuseInput:
    """A question, without its options, as both models have read it."""
    sample = prepare(Sample(choice_prompt(row.question), ()), sharer, receiver)
    return fuse_input(fuser.config, sample, sharer, receiver)


def ending_as(theirs: Tensor, length: int) -> Tensor:
    """Another input's rows, cut or repeated to `length` so that both inputs end together."""
    back = torch.arange(length - 1, -1, -1, device=theirs.device) % len(theirs)
    return theirs[len(theirs) - 1 - back]


def log_likelihoods(
    receiver: TextModel, last: int, states: Sequence[KVState], options: Sequence[str]
) -> list[float]:
    """Log-likelihood of each option as what follows an input.

    Args:
        receiver: Answers.
        last: The input's last token.
        states: State of the input but its last token.
        options: The options, without the space before them.
    """
    tokens = [receiver.words(f" {option}")[0] for option in options]
    losses = losses_of(receiver, states, (last,), tokens)
    return [-loss * len(ids) for loss, ids in zip(losses, tokens, strict=True)]


def likeliest(sums: Sequence[float], options: Sequence[str], *, by_characters: bool = True) -> int:
    """Index of the likeliest option, per character (lm-eval's ``acc_norm``) or in all."""
    scores = [
        total / len(option) if by_characters else total
        for total, option in zip(sums, options, strict=True)
    ]
    return max(range(len(scores)), key=scores.__getitem__)


def _share(marks: Sequence[bool]) -> float:
    return round(sum(marks) / len(marks), 4)
