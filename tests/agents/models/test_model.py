"""`LocalModel` against plain transformers, over many architectures."""

import pytest
import torch
from architectures import ARCHITECTURES, WINDOW, make
from tiny import tiny_llama, tiny_tokenizer
from tiny_models import tiny_weights
from transformers import DynamicCache

from unspoken.agents.models import decoder
from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.ragged.segment import Segment
from unspoken.channels.errors import (
    GeometryMismatch,
    IdentityMismatch,
    ModelSupportError,
    StateError,
)
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel

LENGTH = 40


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LocalModel:
    return make(request.param)


@pytest.fixture(scope="module")
def llama() -> LocalModel:
    return make("llama")


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "CHUNK", 7)


def _ids(model: LocalModel, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, len(model.tokenizer), (length,), generator=generator)


@torch.no_grad()
def _plain(model: LocalModel, ids: torch.Tensor) -> tuple[torch.Tensor, DynamicCache]:
    """What transformers computes itself, over a cache that keeps everything."""
    cache = DynamicCache()
    return model.hf(ids[None], past_key_values=cache).logits[0], cache


def _assert_state(state: KVState, cache: DynamicCache, start: int = 0) -> None:
    for ours, theirs in zip(state.layers, cache.layers, strict=True):
        torch.testing.assert_close(
            ours.keys, theirs.keys[0, :, start : state.stop], atol=2e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            ours.values, theirs.values[0, :, start : state.stop], atol=2e-5, rtol=1e-4
        )


def test_it_is_a_causal_model(model: LocalModel) -> None:
    """A local model has all that a channel needs of one."""
    assert isinstance(model, CausalModel)


def test_prefill_equals_transformers(model: LocalModel) -> None:
    """A prefill in chunks gives transformers' keys, values and last logits."""
    ids = _ids(model)
    logits, cache = _plain(model, ids)
    ours = model.prefill(ids)
    torch.testing.assert_close(ours.logits, logits[-1], atol=1e-4, rtol=1e-4)
    _assert_state(ours.state, cache)


def test_continuation_equals_transformers(model: LocalModel) -> None:
    """A prefill over a state gives what one over all tokens gives."""
    ids = _ids(model)
    logits, cache = _plain(model, ids)
    first = model.prefill(ids[:23]).state
    ours = model.prefill(ids[23:], [first])
    torch.testing.assert_close(ours.logits, logits[-1], atol=1e-4, rtol=1e-4)
    _assert_state(ours.state, cache)


def test_holes_are_filled_exactly(model: LocalModel) -> None:
    """Tokens computed between and inside pieces of an exact state complete it exactly."""
    ids = _ids(model)
    logits, cache = _plain(model, ids)
    full = model.prefill(ids).state
    pieces = [full.slice(0, 9), full.slice(13, 21), full.slice(22, 34)]
    missing = torch.tensor(
        [9, 10, 11, 12, 14, 15, 21, 30, *range(34, LENGTH)]
    )  # 14, 15 and 30 are repairs
    ours = model.prefill(ids[missing], pieces, missing)
    torch.testing.assert_close(ours.logits, logits[-1], atol=1e-4, rtol=1e-4)
    _assert_state(ours.state, cache)


def test_logits_equal_transformers(model: LocalModel) -> None:
    """Logits after every token, over a state, are transformers' own."""
    ids = _ids(model)
    logits, _ = _plain(model, ids)
    state = model.prefill(ids[:17]).state
    torch.testing.assert_close(model.logits(ids[17:], [state]), logits[17:], atol=1e-4, rtol=1e-4)


def test_captured_hidden_states_are_layer_inputs(model: LocalModel) -> None:
    """The hidden states captured in a chunked prefill are the inputs of the layers named."""
    ids = _ids(model)
    with torch.no_grad():
        hidden = model.hf(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    captured = model.prefill(ids, capture=(0, 2)).hidden
    torch.testing.assert_close(captured[0], hidden[0][0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(captured[2], hidden[2][0], atol=2e-5, rtol=1e-4)


def test_embeddings_are_the_first_layers_input(model: LocalModel) -> None:
    """`embed` scales as the model does."""
    ids = _ids(model)
    with torch.no_grad():
        hidden = model.hf(ids[None], output_hidden_states=True, use_cache=False).hidden_states
        torch.testing.assert_close(model.embed(ids), hidden[0][0])


def test_a_layer_range_equals_transformers(model: LocalModel) -> None:
    """Layers 1 and 2 on a captured input give transformers' hidden states, keys and values."""
    ids = _ids(model)
    _, cache = _plain(model, ids)
    with torch.no_grad():
        hidden = model.hf(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    before = model.prefill(ids[:15]).state
    output, layers = model.run_layers(hidden[1][0, 15:], 1, 3, torch.arange(15, LENGTH), [before])
    torch.testing.assert_close(output, hidden[3][0, 15:], atol=5e-5, rtol=1e-4)
    for number, layer in zip((1, 2), layers, strict=True):
        torch.testing.assert_close(
            layer.keys, cache.layers[number].keys[0, :, 15:], atol=2e-5, rtol=1e-4
        )


def test_gradients_flow_into_a_state(model: LocalModel) -> None:
    """With `grad`, a loss has transformers' own gradient at the state's keys and values."""
    ids = _ids(model, 12)
    state = model.prefill(ids[:5]).state
    layers = [(layer.keys.clone(), layer.values.clone()) for layer in state.layers]
    grads = []
    for ours in (True, False):
        leaves = [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in layers]
        if ours:
            leaf = KVState(
                layers=tuple(type(state.layers[0])(k, v, 0) for k, v in leaves),
                start=0,
                stop=5,
                identity=model.identity,
            )
            logits = model.logits(ids[5:], [leaf], grad=True)
        else:
            cache = DynamicCache()
            for number, (k, v) in enumerate(leaves):
                cache.update(k[None], v[None], number)
            logits = model.hf(ids[None, 5:], past_key_values=cache).logits[0]
        logits.logsumexp(-1).sum().backward()
        grads.append([tensor.grad for pair in leaves for tensor in pair])
    for left, right in zip(*grads, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-3)


def test_a_snapshot_never_changes(model: LocalModel) -> None:
    """A state that was given out is the same after its rows have grown."""
    ids = _ids(model).tolist()
    rows = model.begin((), range(8), spare=LENGTH)
    model.compute([Segment(rows=rows, ids=ids[:8], positions=range(8))])
    state = rows.snapshot()
    copies = [(layer.keys.clone(), layer.values.clone()) for layer in state.layers]
    model.compute([Segment(rows=rows, ids=ids[8:], positions=range(8, LENGTH))])
    rows.close()
    other = model.begin((), range(LENGTH), spare=0)  # may have the same memory
    model.compute([Segment(rows=other, ids=ids[::-1], positions=range(LENGTH))])
    other.close()
    for layer, (keys, values) in zip(state.layers, copies, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


@pytest.mark.parametrize("name", ["gemma3", "mistral, window"])
def test_a_trimmed_state_goes_on_exactly(name: str) -> None:
    """What a trimmed state lacks, no later token can see."""
    model = make(name)
    ids = _ids(model)
    logits, _ = _plain(model, ids)
    trimmed = model.prefill(ids[:25]).state.trim(model.geometry)
    windowed = next(i for i, layer in enumerate(model.geometry.layers) if layer.window)
    assert trimmed.layers[windowed].rows == WINDOW - 1
    torch.testing.assert_close(
        model.prefill(ids[25:], [trimmed]).logits, logits[-1], atol=1e-4, rtol=1e-4
    )


def test_repair_inside_a_trimmed_window_is_refused() -> None:
    """A token that must see rows which were trimmed away is not computed from nothing."""
    model = make("gemma3")
    ids = _ids(model)
    trimmed = model.prefill(ids[:25]).state.trim(model.geometry)
    with pytest.raises(StateError, match="nothing before position 20"):
        model.prefill(ids[[20, 25]], [trimmed], torch.tensor([20, 25]))


def test_a_gap_is_refused(llama: LocalModel) -> None:
    """Positions that nothing covers are named."""
    ids = _ids(llama)
    state = llama.prefill(ids[:5]).state
    with pytest.raises(StateError, match="nothing covers position 5"):
        llama.prefill(ids[7:9], [state], torch.tensor([7, 8]))


def test_a_state_of_other_weights_is_refused(llama: LocalModel) -> None:
    """A state made by a copy with one changed weight is refused, and the field named."""
    other = make("llama")
    with torch.no_grad():
        next(other.hf.parameters())[0, 0] += 1
    changed = LocalModel(other.hf, other.tokenizer)
    state = changed.prefill(_ids(changed)).state
    with pytest.raises(IdentityMismatch) as caught:
        llama.prefill(_ids(llama)[:1], [state])
    assert caught.value.field == "weights"


def test_a_second_copy_of_the_weights_is_the_same_model(llama: LocalModel) -> None:
    """A state made by an equal model that was loaded separately is taken."""
    ids = _ids(llama)
    state = make("llama").prefill(ids[:-1]).state
    logits, _ = _plain(llama, ids)
    torch.testing.assert_close(
        llama.prefill(ids[-1:], [state]).logits, logits[-1], atol=1e-4, rtol=1e-4
    )


def test_a_state_of_another_dtype_is_refused(llama: LocalModel) -> None:
    """Equal weights in another dtype do not make a state fit."""
    half = LocalModel(make("llama").hf.to(torch.bfloat16), llama.tokenizer, identity=llama.identity)
    with pytest.raises(GeometryMismatch, match="bfloat16"):
        llama.prefill(_ids(llama)[:1], [half.prefill(_ids(llama)).state])


def test_an_unknown_device_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A device that torch does not have is named, with those that would do."""
    from tiny import tiny_llama

    folder = tiny_llama(tmp_path_factory.mktemp("llama"))
    with pytest.raises(ModelSupportError, match="'cuda:7'"):
        LocalModel.load(str(folder), device="cuda:7")


@pytest.mark.parametrize(("stored", "same"), [("bfloat16", True), ("float32", False)])
def test_a_load_in_fewer_bits_is_another_model_where_it_rounds(
    stored: str, same: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A folder of bfloat16 holds one model in both types, a folder of float32 does not."""
    folder = str(tiny_llama(tmp_path_factory.mktemp("llama"), dtype=stored))
    single, half = LocalModel.load(folder), LocalModel.load(folder, dtype="bfloat16")
    assert (single.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert (single.identity == half.identity) is same
    assert LocalModel.load(folder, dtype="bfloat16").identity == half.identity
    assert single.cast(torch.bfloat16).identity == half.identity


@pytest.mark.parametrize("name", ["llama", "llama, yarn", "gemma3"])
def test_a_cast_keeps_rotary_frequencies(name: str) -> None:
    """A cast changes the weights alone: frequencies keep float32."""
    model = make(name)
    half = model.cast(torch.bfloat16)
    assert half.dtype == torch.bfloat16 and model.dtype == torch.float32
    for rope in {layer.rope for layer in model.geometry.layers}:
        ours, theirs = half.rotary(rope), model.rotary(rope)
        assert torch.equal(ours.inverse_frequencies, theirs.inverse_frequencies)


def test_loading_in_another_dtype_keeps_rotary_frequencies(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A dtype asked for is that of the weights, not of what the configuration computes."""
    folder = str(tiny_llama(tmp_path_factory.mktemp("half") / "model"))
    whole, half = LocalModel.load(folder), LocalModel.load(folder, dtype="bfloat16")
    again = LocalModel.load(folder, dtype="bfloat16")
    wanted = whole.rotary("default").inverse_frequencies
    for loaded in (half, again):
        assert loaded.dtype == torch.bfloat16
        assert torch.equal(loaded.rotary("default").inverse_frequencies, wanted)


def test_reading_is_a_prefill_without_logits(model: LocalModel) -> None:
    """The state is that of a prefill, bit for bit; the last logits are those of a whole pass."""
    ids = model.tensor(range(5, 25))
    state = model.read(tuple(range(5, 25)))
    for mine, theirs in zip(state.layers, model.prefill(ids).state.layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)
    torch.testing.assert_close(model.logits(ids, last=3), model.logits(ids)[-3:])


@pytest.mark.parametrize("opens", ["read", "begin"])
def test_an_object_is_refused_as_a_folder_is(opens: str) -> None:
    """RoBERTa computes otherwise over its cache, also where nothing loaded it."""
    model = LocalModel(tiny_weights("roberta"), tiny_tokenizer())
    with pytest.raises(ModelSupportError, match="a roberta model cannot be served"):
        model.read(range(5)) if opens == "read" else model.begin((), range(5), spare=1)
