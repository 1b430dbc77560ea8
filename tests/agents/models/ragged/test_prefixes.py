"""Prefixes that rows of one batch have in common, wholly, partly or not: read where they lie."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from architectures import make
from rows import TOLERANCE, Row, apart, ids_of, state_of, step
from torch.utils._python_dispatch import TorchDispatchMode

from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.ragged import sequence
from unspoken.channels.kv.state import KVState

KINDS = ("llama", "mistral, window", "gemma2", "gemma3", "exaone4, no rotation in full attention")
FIRST, SECOND, THIRD = ids_of(1, 30), ids_of(2, 20), ids_of(3, 12)

model_of = cache(make)


@pytest.fixture(autouse=True)
def _shares_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes of a few tokens stay where they are, as long ones do."""
    monkeypatch.setattr(sequence, "FEW_ROWS", 2)


def _chunks(model: LocalModel) -> tuple[KVState, KVState, KVState]:
    """Three pieces of memory that follow each other."""
    ids = [*FIRST, *SECOND, *THIRD]
    return (state_of(model, ids[:30]), state_of(model, ids[:50], 30), state_of(model, ids[:62], 50))


def _one(model: LocalModel) -> list[Row]:
    first, _, _ = _chunks(model)
    return [Row(model, FIRST + ids_of(seed, 3 + seed), [first]) for seed in range(4)]


def _three(model: LocalModel) -> list[Row]:
    whole = KVState.joined(_chunks(model))
    return [Row(model, FIRST + SECOND + THIRD + ids_of(n, 2 + n), [whole]) for n in range(3)]


def _partly(model: LocalModel) -> list[Row]:
    first, second, _ = _chunks(model)
    own = ids_of(9, 25)
    other = state_of(model, FIRST + own, 30)
    return [
        Row(model, FIRST + SECOND + ids_of(4, 5), [first, second]),
        Row(model, FIRST + own + ids_of(5, 9), [first, other]),
        Row(model, FIRST + ids_of(6, 4), [first]),
    ]


def _beginnings(model: LocalModel) -> list[Row]:
    whole = state_of(model, FIRST + SECOND)
    return [
        Row(model, (FIRST + SECOND)[:stop] + ids_of(stop, 4), [whole.slice(0, stop)])
        for stop in (41, 50, 23, 41)
    ]


def _some_without(model: LocalModel) -> list[Row]:
    first, _, _ = _chunks(model)
    return [
        Row(model, ids_of(7, 40)),
        Row(model, FIRST + ids_of(8, 6), [first]),
        Row(model, ids_of(9, 3)),
    ]


def _of_several_capacities(model: LocalModel) -> list[Row]:
    first, second, _ = _chunks(model)
    return [
        Row(model, FIRST + SECOND + ids_of(1, 2), [first, second], spare=80),
        Row(model, FIRST + SECOND + ids_of(2, 7), [first, second]),
        Row(model, FIRST + ids_of(3, 70), [first]),
    ]


def _trimmed(model: LocalModel) -> list[Row]:
    whole = state_of(model, FIRST + SECOND)
    return [
        Row(model, FIRST + SECOND + ids_of(1, 4), [whole.trim(model.geometry)]),
        Row(model, FIRST + SECOND + ids_of(2, 9), [whole]),
        Row(model, FIRST + SECOND + ids_of(3, 2), [whole.trim(model.geometry)]),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rows_of", [_one, _three, _partly, _beginnings, _some_without, _of_several_capacities, _trimmed]
)
def test_rows_compute_what_each_computes_alone(
    rows_of: Callable[[LocalModel], list[Row]], kind: str
) -> None:
    """Whatever memory their prefixes have in common: the logits of plain transformers."""
    rows = rows_of(model_of(kind))
    for _ in range(9):  # past the window, so that sliding layers leave the prefix behind
        step(rows)
    assert max(apart(row) for row in rows) < TOLERANCE
    for row in rows:
        row.rows.close()


def test_layers_that_lie_apart_are_not_taken_for_one_memory() -> None:
    """Two states may have some layers in common, as two readers of one fine-tune's message do."""
    model = model_of("llama")
    mine = state_of(model, FIRST)
    layers = tuple(
        layer if number < 2 else type(layer)(layer.keys * 1.5, layer.values * 0.5, 0)
        for number, layer in enumerate(mine.layers)
    )
    other = KVState(layers=layers, start=0, stop=30, identity=model.identity)
    rows = [Row(model, FIRST + ids_of(n, 4), [one]) for n, one in enumerate((mine, other))]
    for _ in range(4):
        step(rows)
    assert max(apart(row) for row in rows) < TOLERANCE


def test_layers_may_be_cut_differently() -> None:
    """Layers in one piece beside layers in several."""
    model = model_of("llama")
    first, second, _ = _chunks(model)
    whole = KVState.joined((first, second))
    layers = tuple(
        layer if number % 2 else type(layer)(layer.keys, layer.values, 0)
        for number, layer in enumerate(whole.layers)
    )
    mixed = KVState(layers=layers, start=0, stop=50, identity=model.identity)
    rows = [
        Row(model, FIRST + SECOND + ids_of(n, 4), [one]) for n, one in enumerate((whole, mixed))
    ]
    for _ in range(4):
        step(rows)
    assert max(apart(row) for row in rows) < TOLERANCE


class _Largest(TorchDispatchMode):
    """The most values that any computation makes; a view makes none."""

    values = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), named: Any = None
    ) -> Any:
        made = operation(*args, **named or {})
        if isinstance(made, torch.Tensor) and not operation.is_view:
            self.values = max(self.values, made.numel())
        return made


def test_a_guess_reads_a_prefix_where_it_lies() -> None:
    """No operation of a step of several tokens makes as much as the prefix's keys on a layer."""
    model = make("llama")
    state = state_of(model, ids_of(0, 600))
    row = Row(model, ids_of(0, 600) + ids_of(1, 2), [state])
    with _Largest() as largest:
        step([row])
    keys = state.layers[0].keys.numel()
    assert 0 < largest.values < keys
    row.rows.close()


def test_a_prefix_is_in_memory_once() -> None:
    """Eight rows that decode over one state hold its memory, and tails that know nothing of it."""
    model = make("llama")
    state = state_of(model, FIRST + SECOND)
    memory = {
        keys.untyped_storage().data_ptr() for layer in state.layers for keys, _ in layer.chunks
    }
    rows = [Row(model, FIRST + SECOND + ids_of(n, 4), [state], spare=10) for n in range(8)]
    for _ in range(3):
        step(rows)
    prefixes = [row.rows.prefix for row in rows]  # type: ignore[attr-defined]
    held = {
        keys.untyped_storage().data_ptr()
        for prefix in prefixes
        for layer in prefix.layers
        for keys, _ in layer.chunks
    }
    assert held == memory
    tails = model.backbone.tails
    row = model.geometry.bytes_per_token(torch.float32.itemsize)
    assert (tails.taken, tails.nbytes) == (8, 8 * 64 * row)
    for one in rows:
        one.rows.close()
    assert (tails.taken, tails.nbytes) == (0, 0)
