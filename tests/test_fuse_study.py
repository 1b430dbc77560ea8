"""The study of fuse mode, and the questions with options that it asks."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from architectures import make
from flows import Pair
from fusers import CORPUS, SMALL, bridge_between, fuser_between
from pairs import quick_fits

import fitted_fusers
import fuse
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.fuse_audit import with_fuse
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.folder import read_manifest, write
from unspoken.channels.bridges.fuser import Fuser, fuse_tensors
from unspoken.channels.bridges.manifest import Audit, BridgeManifest, FitData
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError, IdentityMismatch
from unspoken.channels.storage.side import ModelDescription

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("qwen3"), make("llama", 1)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Rows in the shape of openbookqa's."""
    lines = []
    for number in range(7):
        options = " ".join(f"Answer{n + 1}: the {n} key of {number}{'s' * n}" for n in range(3))
        asked = f"Please choose the correct answer to the question: who is {number}?"
        text = f"{asked}\n\n{options}\n\nAnswer format: x"
        lines.append(json.dumps({"instruction": text, "answer": f"answer{number % 3 + 1}"}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(autouse=True)
def small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_fits(monkeypatch)
    monkeypatch.setattr(fuse, "LENGTHS", (2, 4))
    monkeypatch.setattr(fuse, "TUNED", 3)
    monkeypatch.setattr(fitted_fusers, "load_corpus", lambda: CORPUS)


def stored(folder: Path, sharer: LocalModel, receiver: LocalModel, fuser: Fuser) -> Path:
    """A folder with a fuser alone."""
    manifest = BridgeManifest.new(
        ModelDescription.of(sharer, "their/model"),
        ModelDescription.of(receiver, "our/model"),
        config={"fuse": fuser.config.to_dict()},
        dtype="float32",
        data=FitData(sources=("tiny",), digest="00", tokens=1, seed=0),
        fit={"fuse_minutes": 0.0, "fuse_steps": 0},
    )
    write(folder, manifest, fuse_tensors(fuser, "float32"))
    return folder


def stored_plan(folder: Path, pair: Pair, *, trained: bool) -> fuse.FusePlan:
    """A fuser, and a control that changes nothing."""
    itself = (pair[1], pair[1])
    fused = stored(folder / "a", *pair, fuser_between(*pair, trained=trained))
    control = stored(folder / "b", *itself, fuser_between(*itself, trained=False))
    return fuse.FusePlan(bridge=fused, self_bridge=control)


def compared(
    pair: Pair, questions: Path | None, plan: fuse.FusePlan
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table by condition, and the summary."""
    rows, summary = fuse.compare(*pair, questions, lambda line: None, plan)
    return {row["way"]: row for row in rows}, summary


def test_all_conditions_are_measured_on_the_same_rows(
    pair: Pair, questions: Path, tmp_path: Path
) -> None:
    """A fuser that changes nothing is the receiver alone; text is given its best setting."""
    table, summary = compared(pair, questions, stored_plan(tmp_path, pair, trained=False))
    assert list(table) == list(fuse.KEYS.values())
    for key, condition in fuse.KEYS.items():
        row = table[condition]
        assert row["n"] == 7 == summary["n"] and summary[f"accuracy_{key}"] == row["accuracy"]
        assert row["low"] <= row["accuracy"] <= row["high"]
    alone = table[fuse.RECEIVER]
    for condition in (fuse.SELF, fuse.FUSED, fuse.OTHER):
        assert table[condition]["accuracy"] == alone["accuracy"]
    assert alone["fused_minus"] == 0
    assert alone["fused_minus_low"] < 0 < alone["fused_minus_high"]  # 7 rows prove nothing
    tried = {name: summary[name] for name in summary if name.startswith("text_tried_")}
    assert tried.pop("text_tried_on") == 3 and len(tried) == 4
    chosen = f"text_tried_{summary['text_prompt']}_{summary['text_message_tokens']}"
    assert tried[chosen] == max(tried.values())
    low, middle, high = (summary[f"fused_minus_best{end}"] for end in ("_low", "", "_high"))
    assert low <= middle <= high <= 1


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, FuseSettings]]:
    """What is fitted from now on: both ends, and how."""
    seen: list[tuple[str, str, FuseSettings]] = []
    fit = fitted_fusers.FuserFit

    def noted(sharer: LocalModel, receiver: LocalModel, *rest: Any, **more: Any) -> Any:
        seen.append((sharer.ref, receiver.ref, rest[1]))
        return fit(sharer, receiver, *rest, **more)

    monkeypatch.setattr(fitted_fusers, "FuserFit", noted)
    return seen


def test_fusers_are_fitted_where_none_is_given(
    pair: Pair, fitted: list[tuple[str, str, FuseSettings]]
) -> None:
    """The pair's fuser and its control; the built-in questions are asked; nothing is kept."""
    settings = FuseSettings(**SMALL, steps=2)
    table, summary = compared(pair, None, fuse.FusePlan(settings=settings, rows=3))
    assert fitted[0] == ("qwen3", "llama", settings)
    assert fitted[1] == ("llama", "llama", replace(settings, minutes=1440.0, patience=2))
    assert summary["n"] == 3 and len(table) == 6
    assert not list(BridgeStore().root.glob(".fits/*"))


def test_the_control_takes_as_many_steps(pair: Pair, questions: Path) -> None:
    """The control gets as many steps as the fuser had; the rows say how many."""
    impatient = {**SMALL, "every": 0.0, "patience": 1, "residual_rate": 0.0, "rate": 0.0}
    plan = fuse.FusePlan(settings=FuseSettings(**impatient, steps=12))
    table, summary = compared(pair, questions, plan)
    assert {table[name]["steps"] for name in (fuse.FUSED, fuse.OTHER, fuse.SELF)} == {2}
    assert summary["steps_fused"] == summary["steps_self_fused"] == 2


def test_an_audit_finds_what_the_study_finds(pair: Pair, questions: Path, tmp_path: Path) -> None:
    """Audit and study agree on the same rows; a bridge without fuse mode has no such figures."""
    table, _ = compared(pair, questions, stored_plan(tmp_path, pair, trained=True))
    empty = Audit(
        date=date.today(), machine={}, files=(), rows=(), summary={}, retention_lower_bound=0.5
    )
    fuser = fuser_between(*pair, trained=True)
    bridge = bridge_between(*pair, tmp_path / "c", fuser, "float32")
    brought = AuditPlan(choice=questions).rows()
    audit = with_fuse(empty, bridge.fuser, *pair, brought)
    assert [row["way"] for row in audit.rows] == [fuse.RECEIVER, fuse.FUSED, fuse.OTHER]
    for row in audit.rows:
        line = table[row["way"]]
        assert (row["rows"], row["accuracy"]) == (7, line["accuracy"])
        assert (row["accuracy_low"], row["accuracy_high"]) == (line["low"], line["high"])
    for name, condition in (("alone", fuse.RECEIVER), ("mismatched", fuse.OTHER)):
        line = table[condition]
        assert audit.summary[f"fuse_accuracy_{name}"] == line["accuracy"]
        for end in ("", "_low", "_high"):
            assert audit.summary[f"fuse_over_{name}{end}"] == line[f"fused_minus{end}"]
    assert audit.summary["fuse_n"] == 7 and audit.retention_lower_bound == 0.5
    plain = bridge_between(*pair, tmp_path / "d", None)
    assert with_fuse(empty, plain.fuser, *pair, brought) is empty
    builtin = with_fuse(empty, bridge.fuser, *pair, AuditPlan(choices=3).rows())
    assert builtin.figure("fuse_n") == builtin.summary["fuse_n_builtin"] == 3


def test_what_is_fitted_can_be_kept(
    pair: Pair, questions: Path, tmp_path: Path, fitted: list[Any]
) -> None:
    """A second run fits nothing and finds the same; each fuser's folder is a bridge as well."""
    keep = tmp_path / "kept"
    plan = fuse.FusePlan(keep=keep, settings=FuseSettings(**SMALL, steps=2), command="unspoken")
    first = compared(pair, questions, plan)
    assert read_manifest(keep / "self-fused").fit["command"] == "unspoken"
    named = fuse.FusePlan(bridge=keep / "fused", self_bridge=keep / "self-fused")
    for again in (plan, named):
        assert compared(pair, questions, again) == first
    assert len(fitted) == 2


def test_no_fit_begins_for_a_folder_that_cannot_keep_it(
    pair: Pair, questions: Path, tmp_path: Path, fitted: list[Any]
) -> None:
    """Another pair's fuser, or other files, in either's place are found before the first fit."""
    theirs, notes = tmp_path / "a", tmp_path / "b"
    stored(theirs / "self-fused", *pair, fuser_between(*pair, trained=True))
    (notes / "fused").mkdir(parents=True)
    (notes / "fused" / "notes.txt").write_text("mine")
    for keep, says in ((theirs, "holds the bridge"), (notes, "is no bridge's folder")):
        with pytest.raises(BridgeError, match=says):
            compared(pair, questions, fuse.FusePlan(keep=keep))
    assert not fitted


def test_a_named_bridge_is_used_or_refused(pair: Pair, questions: Path, tmp_path: Path) -> None:
    """One that is not there, or is of other models, is never replaced."""
    folder = stored(tmp_path / "a", *pair, fuser_between(*pair, trained=True))
    with pytest.raises(BridgeError, match="no bridge at"):
        compared(pair, questions, fuse.FusePlan(bridge=tmp_path / "none"))
    with pytest.raises(IdentityMismatch, match="the sharer was made by a model with other weights"):
        compared(pair, questions, fuse.FusePlan(bridge=folder, self_bridge=folder))
