"""Packed attention is what scaled-dot-product attention gives for each segment by itself."""

import inspect
from functools import partial
from typing import Literal

import pytest
import torch
from engine_turns import writes
from fake_flash import FakeFlash, one_by_one
from torch import Tensor

from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.ragged import varlen
from unspoken.agents.models.ragged.varlen import attend_packed, flash_serves
from unspoken.agents.testing import tiny_model
from unspoken.channels.kv.state import KVState

real = pytest.importorskip("torch.nn.attention.varlen")

HEADS, KV_HEADS, SIZE = 4, 2, 8
PREFILL_AND_ROWS = ((5, 5), (1, 9), (3, 11), (1, 1))
"""Queries and keys of each segment: a prefill, a decoded row, a prefill after a state, a start."""


def packed(
    segments: tuple[tuple[int, int], ...], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor | int]:
    """Random arguments of `attend_packed`."""
    generator = torch.Generator().manual_seed(7)
    draw = partial(torch.randn, generator=generator)
    asked, held = [q for q, _ in segments], [k for _, k in segments]
    edges = [torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0) for lengths in (asked, held)]
    return {
        "query": draw(sum(asked), HEADS, SIZE).to(dtype),
        "key": draw(sum(held), KV_HEADS, SIZE).to(dtype),
        "value": draw(sum(held), KV_HEADS, SIZE).to(dtype),
        "cu_q": edges[0].int(),
        "cu_k": edges[1].int(),
        "max_q": max(asked),
        "max_k": max(held),
    }


def without_maxima(given: dict[str, Tensor | int]) -> dict[str, Tensor]:
    return {name: value for name, value in given.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("window", [None, 1, 3, 64])
def test_packed_segments_are_computed_as_if_alone(window: int | None) -> None:
    """Prefills, decoded rows and rows after a state, with and without a window, in one call."""
    given = packed(PREFILL_AND_ROWS)
    expected = one_by_one(**without_maxima(given), scale=0.3, window=window)
    actual = attend_packed(**given, scale=0.3, window=window)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected)


def test_a_longer_maximum_and_an_empty_segment_change_nothing() -> None:
    """A bucket pads with segments of no queries and names more rows than there are."""
    given = packed(PREFILL_AND_ROWS)
    expected = attend_packed(**given, scale=0.3)  # type: ignore[arg-type]
    cu_q, cu_k = given["cu_q"], given["cu_k"]
    assert isinstance(cu_q, Tensor) and isinstance(cu_k, Tensor)
    padded = given | {
        "cu_q": torch.cat((cu_q, cu_q[-1:], cu_q[-1:])),
        "cu_k": torch.cat((cu_k, cu_k[-1:], cu_k[-1:])),
        "max_q": 8,
        "max_k": 32,
    }
    actual = attend_packed(**padded, scale=0.3)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected)


def test_capped_scores() -> None:
    """Soft-capped scores are those of the formula."""
    given = packed(((4, 6),))
    query, key, value = (given[name] for name in ("query", "key", "value"))
    assert isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)
    keys, values = (part.repeat_interleave(2, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, keys) * 0.5
    scores = 2.0 * torch.tanh(scores / 2.0)
    seen = torch.arange(6) <= torch.arange(2, 6)[:, None]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, values)
    actual = attend_packed(**given, scale=0.5, softcap=2.0)  # type: ignore[arg-type]
    torch.testing.assert_close(actual, expected)


def test_the_fake_has_the_signature_of_torchs_own() -> None:
    """What the next test shows of the fake holds for `varlen_attn`."""
    fake = inspect.signature(FakeFlash().varlen_attn)
    assert fake == inspect.signature(real.varlen_attn)


@pytest.mark.parametrize(
    ("window", "told"), [(None, (-1, 0)), (1, (0, 0)), (3, (2, 0)), (11, (-1, 0))]
)
def test_flash_is_called_with_its_own_conventions(
    monkeypatch: pytest.MonkeyPatch, window: int | None, told: tuple[int, int]
) -> None:
    """Its window counts the rows before a query's own, and one of all rows is none."""
    flash = FakeFlash()
    monkeypatch.setattr(varlen, "_flash", lambda device: flash.varlen_attn)
    given = packed(PREFILL_AND_ROWS, torch.bfloat16)
    actual = attend_packed(**given, scale=0.3, window=window)  # type: ignore[arg-type]
    expected = one_by_one(**without_maxima(given), scale=0.3, window=window)
    assert flash.windows == [told]
    torch.testing.assert_close(actual, expected)


def test_torchs_own_takes_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real function is called as it wants to be, on tensors that hold nothing."""
    monkeypatch.setattr(varlen, "_flash", lambda device: varlen._varlen_attn())
    given = packed(PREFILL_AND_ROWS, torch.bfloat16)
    empty = {
        name: part.to("meta") if isinstance(part, Tensor) else part for name, part in given.items()
    }
    assert varlen._varlen_attn() is real.varlen_attn
    out = attend_packed(**empty, scale=0.3, window=3)  # type: ignore[arg-type]
    assert out.shape == (10, HEADS, SIZE) and out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "head_dim", "softcap", "serves"),
    [
        (torch.bfloat16, 64, None, True),
        (torch.float16, 256, None, True),
        (torch.float32, 64, None, False),
        (torch.bfloat16, 64, 30.0, False),
        (torch.bfloat16, 512, None, False),
        (torch.bfloat16, 20, None, False),
    ],
)
def test_what_flash_serves(
    dtype: torch.dtype, head_dim: int, softcap: float | None, serves: bool
) -> None:
    """Two bytes an element, heads it has kernels for, no cap."""
    heads = torch.zeros(1, 2, head_dim, dtype=dtype)
    assert flash_serves(heads, heads, softcap) is serves
    assert varlen._flash(torch.device("cpu")) is None
    assert not varlen.has_flash(heads, heads, softcap)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_prefill_goes_by_flash_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, family: Literal["llama", "gemma3"]
) -> None:
    """Behind a state and before its end, too, and on layers with a window."""
    model = tiny_model(family=family).cast(torch.bfloat16)
    ids, flash = tuple(range(20, 50)), FakeFlash()

    def computed() -> tuple[list[KVState], tuple[int, ...]]:
        first = drive_turn(model, TurnRequest(ids=ids, keep_state=True))[1]
        assert first.state is not None
        past = Past(first.ids, first.state)
        more = TurnRequest(ids=(*ids, *range(60, 70)), sampling=writes(3), keep_state=True)
        second = drive_turn(model, more, past)[1]
        assert second.state is not None
        return [first.state, second.state], second.ids

    states, expected = computed()
    monkeypatch.setattr(varlen, "_flash", lambda device: flash.varlen_attn)
    by_flash, actual = computed()
    layers = len(model.geometry.layers)
    assert len(flash.windows) == 2 * layers and actual == expected
    for state, other in zip(states, by_flash, strict=True):
        for one, two in zip(state.layers, other.layers, strict=True):
            torch.testing.assert_close(one.values, two.values, rtol=0.05, atol=0.05)
