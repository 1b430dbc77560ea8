"""The bridge of embeddings alone: fitted with a bridge, stored beside it, used by its audits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flows import Pair
from pairs import AUDIT, plan

from unspoken.channels.bridges.audit.stored import audit_bridge, keep_audit
from unspoken.channels.bridges.embeddings import add_alone, load_alone
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.folder import check, copy, read, read_embeddings, verify, write
from unspoken.channels.bridges.make import fit_bridge
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.data.text import load_corpus
from unspoken.channels.errors import BridgeError


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A few questions about short passages."""
    file = tmp_path / "qa.jsonl"
    rows = [
        {"context": f"the key {n} is the value", "question": "what?", "answers": [f"key {n}"]}
        for n in range(3)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_a_fit_makes_both_and_its_audit_uses_both(
    pair: Pair, store: BridgeStore, source: str, questions: Path
) -> None:
    """As large, as long trained, of the receiver's embeddings alone; any audit after it has it."""
    measured = replace(AUDIT, qa=questions, settings=replace(AUDIT.settings, task=(40,)))
    stages: list[str] = []
    folder = fit_bridge(
        *pair,
        replace(plan(source, measured), embeddings=True),
        report=lambda stage, part: stages.append(stage),
    )
    assert stages[1].startswith("two fits") and "embeddings alone: train" in stages
    manifest, tensors = read(folder)
    alone, weights = manifest.embeddings, read_embeddings(folder)
    assert alone is not None and weights is not None and manifest.audit is not None
    assert alone.config["source_layers"] == [] and alone.fit["steps"] == manifest.fit["steps"] == 4
    sizes = [sum(tensor.nbytes for tensor in these.values()) for these in (weights, tensors)]
    assert 0.8 * sizes[1] < sizes[0] <= sizes[1]
    learnt = (*FitSettings.learning, "train_dtype", "closed_form_tokens")
    assert {name: alone.fit[name] for name in learnt} == {n: manifest.fit[n] for n in learnt}
    keep_audit(folder, audit_bridge(folder, *pair, measured), manifest)
    for audited in (manifest, check(folder)):
        assert audited.audit is not None
        ways = {row.get("way") for row in audited.audit.rows if row["data"] == "task"}
        assert "embeddings alone" in ways
        assert audited.audit.summary["contexts_from"] == "qa.jsonl"
    assert load_alone(folder, check(folder)) is not None


@pytest.fixture
def fitted(pair: Pair, store: BridgeStore, source: str) -> Path:
    """A bridge that was fitted without it."""
    return fit_bridge(*pair, plan(source, None, steps=1))


def added(folder: Path, pair: Pair, source: str) -> None:
    add_alone(folder, *pair, load_corpus([source]), report=lambda progress: None, work=None)


def test_it_can_be_added_to_a_stored_bridge(pair: Pair, fitted: Path, source: str) -> None:
    """The bridge's own weights stay, it still counts as measured here; another text is refused."""
    before, tensors = read(fitted)
    added(fitted, pair, source)
    after, same = read(fitted)
    assert before.embeddings is None and after.embeddings is not None
    assert after.embeddings.fit["steps"] == 1
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)
    other = replace(load_corpus([source]), digest="0" * 64)
    with pytest.raises(BridgeError, match="is not here as it was"):
        add_alone(fitted, *pair, other, report=lambda progress: None, work=None)


def test_it_learns_as_the_stored_bridge_did(pair: Pair, fitted: Path, source: str) -> None:
    """What the manifest says of the bridge's training holds for the second fit."""
    manifest, tensors = read(fitted)
    fit = {**manifest.fit, "batch": 2, "rate": 3e-4, "closed_form_tokens": 700}
    write(fitted, manifest.model_copy(update={"fit": fit}), tensors)
    added(fitted, pair, source)
    alone = check(fitted).embeddings
    assert alone is not None and (alone.fit["batch"], alone.fit["rate"]) == (2, 3e-4)
    assert 700 <= int(alone.fit["closed_form_tokens"] or 0) < 32_000


def test_its_file_is_checked_like_the_bridge_s(
    pair: Pair, fitted: Path, source: str, tmp_path: Path
) -> None:
    """It travels with the bridge; changed or missing it is refused."""
    added(fitted, pair, source)
    there = tmp_path / "copied"
    copy(fitted, there)
    assert verify(there).embeddings == check(fitted).embeddings
    file = there / "embeddings.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for reading in (verify, read_embeddings):
        with pytest.raises(BridgeError, match="has the digest"):
            reading(there)
    file.unlink()
    with pytest.raises(BridgeError, match="lacks embeddings"):
        check(there)
    manifest, tensors = read(fitted)
    assert write(there, manifest, tensors).embeddings is None  # without its weights it is none
