"""Bridges between tiny models of every geometry: fitted and measured with no change of code, or refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import ARCHITECTURES, make
from flows import own_cache
from pairs import AUDIT, corpus, few_held_out, load, plan
from tiny import tiny_llama

from unspoken.agents import LocalModel
from unspoken.agents.bridging import fit_bridge
from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError


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
    few_held_out(monkeypatch)
    return BridgeStore()


@pytest.mark.parametrize("index", range(len(ARCHITECTURES)))
def test_every_geometry_is_fitted_and_measured(index: int, store: BridgeStore, source: str) -> None:
    """Each architecture into the next, with no change of code."""
    after = (index + 1) % len(ARCHITECTURES)
    sharer, receiver = make(ARCHITECTURES[index], seed=1), make(ARCHITECTURES[after], seed=2)
    small = plan(
        source, replace(AUDIT, settings=replace(AUDIT.settings, sizes=())), steps=1, rank=6
    )
    manifest, _ = read(fit_bridge(sharer, receiver, small))
    assert manifest.audit is not None and manifest.audit.earned is not None
    kl = [row["kl"] for row in manifest.audit.rows if row["way"] == "bridge"]
    assert len(kl) == 3 and all(value >= 0 for value in kl)


def test_native_layers_are_fitted_and_measured(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str
) -> None:
    """With a layer of its own the receiver is nearer to its full text."""
    kl = []
    for native in (0, 1):
        made = replace(plan(source, steps=1, native_layers=native), refit=True)
        manifest, _ = read(fit_bridge(*pair, made))
        assert manifest.config["native_layers"] == native and manifest.audit is not None
        kl.append(manifest.audit.figure("kl"))
    assert kl[1] < kl[0]  # type: ignore[operator]


def test_a_model_that_cannot_be_bridged_is_refused_with_its_reason(
    pair: tuple[LocalModel, LocalModel], store: BridgeStore, source: str, root: Path
) -> None:
    """Rotary frequencies that change with the length leave nothing to make bare; the fit says so at once."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    dynamic = LocalModel.load(str(tiny_llama(root / "dynamic", rope_parameters=rope)))
    for ends, name in (((dynamic, pair[1]), "sharer"), ((pair[0], dynamic), "receiver")):
        with pytest.raises(BridgeError, match=f"the {name}'s rotary frequencies") as caught:
            fit_bridge(*ends, plan(source))
        assert "fixed frequencies" in caught.value.expected and "text" in caught.value.fix
