"""``unspoken bridge plan``, on configurations of real pairs without a weight."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import call, refused

from unspoken.channels.bridges import estimate

CORES = estimate.Machine(products=65e9, wide=65e9, read=2e10, start=5e-6)

QWEN = {"model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936}
QWEN |= {"tie_word_embeddings": True, "max_position_embeddings": 40_960, "dtype": "bfloat16"}
SMALL = QWEN | {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16}
LARGE = QWEN | {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen-0.6b": SMALL | {"num_hidden_layers": 28},
    "qwen-4b": LARGE | {"num_hidden_layers": 36},
    "dynamic": SMALL
    | {"num_hidden_layers": 2, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "tiny": QWEN
    | {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    | {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32}
    | {"max_position_embeddings": 2048},
}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "calibrate", lambda device, dtype: CORES)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def planned(root: Path, sharer: str, receiver: str) -> tuple[int, dict[str, Any]]:
    result = call("bridge", "plan", root / sharer, root / receiver, "--json")
    return result.exit_code, json.loads(result.stdout)


def test_a_pair_of_real_sizes_is_planned_from_two_configurations(root: Path) -> None:
    code, plan = planned(root, "qwen-0.6b", "qwen-4b")
    assert (code, plan["verdict"]) == (0, "worth it")
    assert (plan["source_layers"], plan["columns"], plan["sketch"]) == (12, 4_096, 256)
    assert plan["gains"]["32768"] > plan["gains"]["1024"] > 1
    # Both models in float32, and the Gram matrices.
    assert 4 * 4.6e9 < plan["peak_bytes"] < 4 * 4.6e9 + 12e9


def test_a_pair_that_cannot_be_bridged_is_refused_with_the_reason(root: Path) -> None:
    code, plan = planned(root, "tiny", "dynamic")
    assert code == 1 and "receiver's rotary frequencies" in plan["reason"]
    assert planned(root, "tiny", "tiny")[0] == 1


def test_a_bridge_that_saves_nothing_is_useless(root: Path) -> None:
    code, plan = planned(root, "qwen-0.6b", "tiny")
    assert (code, plan["verdict"], plan["break_even"]) == (3, "useless", None)


def test_people_read_that_a_fit_is_too_short(root: Path) -> None:
    shown = call("bridge", "plan", root / "qwen-0.6b", root / "qwen-4b").stdout
    assert (
        "fewer than 500" in shown
        and "4,096, 75%" in shown
        and "each brought to 256" in shown
        and "worth it" in shown
    )


def test_a_reference_that_leads_nowhere_is_an_error(root: Path) -> None:
    assert "there is no" in refused("bridge", "plan", root / "none", root / "tiny")
