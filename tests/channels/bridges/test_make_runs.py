"""Fits that a run starts, that are killed, and that two processes need at once."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import DOCUMENT, QUESTION, Pair, reader_solver
from pairs import corpus, plan
from processes import environment, until
from sample_bridges import AUDIT as AUDITED

from unspoken.agents import Workflow
from unspoken.agents import bridge_cache as bridge_shelf
from unspoken.agents.bridge_cache import BridgeCache
from unspoken.channels.bridges import make as bridging
from unspoken.channels.bridges.audit.stored import keep_audit
from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.make import fit_bridge, work_folder
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError

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
    pair: Pair, store: BridgeStore, source: str, root: Path
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
    pair: Pair, store: BridgeStore, source: str, root: Path
) -> None:
    """The second waits for the first, then takes its bridge."""
    first, stages = start(root, 3), list[str]()
    assert first.stdout is not None
    assert "gram\n" in iter(first.stdout.readline, "")  # it has the lock, and more to do
    folder = fit_bridge(
        *pair, plan(source, None, steps=3), report=lambda stage, part: stages.append(stage)
    )
    said, error = first.communicate()
    assert first.returncode == 0, error
    assert said.splitlines()[-1] == str(folder)
    assert folder == store.find(pair[0].identity, pair[1].identity)
    assert "gram" not in stages
    assert any(stage.startswith("there already") for stage in stages)


def test_a_workflow_fits_what_it_lacks(
    pair: Pair, store: BridgeStore, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bridges: fit` fits on the first run; a bridge that is good enough is used."""
    monkeypatch.setattr(bridge_shelf, "DEFAULT", plan(source))
    flow = reader_solver(*pair)
    fitting = Workflow.from_spec(
        flow.spec.model_copy(update={"bridges": "fit"}), models=flow.models
    )
    result = fitting.run(document=DOCUMENT, question=QUESTION)
    folder = store.find(pair[0].identity, pair[1].identity)
    assert folder is not None
    (edge,) = result.report.edges
    manifest, _ = read(folder)
    assert manifest.audit is not None and edge.channel == "text"
    # One that is good enough is used.
    keep_audit(folder, manifest.audit.model_copy(update={"summary": AUDITED.summary}), manifest)
    again = reader_solver(*pair, min_retention=0.6)
    (planned,) = again.plan().edges
    assert planned.retention == 0.7
    (edge,) = again.run(document=DOCUMENT, question=QUESTION).report.edges
    assert edge.channel == "projected_cache" and edge.projected > 0


def test_no_turn_takes_place_during_a_fit(
    pair: Pair, store: BridgeStore, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's own fit has both models' weights to itself, and the run ends."""
    free: list[bool] = []

    def fit(*args: Any, **more: Any) -> Any:
        for model in pair:
            with ThreadPoolExecutor(1) as other:
                free.append(other.submit(model.weights.lock.acquire, False).result(20))
        raise BridgeError("not these two")

    monkeypatch.setattr(bridge_shelf, "DEFAULT", plan(source, None))
    monkeypatch.setattr(bridging, "ProjectorFit", fit)
    flow = reader_solver(*pair)
    fitting = Workflow.from_spec(
        flow.spec.model_copy(update={"bridges": "fit"}), models=flow.models
    )
    (edge,) = fitting.run(document=DOCUMENT, question=QUESTION).report.edges
    assert edge.channel == "text" and free == [False, False]


def test_a_broken_bridge_is_said_in_the_plan(pair: Pair, store: BridgeStore, source: str) -> None:
    """The edge falls back to text, and the reason is the bridge's own error."""
    folder = fit_bridge(*pair, plan(source, None))
    os.truncate(folder / "bridge.safetensors", 10)
    (edge,) = reader_solver(*pair).plan().edges
    assert edge.channel == "text"
    with pytest.raises(BridgeError, match="has 10 bytes"):
        BridgeCache().find(*pair)
