"""Bridges fitted end to end on tiny models: stored, found again, measured."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import DOCUMENT, QUESTION, own_cache, reader_solver
from pairs import AUDIT, corpus, load, plan, quick_fits
from processes import environment, until
from sample_bridges import manifest, tensors

from unspoken.agents import LocalModel, Workflow
from unspoken.agents import bridge_cache as bridge_shelf
from unspoken.agents.bridge_cache import BridgeCache
from unspoken.agents.engines.local import worker_for
from unspoken.channels.bridges import make as bridging
from unspoken.channels.bridges.audit.stored import audit_bridge, keep_audit
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fit.progress import FitProgress
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.fit.validation import Scores, ValidationSet
from unspoken.channels.bridges.folder import check, read, write
from unspoken.channels.bridges.make import fit_bridge, work_folder
from unspoken.channels.bridges.manifest import Audit
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError, InputError

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[2] / "support"

FIT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pairs import quick_fits, plan
from pytest import MonkeyPatch
from unspoken.channels.bridges.make import fit_bridge
from unspoken.agents.models.model import LocalModel
models = [LocalModel.load(name) for name in sys.argv[2:4]]
quick_fits(MonkeyPatch())
settings = {"steps": int(sys.argv[4]), "every": 0.0}
def told(stage, part):
    print(stage, flush=True)
print(fit_bridge(*models, plan(sys.argv[5], None, **settings), report=told))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def pair(root: Path) -> Iterator[tuple[LocalModel, LocalModel]]:
    with own_cache(root / "cache"):
        yield load(root)


@pytest.fixture(scope="module")
def source(root: Path) -> str:
    return corpus(root)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BridgeStore:
    """A store of our own, which processes that we start share."""
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNSPOKEN_BRIDGES", raising=False)
    quick_fits(monkeypatch)
    return BridgeStore()


def scores_of(reports: list[FitProgress]) -> list[float]:
    return [one.scores.kl for one in reports if one.scores is not None]


def test_a_fit_is_kept_with_its_figures_and_its_audit(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str
) -> None:
    """The folder holds what was audited, in int8; the manifest says how it was made."""
    stages: list[str] = []
    made = replace(plan(source), command="unspoken bridge fit a b")
    folder = fit_bridge(*pair, made, report=lambda stage, part: stages.append(stage))
    assert folder == store.find(pair[0].identity, pair[1].identity)
    manifest, tensors = read(folder)
    assert manifest.dtype == "int8" and manifest.audit is not None
    assert manifest.fit["command"] == made.command and manifest.fit["steps"] == 4
    for name in (
        "peak_memory_gb",
        "peak_memory_closed_form_gb",
        "fit_minutes_total",
        "fit_minutes_closed_form",
    ):
        assert isinstance(manifest.fit[name], float)
    size = manifest.audit.figure("size_mb")
    assert size == pytest.approx(sum(one.nbytes for one in tensors.values()) / 1e6, abs=0.01)
    assert stages[0].startswith("at most") and "audit: recall" in stages
    assert not work_folder(store, pair[0].identity, pair[1].identity).exists()
    bridge = Bridge.load(folder)
    bridge.check(*pair)
    assert bridge.earned == manifest.audit.earned
    assert fit_bridge(*pair, made) == folder  # found, not fitted again


def test_training_improves_on_held_out_rows(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str
) -> None:
    """More steps bring the receiver nearer to what the full text says."""
    reports: list[FitProgress] = []
    made = plan(source, None, steps=48, rate=3e-3, residual_rate=1e-2, batch=2)
    fit_bridge(*pair, made, watch=reports.append)
    kl = scores_of(reports)
    assert kl[-1] < kl[0]


def test_training_in_another_dtype(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str
) -> None:
    """Copies in bfloat16 are trained on; the bridge belongs to the models themselves."""
    made = replace(plan(source, None), train_dtype=torch.bfloat16)
    manifest, _ = read(fit_bridge(*pair, made))
    assert manifest.fit["steps"] == 4 and manifest.receiver.layer_dtype == "float32"
    assert manifest.receiver.to_identity() == pair[1].identity


def test_a_bridge_in_a_folder_of_its_own(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str, tmp_path: Path
) -> None:
    """`out` is another place than the store; `refit` replaces; an audit can be added."""
    out = tmp_path / "mine"
    made = replace(plan(source, None), out=out)
    assert fit_bridge(*pair, made) == out and store.find(pair[0].identity, pair[1].identity) is None
    before, _ = read(out)
    assert before.audit is None
    assert fit_bridge(*pair, made) == out and read(out)[0] == before
    measured = audit_bridge(out, *pair, AUDIT)
    keep_audit(out, measured, before)
    assert read(out)[0].audit == measured
    again = replace(made, refit=True, settings=replace(made.settings, seed=1))
    fit_bridge(*pair, again)
    assert read(out)[0].data.seed == 1
    with pytest.raises(BridgeError, match="replaced since it was measured"):
        keep_audit(out, measured, before)
    assert read(out)[0].audit is None


def test_no_fit_begins_for_a_folder_that_it_cannot_go_to(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str, tmp_path: Path
) -> None:
    """Another pair's bridge, or other files, are found before the fit; both stay."""
    stages: list[str] = []
    theirs, notes = tmp_path / "theirs", tmp_path / "notes"
    write(theirs, manifest(), tensors())
    notes.mkdir()
    (notes / "notes.txt").write_text("mine")
    for place, found in ((theirs, "holds the bridge"), (notes, "is no bridge's folder")):
        with pytest.raises(BridgeError, match=found):
            fit_bridge(
                *pair,
                replace(plan(source, None), out=place, refit=True),
                report=lambda stage, part: stages.append(stage),
            )
    assert stages == []
    assert (notes / "notes.txt").read_text() == "mine" and read(theirs)


def test_bad_audit_rows_are_found_before_the_fit(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str, tmp_path: Path
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


def test_a_corpus_of_one_document_serves(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, tmp_path: Path
) -> None:
    """Nothing of it can be held out; the fit is judged on what there is."""
    notes = tmp_path / "notes.txt"
    notes.write_text("the key of the document is the value with it. " * 60)
    manifest, _ = read(fit_bridge(*pair, plan(str(notes), None)))
    assert manifest.fit["steps"] == 4


def test_scores_that_are_not_finite_stop_the_fit(
    pair: tuple[LocalModel, LocalModel],
    store: BridgeStore,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dtype in which the receiver overflows is named, and nothing of it is kept to go on from."""
    nothing = Scores({}, {}, float("nan"), 0.0)
    monkeypatch.setattr(ValidationSet, "score", lambda self, projector: nothing)
    with pytest.raises(BridgeError, match=r"not finite in torch\.float32"):
        fit_bridge(*pair, plan(source, None))
    work = work_folder(store, pair[0].identity, pair[1].identity)
    assert not work.exists() or not list(work.iterdir())


def test_one_model_needs_no_bridge(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str
) -> None:
    """The error names the channel that serves it."""
    with pytest.raises(InputError, match="one model") as caught:
        fit_bridge(pair[0], pair[0], plan(source))
    assert "same_model_cache" in caught.value.fix


# Kills and other processes


def start(root: Path, steps: int) -> "subprocess.Popen[str]":
    sharer, receiver = (str(root / name) for name in ("gemma", "llama"))
    return subprocess.Popen(
        [sys.executable, "-c", FIT, str(TESTS), sharer, receiver, str(steps), corpus(root)],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def saved_step(work: Path) -> int:
    """The step that a fit would go on from; -1 for none."""
    for file in work.glob("fit-*.pt"):
        return int(torch.load(file, weights_only=True)["step"])
    return -1


def test_a_killed_fit_goes_on_from_its_last_step(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str, root: Path
) -> None:
    """After kill -9 the next fit goes on from the saved state, then removes it."""
    work = work_folder(store, pair[0].identity, pair[1].identity)
    process = start(root, 100_000)
    try:
        until(lambda: saved_step(work) >= 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert store.find(pair[0].identity, pair[1].identity) is None
    reached = saved_step(work)
    stages: list[str] = []
    folder = fit_bridge(
        *pair,
        plan(source, None, steps=reached + 2, every=0.0),
        report=lambda stage, part: stages.append(stage),
    )
    manifest, _ = read(folder)
    assert manifest.fit["steps"] == reached + 2
    assert "gram" not in stages  # the closed form was not solved again
    assert not work.exists()


def test_two_processes_fit_a_pair_once(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, root: Path
) -> None:
    """The second waits for the first, then takes its bridge."""
    both = [start(root, 3) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = [out.splitlines() for out, _ in said]
    assert lines[0][-1] == lines[1][-1] == str(store.find(pair[0].identity, pair[1].identity))
    assert sum("gram" in one for one in lines) == 1
    assert sum(any(line.startswith("there already") for line in one) for one in lines) == 1


# Workflows


def test_a_workflow_fits_what_it_lacks(
    pair: tuple[LocalModel, LocalModel],
    store: BridgeStore,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`bridges: fit` fits on the first run; a bridge that is good enough is used."""
    monkeypatch.setattr(bridge_shelf, "DEFAULT", plan(source))
    flow = reader_solver(*pair)
    fitting = Workflow.from_spec(flow.spec.model_copy(update={"bridges": "fit"}))
    fitting._models = flow._models
    result = fitting.run(document=DOCUMENT, question=QUESTION)
    folder = store.find(pair[0].identity, pair[1].identity)
    assert folder is not None
    (edge,) = result.report.edges
    manifest, _ = read(folder)
    assert manifest.audit is not None and manifest.audit.earned is not None
    if manifest.audit.earned < 0.8:
        (planned,) = fitting.plan().edges
        assert edge.channel == "text" and "below this edge's 0.8" in planned.reason
    # One that is good enough is used.
    keep_audit(folder, manifest.audit.model_copy(update={"earned": 0.9}), manifest)
    again = reader_solver(*pair)
    (planned,) = again.plan().edges
    assert "keeps 0.90" in planned.reason
    (edge,) = again.run(document=DOCUMENT, question=QUESTION).report.edges
    assert edge.channel == "projected_cache" and edge.projected > 0


def test_no_turn_takes_place_during_a_fit(
    pair: tuple[LocalModel, LocalModel],
    store: BridgeStore,
    source: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run's own fit has the device to itself, and the run ends."""
    probes: list[Future[None]] = []

    def fit(*args: Any, **more: Any) -> Any:
        probes.append(worker_for(pair[1].device)._thread.submit(lambda: None))
        assert pair[0].device == pair[1].device
        assert not wait(probes, timeout=0.2).done
        raise BridgeError("not these two")

    monkeypatch.setattr(bridge_shelf, "DEFAULT", plan(source, None))
    monkeypatch.setattr(bridging, "fit", fit)
    flow = reader_solver(*pair)
    fitting = Workflow.from_spec(flow.spec.model_copy(update={"bridges": "fit"}))
    fitting._models = flow._models
    (edge,) = fitting.run(document=DOCUMENT, question=QUESTION).report.edges
    assert edge.channel == "text" and len(probes) == 1
    assert probes[0].result(20) is None


def test_a_code_of_no_given_width_is_as_wide_as_the_small_pair(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str
) -> None:
    """Tiny models are mapped at full rank, which takes far less than the 16 MB that bound it."""
    folder = fit_bridge(*pair, plan(source, None, rank=None, steps=0))
    config = ProjectorConfig.from_dict(check(folder).config)
    inputs = sum(config.features(pair[0].geometry, pair[1].geometry))
    targets = width(pair[1].geometry, range(len(pair[1].geometry.layers)))
    assert config.rank == min(inputs, targets)


def test_a_broken_bridge_is_said_in_the_plan(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str
) -> None:
    """The edge falls back to text, and the reason is the bridge's own error."""
    folder = fit_bridge(*pair, plan(source, None))
    os.truncate(folder / "bridge.safetensors", 10)
    (edge,) = reader_solver(*pair).plan().edges
    assert edge.channel == "text" and "has 10 bytes" in edge.reason
    with pytest.raises(BridgeError, match="has 10 bytes"):
        BridgeCache().find(*pair)


def test_a_fit_with_fuse_makes_a_bridge_that_fuses(
    pair: tuple[LocalModel, LocalModel], source: str, store: BridgeStore
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
    assert all(torch.equal(tensors_after[name], one) for name, one in tensors_before.items())
    again = fit_bridge(*pair, replace(plan(source, None, steps=0), refit=True))
    assert Bridge.load(again).fuses  # a refit of the one module keeps the other
    audited = fit_bridge(*pair, replace(plan(source, AUDIT, steps=0), refit=True))
    found = read(audited)[0].audit
    assert found is not None and len(fuse_rows(found)) == 3
    assert found.figure("fuse_n") == 4 == AUDIT.choices


def fuse_rows(audit: Audit) -> list[dict[str, Any]]:
    return [row for row in audit.rows if row["data"] == "fuse"]


def test_an_audit_is_added_to_with_fuse_mode(
    pair: tuple[LocalModel, LocalModel], source: str, store: BridgeStore, tmp_path: Path
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
    pair: tuple[LocalModel, LocalModel], source: str, store: BridgeStore, standing: bool
) -> None:
    """Neither part begins anew; only another fit's work is left."""
    made = replace(
        plan(source, None, steps=0),
        fuse=FuseSettings(minutes=5, steps=2, gram_tokens=300, held_out=2),
    )
    work = work_folder(store, pair[0].identity, pair[1].identity)
    if standing:
        fit_bridge(*pair, replace(made, fuse=None))
        work.mkdir(parents=True)
        (work / "fit-of-another.pt").write_bytes(b"kept")
    stages: list[str] = []

    def stop(stage: str, part: float) -> None:
        if stage == "fuse: done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_bridge(*pair, made, report=stop)
    assert len(list(work.glob("fuse-*.pt"))) == 1
    folder = fit_bridge(*pair, made, report=lambda stage, part: stages.append(stage))
    assert not {"gram", "fuse: gram"} & set(stages) and "fuse: done" in stages
    assert read(folder)[0].fit["fuse_steps"] == 2 and Bridge.load(folder).fuses
    assert [file.name for file in work.glob("*")] == ["fit-of-another.pt"] * standing
