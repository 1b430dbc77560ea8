"""Weights as they are stored, and how wide a code fits."""

import pytest
import torch

from unspoken.channels.bridges.fit.sizing import LEAST, projector_bytes, widest_rank
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.quantize import GROUP, dequantize, quantize
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry


def draws(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_int8_weights_are_within_half_a_step() -> None:
    tensor = draws(130, 67, 0)
    quantized = quantize({"encode": tensor, "gate": draws(1, 4, 1)[0]})
    assert quantized["encode"].dtype == torch.int8 and quantized["gate"].dtype == torch.float32
    steps = quantized["encode.scale"].float().repeat_interleave(GROUP)[: tensor.numel()]
    error = (dequantize(quantized)["encode"] - tensor).abs().flatten()
    assert bool((error <= 0.51 * steps).all())


def test_weights_stored_whole_come_back_whole() -> None:
    tensor = draws(130, 67, 0)
    assert torch.equal(dequantize(quantize({"encode": tensor}, "float32"))["encode"], tensor)


def test_int8_weights_without_scales_are_refused() -> None:
    quantized = quantize({"encode": draws(130, 67, 0)})
    del quantized["encode.scale"]
    with pytest.raises(BridgeError, match=r"'encode' have no scales"):
        dequantize(quantized)


WIDE = CacheGeometry(
    (LayerGeometry(kv_heads=4, head_dim=64, rope="default", window=None),) * 6, 256, 4096
)


def stored(rank: int) -> int:
    """Bytes of a projector's tensors as they are stored."""
    projector = Projector(
        ProjectorConfig(source_layers=(0, 2), rank=rank, hidden=64, bottleneck=32), WIDE, WIDE
    )
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in quantize(projector.state_dict()).values()
    )


def test_the_size_of_a_projector_is_what_it_takes_on_disk() -> None:
    config = ProjectorConfig(source_layers=(0, 2), rank=96, hidden=64, bottleneck=32)
    assert projector_bytes(config, WIDE, WIDE) == stored(96)


def test_the_widest_code_is_the_widest_that_fits() -> None:
    """One step more would not fit."""
    config = ProjectorConfig(source_layers=(0, 2), hidden=64, bottleneck=32)
    rank = widest_rank(config, WIDE, WIDE, 4_000_000)
    assert rank > LEAST and rank % 32 == 0
    assert stored(rank) <= 4_000_000 < stored(rank + 32)


def test_a_large_pair_has_a_code_all_the_same_and_a_small_one_no_wider_than_it_is() -> None:
    config = ProjectorConfig(source_layers=(0, 2), hidden=64, bottleneck=32)
    assert widest_rank(config, WIDE, WIDE, 1000) == LEAST
    small = CacheGeometry(
        (LayerGeometry(kv_heads=1, head_dim=8, rope="default", window=None),) * 3, 16, 64
    )
    assert widest_rank(config, small, small) == min(4 * 8 + 2 * 16, 6 * 8)
