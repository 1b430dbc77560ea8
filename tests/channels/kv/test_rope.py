"""Rotations, and states that move."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.rope import Rotary, shift, turn_back, turn_to

ROTARY = Rotary(1.0 / 10000 ** (torch.arange(0, 8, 2) / 8), scale=1.3)


def _keys(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(seed))


@given(start=st.integers(0, 4000), delta=st.integers(-4000, 4000))
@settings(max_examples=40)
def test_shift_is_rotation_at_another_position(start: int, delta: int) -> None:
    """Keys rotated at p and moved by δ are keys rotated at p + δ, to float precision."""
    positions = torch.arange(5) + start
    keys = _keys()
    moved = shift(turn_to(positions, ROTARY)(keys), delta, ROTARY)
    expected = turn_to(positions + delta, ROTARY)(keys)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


@given(start=st.integers(0, 4000))
@settings(max_examples=20)
def test_turning_back_undoes_a_rotation(start: int) -> None:
    """Bare keys come back from rotated ones, scale and all."""
    positions = torch.arange(5) + start
    keys = _keys()
    bare = turn_back(positions, ROTARY)(turn_to(positions, ROTARY)(keys))
    torch.testing.assert_close(bare, keys, atol=1e-5, rtol=1e-5)


def test_dimensions_past_the_rotary_ones_stay() -> None:
    """A partial rotary embedding leaves the rest of a head alone."""
    keys = _keys()
    assert torch.equal(shift(keys, 7, ROTARY)[..., 8:], keys[..., 8:])


def test_rotation_of_a_half_precision_cache_is_done_in_float32() -> None:
    """A bfloat16 cache loses one rounding, not the precision of every product."""
    keys = _keys().to(torch.bfloat16)
    exact = shift(keys.float(), 321, ROTARY)
    assert torch.equal(shift(keys, 321, ROTARY), exact.to(torch.bfloat16))


def test_keys_that_stay_are_not_copied() -> None:
    """A shift by nothing gives the keys themselves."""
    keys = _keys()
    assert shift(keys, 0, ROTARY) is keys


def test_frequencies_that_depend_on_the_length_are_refused() -> None:
    """Keys of a dynamic rotary embedding cannot be moved."""
    with pytest.raises(ModelSupportError, match="change with the length"):
        shift(_keys(), 3, Rotary(ROTARY.inverse_frequencies, dynamic=True))
