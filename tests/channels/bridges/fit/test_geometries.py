"""Bridges between tiny models of every geometry: fitted and measured, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from architectures import ARCHITECTURES, make
from flows import DOCUMENT, QUESTION, Pair, reader_solver
from pairs import AUDIT, plan
from tiny import tiny_llama

from unspoken.agents import LocalModel, Workflow
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.sizing import within_columns
from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.make import fit_bridge
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry

pytestmark = pytest.mark.long


@pytest.mark.parametrize("index", range(0, len(ARCHITECTURES), 2))
def test_every_geometry_is_fitted_and_measured(index: int, store: BridgeStore, source: str) -> None:
    """Every other architecture into the next, so that each has a part; with no change of code."""
    after = (index + 1) % len(ARCHITECTURES)
    sharer, receiver = make(ARCHITECTURES[index], seed=1), make(ARCHITECTURES[after], seed=2)
    small = plan(
        source, replace(AUDIT, settings=replace(AUDIT.settings, sizes=())), steps=1, rank=6
    )
    manifest, _ = read(fit_bridge(sharer, receiver, small))
    assert manifest.audit is not None and manifest.audit.retention_lower_bound is not None
    kl = [row["kl"] for row in manifest.audit.rows if row.get("way") == "bridge"]
    assert len(kl) == 3 and all(value >= 0 for value in kl)


def test_native_layers_are_fitted_and_measured(pair: Pair, store: BridgeStore, source: str) -> None:
    """With a layer of its own the receiver is nearer to its full text."""
    kl = []
    for native in (0, 1):
        fit_plan = replace(plan(source, steps=1, native_layers=native), refit=True)
        manifest, _ = read(fit_bridge(*pair, fit_plan))
        assert manifest.config["native_layers"] == native and manifest.audit is not None
        kl.append(manifest.audit.figure("kl"))
    assert kl[1] < kl[0]  # type: ignore[operator]


def test_a_model_that_cannot_be_bridged_is_refused_with_its_reason(
    pair: Pair, store: BridgeStore, source: str, root: Path
) -> None:
    """Rotary frequencies that change with the length are refused before the fit."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    dynamic = LocalModel.load(str(tiny_llama(root / "dynamic", rope_parameters=rope)))
    for ends, name in (((dynamic, pair[1]), "sharer"), ((pair[0], dynamic), "receiver")):
        with pytest.raises(BridgeError, match=f"the {name}'s rotary frequencies") as caught:
            fit_bridge(*ends, plan(source))
        assert "fixed frequencies" in caught.value.expected and "text" in caught.value.fix


def test_a_pair_that_cannot_be_bridged_goes_by_text(
    pair: Pair, store: BridgeStore, root: Path
) -> None:
    """With `bridges: fit` the run does not fail; the report has the fallback."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    dynamic = LocalModel.load(str(tiny_llama(root / "moving", rope_parameters=rope)))
    flow = reader_solver(pair[0], dynamic, "projected_cache")
    fitting = Workflow.from_spec(
        flow.spec.model_copy(update={"bridges": "fit"}), models=flow.models
    )
    result = fitting.run(document=DOCUMENT, question=QUESTION)
    (edge,) = result.report.edges
    assert edge.channel == "text" and "rotary frequencies" in str(result.report.fallbacks)


def test_wide_models_read_fewer_layers_and_embeddings() -> None:
    """Features keep to the columns of the Gram matrices; a number asked for stays."""
    layer = LayerGeometry(kv_heads=8, head_dim=128)
    receiver = CacheGeometry((layer,) * 32, 4096, 8192)
    sizes = [2048] * 32
    whole = FitSettings(sketch=0)
    shape = within_columns(whole, sizes, receiver)
    assert (shape.layers, shape.embeddings, shape.sketch) == (2, 2, 0)
    assert shape.columns(sizes[:2], receiver) == 2 * 2048 + 2 * 4096
    receiver = CacheGeometry((layer,) * 32, 8192, 8192)
    shape = within_columns(whole, sizes, receiver)
    assert (shape.layers, shape.embeddings) == (2, 1)
    asked = within_columns(FitSettings(source_layers=9), sizes, receiver)
    assert (asked.layers, asked.embeddings, asked.sketch) == (9, 2, 0)


def test_wide_models_are_sketched_so_that_most_columns_are_the_sharers() -> None:
    layer = LayerGeometry(kv_heads=8, head_dim=128)
    wide, narrow = (CacheGeometry((layer,) * 32, hidden, 8192) for hidden in (4096, 640))
    shape = within_columns(FitSettings(), [2048] * 36, wide)
    assert (shape.layers, shape.embeddings, shape.sketch) == (12, 2, 256)
    assert shape.columns([2048] * 12, wide) == 12 * 256 + 2 * 512
    assert within_columns(FitSettings(), [384] * 30, narrow).sketch == 0
    asked = within_columns(FitSettings(sketch=1024), [2048] * 36, wide)
    assert (asked.layers, asked.sketch) == (8, 1024)  # 12,288 columns, 4,096 of them its own
