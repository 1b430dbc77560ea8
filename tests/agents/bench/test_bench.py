"""The benchmarks run to their end on a tiny model, and their figures are what they say."""

from pathlib import Path

import pytest
from architectures import make, tuned

from unspoken.agents.bench import STUDIES, hop, hop_chain, hops, packet, profile, run_bench, splice
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.models.model import LocalModel
from unspoken.channels.data.rows import QaRow
from unspoken.channels.errors import InputError
from unspoken.channels.finetunes.passages import Settings


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return make("llama")


def test_hop_measures_every_way_against_the_best_text(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way has a row, and no text is faster than the text its rivals are compared with."""
    monkeypatch.setattr(hop, "SIZES", (32,))
    rows, summary = hop.measure(model, progress=lambda line: None)
    ways = {row["way"]: row for row in rows}
    assert {"text", "continuation", "floor", "splice, sink 4"} <= set(ways)
    texts = [row for name, row in ways.items() if name.startswith("text") and "index" not in name]
    assert max(row["speedup_over_text"] for row in texts) == 1.0
    assert ways["floor"]["over_floor"] == 1.0
    assert summary == {}  # nothing was measured at 1,024 tokens


def test_splice_controls_bracket_the_splice(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and a full repair are at no distance; another message is farther than the splice."""
    for name, value in (("PASSAGES", 3), ("TOKENS", 24), ("FORCED", 4)):
        monkeypatch.setattr(splice, name, value)
    monkeypatch.setattr(splice, "SHARER", "one of the keys")
    monkeypatch.setattr(splice, "RECEIVER", "who is it")
    monkeypatch.setattr(splice, "_shared_outputs", splice._shared_prompts)
    rows, summary = splice.measure(model, progress=lambda line: None)
    kl = {row["way"]: row["mean_kl"] for row in rows if row["share"] == "prompt"}
    assert kl["text"] < 1e-9
    assert kl["all recomputed"] < 1e-6
    assert kl["all recomputed"] < kl["sink 4"] < kl["another example's message"]
    assert kl["sink 4"] < kl["no message"]
    assert summary["mean_kl"] == kl["sink 4"]


def test_hops_keep_a_continuation_exact(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A continuation is text after five hops; a splice is farther from it, no message farthest."""
    monkeypatch.setattr(hop_chain, "NEW", 3)
    for name, value in (("NOTE", "key {}"), ("ASKED", "key {}"), ("WRITES", 2)):
        monkeypatch.setattr(hops, name, value)
    monkeypatch.setattr(hops, "SYSTEMS", ("a key", "who", "one", "of it", "the", "is it one"))
    rows = [QaRow(f"the key of {name} is {name}", "who is it", (name,)) for name in ("a", "b")]
    monkeypatch.setattr(hops, "builtin_qa", lambda count: rows)
    cases = (hops.GIVEN, hops.GENERATED, hops.TEAM)
    measured, summary = hops.measure(model, only=cases, progress=lambda line: None)
    kl = {(row["case"], row["way"], row["hops"]): row["mean_kl"] for row in measured}
    for count in hop_chain.HOPS:
        assert abs(kl[hops.GIVEN, hops.CONTINUATION, count]) < 1e-6
        for case in (hops.GIVEN, hops.GENERATED):
            assert kl[case, hops.SPLICE, count] > 1e-6
    for count in (1, 5):
        spliced = kl[hops.GIVEN, hops.SPLICE, count]
        assert spliced < kl[hops.GIVEN, hop_chain.NOTHING, count]
    assert summary["continuation_equal_5"] == 1.0
    ratio = kl[hops.GIVEN, hops.SPLICE, 5] / kl[hops.GIVEN, hops.SPLICE, 1]
    assert summary["splice_kl_5_over_1"] == pytest.approx(ratio)
    alone, beside = [row for row in measured if row["case"] == hops.TEAM]
    assert beside["answers_equal"] == 1.0
    assert beside["kl_by_chain"] == pytest.approx(alone["kl_by_chain"], abs=1e-6)


def test_packet_says_what_each_codec_keeps(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw is the text itself, int8 nearer to it than int4, both nearer than another's message."""
    for name, value in (("PASSAGES", 3), ("TOKENS", 24), ("FORCED", 4), ("SIZES", (8, 16))):
        monkeypatch.setattr(packet, name, value)
    rows, summary = packet.measure(model, progress=lambda line: None)
    kl = {row["way"]: row["mean_kl"] for row in rows if "way" in row}
    assert summary["raw_bit_exact"] is True
    assert kl["raw"] < 1e-6 < kl["int4"]
    assert kl["raw"] < kl["int8"] < kl["int4"] < kl["another example's message"]
    assert kl["int4"] < kl["no message"]
    assert summary["raw_kl"] < 1e-12
    assert summary["int8_kl"] == pytest.approx(kl["int8"], rel=0.02)
    size = {row["way"]: row["bytes_per_token"] for row in rows if "way" in row}
    assert size["raw"] > size["int8"] > size["int4"] > 0
    assert {row["tokens"] for row in rows if "codec" in row} == {8, 16}


@pytest.mark.parametrize(
    ("gains", "wanted"),
    [
        ([(16, 1.0), (32, 2.0)], 16),
        ([(16, -1.0), (32, 1.0)], 24),
        ([(16, 1.0), (32, -1.0), (64, 3.0)], 40),
        ([(16, 1.0), (32, 0.0)], None),
    ],
)
def test_break_even_is_where_all_longer_ones_gain(
    gains: list[tuple[int, float]], wanted: int | None
) -> None:
    """One lucky short length does not count."""
    assert packet.crossing(gains) == wanted


def test_profile_holds_the_front_against_random_ranges_and_controls(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers recomputed are text; reuse of all is nearer to it than another's message."""
    small = Settings(tokens=24, forced=4, search=2, assess=2, prompts=(7,), sink=2)
    for name, value in (("SETTINGS", small), ("QUESTIONS", 2), ("KINDS", ("full",))):
        monkeypatch.setattr(profile, name, value)
    monkeypatch.setattr(profile, "finetune", lambda base, recipe, report: tuned("llama", 0.1))
    rows, summary = profile.measure(model, progress=lambda line: None)
    by_layers = {row["layers"]: row for row in rows}
    kl = {name: row["kl prefix"] for name, row in by_layers.items()}
    assert kl["text"] == 0 and kl["0-3"] < 1e-5
    assert kl["0-3"] < kl["none"] < kl["another example's message"]
    assert kl["none"] == summary["reuse_all_kl"]
    assert all("answer_loss" in row and "f1" in row for row in rows)
    assert by_layers["0-3"]["answer_loss"] == pytest.approx(
        by_layers["text"]["answer_loss"], abs=1e-3
    )
    assert by_layers["none"]["kl after 7"] > by_layers["0-3"]["kl after 7"]
    inner = [row for row in rows if 0 < row.get("share", 0) < 1]
    assert all(f"random {seed}" in row for row in inner for seed in (1, 2, 3))
    assert summary["beats_reuse_all"] is True


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_named_with_its_command(name: str) -> None:
    """Each has a script, which the error names."""
    with pytest.raises(InputError, match=f"{name} is a study") as caught:
        run_bench(name)
    script = f"examples/studies/{name}.py"
    assert f"python {script}" in caught.value.fix
    assert (Path(__file__).parents[3] / script).is_file()


def test_a_text_too_short_is_refused(model: LocalModel, tmp_path: Path) -> None:
    """A file that holds fewer passages than wanted is said to."""
    path = tmp_path / "short.txt"
    path.write_text("the key of the value")
    with pytest.raises(InputError, match="tokens") as caught:
        cut_passages(model, path, 20, 256)
    assert "5120" in caught.value.expected
