"""The benchmark of stalls tells a token that comes late from those that do not."""

import pytest

from unspoken.agents.bench.engine import stall
from unspoken.agents.testing import tiny_model


def seen(talker: tuple[float, ...], read: float | None) -> stall._Seen:
    slices = ((0.0, 64), (1.0, 128), (2.5, 192), (9.0, 256))
    return stall._Seen(began=0.0, talker=talker, neighbour=slices, read=read)


def test_only_gaps_beside_the_prefill_count() -> None:
    """What the talker writes after the neighbour has read is as fast as alone."""
    assert seen((1.0, 2.0, 5.0, 9.0), read=4.0).gaps == [1.0, 3.0]
    assert seen((1.0, 2.0, 5.0), read=None).gaps == [1.0, 3.0]


def test_a_slice_has_its_seconds_and_its_tokens() -> None:
    """Slices before the talker's first token are as long as they like."""
    assert seen((0.5, 2.0, 3.0), read=9.0).slices == [(1.5, 64), (6.5, 64)]


def test_stall_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and beside a prefill that takes several slices."""
    for name, value in (("NEIGHBOUR", 900), ("TOKENS", 24), ("ROUNDS", 1)):
        monkeypatch.setattr(stall, name, value)
    rows, summary = stall.measure(tiny_model(), progress=lambda line: None)
    alone, beside = rows
    assert (alone["of"], beside["of"]) == (stall.ALONE, stall.BESIDE)
    assert alone["tokens"] == beside["tokens"] == 24 and alone["gaps"] == 23
    assert beside["gaps"] >= 1 and beside["slice_tokens"] >= 16 and "cpu_share" in beside
    assert summary["longest_gap_ms"] == beside["longest_gap_ms"] > 0
    assert summary["worst_gap_ms"] >= summary["longest_gap_ms"]
