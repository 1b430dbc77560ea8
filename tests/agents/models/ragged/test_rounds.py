"""Rows that join and leave between rounds, prefill in slices, are spliced, cut and kept."""

import random
from functools import cache
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, UNMOVABLE, make
from rows import TOLERANCE, Row, apart, ids_of, plain, state_of, step
from tiny import tiny_tokenizer
from transformers import GptOssConfig, GptOssForCausalLM

from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.ragged import sequence
from unspoken.agents.models.ragged.segment import Segment
from unspoken.agents.models.ragged.sequence import Sequence
from unspoken.channels.kv.state import KVState

ALL = (*ARCHITECTURES, *UNMOVABLE)
WINDOWED = ("llama", "mistral, window", "gemma2", "gemma3")

model_of = cache(make)


@pytest.fixture(autouse=True)
def _shares_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes of a few tokens stay where they are, as long ones do."""
    monkeypatch.setattr(sequence, "FEW_ROWS", 2)


def _with_sinks() -> LocalModel:
    """A model whose heads may attend to nothing, on sliding and full layers."""
    torch.manual_seed(0)
    config: Any = GptOssConfig(
        vocab_size=364,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=6,
        max_position_embeddings=256,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    config._attn_implementation = "eager"
    model = GptOssForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            weight.data.normal_(1.0)
    return LocalModel(model, tiny_tokenizer(), ref="gpt-oss")


def _drawn(model: LocalModel, draw: random.Random, common: KVState, ids: list[int]) -> Row:
    """A row whose context begins with some of what is common, or with nothing of it."""
    own = ids_of(draw.randrange(10**6), draw.randint(1, 40))
    shared = draw.choice((0, 0, 17, 30, 30))
    states = [common.slice(0, shared)] if shared else []
    return Row(model, ids[:shared] + own, states, spare=draw.choice((12, 12, 70)))


def _played(model: LocalModel, seed: int) -> list[Row]:
    """Rounds in which rows join and leave by chance; all rows that ever wrote a token."""
    draw = random.Random(seed)
    ids = ids_of(seed, 30)
    common = state_of(model, ids)
    here, gone = list[Row](), list[Row]()
    for _ in range(14):
        while len(here) < 16 and draw.random() < 0.6:
            here.append(_drawn(model, draw, common, ids))
        if here:
            step(here, most=draw.randint(1, 20))
        for row in list(here):
            if len(row.written) == 10 or draw.random() < 0.15:
                here.remove(row)
                gone.append(row)
                row.rows.close()
    for row in here:
        row.rows.close()
    return [row for row in (*here, *gone) if row.logits]


@pytest.mark.parametrize("kind", [*ALL, "gpt-oss"])
def test_a_row_computes_what_it_computes_alone(kind: str) -> None:
    """Whoever joins and leaves beside it: plain transformers' logits, and so its greedy tokens."""
    model = _with_sinks() if kind == "gpt-oss" else model_of(kind)
    assert model.refuses_batches is None
    rows = _played(model, seed=len(kind))
    assert len(rows) > 5
    assert max(apart(row) for row in rows) < TOLERANCE
    for row in rows:
        logits, _ = plain(model, row.ids[:-1])
        assert row.written == logits[row.prompt - 1 :].argmax(-1).tolist()
    assert (model.backbone.tails.taken, model.backbone.tails.nbytes) == (0, 0)


@pytest.mark.parametrize("kind", WINDOWED)
def test_pieces_in_the_middle_are_read_as_they_are(kind: str) -> None:
    """A splice: states behind a gap, and scattered positions of them computed again."""
    model = model_of(kind)
    ids = ids_of(3, 50)
    lead, piece = state_of(model, ids[:9]), state_of(model, ids_of(4, 36), 15).slice(15, 36)
    tail = state_of(model, ids_of(5, 44), 40)
    spliced = Row(model, ids, [lead, piece, tail], again=(15, 16, 20, 41))
    beside = [Row(model, ids_of(6, 12)), Row(model, ids[:9] + ids_of(7, 3), [lead])]
    for _ in range(6):
        step([*beside, spliced], most=5)
    while len(spliced.written) < 3:
        step([spliced], most=5)
    assert max(apart(row) for row in (spliced, *beside)) < TOLERANCE
    whole = spliced.rows.snapshot()
    for layer, kept in zip(piece.layers, whole.layers, strict=True):
        assert torch.equal(kept.keys[:, 21:36], layer.keys[:, 6:])


@pytest.mark.parametrize("kind", WINDOWED)
def test_tokens_that_were_guessed_wrong_leave_nothing(kind: str) -> None:
    """Two to five tokens at once, whose last ones are forgotten again."""
    model = model_of(kind)
    rows = [Row(model, ids_of(seed, 10 + seed)) for seed in range(3)]
    step(rows)
    for wrong in (1, 2, 4):
        guess = ids_of(wrong, wrong)
        row = rows[0]
        at = len(row.ids) - 1
        guessed = Segment(
            rows=row.rows,
            ids=[row.ids[-1], *guess],
            positions=range(at, at + 1 + wrong),
            wanted=1 + wrong,
        )
        with torch.no_grad():
            after, *_ = model.compute([guessed, *(other.segment() for other in rows[1:])])
        assert after is not None
        expected, _ = plain(model, [*row.ids, *guess])
        torch.testing.assert_close(after, expected[at:], atol=TOLERANCE, rtol=0)
        row.rows.truncate(at)
        for other in rows[1:]:
            other.rows.truncate(len(other.ids) - 1)
        step(rows)
    assert max(apart(row) for row in rows) < TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_each_row_captures_its_own_hidden_states(kind: str) -> None:
    """Inputs of some layers, in the order of the row's tokens, whatever is computed beside it."""
    model = model_of(kind)
    rows = [Row(model, ids_of(seed, 9 + seed)) for seed in range(3)]
    rows[0].hidden, rows[2].hidden = {1: []}, {1: [], 3: []}
    for _ in range(5):
        step(rows, most=4)
    for row in (rows[0], rows[2]):
        tokens = torch.tensor([row.ids[: row.rows.length]])
        inputs = model.hf(input_ids=tokens, output_hidden_states=True).hidden_states
        for layer, parts in row.hidden.items():
            assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts)
            torch.testing.assert_close(torch.cat(parts), inputs[layer][0], atol=1e-3, rtol=1e-3)


def test_a_snapshot_stays_as_it_is() -> None:
    """Whatever becomes of the rows: cut, closed, their slot another's, the buffer a larger one."""
    model = make("llama")
    row, beside = Row(model, ids_of(1, 20)), Row(model, ids_of(2, 5))
    step([row, beside])
    state = row.rows.snapshot()
    _, cache = plain(model, row.ids[:20])
    row.rows.truncate(12)
    row.rows.close()
    others = [Row(model, ids_of(seed, 30)) for seed in range(5)]
    step([beside, *others])
    for layer, plainly in zip(state.layers, cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, plainly.keys[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.values, plainly.values[0], atol=1e-4, rtol=1e-4)
    assert apart(beside) < TOLERANCE


def test_rows_may_be_more_than_was_thought() -> None:
    """A row that has no room left moves to a larger slot; those beside it stay."""
    model = make("gemma3")
    rows = [Row(model, ids_of(seed, 55), spare=4) for seed in range(2)]
    step(rows)
    words = ids_of(5, 60)
    segment = Segment(rows=rows[0].rows, ids=words, positions=range(55, 115), wanted=1)
    with torch.no_grad():
        logits = model.compute([segment, rows[1].segment()])
    rows[1].logits.append(logits[1][-1])  # type: ignore[index]
    rows[1].ids.append(0)
    expected, cache = plain(model, rows[0].ids[:55] + words)
    torch.testing.assert_close(logits[0], expected[-1:], atol=TOLERANCE, rtol=0)
    assert apart(rows[1]) < TOLERANCE
    for layer, plainly in zip(rows[0].rows.snapshot().layers, cache.layers, strict=True):
        torch.testing.assert_close(layer.keys, plainly.keys[0], atol=1e-4, rtol=1e-4)


def test_a_row_that_became_nothing_leaves_nothing_behind() -> None:
    """Rows that overflowed in a slot are no reason for the next row there to overflow."""
    model = make("llama")
    stays, broken = Row(model, ids_of(1, 5)), Row(model, ids_of(2, 40))
    step([stays, broken])
    rows = broken.rows
    assert isinstance(rows, Sequence)
    for layer in rows.tails.layers:
        layer[:, rows.slot] = torch.nan
    broken.rows.close()
    after = Row(model, ids_of(3, 7))
    for _ in range(3):
        step([stays, after])
    assert max(apart(stays), apart(after)) < TOLERANCE


def test_a_model_that_was_cast_in_memory_gets_rows_of_its_new_type() -> None:
    """Its owner may cast it between two turns."""
    model = make("llama")
    Row(model, ids_of(1, 5)).rows.close()
    model.hf.to(torch.bfloat16)
    row = Row(model, ids_of(1, 5))
    step([row])
    assert row.rows.snapshot().dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_half_precision_is_no_worse_than_transformers(kind: str) -> None:
    """Distance to the logits in float32: at most half as much again as plain bfloat16 has."""
    exact, model = model_of(kind), make(kind).cast(torch.bfloat16)
    rows = [Row(model, ids_of(seed, 20 + seed)) for seed in range(4)]
    for _ in range(6):
        step(rows)
    ours, theirs = [], []
    for row in rows:
        expected = plain(exact, row.ids[:-1])[0][row.prompt - 1 :]
        ours.append((torch.stack(row.logits).float() - expected).square().mean())
        plainly = plain(model, row.ids[:-1])[0][row.prompt - 1 :].float()
        theirs.append((plainly - expected).square().mean())
    assert sum(ours).sqrt() <= 1.5 * sum(theirs).sqrt()  # type: ignore[union-attr]
