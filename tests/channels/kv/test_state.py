"""States: slices, trims and checks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.channels.errors import GeometryMismatch, StateError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.kv.state import KVState

IDENTITY = ModelIdentity("w", "c", "t")
GEOMETRY = CacheGeometry(
    (LayerGeometry(kv_heads=2, head_dim=4), LayerGeometry(kv_heads=1, head_dim=8, window=4)),
    16,
    128,
)
ROTARY = Rotary(torch.tensor([1.0, 0.1]))


def make_state(start: int, stop: int) -> KVState:
    """A state whose values are its positions."""
    layers = []
    for shape in GEOMETRY.layers:
        rows = torch.arange(start, stop, dtype=torch.float32)[None, :, None]
        tensor = rows.expand(shape.kv_heads, -1, shape.head_dim).contiguous()
        layers.append(LayerState(tensor, tensor.clone(), start))
    hidden = {1: torch.arange(start, stop, dtype=torch.float32)[:, None].expand(-1, 16)}
    return KVState(layers=tuple(layers), start=start, stop=stop, identity=IDENTITY, hidden=hidden)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=50)
def test_a_slice_holds_its_positions(a: int, b: int, c: int) -> None:
    """Every layer's rows, and the hidden states of the last ones."""
    start, stop, end = sorted((a, b, c))
    state = make_state(0, end)
    state = replace(state, hidden={1: state.hidden[1][end // 2 :]})
    piece = state.slice(start, stop)
    assert (piece.start, piece.stop, piece.whole) == (start, stop, True)
    for layer in piece.layers:
        assert layer.keys[0, :, 0].tolist() == list(range(start, stop))
        assert torch.equal(layer.keys, layer.values)
    assert piece.hidden[1][:, 0].tolist() == list(range(max(start, end // 2), stop))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=80)
def test_a_slice_of_a_trimmed_state_keeps_what_there_is(
    start: int, stop: int, a: int, b: int
) -> None:
    """Whatever is cut from a trimmed state, every row keeps its position."""
    start, a, b, stop = sorted((start, stop, a, b))
    piece = make_state(start, stop).trim(GEOMETRY).slice(a, b)
    for layer in piece.layers:
        assert layer.first + layer.rows == b
        assert layer.values[0, :, 0].tolist() == list(range(layer.first, b))


def test_a_slice_shares_memory() -> None:
    """To slice is to look, not to copy."""
    state = make_state(0, 8)
    piece = state.slice(2, 5)
    assert piece.layers[0].keys.data_ptr() == state.layers[0].keys[:, 2].data_ptr()


def test_a_shift_changes_no_tensor_of_the_original() -> None:
    """Keys are turned in new memory; values are shared."""
    state = make_state(3, 8)
    before = state.layers[0].keys.clone()
    moved = state.shift(5, GEOMETRY, lambda name: ROTARY)
    assert (moved.start, moved.stop) == (8, 13)
    assert torch.equal(state.layers[0].keys, before)
    assert moved.layers[0].values.data_ptr() == state.layers[0].values.data_ptr()


def test_a_trim_drops_what_no_later_token_sees() -> None:
    """A sliding layer of window 4 keeps 3 rows; a full one keeps all."""
    trimmed = make_state(0, 9).trim(GEOMETRY)
    assert [layer.first for layer in trimmed.layers] == [0, 6]
    assert trimmed.nbytes < make_state(0, 9).nbytes


def test_positions_out_of_reach_are_refused() -> None:
    """A slice past the end names both ranges."""
    with pytest.raises(StateError, match="positions 2 to 9"):
        make_state(0, 8).slice(2, 9)


def test_rows_that_do_not_match_the_positions_are_refused() -> None:
    """A state cannot be made with fewer rows than it says."""
    state = make_state(0, 5)
    with pytest.raises(StateError, match="layer 0 holds"):
        replace(state, stop=6)


def test_another_shape_is_refused() -> None:
    """A state of other heads than the model's is named by layer."""
    other = CacheGeometry(
        (LayerGeometry(kv_heads=2, head_dim=4), LayerGeometry(kv_heads=2, head_dim=8)), 16, 128
    )
    with pytest.raises(GeometryMismatch, match="layer 1 of a state has 1 heads of 8"):
        make_state(0, 3).check(other, torch.float32)


def test_a_state_moves_to_a_device_only_when_told() -> None:
    """A state that is there already is itself, not a copy."""
    state = make_state(0, 3)
    assert state.to(torch.device("cpu")) is state
    assert state.to(torch.device("meta")).device.type == "meta"


def test_what_is_approximate_stays_known() -> None:
    """Slices before a splice are exact, those after it are not, wherever they are moved."""
    state = replace(make_state(0, 10), approximate_from=4)
    assert state.slice(0, 4).exact
    assert state.slice(6, 8).approximate_from == 6
    assert state.slice(2, 8).shift(5, GEOMETRY, lambda name: ROTARY).approximate_from == 9
    state = replace(state, hops=2)
    assert (state.slice(0, 4).hops, state.slice(3, 8).hops) == (0, 2)
    assert KVState.joined([state, make_state(10, 12)]).hops == 2


def _run_of(start: int, stop: int, seed: int) -> KVState:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, stop - start, 4)
    layers = tuple(
        LayerState(
            torch.randn(shape, generator=generator), torch.randn(shape, generator=generator), start
        )
        for _ in range(2)
    )
    return KVState(layers=layers, start=start, stop=stop, identity=IDENTITY)


def test_joined_states_read_as_one_and_share_their_memory() -> None:
    parts = _run_of(0, 5, 1), _run_of(5, 7, 2), _run_of(7, 12, 3)
    joined = KVState.joined(parts)
    for number, layer in enumerate(joined.layers):
        whole = torch.cat([part.layers[number].keys for part in parts], dim=1)
        assert torch.equal(layer.keys, whole)
        assert layer.chunks[0][0].data_ptr() == parts[0].layers[number].keys.data_ptr()
        assert torch.equal(joined.slice(4, 9).layers[number].keys, whole[:, 4:9])
        assert joined.slice(4, 9).layers[number].first == 4


def test_a_slice_within_one_part_is_that_part_alone() -> None:
    joined = KVState.joined((_run_of(0, 5, 1), _run_of(5, 9, 2)))
    assert [len(layer.chunks) for layer in joined.slice(5, 8).layers] == [1, 1]


def test_states_with_a_gap_are_not_joined() -> None:
    with pytest.raises(StateError):
        KVState.joined((_run_of(0, 5, 1), _run_of(6, 9, 2)))
