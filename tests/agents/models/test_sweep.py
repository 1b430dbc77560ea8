"""A few architectures of each kind keep what they claim; `make sweep` tries all that there are."""

import json

import pytest
import tiny_models
from model_sweep import KEPT, sweep
from tiny_models import CAUSAL, VISION

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("cache")]

ALL = frozenset(("text", "continuation", "splice", "recompute", "sharer", "receiver", "batched"))
NO_MOVES = frozenset(("splice", "sharer", "receiver"))

CLAIMS = {
    "bloom": ALL - {"recompute", "batched"},  # ALiBi: keys without positions
    "cohere": ALL,  # neighbours rotated
    "gpt2": ALL - NO_MOVES,  # learned positions
    "gpt_oss": ALL,  # sinks, eager attention alone
    "gptj": ALL - {"batched"},  # its rotation from a table
    "lfm2": frozenset(("text", "continuation")),  # recurrent layers beside attention
    "llama4_text": ALL - {"batched"},  # chunks
    "opt": ALL - NO_MOVES,  # layers of a decoder inside its base
    "whisper": frozenset(("text", "continuation")),  # positions counted by its cache
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_an_architecture_keeps_what_it_claims(kind: str) -> None:
    """Its row is the one that is known, and everything in it was compared with transformers."""
    swept = sweep(kind)
    assert (swept.unmade, swept.refused, swept.crashed, swept.broken) == (None, None, None, ())
    assert {name for name, why in swept.row.items() if why is None} == CLAIMS[kind]


@pytest.mark.parametrize("kind", ["moshi", "roberta", "xlnet"])
def test_what_a_cache_does_not_continue_is_refused_at_load(kind: str) -> None:
    """With the reason, as a `ModelSupportError`."""
    swept = sweep(kind)
    assert swept.crashed is None and swept.refused


def test_a_hybrid_without_its_recurrent_layers_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a tiny model would show abilities that no real one has."""
    attention = {"layer_types": ["full_attention"] * 4}
    monkeypatch.setitem(tiny_models._SPECIAL, "lfm2", attention)
    assert "recurrent" in (sweep("lfm2").crashed or "")


def test_the_page_is_of_all_architectures() -> None:
    """What `make sweep` kept names each architecture that transformers has, without a fault."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))["architectures"]
    assert {one["kind"] for one in kept} == {*CAUSAL, *VISION}
    assert [one["kind"] for one in kept if one["broken"] or one["crashed"]] == []
    assert sum(bool(one["row"]) for one in kept if one["kind"] in CAUSAL) >= 150
