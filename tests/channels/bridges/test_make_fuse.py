"""Fits and audits of fuse mode, end to end on tiny models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import Pair
from pairs import AUDIT, plan

from unspoken.channels.bridges.audit.stored import audit_bridge
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.make import fit_bridge, work_folder
from unspoken.channels.bridges.manifest import Audit
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import InputError


def test_a_fit_with_fuse_makes_a_bridge_that_fuses(
    pair: Pair, source: str, store: BridgeStore
) -> None:
    small = FuseSettings(minutes=0.0, steps=0, gram_tokens=300)
    plain = fit_bridge(*pair, plan(source, AUDIT, steps=0))
    assert not Bridge.load(plain).fuses
    before, tensors_before = read(plain)
    stages: list[str] = []
    both = fit_bridge(
        *pair,
        replace(plan(source, None, steps=0), fuse=small),
        report=lambda stage, part: stages.append(stage),
    )
    assert Bridge.load(both).fuses
    after, tensors_after = read(both)
    assert "gram" not in stages  # it was added to what there was, audit and weights
    assert after.audit == before.audit is not None and not fuse_rows(before.audit)
    assert all(torch.equal(tensors_after[name], tensor) for name, tensor in tensors_before.items())
    again = fit_bridge(*pair, replace(plan(source, None, steps=0), refit=True))
    assert Bridge.load(again).fuses  # a refit of the one module keeps the other
    audited = fit_bridge(*pair, replace(plan(source, AUDIT, steps=0), refit=True))
    audited_again = read(audited)[0].audit
    assert audited_again is not None and len(fuse_rows(audited_again)) == 3
    assert audited_again.figure("fuse_n") == 4 == AUDIT.choices


def fuse_rows(audit: Audit) -> list[dict[str, Any]]:
    return [row for row in audit.rows if row["data"] == "fuse"]


def test_an_audit_is_added_to_with_fuse_mode(
    pair: Pair, source: str, store: BridgeStore, tmp_path: Path
) -> None:
    """What was measured of the projector stays; questions with options need a bridge that fuses."""
    choice = tmp_path / "choice.jsonl"
    choice.write_text(
        '{"instruction": "Please choose the correct answer to the question: who?\\n'
        'Answer1: me Answer2: you\\nAnswer format: answer1/answer2", "answer": "answer2"}'
    )
    plain = fit_bridge(*pair, plan(source, AUDIT, steps=0))
    with pytest.raises(InputError, match="no fuse mode"):
        audit_bridge(plain, *pair, replace(AUDIT, choice=choice))
    before = read(plain)[0].audit
    small = FuseSettings(minutes=0.0, steps=0, gram_tokens=300)
    after = read(fit_bridge(*pair, replace(plan(source, AUDIT, steps=0), fuse=small)))[0].audit
    assert before is not None and after is not None
    assert after.rows[: len(before.rows)] == before.rows and len(fuse_rows(after)) == 3
    assert {**after.summary, **before.summary} == after.summary
    assert after.figure("fuse_over_alone") == 0  # it was not trained


@pytest.mark.parametrize("standing", [True, False])
def test_a_stopped_fit_of_fuse_mode_goes_on(
    pair: Pair, source: str, store: BridgeStore, standing: bool
) -> None:
    """Neither part begins again; only another fit's work is left."""
    fit_plan = replace(
        plan(source, None, steps=0),
        fuse=FuseSettings(minutes=5, steps=2, gram_tokens=300, validation=2),
    )
    work = work_folder(store, pair[0].identity, pair[1].identity)
    if standing:
        fit_bridge(*pair, replace(fit_plan, fuse=None))
        work.mkdir(parents=True)
        (work / "fit-of-another.pt").write_bytes(b"kept")
    stages: list[str] = []

    def stop(stage: str, part: float) -> None:
        if stage == "fuse: done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_bridge(*pair, fit_plan, report=stop)
    assert len(list(work.glob("fuse-*.pt"))) == 1
    folder = fit_bridge(*pair, fit_plan, report=lambda stage, part: stages.append(stage))
    assert not {"gram", "fuse: gram"} & set(stages) and "fuse: done" in stages
    assert read(folder)[0].fit["fuse_steps"] == 2 and Bridge.load(folder).fuses
    assert [file.name for file in work.glob("*")] == ["fit-of-another.pt"] * standing
