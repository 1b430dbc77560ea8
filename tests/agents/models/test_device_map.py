"""One model over several devices writes what it writes on one; two fake devices show it."""

import copy
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import fake_device
import pytest
import torch
from architectures import make
from engine_turns import inbound, message_of, writes
from fake_device import noted
from tiny import tiny_llama

from unspoken.agents.engines.base import TurnRequest
from unspoken.agents.engines.turn import Computed, drive_turn
from unspoken.agents.models import device_map
from unspoken.agents.models.device_map import find_map, spread
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing import tiny_model
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv import copies
from unspoken.channels.kv.state import KVState
from unspoken.channels.same_model import SameModelCacheChannel

PROMPT = tuple(range(20, 32))


@pytest.fixture(autouse=True)
def _devices() -> None:
    fake_device.install()


def over_two(model: LocalModel, wanted: dict[str, str] | None = None) -> LocalModel:
    """A copy of a model, its first half on ``fake:0`` and the rest on ``fake:1``."""
    copied = copy.deepcopy(model.hf)
    if wanted is None:
        layers = len(model.geometry.layers)
        stem = next(name for name, part in copied.named_modules() if part is model_layers(copied))
        wanted = {f"{stem}.{number}": "fake:0" for number in range(layers // 2)} | {"": "fake:1"}
    spread(copied, find_map(copied, wanted))
    return LocalModel(copied, model.tokenizer, identity=model.identity)


def model_layers(model: Any) -> Any:
    base = model.base_model
    return getattr(base, "layers", None) or base.h


def turn(model: LocalModel, request: TurnRequest) -> Computed:
    return drive_turn(model, request)[1]


def equal(one: KVState, other: KVState) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(torch.allclose(a.keys.cpu(), b.keys.cpu(), atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox, partial rotary"])
def test_it_writes_what_it_writes_on_one_device(name: str) -> None:
    """The same tokens, and the same state, each layer of it on its layer's device."""
    model = make(name)
    spread_model = over_two(model)
    request = TurnRequest(ids=PROMPT, sampling=writes(3), keep_state=True)
    expected, actual = turn(model, request), turn(spread_model, request)
    assert actual.ids == expected.ids
    assert expected.state is not None and actual.state is not None
    assert [str(device) for device in actual.state.devices] == ["fake:0"] * 2 + ["fake:1"] * 2
    assert equal(expected.state, actual.state)


def test_what_crosses_for_a_token_does_not_grow_with_the_layers() -> None:
    """What all layers are given, such as angles and masks, goes once to each device."""
    crossings = []
    for layers in (2, 6):
        model = over_two(tiny_model(num_hidden_layers=layers))
        seen = [notes_of(model, count) for count in (1, 2, 4)]
        crossings.append(seen[2] - seen[1])
    assert crossings[0] == crossings[1]
    assert crossings[0]["wait tolist"] == 2 and crossings[0]["download"] == 0


def notes_of(model: LocalModel, tokens: int) -> Counter[str]:
    with noted() as seen:
        turn(model, TurnRequest(ids=PROMPT, sampling=writes(tokens)))
    return seen


@pytest.mark.parametrize("before", [(), (7, 8, 9)], ids=["continuation", "splice"])
def test_it_takes_over_a_state_from_one_device(before: tuple[int, ...]) -> None:
    """A message's layers go to the devices of the receiver's layers, in a copy to each."""
    model = tiny_model(num_hidden_layers=4)
    receiver = over_two(model)
    sent = turn(model, TurnRequest(ids=PROMPT, keep_state=True)).state
    message = replace(message_of(PROMPT, model.identity), state=sent)
    context = (*before, *PROMPT, 70, 71, 72)
    one = inbound(message, None, context, len(before), SameModelCacheChannel(deviation=0.1))
    request = TurnRequest(ids=context, inbound=(one,), sampling=writes(4))
    expected, actual = turn(model, request), turn(receiver, request)
    assert actual.ids == expected.ids
    assert actual.usage.reused_tokens == expected.usage.reused_tokens > 0
    assert {tuple(map(str, state.devices)) for state in copies._COPIES[sent].values()} == {
        ("fake:0", "fake:0", "fake:1", "fake:1")
    }


def test_a_copy_is_spread_as_it_is() -> None:
    """A cast, as an audit makes one, has its layers where they were."""
    model = over_two(tiny_model(num_hidden_layers=2))
    other = model.cast(torch.float64)
    assert other.layer_devices == model.layer_devices
    request = TurnRequest(ids=PROMPT, sampling=writes(4))
    assert turn(other, request).ids == turn(model, request).ids


def test_a_strategy_shares_whole_layers_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate fills two devices by their memory."""
    model = tiny_model(num_hidden_layers=6).hf
    bytes_ = sum(weight.nbytes for weight in model.parameters())
    limits = {0: bytes_ * 0.7, 1: bytes_ * 0.7, "cpu": 0}
    monkeypatch.setattr("accelerate.utils.modeling.get_max_memory", lambda given=None: limits)
    monkeypatch.setattr(device_map, "_device", lambda name, one: torch.device("fake", one))
    found = find_map(model, "auto")
    assert set(found) == {name for name, _ in device_map._parts(model)}
    assert {device.index for device in found.values()} == {0, 1}


def test_what_does_not_fit_is_not_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers on the host would crawl unseen; the error says what to do."""
    model = tiny_model(num_hidden_layers=6).hf
    limits = {0: 60_000, "cpu": 1 << 30}
    monkeypatch.setattr("accelerate.utils.modeling.get_max_memory", lambda given=None: limits)
    with pytest.raises(ModelSupportError, match="have no room for"):
        find_map(model, "balanced")


def test_without_accelerators_a_strategy_is_the_cpu(tmp_path: Path) -> None:
    """A workflow for two GPUs runs on a laptop, too; the file says what it asked for."""
    model = LocalModel.load(tiny_llama(tmp_path), device={"map": "auto"})
    assert set(map(str, model.layer_devices)) == {"cpu"}
    assert model.asked == {"device": {"map": "auto"}} and model.dtype == torch.float32


def test_a_model_is_loaded_over_devices(tmp_path: Path) -> None:
    """Its identity is that of the checkpoint, wherever its layers are."""
    folder = tiny_llama(tmp_path)
    here = LocalModel.load(folder)
    there = LocalModel.load(folder, device={"map": {"model.layers.0": "fake:1", "": "fake:0"}})
    assert there.identity == here.identity
    assert list(map(str, there.layer_devices)) == ["fake:1", "fake:0"]
    assert there.refuses_batches == "its layers are on several devices"
    assert here.refuses_batches is None
    request = TurnRequest(ids=PROMPT, sampling=writes(4))
    assert turn(there, request).ids == turn(here, request).ids


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"model.layers.0": "cpu"}, "leaves out 'model.embed_tokens'"),
        ({"model.layer.0": "cpu", "": "cpu"}, "names 'model.layer.0'"),
        ({"model.layers.0.mlp": "cpu", "": "cpu"}, "names 'model.layers.0.mlp'"),
        ({"": "disk"}, "'the model' on disk"),
        ({"": "cuda:7"}, "'cuda:7' is not available"),
    ],
)
def test_a_map_that_does_not_fit_the_model_is_refused(wanted: dict[str, str], message: str) -> None:
    with pytest.raises(ModelSupportError, match=message):
        find_map(tiny_model().hf, wanted)


@pytest.mark.parametrize("device", [{"map": "best"}, {"maps": "auto"}, {"map": "auto", "x": 1}])
def test_a_mapping_that_is_no_map_is_refused(tmp_path: Path, device: dict[str, object]) -> None:
    with pytest.raises(ModelSupportError, match="is not a map"):
        LocalModel.load(tiny_llama(tmp_path), device=device)


def test_a_strategy_needs_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    with pytest.raises(ModelSupportError, match=r"map: auto.*accelerate.*not installed"):
        find_map(tiny_model().hf, "auto")


def test_a_model_that_accelerate_spread_is_taken_as_it_is() -> None:
    """Its layers are where it put them, and its hooks stay."""
    model = tiny_model(num_hidden_layers=2)
    where = {"model.embed_tokens": "fake:0", "model.layers.0": "fake:0", "model.layers.1": "fake:1"}
    rest = {"model.norm": "fake:1", "model.rotary_emb": "fake:0", "lm_head": "fake:1"}
    copied = copy.deepcopy(model.hf)
    accelerate.dispatch_model(copied, where | rest, skip_keys="past_key_values", force_hooks=True)
    other = LocalModel(copied, model.tokenizer, identity=model.identity)
    request = TurnRequest(ids=PROMPT, sampling=writes(3))
    assert turn(other, request).ids == turn(model, request).ids
