"""The study of fuse mode, and the questions with options that it asks."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from architectures import make
from fusers import CORPUS, SMALL, bridge_between, fuser_between

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
from unspoken.channels.errors import BridgeError
from unspoken.channels.storage.side import ModelDescription

WAYS = {
    "receiver": "receiver alone",
    "sharer": "sharer alone",
    "text": "text-to-text",
    "self_fused": "self-fused",
    "fused": "fused",
    "mismatched": "fused, another row's sharer",
}


@pytest.fixture(scope="module")
def pair() -> tuple[LocalModel, LocalModel]:
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
    monkeypatch.setattr(fuse, "LENGTHS", (2, 4))
    monkeypatch.setattr(fuse, "TUNED", 3)
    monkeypatch.setattr(fitted_fusers, "load_corpus", lambda: CORPUS)


def kept(folder: Path, sharer: LocalModel, receiver: LocalModel, fuser: Fuser) -> Path:
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


def test_all_ways_are_measured_on_the_same_rows(
    pair: tuple[LocalModel, LocalModel], questions: Path, tmp_path: Path
) -> None:
    """A fuser that changes nothing is the receiver alone; one that changes much is not."""
    sharer, receiver = pair
    fused = kept(tmp_path / "a", sharer, receiver, fuser_between(sharer, receiver, trained=False))
    own = kept(tmp_path / "b", receiver, receiver, fuser_between(receiver, receiver, trained=False))
    said: list[str] = []
    plan = fuse.FusePlan(bridge=fused, self_bridge=own)
    rows, summary = fuse.compare(sharer, receiver, questions, said.append, plan)
    table = {row["way"]: row for row in rows}
    assert set(table) == set(WAYS.values()) and said
    for key, way in WAYS.items():
        row = table[way]
        assert row["n"] == 7 == summary["n"] and summary[f"accuracy_{key}"] == row["accuracy"]
        assert row["low"] <= row["accuracy"] <= row["high"]
    alone = table["receiver alone"]
    for way in ("self-fused", "fused", "fused, another row's sharer"):
        assert table[way]["accuracy"] == alone["accuracy"]
    assert (alone["fused_minus"], alone["fused_minus_low"], alone["fused_minus_high"]) == (0, 0, 0)
    tried = {
        name: value
        for name, value in summary.items()
        if name.startswith("text_tried_") and name[-1].isdigit()
    }
    assert len(tried) == 4 and summary["text_tried_on"] == 3
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
    pair: tuple[LocalModel, LocalModel], fitted: list[tuple[str, str, FuseSettings]]
) -> None:
    """The pair's fuser and its control; the built-in questions are asked; nothing is kept."""
    settings = FuseSettings(**SMALL, steps=2)
    plan = fuse.FusePlan(settings=settings, rows=3)
    rows, summary = fuse.compare(*pair, None, lambda line: None, plan)
    assert fitted[0] == ("qwen3", "llama", settings)
    assert fitted[1] == ("llama", "llama", replace(settings, minutes=1440.0, patience=2))
    assert summary["n"] == 3 and len(rows) == 6
    assert not list(BridgeStore().root.glob(".fits/*"))


def test_the_control_takes_as_many_steps(
    pair: tuple[LocalModel, LocalModel], questions: Path, fitted: list[Any]
) -> None:
    """The control gets as many steps as the fuser had; the rows say how many."""
    impatient = {**SMALL, "every": 0.0, "patience": 1, "residual_rate": 0.0, "rate": 0.0}
    plan = fuse.FusePlan(settings=FuseSettings(**impatient, steps=12))
    rows, summary = fuse.compare(*pair, questions, lambda line: None, plan)
    steps = {row["way"]: row["steps"] for row in rows if "steps" in row}
    assert steps == dict.fromkeys(("fused", "fused, another row's sharer", "self-fused"), 2)
    assert summary["steps_fused"] == summary["steps_self_fused"] == 2


@pytest.mark.parametrize("trained", [False, True])
def test_an_audit_finds_what_the_benchmark_finds(
    pair: tuple[LocalModel, LocalModel], questions: Path, tmp_path: Path, trained: bool
) -> None:
    """Audit and bench agree on the same rows; a bridge without fuse mode has no such figures."""
    sharer, receiver = pair
    fuser = fuser_between(sharer, receiver, trained=trained)
    fused = kept(tmp_path / "a", sharer, receiver, fuser)
    own = kept(tmp_path / "b", receiver, receiver, fuser_between(receiver, receiver, trained=False))
    plan = fuse.FusePlan(bridge=fused, self_bridge=own)
    rows, summary = fuse.compare(sharer, receiver, questions, lambda line: None, plan)
    table = {row["way"]: row for row in rows}
    empty = Audit(
        date=date.today(), machine={}, files=(), rows=(), summary={}, retention_lower_bound=0.5
    )
    bridge = bridge_between(sharer, receiver, tmp_path / "c", fuser, "float32")
    brought = AuditPlan(choice=questions).rows()
    found = with_fuse(empty, bridge.fuser, sharer, receiver, brought)
    assert [row["way"] for row in found.rows] == [
        WAYS[key] for key in ("receiver", "fused", "mismatched")
    ]
    for row in found.rows:
        one = table[row["way"]]
        assert (row["rows"], row["accuracy"]) == (7, one["accuracy"])
        assert (row["accuracy_low"], row["accuracy_high"]) == (one["low"], one["high"])
    for name, key in (("alone", "receiver"), ("mismatched", "mismatched")):
        assert found.summary[f"fuse_accuracy_{name}"] == summary[f"accuracy_{key}"]
        for end in ("", "_low", "_high"):
            theirs = table[WAYS[key]][f"fused_minus{end}"]
            assert found.summary[f"fuse_over_{name}{end}"] == theirs
    assert found.summary["fuse_n"] == 7 and found.retention_lower_bound == 0.5
    plain = bridge_between(sharer, receiver, tmp_path / "d", None)
    assert with_fuse(empty, plain.fuser, sharer, receiver, brought) is empty
    builtin = with_fuse(empty, bridge.fuser, sharer, receiver, AuditPlan(choices=3).rows())
    assert builtin.figure("fuse_n") == builtin.summary["fuse_n_builtin"] == 3


def test_what_is_fitted_can_be_kept(
    pair: tuple[LocalModel, LocalModel], questions: Path, tmp_path: Path, fitted: list[Any]
) -> None:
    """A second run fits nothing and finds the same; each fuser's folder is a bridge as well."""
    keep = tmp_path / "kept"
    plan = fuse.FusePlan(keep=keep, settings=FuseSettings(**SMALL, steps=2), command="unspoken")
    first = fuse.compare(*pair, questions, lambda line: None, plan)
    assert len(fitted) == 2
    assert read_manifest(keep / "self-fused").fit["command"] == "unspoken"
    named = fuse.FusePlan(bridge=keep / "fused", self_bridge=keep / "self-fused")
    for again in (plan, named):
        assert fuse.compare(*pair, questions, lambda line: None, again) == first
    assert len(fitted) == 2


def test_no_fit_begins_for_a_folder_that_cannot_keep_it(
    pair: tuple[LocalModel, LocalModel], questions: Path, tmp_path: Path, fitted: list[Any]
) -> None:
    """Another pair's fuser, or other files, in either's place are found before the first fit."""
    sharer, receiver = pair
    theirs, notes = tmp_path / "a", tmp_path / "b"
    kept(theirs / "self-fused", sharer, receiver, fuser_between(sharer, receiver, trained=True))
    (notes / "fused").mkdir(parents=True)
    (notes / "fused" / "notes.txt").write_text("mine")
    for keep, found in ((theirs, "holds the bridge"), (notes, "is no bridge's folder")):
        plan = fuse.FusePlan(keep=keep, settings=FuseSettings(**SMALL, steps=2))
        with pytest.raises(BridgeError, match=found):
            fuse.compare(*pair, questions, lambda line: None, plan)
    assert not fitted


def test_a_named_bridge_without_fuse_mode_is_refused(
    pair: tuple[LocalModel, LocalModel], questions: Path, tmp_path: Path
) -> None:
    """What a person names is used or refused, never replaced; nor is one of other models taken."""
    fuser = fuser_between(*pair, trained=True)
    folder = kept(tmp_path / "a", *pair, fuser)
    sharer, receiver = pair
    with pytest.raises(BridgeError, match="no bridge at"):
        fuse.compare(*pair, questions, print, fuse.FusePlan(bridge=tmp_path / "none"))
    plan = fuse.FusePlan(bridge=folder, self_bridge=folder)
    with pytest.raises(Exception, match="the sharer was made by a model with other weights"):
        fuse.compare(sharer, receiver, questions, lambda line: None, plan)
