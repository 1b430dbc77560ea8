"""Bridges fitted end to end on tiny models: stored, found again, measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flows import Pair
from pairs import AUDIT, plan
from sample_bridges import manifest, tensors
from structlog.testing import capture_logs

from unspoken.channels.bridges import make
from unspoken.channels.bridges.audit.stored import audit_bridge, keep_audit
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.estimate import Machine
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fit.progress import FitProgress
from unspoken.channels.bridges.fit.validation import Scores, ValidationSet
from unspoken.channels.bridges.folder import check, read, write
from unspoken.channels.bridges.make import fit_bridge, work_folder
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError, InputError


def scores_of(reports: list[FitProgress]) -> list[float]:
    return [progress.scores.kl for progress in reports if progress.scores is not None]


def test_a_fit_is_kept_with_its_figures_and_its_audit(
    pair: Pair, store: BridgeStore, source: str
) -> None:
    """The folder holds what was audited, in int8; the manifest says how it was made."""
    stages: list[str] = []
    fit_plan = replace(plan(source), command="unspoken bridge fit a b")
    folder = fit_bridge(*pair, fit_plan, report=lambda stage, part: stages.append(stage))
    assert folder == store.find(pair[0].identity, pair[1].identity)
    manifest, tensors = read(folder)
    assert manifest.dtype == "int8" and manifest.audit is not None
    assert manifest.fit["command"] == fit_plan.command and manifest.fit["steps"] == 4
    for name in (
        "peak_memory_gb",
        "peak_memory_closed_form_gb",
        "fit_minutes_total",
        "fit_minutes_closed_form",
    ):
        assert isinstance(manifest.fit[name], float)
    size = manifest.audit.figure("size_mb")
    assert size == pytest.approx(sum(tensor.nbytes for tensor in tensors.values()) / 1e6, abs=0.01)
    assert stages[0].startswith("at most") and "audit: recall" in stages
    assert not work_folder(store, pair[0].identity, pair[1].identity).exists()
    bridge = Bridge.load(folder)
    bridge.check(*pair)
    assert bridge.bounds == manifest.audit.bounds
    assert fit_bridge(*pair, fit_plan) == folder  # found, not fitted again


def test_training_improves_on_held_out_rows(pair: Pair, store: BridgeStore, source: str) -> None:
    """More steps bring the receiver nearer to what the full text says."""
    reports: list[FitProgress] = []
    fit_plan = plan(source, None, steps=48, rate=3e-3, residual_rate=1e-2, batch=2)
    fit_bridge(*pair, fit_plan, watch=reports.append)
    kl = scores_of(reports)
    assert kl[-1] < kl[0]


def test_training_in_another_dtype(pair: Pair, store: BridgeStore, source: str) -> None:
    """Copies in bfloat16 are trained on; the bridge belongs to the models themselves."""
    fit_plan = replace(plan(source, None), train_dtype=torch.bfloat16)
    manifest, _ = read(fit_bridge(*pair, fit_plan))
    assert manifest.fit["steps"] == 4 and manifest.receiver.layer_dtype == "float32"
    assert manifest.receiver.to_identity() == pair[1].identity


def test_a_bridge_in_a_folder_of_its_own(
    pair: Pair, store: BridgeStore, source: str, tmp_path: Path
) -> None:
    """`out` is another place than the store; `refit` replaces; an audit can be added."""
    out = tmp_path / "mine"
    fit_plan = replace(plan(source, None), out=out)
    assert (
        fit_bridge(*pair, fit_plan) == out
        and store.find(pair[0].identity, pair[1].identity) is None
    )
    before, _ = read(out)
    assert before.audit is None
    assert fit_bridge(*pair, fit_plan) == out and read(out)[0] == before
    measured = audit_bridge(out, *pair, AUDIT)
    keep_audit(out, measured, before)
    assert read(out)[0].audit == measured
    again = replace(fit_plan, refit=True, settings=replace(fit_plan.settings, seed=1))
    fit_bridge(*pair, again)
    assert read(out)[0].data.seed == 1
    with pytest.raises(BridgeError, match="replaced since it was measured"):
        keep_audit(out, measured, before)
    assert read(out)[0].audit is None


def test_no_fit_begins_for_a_folder_that_it_cannot_go_to(
    pair: Pair, store: BridgeStore, source: str, tmp_path: Path
) -> None:
    """Another pair's bridge, or other files, are found before the fit; both stay."""
    stages: list[str] = []
    theirs, notes = tmp_path / "theirs", tmp_path / "notes"
    write(theirs, manifest(), tensors())
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    for place, problem in ((theirs, "holds the bridge"), (notes, "is no bridge's folder")):
        with pytest.raises(BridgeError, match=problem):
            fit_bridge(
                *pair,
                replace(plan(source, None), out=place, refit=True),
                report=lambda stage, part: stages.append(stage),
            )
    assert stages == []
    assert (notes / "notes.txt").read_text() == "mine" and read(theirs)


def test_bad_audit_rows_are_found_before_the_fit(
    pair: Pair, store: BridgeStore, source: str, tmp_path: Path
) -> None:
    """A text that is too short for its passages stops the fit at its start."""
    short = tmp_path / "short.txt"
    short.write_text("one two three")
    stages: list[str] = []
    with pytest.raises(InputError, match="tokens"):
        fit_bridge(
            *pair,
            plan(source, replace(AUDIT, text=short)),
            report=lambda stage, part: stages.append(stage),
        )
    assert "gram" not in stages


def test_a_corpus_of_one_document_serves(pair: Pair, store: BridgeStore, tmp_path: Path) -> None:
    """Nothing of it can be held out; the fit is validated on what there is."""
    notes = tmp_path / "notes.txt"
    notes.write_text("the key of the document is the value with it. " * 60)
    manifest, _ = read(fit_bridge(*pair, plan(str(notes), None)))
    assert manifest.fit["steps"] == 4


def test_scores_that_are_not_finite_stop_the_fit(
    pair: Pair, store: BridgeStore, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dtype in which the receiver overflows is named, and nothing of it is kept to go on from."""
    nothing = Scores(retention={}, mismatched={}, kl=float("nan"), loss=0.0)
    monkeypatch.setattr(ValidationSet, "score", lambda self, projector: nothing)
    with pytest.raises(BridgeError, match=r"not finite in torch\.float32"):
        fit_bridge(*pair, plan(source, None))
    work = work_folder(store, pair[0].identity, pair[1].identity)
    assert not work.exists() or not list(work.iterdir())


def test_one_model_needs_no_bridge(pair: Pair, store: BridgeStore, source: str) -> None:
    """The error names the channel that serves it."""
    with pytest.raises(InputError, match="one model") as caught:
        fit_bridge(pair[0], pair[0], plan(source))
    assert "same_model_cache" in caught.value.fix


def test_a_code_of_no_given_width_is_as_wide_as_the_small_pair(
    pair: Pair, store: BridgeStore, source: str
) -> None:
    """Tiny models are mapped at full rank, which takes far less than the 16 MB that bound it."""
    folder = fit_bridge(*pair, plan(source, None, rank=None, steps=0))
    config = ProjectorConfig.from_dict(check(folder).config)
    inputs = sum(config.features(pair[0].geometry, pair[1].geometry))
    targets = width(pair[1].geometry, range(len(pair[1].geometry.layers)))
    assert config.rank == min(inputs, targets)


@pytest.mark.parametrize(
    ("products", "steps", "warned"), [(1e6, None, 1), (1e12, None, 0), (1, 9, 0)]
)
def test_a_fit_whose_minutes_buy_few_steps_says_so_first(
    pair: Pair,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    products: float,
    steps: int | None,
    warned: int,
) -> None:
    machine = Machine(products=products, wide=products, read=1e12, start=0.0)
    monkeypatch.setattr(make, "calibrate", lambda device, dtype: machine)
    sharer, receiver = pair
    job = make._Job(
        sharer=sharer,
        receiver=receiver,
        plan=plan(source, steps=steps),
        work=tmp_path,
        report=lambda stage, part: None,
    )
    with capture_logs() as logs:
        job.warn_of_few_steps()
    assert [line["log_level"] for line in logs] == ["warning"] * warned
