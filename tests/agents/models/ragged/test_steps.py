"""Steps of several turns in one forward, of models with recurrent or latent layers."""

from typing import Any

import pytest
import torch
from hybrids import LATENT, RECURRENT, make_hybrid
from rows import TOLERANCE, Row, ids_of, step

from unspoken.agents import LocalModel
from unspoken.agents.engines import asks
from unspoken.agents.engines.asks import Compute, compute, near_lengths
from unspoken.agents.engines.base import Sampling
from unspoken.agents.engines.sampling import Sampler
from unspoken.agents.models import decoder
from unspoken.agents.models.caches.stacked import StackedRows
from unspoken.agents.models.ragged.steps import refusal_of_steps, stacked_step


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many turns each forward of several had."""
    counts: list[int] = []

    def counted(backbone: Any, caches: Any, ids: Any) -> torch.Tensor:
        counts.append(len(caches))
        return stacked_step(backbone, caches, ids)

    monkeypatch.setattr(decoder, "stacked_step", counted)
    return counts


def alone(model: LocalModel, ids: list[int], count: int) -> Row:
    row = Row(model, ids)
    while len(row.written) < count:
        step([row])
    return row


@pytest.mark.parametrize("name", [*RECURRENT, *LATENT, "gemma4-shared"])
def test_a_turn_writes_what_it_writes_alone(name: str, together: list[int]) -> None:
    """Whoever joins and leaves beside it, and whatever their lengths."""
    model = make_hybrid(name)
    prompts = [ids_of(seed, 5 + 9 * seed) for seed in range(3)]
    rows = [Row(model, ids) for ids in prompts]
    step(rows[:2])
    for _ in range(3):
        step(rows[:2])
    step(rows[2:])
    while len(rows[2].written) < 6:
        step(rows)
    step(rows[1:])  # the first leaves
    assert set(together) == {2, 3}
    for ids, row in zip(prompts, rows, strict=True):
        expected = alone(model, ids, len(row.written))
        assert row.written == expected.written
        pairs = zip(row.logits, expected.logits, strict=True)
        assert max(float((ours - theirs).abs().max()) for ours, theirs in pairs) < TOLERANCE
    state, again = rows[2].rows.snapshot(), model.read(rows[2].ids[:-1])
    for ours, theirs in zip(state.layers, again.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3-next", "deepseek-v3"])
def test_a_round_stacks_what_decodes(name: str, together: list[int]) -> None:
    """Beside a prompt that is read, and one whose hidden states are wanted."""
    model = make_hybrid(name)
    asked, capture = [], {1: list[torch.Tensor]()}
    for seed in range(4):
        row = alone(model, ids_of(seed, 6 + seed), 1)
        asked.append(_ask(model, row, capture if seed == 3 else {}))
    fresh = Row(model, ids_of(9, 8))
    asked.append(Compute(model=model, rows=fresh.rows, ids=fresh.ids, positions=range(8)))
    answers = compute([(ask, len(ask.ids)) for ask in asked])
    assert together == [3]
    assert [getattr(one, "turns", one) for one in answers] == [3, 3, 3, 1, 1]
    for seed, answer in enumerate(answers[:4]):
        expected = alone(model, ids_of(seed, 6 + seed), 2)
        assert getattr(answer, "tokens", answer) == (expected.written[1],)


def test_long_contexts_are_not_stacked_with_short_ones() -> None:
    """Padding at most doubles the rows, but for short ones."""
    assert near_lengths([3, 200, 9]) == [[0, 2, 1]]
    assert near_lengths([30_000, 100, 200, 31_000]) == [[1, 2], [0, 3]]
    assert near_lengths([1000, 2000, 4000]) == [[0, 1, 2]]
    assert near_lengths([]) == []


def test_a_forward_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn is tried alone then, over rows as they were."""
    model = make_hybrid("falcon-h1")
    rows = [alone(model, ids_of(seed, 6 + seed), 1) for seed in range(2)]
    whole = model.backbone.next_logits

    def failing(inputs: Any) -> torch.Tensor:
        whole(inputs)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.backbone, "next_logits", failing)
    answers = compute([(_ask(model, row, {}), 1) for row in rows])
    for seed, answer in enumerate(answers):
        expected = alone(model, ids_of(seed, 6 + seed), 2)
        assert getattr(answer, "tokens", answer) == (expected.written[1],)


def test_a_model_that_computes_otherwise_together_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one whose masks do not know where a shorter context begins."""
    model = make_hybrid("qwen3-next")
    calls, step_of = model.backbone.calls, model.backbone.calls.step

    def unmasked(*args: Any) -> dict[str, Any]:
        return {**step_of(*args), "attention_mask": None}

    assert refusal_of_steps(model.backbone) is None
    monkeypatch.setattr(calls, "step", unmasked)
    assert "otherwise" in (refusal_of_steps(model.backbone) or "")


def test_a_window_that_is_full_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is: masks that do not know where its rows begin are found."""
    model = make_hybrid("gemma4-shared")
    sizes = StackedRows.get_mask_sizes

    def from_the_beginning(rows: StackedRows, query_length: int) -> tuple[int, int]:
        return sizes(rows, query_length)[0], 0

    assert refusal_of_steps(model.backbone) is None
    monkeypatch.setattr(StackedRows, "get_mask_sizes", from_the_beginning)
    assert "otherwise" in (refusal_of_steps(model.backbone) or "")


def test_a_context_that_takes_long_to_copy_is_computed_alone(
    together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are computed together, as before."""
    monkeypatch.setattr(asks, "SHORT", 0)
    model = make_hybrid("lfm2")
    model.most_stacked = 12  # type: ignore[misc]  # found once
    rows = [alone(model, ids_of(seed, count), 1) for seed, count in enumerate((8, 30, 9))]
    answers = compute([(_ask(model, row, {}), 1) for row in rows])
    assert together == [2] and [getattr(one, "turns", one) for one in answers] == [2, 1, 2]


def test_how_much_is_copied_is_weighed_against_the_weights() -> None:
    """As many rows as take a quarter of them; those before a window are not copied."""
    model = make_hybrid("deepseek-v3")
    dense = sum(one.nbytes for one in model.hf.parameters() if one.ndim < 3)
    row = model.geometry.bytes_per_token(4)
    assert model.most_stacked == min(dense // 4 // row, 256)
    windowed = make_hybrid("gemma4-shared").geometry
    last = [windowed.seen_bytes(tokens, 4) for tokens in (24, 25)]
    assert last[1] - last[0] < windowed.bytes_per_token(4) == last[0] // 24


def _ask(model: LocalModel, row: Row, capture: dict[int, list[torch.Tensor]]) -> Compute:
    return Compute(
        model=model,
        rows=row.rows,
        ids=row.ids[-1:],
        positions=[len(row.ids) - 1],
        sampler=Sampler(Sampling(max_tokens=4), row.ids, model.device),
        capture=capture,
    )
