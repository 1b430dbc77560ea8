"""Estimates of bridges, against sums by hand and the table of pairs of real sizes."""

from dataclasses import replace

import pytest

from unspoken.agents.testing.tiny import tiny_weights
from unspoken.agents.testing.tokenizer import tiny_tokenizer
from unspoken.channels.bridges.estimate import End, Machine, estimate
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.sizing import BYTES, most_bytes
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry
from unspoken.channels.model_size import Size, size_of_module

CORES = Machine(products=65e9, wide=65e9, read=2e10, start=5e-6)
"""Two cores of a server."""


def end(
    layers: int, heads: int, head_dim: int, hidden: int, weights: float, products: float
) -> End:
    shape = LayerGeometry(kv_heads=heads, head_dim=head_dim)
    geometry = CacheGeometry((shape,) * layers, hidden, 40_960)
    return End(geometry=geometry, size=Size(int(weights), int(products)), itemsize=2)


QWEN_06B = end(28, 8, 128, 1024, 0.596e9, 0.44e9)
QWEN_4B = end(36, 8, 128, 2560, 4.02e9, 3.63e9)
LLAMA_1B = end(16, 8, 64, 2048, 1.236e9, 0.973e9)
LLAMA_8B = end(32, 8, 128, 4096, 8.03e9, 6.98e9)
SMALL = end(30, 3, 64, 576, 0.135e9, 0.106e9)


@pytest.mark.parametrize(
    ("sharer", "receiver", "layers", "columns", "share"),
    [(QWEN_06B, QWEN_4B, 3, 11_264, 0.55), (LLAMA_1B, LLAMA_8B, 4, 12_288, 0.33)],
)
def test_columns_are_those_of_a_fit(
    sharer: End, receiver: End, layers: int, columns: int, share: float
) -> None:
    planned = estimate(sharer, receiver, CORES, FitSettings(sketch=0))
    assert (planned.source_layers, planned.columns) == (layers, columns)
    assert planned.sharer_share == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(("sharer", "receiver"), [(QWEN_4B, LLAMA_8B), (LLAMA_1B, LLAMA_8B)])
def test_a_sketch_leaves_most_columns_to_the_sharer(sharer: End, receiver: End) -> None:
    """And a third of the columns means fewer tokens, smaller Gram matrices and fewer minutes."""
    planned, whole = (
        estimate(sharer, receiver, CORES, FitSettings(sketch=sketch)) for sketch in (None, 0)
    )
    assert (planned.source_layers, planned.columns, planned.sketch) == (12, 4_096, 256)
    assert planned.sharer_share == 0.75 and (whole.sharer_share or 1) < 0.4
    assert (planned.closed_form_minutes or 0) < (whole.closed_form_minutes or 0) / 2
    assert estimate(SMALL, SMALL, CORES).sketch == 0


def test_time_of_a_fit_is_near_what_was_counted_for_this_pair() -> None:
    settings = FitSettings(rank=512, gram_tokens=32_000, minutes=60, longest=None, sketch=0)
    planned = estimate(QWEN_06B, QWEN_4B, CORES, settings)
    assert planned.closed_form_minutes == pytest.approx(41, rel=0.5)
    assert (planned.steps or 0) / 60 == pytest.approx(2.2, rel=0.5)


def test_a_large_receiver_gets_a_wide_code_within_its_shares() -> None:
    planned = estimate(QWEN_06B, QWEN_4B, CORES)
    assert planned.bytes is not None and BYTES < planned.bytes <= 0.03 * 2 * 4.02e9
    assert planned.rank is not None and planned.rank > 2_000
    few = Size(QWEN_4B.size.weights, QWEN_4B.size.products // 4)
    assert most_bytes(few) == few.products // 10


def test_a_mixture_is_counted_as_its_tokens_are_read() -> None:
    """Two of four experts read a token; the shared one, attention and the first layer read all."""
    weights = tiny_weights(tiny_tokenizer(), family="deepseek_v3")
    size = size_of_module(weights)
    routed = [part for name, part in weights.named_parameters() if ".experts." in name]
    idle = sum(part.numel() for part in routed) // 2
    tables = 2 * weights.get_input_embeddings().weight.numel()
    assert size == Size(weights.num_parameters(), weights.num_parameters() - tables - idle, idle)
    weights.config.num_experts_per_tok = None
    assert idle and size_of_module(weights) is None


def test_the_second_fit_and_the_copies_to_train_in_are_counted() -> None:
    planned = estimate(QWEN_06B, QWEN_4B, CORES, FitSettings(minutes=30))
    copied = estimate(*(replace(one, copied=2) for one in (QWEN_06B, QWEN_4B)), CORES)
    assert 30 < (planned.judge_minutes or 0) < 30 + (planned.closed_form_minutes or 0)
    more = (copied.peak_bytes or 0) - (planned.peak_bytes or 0)
    assert more == 2 * (QWEN_06B.size.weights + QWEN_4B.size.weights)


def test_a_small_receiver_gets_sixteen_megabytes() -> None:
    assert most_bytes(SMALL.size) == most_bytes(None) == BYTES


def test_the_gain_grows_with_the_receiver_and_ends_with_the_context() -> None:
    small, large = estimate(QWEN_06B, SMALL, CORES), estimate(QWEN_06B, QWEN_4B, CORES)
    assert large.gains[8192] > small.gains[8192] > 1
    short = replace(QWEN_4B, geometry=replace(QWEN_4B.geometry, max_positions=9_000))
    assert estimate(QWEN_06B, short, CORES).gains[32768] is None


def test_a_receiver_smaller_than_its_bridge_makes_it_useless() -> None:
    tiny = end(2, 2, 64, 64, 2e6, 1e5)
    planned = estimate(LLAMA_8B, tiny, CORES)
    assert planned.break_even is None and planned.verdict == "useless"


def test_the_break_even_length_is_where_both_take_as_long() -> None:
    slow_start = replace(CORES, start=5e-5)
    planned = estimate(QWEN_06B, SMALL, slow_start)
    even = planned.break_even
    assert even is not None and 16 < even < 2_000 and planned.verdict == "worth it"


def test_other_rows_than_keys_and_values_are_refused() -> None:
    latent = replace(QWEN_4B.geometry.layers[0], latent=True, kv_heads=1)
    other = replace(QWEN_4B, geometry=replace(QWEN_4B.geometry, layers=(latent,) * 4))
    planned = estimate(QWEN_06B, other, CORES)
    assert planned.verdict == "refused" and "receiver's layers" in (planned.reason or "")
