"""Codecs against plain arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recoded import recode

from unspoken.channels.errors import ChannelError
from unspoken.channels.kv.codec import CODECS, GROUP, Codec, decode, encode, layout
from unspoken.channels.kv.layer_state import LayerState


def layer_of(heads: int, rows: int, dim: int, seed: int = 0) -> LayerState:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(heads, rows, dim, generator=generator)
    return LayerState(keys, 3 * torch.randn(heads, rows, dim, generator=generator), 0)


@given(st.sampled_from(CODECS), st.integers(1, 3), st.integers(0, 2 * GROUP + 3), st.integers(1, 9))
def test_what_is_stored_has_the_announced_shapes(
    codec: Codec, heads: int, rows: int, dim: int
) -> None:
    layer = layer_of(heads, rows, dim)
    stored = encode(codec, layer)
    parts = layout(codec, heads, rows, dim, torch.float32)
    assert [(part.name, part.dtype, part.shape) for part in parts] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()
    ]
    assert [part.nbytes for part in parts] == [tensor.nbytes for tensor in stored.values()]
    keys, values = decode(codec, stored, dim, torch.float32)
    assert keys.shape == values.shape == (heads, rows, dim)


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 9))
def test_int8_is_off_by_half_a_step_at_most(rows: int, dim: int, seed: int) -> None:
    layer = layer_of(2, rows, dim, seed)
    back = recode("int8", layer)
    for start in range(0, rows, GROUP):
        keys = layer.keys[:, start : start + GROUP]
        error = (back.keys[:, start : start + GROUP] - keys).abs().amax(dim=1)
        assert (error <= keys.abs().amax(dim=1) / 127 * 0.51 + 1e-4).all()
    error = (back.values - layer.values).abs().amax(dim=2)
    assert (error <= layer.values.abs().amax(dim=2) / 127 * 0.51 + 5e-3).all()


@given(st.integers(1, 70), st.integers(1, 9), st.integers(0, 9))
def test_int4_is_off_by_half_a_step_at_most(rows: int, dim: int, seed: int) -> None:
    layer = layer_of(2, rows, dim, seed)
    back = recode("int4", layer)
    for start in range(0, rows, GROUP):
        keys = layer.keys[:, start : start + GROUP]
        step = (keys.amax(dim=1) - keys.amin(dim=1)) / 15
        error = (back.keys[:, start : start + GROUP] - keys).abs().amax(dim=1)
        assert (error <= 0.51 * step + 5e-3).all()
    step = (layer.values.amax(dim=2) - layer.values.amin(dim=2)) / 15
    assert ((back.values - layer.values).abs().amax(dim=2) <= 0.51 * step + 1e-2).all()


def test_a_large_channel_spoils_no_other_channel_of_the_keys() -> None:
    layer = layer_of(1, GROUP, 8)
    layer.keys[:, :, 3] *= 1000
    back = recode("int8", layer)
    others = [channel for channel in range(8) if channel != 3]
    assert float((back.keys - layer.keys)[..., others].abs().max()) < 0.02


def test_a_large_token_spoils_no_other_token_of_the_values() -> None:
    layer = layer_of(1, GROUP, 8)
    layer.values[:, 0] *= 1000
    back = recode("int8", layer)
    assert float((back.values - layer.values)[:, 1:].abs().max()) < 0.06


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_values_that_no_scale_holds_are_refused(codec: Codec, bad: float) -> None:
    layer = layer_of(1, 5, 4)
    layer.values[0, 2, 1] = bad
    with pytest.raises(ChannelError, match="cannot store") as caught:
        encode(codec, layer)
    assert "raw" in caught.value.fix


def test_raw_keeps_every_bit() -> None:
    layer = layer_of(2, 7, 4)
    layer.values[0, 0, 0] = float("nan")
    back = recode("raw", layer)
    assert torch.equal(back.keys.view(torch.int32), layer.keys.view(torch.int32))
    assert torch.equal(back.values.view(torch.int32), layer.values.view(torch.int32))
