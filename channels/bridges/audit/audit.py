"""What a bridge carries of a message, against the text, no message, and empty messages.

Every row is answered under these conditions: the full text; no message; the bridge; the bridge with
another example's message, with zeros, and with noise of the message's own mean and deviation per
column; and two maps of the bridge's rank that are refitted, one without the sharer, one with the
receiver as its own sharer. All of them keep the receiver's own state of the context's first tokens
and of the message's last.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from unspoken.channels.bridges.audit.answers import greedy, losses_of
from unspoken.channels.bridges.audit.contexts import TaskRows, task_contexts
from unspoken.channels.bridges.audit.controls import BRIDGE, MISMATCHED, Controls, conditions_of
from unspoken.channels.bridges.audit.fuse_audit import with_fuse
from unspoken.channels.bridges.audit.plan import AuditSettings
from unspoken.channels.bridges.audit.rows import AuditRows
from unspoken.channels.bridges.audit.tables import NONE, TEXT, Row, figures, mean, table
from unspoken.channels.bridges.audit.task import Task
from unspoken.channels.bridges.audit.timing import OWN, scene, timings
from unspoken.channels.bridges.audit.trial import Condition, Trial, Trials, assess
from unspoken.channels.bridges.audit.worth import task_summary, task_table
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.manifest import Audit, Figures
from unspoken.channels.bridges.projector import Projector
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import InputError
from unspoken.channels.kv.state import KVState
from unspoken.channels.machine import describe_machine
from unspoken.channels.metrics import f1
from unspoken.channels.model import Report, TextModel

DATA = ("continuation", "question", "recall")
"""The data sets that a bridge's prefix mode is measured on."""


def audit(
    bridge: Bridge,
    sharer: TextModel,
    receiver: TextModel,
    rows: AuditRows,
    *,
    corpus: Corpus,
    report: Report = lambda stage, fraction: None,
    settings: AuditSettings | None = None,
    alone: Projector | None = None,
) -> Audit:
    """Measure a bridge; one with fuse mode on questions with options too, see `with_fuse`.

    Args:
        bridge: The bridge, as it is stored.
        sharer: Whose cache it reads.
        receiver: Whose cache it makes.
        rows: What to measure on.
        corpus: Plain text that the refitted maps are solved from, best the bridge's own.
        report: Called with a stage and how much of it is done.
        settings: How much to measure.
        alone: A bridge of equal size and training that gets the receiver's embeddings alone.

    Raises:
        IdentityMismatch: Other models than the bridge's.
        InputError: Rows that cannot be measured on.
    """
    bridge.check(sharer, receiver)
    if "choice" in rows.brought and not bridge.fuses:
        raise InputError(
            "questions with options were given, and the bridge has no fuse mode to measure on them",
            expected="a bridge that was fitted with fuse mode",
            fix="leave the questions with options out",
        )
    settings = settings or AuditSettings()
    this = _Audit(bridge=bridge, sharer=sharer, receiver=receiver, settings=settings, report=report)
    table, summary = this.all(rows, corpus)
    summary = {
        name if rows.brought & _kinds(name) else f"{name}_builtin": value
        for name, value in summary.items()
    }
    asked = this.task(rows.task, alone, rows.contexts)
    table, summary = [*asked, *table], {**task_summary(asked, rows.task), **summary}
    measured = Audit(
        date=dt.date.today(),
        machine=describe_machine(receiver),
        files=rows.files,
        rows=tuple(table),
        summary=summary,
        retention_lower_bound=_lower_bound(table),
    )
    return with_fuse(measured, bridge.fuser, sharer, receiver, rows, report)


def _kinds(figure: str) -> frozenset[str]:
    """The kinds of rows that a figure comes of; those of none in particular count for all."""
    if figure.startswith(("retention", "specific", "kl", "top1")):
        return frozenset(("text",))
    kind = figure.partition("_")[0]
    return frozenset((kind,) if kind in ("qa", "recall") else ("text", "qa", "recall"))


@dataclass(eq=False, kw_only=True)
class _Audit:
    bridge: Bridge
    sharer: TextModel
    receiver: TextModel
    settings: AuditSettings
    report: Report
    conditions: dict[str, Condition] = field(default_factory=dict)

    def all(self, rows: AuditRows, corpus: Corpus) -> tuple[list[Row], Figures]:
        settings = self.settings
        bridge, receiver = self.bridge, self.receiver
        config = bridge.projector.config
        bridge.projector.to(receiver.device)
        self.report("controls", 0.0)
        controls = Controls.fit(
            config, self.sharer, receiver, corpus, tokens=settings.tokens, seed=settings.seed
        )
        columns = width(self.sharer.geometry, config.source_layers)
        conditions = conditions_of(bridge.projector, columns, receiver, seed=settings.seed)
        self.conditions = {**conditions, **controls.conditions()}
        table = [
            *self._measure("continuation", rows),
            *self._measure("question", rows, "f1", partial(self._f1, rows)),
            *self._measure("recall", rows, "accuracy", partial(self._choice, rows)),
        ]
        timed = self._timed(rows.text)
        summary = _fit_figures(bridge) | _summary(table) | _speed(timed)
        state = self.sharer.geometry.bytes_per_token(self.sharer.dtype.itemsize)
        summary["bytes_per_token_state"] = state
        return [*table, *timed], summary

    def task(self, task: TaskRows, alone: Projector | None, most: int) -> list[Row]:
        """The rows of the task, at every size that both models can read."""
        settings, receiver = self.settings, self.receiver
        judge = Task(
            bridge=self.bridge,
            sharer=self.sharer,
            receiver=receiver,
            alone=None if alone is None else alone.to(receiver.device),
            written=settings.written,
        )
        measured = []
        longest = min(self.sharer.max_positions, receiver.max_positions)
        for size in settings.task:
            if 2 * size > longest:
                self.report(f"task: {size} tokens are too many for these models", 1.0)
                continue
            contexts = task_contexts(
                task.rows, receiver, size, count=most, questions=settings.asked, seed=settings.seed
            )
            if len(contexts) > 1:
                measured.append(judge.measure(contexts, size, self.report))
        return task_table(measured, seed=settings.seed)

    def _measure(
        self,
        data: str,
        rows: AuditRows,
        figure: str = "",
        score: Callable[[Trial, Sequence[KVState]], float | None] = lambda trial, states: None,
    ) -> list[Row]:
        """The table of one data set, with a figure of the receiver's answers where there is one."""
        samples = rows.samples(data, self.receiver)
        config = self.bridge.projector.config
        trials = Trials(samples, config, self.sharer, self.receiver)
        scores: dict[str, list[float]] = {}

        def each(trial: Trial, projected: Mapping[str, KVState]) -> None:
            for condition, states in _asked(trial, projected).items():
                value = score(trial, states)
                if value is not None:
                    scores.setdefault(condition, []).append(value)
            self.report(data, (trial.index + 1) / len(trials))

        assessment = assess(trials, self.conditions, each)
        more = {condition: {figure: mean(values)} for condition, values in scores.items()}
        return table(data, assessment, seed=self.settings.seed, more=more)

    def _f1(self, rows: AuditRows, trial: Trial, states: Sequence[KVState]) -> float | None:
        """Of an answer in words, for the first few questions."""
        if trial.index >= self.settings.answered:
            return None
        said = greedy(self.receiver, states, trial.asked, self.settings.written)
        return f1(said, rows.qa[trial.index].answers)

    def _choice(self, rows: AuditRows, trial: Trial, states: Sequence[KVState]) -> float:
        """1 where the likeliest of the records' values is the one that was asked for."""
        row = rows.recall[trial.index]
        values = list(dict(row.records).values())
        answers = [self._value(value) for value in values]
        losses = losses_of(self.receiver, states, trial.asked, answers)
        return float(values[losses.index(min(losses))] == row.value)

    def _value(self, value: str) -> tuple[int, ...]:
        """A value's ids, written as `prepare` writes the answer."""
        ask = self.receiver.frame("chat").ask
        return self.receiver.words(value if ask else f" {value}")[0][:64]

    def _timed(self, text: str) -> list[Row]:
        rows: list[Row] = []
        for index, size in enumerate(self.settings.sizes):
            self.report("time", index / len(self.settings.sizes))
            place = scene(text, size, self.sharer, self.receiver)
            if place is None:
                continue
            seconds = timings(self.bridge, place, self.receiver, self.settings.repeats)
            least = seconds["floor"] + seconds["products"]
            rows += [
                {
                    "data": "time",
                    "tokens": size,
                    "way": condition,
                    "own_tokens": OWN,
                    "ttft_s": round(taken, 5),
                    "speedup_over_text": round(seconds["text"] / taken, 2),
                    "over_floor_and_products": round(taken / least, 3),
                    "state_bytes": place.state.nbytes,
                    "text_bytes": place.text_bytes,
                }
                for condition, taken in seconds.items()
            ]
        self.report("time", 1.0)
        return rows


def _asked(trial: Trial, projected: Mapping[str, KVState]) -> dict[str, list[KVState]]:
    """What a question follows, by the conditions whose answers are looked at."""
    by_state = {name: trial.states(projected[name]) for name in (BRIDGE, MISMATCHED)}
    return {TEXT: trial.own, NONE: [trial.head], **by_state}


def _fit_figures(bridge: Bridge) -> Figures:
    fit, stored = bridge.manifest.fit, bridge.manifest.tensors.bytes
    names = ("fit_minutes_closed_form", "fit_minutes_total")
    return {name: fit.get(name) for name in names} | {
        "size_mb": round(stored / 1e6, 2) if stored else None
    }


def _summary(rows: list[Row]) -> Figures:
    """The figures that matter, of the bridge."""
    text, asked, recalled = (figures(rows, data, BRIDGE) for data in DATA)
    return {
        "retention": text["retention"],
        "retention_low": text["retention_low"],
        "specific_retention": text["specific"],
        "specific_retention_low": text["specific_low"],
        "kl": text["kl"],
        "top1": text["top1"],
        "qa_retention": asked["retention"],
        "qa_specific": asked["specific"],
        "qa_f1_text": figures(rows, "question", TEXT).get("f1"),
        "qa_f1_bridge": asked.get("f1"),
        "recall_retention": recalled["retention"],
        "recall_specific": recalled["specific"],
        "recall_accuracy": recalled.get("accuracy"),
        "recall_accuracy_text": figures(rows, "recall", TEXT).get("accuracy"),
        "recall_accuracy_mismatched": figures(rows, "recall", MISMATCHED).get("accuracy"),
        "earned": _lower_bound(rows),
    }


def _lower_bound(rows: list[Row]) -> float:
    """The lowest lower bound of specific retention; kinds whose text gains nothing are skipped."""
    by_kind = [figures(rows, data, BRIDGE) for data in DATA]
    lows = [row["specific_low"] for row in by_kind if row["specific"] is not None]
    return 0.0 if not lows or None in lows else float(min(lows))


def _speed(rows: list[Row]) -> Figures:
    by_size = {row["tokens"]: row for row in rows if row["way"] == BRIDGE}
    summary: Figures = {
        f"ttft_speedup_{size}": by_size[size]["speedup_over_text"] for size in by_size
    }
    if 1024 in by_size:
        summary["ttft_over_floor_and_products_1024"] = by_size[1024]["over_floor_and_products"]
    if by_size:
        longest = by_size[max(by_size)]
        summary["bytes_per_token_text"] = round(longest["text_bytes"] / longest["tokens"], 2)
    return summary
