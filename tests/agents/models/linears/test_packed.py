"""Packed linear layers: the same results, never of weights that are no more."""

import copy
import gc
import pickle
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from unspoken.agents.models.linears import copies, onednn, packed
from unspoken.agents.models.linears.packed import PackedLinear, computing, pack_linears
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing.tiny import tiny_model
from unspoken.channels.storage.forks import ForkLock

IDS = torch.arange(3, 12)

pytestmark = pytest.mark.skipif(
    onednn.serves(torch.float32) is not None, reason="this torch packs no weights"
)


@pytest.fixture(autouse=True)
def _packs_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of any size are packed, whatever that gains."""
    monkeypatch.setattr(packed, "SMALLEST", 0)
    monkeypatch.setattr(packed, "GAIN", 0.0)
    monkeypatch.setattr(packed, "GAIN_ALIKE", 0.0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every packed product."""
    rows: list[int] = []
    multiply = copies.multiply

    def counted(input: Tensor, *args: object, **settings: bool) -> Tensor:
        rows.append(input[..., 0].numel())
        return multiply(input, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(copies, "multiply", counted)
    return rows


@torch.no_grad()
def by_transformers(model: LocalModel) -> Tensor:
    return model.hf(IDS[None]).logits[0]  # type: ignore[no-any-return, operator]


def layer(model: LocalModel) -> PackedLinear:
    return next(module for module in model.hf.modules() if isinstance(module, PackedLinear))


def test_a_model_computes_what_transformers_computes(calls: list[int]) -> None:
    """Its logits are those of plain layers, by packed ones."""
    model = tiny_model()
    assert model.linears.kind == "packed"
    model.read(IDS.tolist())
    calls.clear()
    assert torch.allclose(model.logits(IDS), by_transformers(model), atol=1e-4)
    assert set(calls) == {len(IDS)}


def test_a_program_that_calls_the_model_itself_computes_without_copies(calls: list[int]) -> None:
    """What transformers computes is torch's own product."""
    by_transformers(tiny_model())
    assert not calls


def test_layers_are_still_linear_layers() -> None:
    """Type checks and state dicts find what they found."""
    model = tiny_model()
    plain = copy.deepcopy(model.hf)
    assert isinstance(layer(model), nn.Linear)
    assert plain.state_dict().keys() == model.hf.state_dict().keys()
    assert sum(isinstance(one, nn.Linear) for one in plain.modules()) == sum(
        isinstance(one, nn.Linear) for one in model.hf.modules()
    )


def test_a_rows_result_does_not_depend_on_other_rows() -> None:
    """Where that is promised, it holds bit for bit in a batch of every size."""
    linear = nn.Sequential(nn.Linear(96, 200), nn.Linear(200, 33))
    linears = pack_linears(linear)
    if not linears.rows_alike:
        pytest.skip("not promised on this CPU")
    rows = torch.randn(256, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), computing(ForkLock()):
        whole = linear(rows)
        for count in range(1, 257):
            assert torch.equal(linear(rows[:count]), whole[:count]), count
        assert torch.equal(linear(rows[7:9]), whole[7:9])


def test_a_single_row_is_padded_where_it_would_come_out_otherwise() -> None:
    """It is then the row of a pair."""
    weight, rows = onednn.pack(torch.randn(24, 16)), torch.randn(2, 16)
    pair = onednn.multiply(rows, weight, None, pads=True)
    single = onednn.multiply(rows[None, :1], weight, None, pads=True)
    assert single.shape == (1, 1, 24)
    torch.testing.assert_close(single[0], pair[:1])


def test_gradients_are_those_of_plain_layers(calls: list[int]) -> None:
    """With gradients on, copies take no part."""
    plain, model = nn.Linear(8, 8), tiny_model()
    model.read(IDS.tolist())
    calls.clear()
    hidden = torch.randn(4, plain.in_features, requires_grad=True)
    expected = torch.autograd.grad(plain(hidden).square().sum(), hidden)[0]
    pack_linears(plain)
    with computing(ForkLock()):
        given = torch.autograd.grad(plain(hidden).square().sum(), hidden)[0]
    assert type(plain) is PackedLinear and torch.equal(given, expected)
    model.logits(IDS, grad=True)
    assert not calls


@pytest.mark.parametrize("way", ["in place", "through data", "replaced"])
def test_changed_weights_are_computed_with(way: str) -> None:
    """Whoever changes weights finds the change in what the model computes next."""
    model = tiny_model()
    before = model.logits(IDS)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            if way == "in place":
                parameter.mul_(1.5)
            elif way == "through data":
                parameter.data.mul_(1.5)
            else:
                parameter.data = parameter.data * 1.5
    after = model.logits(IDS)
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.allclose(after, by_transformers(model), atol=1e-4)
    assert model.linears.kind == "packed"


def test_a_copied_model_has_copies_of_its_own() -> None:
    """A deep copy and a cast have plain layers, until they are models themselves."""
    model = tiny_model()
    copied = copy.deepcopy(model.hf)
    assert not any(isinstance(module, PackedLinear) for module in copied.modules())
    wide = model.cast(torch.float64)
    assert wide.linears.kind == "plain"
    assert torch.allclose(wide.logits(IDS).float(), model.logits(IDS), atol=1e-4)
    twin = model.cast(torch.float32)
    assert layer(twin).copied is not layer(model).copied


def test_a_pickled_layer_is_torchs_own() -> None:
    """What is stored of a model needs none of this package."""
    linear = nn.Sequential(nn.Linear(8, 8))
    pack_linears(linear)
    again = pickle.loads(pickle.dumps(linear))
    assert type(again[0]) is nn.Linear
    assert torch.equal(again[0].weight, linear[0].weight)


def test_layers_on_one_weight_have_one_copy() -> None:
    """As a base and its adapters have, which share their memory."""
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = nn.Parameter(first.weight.detach(), requires_grad=False)
    pack_linears(first)
    pack_linears(second)
    assert vars(first)["copied"] is vars(second)["copied"]


def test_copies_go_with_the_model() -> None:
    """A model that is let go of leaves none behind."""
    model = tiny_model()
    gone = ref(layer(model).copied)
    del model
    gc.collect()
    assert gone() is None


def test_copies_that_take_too_much_memory_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made where memory is ample."""
    monkeypatch.setattr(packed, "free_host_bytes", lambda: 1000)
    linears = tiny_model().linears
    assert linears.kind == "plain" and "free memory" in linears.reason


def _missing(*args: object, **settings: object) -> Tensor:
    raise AttributeError("no such operator")


@pytest.mark.parametrize("name", ["pack", "multiply"])
def test_without_the_operators_layers_stay_plain(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private names may go with another torch; nobody is told but by the reason."""
    monkeypatch.setattr(onednn, "_TRIED", {})
    monkeypatch.setattr(onednn, name, _missing)
    model = tiny_model()
    assert model.linears.kind == "plain"
    assert torch.allclose(model.logits(IDS), by_transformers(model), atol=1e-5)


def test_products_that_come_out_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed products are compared with plain ones first."""
    multiply = onednn.multiply
    monkeypatch.setattr(onednn, "_TRIED", {})
    monkeypatch.setattr(onednn, "multiply", lambda *args, **how: multiply(*args, **how) * 1.01)
    assert "other results" in tiny_model().linears.reason


def test_slow_products_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies must be worth their memory."""
    monkeypatch.undo()
    monkeypatch.setattr(packed, "SMALLEST", 0)
    slow = onednn.Packing(gain=0.7, pads=False, rows_alike=True)
    monkeypatch.setattr(packed, "try_packing", lambda weights: slow)
    assert tiny_model().linears.kind == "plain"


def test_small_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried where there is nothing to gain."""
    monkeypatch.undo()
    assert "too small" in tiny_model().linears.reason


@pytest.mark.model
def test_an_embedded_model_computes_the_same(smollm2: LocalModel) -> None:
    """Logits within rounding of those of transformers, and the same greedy tokens."""
    ids = smollm2.tensor(smollm2.text.encode("The old station was built in the year"))
    pack_linears(smollm2.hf)  # of any size
    with torch.no_grad():
        plain = smollm2.hf(ids[None]).logits[0]  # type: ignore[operator]
    fast = smollm2.logits(ids)
    assert torch.allclose(fast, plain, atol=1e-3)
    assert torch.equal(fast.argmax(-1), plain.argmax(-1))


def test_what_is_expected_of_a_model_is_what_it_gets() -> None:
    """Without its weights in memory."""
    model = tiny_model()
    with torch.device("meta"):
        hollow = type(model.hf)(model.hf.config)
    expected = packed.expected_linears(hollow)
    assert (expected.kind, expected.bytes) == (model.linears.kind, model.linears.bytes)
