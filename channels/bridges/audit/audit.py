"""What a bridge carries of a message, measured against the text, no message, and messages that say
nothing.
"""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unspoken.channels.bridges.audit.answers import greedy, losses_of
from unspoken.channels.bridges.audit.controls import BRIDGE, MISMATCHED, Controls, ways_of
from unspoken.channels.bridges.audit.fuse_audit import with_fuse
from unspoken.channels.bridges.audit.rows import AuditRows
from unspoken.channels.bridges.audit.tables import NONE, TEXT, Row, figures, mean, table
from unspoken.channels.bridges.audit.timing import OWN, SIZES, scene, timings
from unspoken.channels.bridges.audit.trial import Trial, Trials, Way, judge
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.manifest import Audit
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import InputError
from unspoken.channels.kv.state import KVState
from unspoken.channels.metrics import f1
from unspoken.channels.model import TextModel

__all__ = ["AuditSettings", "audit"]

Report = Callable[[str, float], None]
Summary = dict[str, float | int | str | None]


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """How much an audit measures.

    Attributes:
        tokens: Tokens that the two refitted controls are solved from.
        answered: Questions that are also answered in words, for F1.
        written: Most tokens of such an answer.
        sizes: Tokens of the messages that are timed.
        repeats: How often each is timed.
        seed: Of all that is drawn.
    """

    tokens: int = 12_000
    answered: int = 20
    written: int = 16
    sizes: tuple[int, ...] = SIZES
    repeats: int = 7
    seed: int = 0


def audit(
    bridge: Bridge,
    sharer: TextModel,
    receiver: TextModel,
    rows: AuditRows,
    *,
    corpus: Corpus,
    report: Report = lambda stage, fraction: None,
    machine: Mapping[str, Any] | None = None,
    settings: AuditSettings | None = None,
) -> Audit:
    """Measure a bridge.

    Every row is answered under: the full text; no message; the bridge; the bridge with another
    example's message, with
    zeros, and with noise of the message's own mean and deviation per column; and two maps of the
    bridge's rank refitted on `corpus`, one without the sharer, one with the receiver as its own
    sharer. All ways keep the receiver's own state of the context's first tokens and of the
    message's last. A bridge with fuse mode is measured on questions with options besides; see
    `with_fuse`.

    Args:
        bridge: The bridge, as it is stored.
        sharer: Whose cache it reads.
        receiver: Whose cache it makes.
        rows: What to measure on.
        corpus: Plain text that the refitted maps are solved from, best the bridge's own.
        report: Called with a stage and how much of it is done.
        machine: What this runs on, for the record.
        settings: How much to measure.

    Raises:
        IdentityMismatch: Other models than the bridge's.
        InputError: Rows that cannot be measured on.
    """
    bridge.check(sharer, receiver)
    if "choice" in rows.brought and not bridge.fuses:
        raise InputError(
            "questions with options were given, and the bridge has no fuse mode to measure on them",
            expected="a bridge that was fitted with --fuse",
            fix="leave --choice out",
        )
    settings = settings or AuditSettings()
    run = _Audit(bridge, sharer, receiver, settings, report)
    found, summary = run.all(rows, corpus)
    earned = summary["earned"]
    summary = {
        name if rows.brought & _kinds(name) else f"{name}_builtin": value
        for name, value in summary.items()
    }
    measured = Audit(
        date=dt.date.today(),
        machine=dict(machine or {}),
        files=rows.files,
        rows=tuple(found),
        summary=summary,
        earned=float(earned) if isinstance(earned, int | float) else None,
    )
    return with_fuse(measured, bridge.fuser, sharer, receiver, rows, report)


def _kinds(figure: str) -> frozenset[str]:
    """The kinds of rows that a figure comes of; those of none in particular count for all."""
    if figure.startswith(("retention", "specific", "kl", "top1")):
        return frozenset(("text",))
    kind = figure.partition("_")[0]
    return frozenset((kind,) if kind in ("qa", "recall") else ("text", "qa", "recall"))


class _Audit:
    def __init__(
        self,
        bridge: Bridge,
        sharer: TextModel,
        receiver: TextModel,
        settings: AuditSettings,
        report: Report,
    ) -> None:
        self.bridge, self.sharer, self.receiver = bridge, sharer, receiver
        self.settings, self.report = settings, report
        self.config = bridge.projector.config

    def all(self, rows: AuditRows, corpus: Corpus) -> tuple[list[Row], Summary]:
        settings = self.settings
        bridge, receiver = self.bridge, self.receiver
        bridge.projector.to(receiver.device)
        self.report("controls", 0.0)
        controls = Controls.fit(
            self.config,
            self.sharer,
            receiver,
            corpus,
            tokens=settings.tokens,
            seed=settings.seed,
        )
        columns = width(self.sharer.geometry, self.config.source_layers)
        ways = ways_of(bridge.projector, columns, receiver, seed=settings.seed)
        ways |= controls.ways()
        found = [
            *self._passages(rows, ways),
            *self._questions(rows, ways),
            *self._records(rows, ways),
        ]
        timed = self._timed(rows.text)
        summary = _fit_figures(bridge) | _summary(found) | _speed(timed)
        state = self.sharer.geometry.bytes_per_token(self.sharer.dtype.itemsize)
        summary["bytes_per_token_state"] = state
        return [*found, *timed], summary

    def _trials(self, rows: AuditRows, kind: str) -> Trials:
        lessons = rows.lessons(kind, self.receiver)
        return Trials(lessons, self.config, self.sharer, self.receiver)

    def _passages(self, rows: AuditRows, ways: Mapping[str, Way]) -> list[Row]:
        trials = self._trials(rows, "continuation")
        judged = judge(trials, ways, self._each("continuation", len(trials)))
        return table("continuation", judged, seed=self.settings.seed)

    def _questions(self, rows: AuditRows, ways: Mapping[str, Way]) -> list[Row]:
        trials = self._trials(rows, "question")
        scores: dict[str, list[float]] = {}

        def answer(trial: Trial, made: Mapping[str, KVState]) -> None:
            if trial.index < self.settings.answered:
                for way, states in _asked(trial, made).items():
                    said = greedy(self.receiver, states, trial.asked, self.settings.written)
                    scores.setdefault(way, []).append(f1(said, rows.qa[trial.index].answers))

        judged = judge(trials, ways, self._each("question", len(trials), answer))
        more = {way: {"f1": mean(found)} for way, found in scores.items()}
        return table("question", judged, seed=self.settings.seed, more=more)

    def _records(self, rows: AuditRows, ways: Mapping[str, Way]) -> list[Row]:
        trials = self._trials(rows, "recall")
        right: dict[str, list[float]] = {}

        def choose(trial: Trial, made: Mapping[str, KVState]) -> None:
            row = rows.recall[trial.index]
            values = list(dict(row.records).values())
            answers = [self._value(value) for value in values]
            for way, states in _asked(trial, made).items():
                losses = losses_of(self.receiver, states, trial.asked, answers)
                best = values[losses.index(min(losses))]
                right.setdefault(way, []).append(float(best == row.value))

        judged = judge(trials, ways, self._each("recall", len(trials), choose))
        more = {way: {"accuracy": mean(found)} for way, found in right.items()}
        return table("recall", judged, seed=self.settings.seed, more=more)

    def _value(self, value: str) -> tuple[int, ...]:
        """A value's ids, written the way `prepare` writes the answer."""
        ask = self.receiver.frame("chat").ask
        return self.receiver.words(value if ask else f" {value}")[0][:64]

    def _each(
        self,
        stage: str,
        rows: int,
        also: Callable[[Trial, Mapping[str, KVState]], None] = lambda trial, made: None,
    ) -> Callable[[Trial, Mapping[str, KVState]], None]:
        def each(trial: Trial, made: Mapping[str, KVState]) -> None:
            also(trial, made)
            self.report(stage, (trial.index + 1) / rows)

        return each

    def _timed(self, text: str) -> list[Row]:
        rows: list[Row] = []
        for index, size in enumerate(self.settings.sizes):
            self.report("time", index / len(self.settings.sizes))
            made = scene(text, size, self.sharer, self.receiver)
            if made is None:
                continue
            seconds = timings(self.bridge, made, self.receiver, self.settings.repeats)
            least = seconds["floor"] + seconds["products"]
            for way, found in seconds.items():
                rows.append(
                    {
                        "data": "time",
                        "tokens": size,
                        "way": way,
                        "own_tokens": OWN,
                        "ttft_s": round(found, 5),
                        "speedup_over_text": round(seconds["text"] / found, 2),
                        "over_floor_and_products": round(found / least, 3),
                        "state_bytes": made.state.nbytes,
                        "text_bytes": made.text_bytes,
                    }
                )
        self.report("time", 1.0)
        return rows


def _asked(trial: Trial, made: Mapping[str, KVState]) -> dict[str, list[KVState]]:
    """What a question follows, by the ways whose answers are looked at."""
    by_state = {way: trial.states(made[way]) for way in (BRIDGE, MISMATCHED)}
    return {TEXT: trial.own, NONE: [trial.head], **by_state}


def _fit_figures(bridge: Bridge) -> Summary:
    fit, stored = bridge.manifest.fit, bridge.manifest.tensors.bytes
    names = ("fit_minutes_closed_form", "fit_minutes_total")
    return {name: fit.get(name) for name in names} | {
        "size_mb": round(stored / 1e6, 2) if stored else None
    }


def _summary(rows: list[Row]) -> Summary:
    """The figures that matter, of the bridge."""
    text, asked, recalled = (
        figures(rows, data, BRIDGE) for data in ("continuation", "question", "recall")
    )
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
        "earned": _earned([text, asked, recalled]),
    }


def _earned(rows: list[Row]) -> float:
    """The lower bound of the weakest specific retention; a kind whose text gains nothing has none
    to keep.
    """
    measured = [row for row in rows if row["specific"] is not None]
    lows = [row["specific_low"] for row in measured]
    if not lows or any(low is None for low in lows):
        return 0.0
    return float(min(lows))


def _speed(rows: list[Row]) -> Summary:
    by_size = {row["tokens"]: row for row in rows if row["way"] == BRIDGE}
    found: Summary = {
        f"ttft_speedup_{size}": by_size[size]["speedup_over_text"] for size in by_size
    }
    if 1024 in by_size:
        found["ttft_over_floor_and_products_1024"] = by_size[1024]["over_floor_and_products"]
    if by_size:
        longest = by_size[max(by_size)]
        found["bytes_per_token_text"] = round(longest["text_bytes"] / longest["tokens"], 2)
    return found
