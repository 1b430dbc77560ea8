"""The study of other engines: their processes take turns, and one that is missing is left out."""

import sys
from pathlib import Path

import pytest

import peers
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing import tiny_model
from unspoken.channels.errors import ModelReferenceError

ECHO = """
import sys
sys.path.insert(0, {folder!r})
from serving import serve


def load(job):
    print("a library may print")
    return f"echo of {{job['name']}}", lambda size: [[size] * job["tokens"]] * size


serve(load)
"""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIZES": (1, 2), "TOKENS": 24, "NEW": 4, "ROUNDS": 1}.items():
        monkeypatch.setattr(peers, name, value)


@pytest.fixture
def envs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of environments, in which there is one, for a worker that echoes."""
    python = tmp_path / "echo" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "echo.py").write_text(ECHO.format(folder=str(peers.WORKERS)), encoding="utf-8")
    (scripts / "broken.py").write_text("raise SystemExit(3)", encoding="utf-8")
    monkeypatch.setattr(peers, "WORKERS", scripts)
    return tmp_path


def peer(name: str, environment: str = "echo", script: str = "echo.py") -> peers.Peer:
    return peers.Peer(name=name, environment=environment, script=script, settings={"name": name})


@pytest.mark.usefixtures("few")
def test_each_peer_has_a_row_at_each_size(envs: Path) -> None:
    """Its own clock counts, and its ids are compared with ours."""
    rows, summary = peers.measure(
        tiny_model(), envs=envs, progress=lambda line: None, peers=[peer("echo, 1.0")]
    )
    assert {(row["way"], row["agents"]) for row in rows} == {
        (way, size) for way in ("unspoken", "echo, 1.0") for size in (1, 2)
    }
    equal = {(row["way"], row["agents"]): row["rows_equal_to_ours"] for row in rows}
    assert equal["unspoken", 2] == 2 and equal["echo, 1.0", 2] == 0
    assert set(summary) == {"speedup_8_vs_echo_1_0"}


@pytest.mark.usefixtures("few")
def test_a_peer_that_cannot_run_is_left_out_with_the_reason(envs: Path) -> None:
    """One is not installed, another ends at once; the others are measured all the same."""
    said: list[str] = []
    absent, broken = peer("absent", environment="absent"), peer("broken", script="broken.py")
    rows, _ = peers.measure(
        tiny_model(), envs=envs, progress=said.append, peers=[absent, broken, peer("echo")]
    )
    assert {row["way"] for row in rows} == {"unspoken", "echo"}
    assert any("absent is left out" in line and "make peers" in line for line in said)
    assert any("broken is left out: it ended with 3" in line for line in said)


def test_a_model_that_no_peer_reads_is_refused() -> None:
    """A model made in memory has no files to give away."""
    with pytest.raises(ModelReferenceError, match="no peer can read"):
        peers.peers_of(tiny_model())


@pytest.mark.model
def test_the_embedded_model_is_read_by_both(smollm2: LocalModel) -> None:
    """vLLM gets the folder, llama.cpp the GGUF: as it is, and in float32."""
    names = [peer.name for peer in peers.peers_of(smollm2)]
    assert names == ["vLLM", "llama.cpp, float32", "llama.cpp, weights as in the GGUF"]
