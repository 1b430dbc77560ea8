"""The studies run on tiny models, and their figures are what they say."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import make
from flows import Pair, own_cache
from pairs import corpus, folders, plan, quick_fits
from studies import study_of

import ablation
import dial
import hybrid_splice
import penalty
import repairs
from closed_forms import choose
from unspoken.agents.bench.engine import panel
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.make import fit_bridge
from unspoken.channels.data.text import load_corpus
from unspoken.channels.errors import InputError

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("cache")]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("qwen3"), make("llama", 1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Folders of two tiny models."""
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        yield folders(folder)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few passages of a small text."""
    quick_fits(monkeypatch)
    for module in (dial, ablation):
        for name, value in (("TOKENS", 600), ("PASSAGES", 2), ("RANK", 16)):
            monkeypatch.setattr(module, name, value)
    for name, value in (("SIZE", 32), ("REPEATS", 1)):
        monkeypatch.setattr(dial, name, value)
    few_tokens = (("TOKENS_PER_COLUMN", (40,)), ("PASSAGES", 2), ("QUESTIONS", 2), ("RANK", 8))
    for name, some in (*few_tokens, ("LAYERS", 1)):
        monkeypatch.setattr(penalty, name, some)
    for name, values in (("RANKS", (4,)), ("COUNTS", (1,))):
        monkeypatch.setattr(ablation, name, values)


def test_every_module_is_type_checked() -> None:
    """The list of mypy's modules names all scripts of the folder."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    scripts = sorted(file.stem for file in (ROOT / "examples" / "studies").glob("*.py"))
    assert settings["tool"]["mypy"]["modules"] == scripts


def test_dial_has_a_row_per_number_of_native_layers(few: None, stored: tuple[Path, Path]) -> None:
    """The more layers the receiver runs itself, the nearer it comes to the text."""
    result = study_of(dial, *stored)
    assert result["machine"]["sharer"] == str(stored[0])
    first, second = result["rows"]
    assert (first["native_layers"], second["native_layers"]) == (0, 1)
    assert second["kl"] < first["kl"] and min(first["ttft_s"], second["ttft_s"]) > 0
    names = ("retention", "specific", "without_sharer", "ttft_speedup_32")
    assert set(result["summary"]) == {f"{name}_native_0_builtin" for name in names}


def test_penalty_has_a_row_per_form_and_penalty(few: None, stored: tuple[Path, Path]) -> None:
    """The chosen one explains what was held out; with another it is not asked."""
    rows = study_of(penalty, *stored)["rows"]
    assert [(row["form"], row["chosen"]) for row in rows] == [
        (form, chosen) for form in ("closed form", "embeddings only") for chosen in (False, True)
    ]
    assert all((row["held_out_r2"] is not None) == row["chosen"] for row in rows)


def test_ablation_has_a_row_per_variant(
    few: None, stored: tuple[Path, Path], tmp_path: Path
) -> None:
    """Among them the parts of a trained bridge; a wider map is nearer to the text."""
    models = [LocalModel.load(str(folder)) for folder in stored]
    bridge = fit_bridge(*models, replace(plan(corpus(tmp_path), None), out=tmp_path / "bridge"))
    questions = tmp_path / "qa.jsonl"
    row = {"question": "where?", "answers": ["here"]}
    lines = [json.dumps(row | {"context": f"{number} is the key here"}) for number in range(3)]
    questions.write_text("\n".join(lines))
    rows = study_of(ablation, *stored, "--bridge", bridge, "--qa", questions)["rows"]
    assert all("qa_retention" in row for row in rows)
    kl = {row["variant"]: row["kl"] for row in rows}
    assert kl["uncut"] < kl["rank 4"]
    parts = ("sharer only", "embeddings only", "1 source layers", "trained, no residual")
    assert set(parts) <= set(kl)


def test_fewer_layers_are_the_first_of_more(pair: Pair, tmp_path: Path) -> None:
    """All counts at once choose what each count alone does."""
    texts = load_corpus([corpus(tmp_path)])
    chosen = choose(*pair, texts, [2, 1], messages=4)
    assert [len(chosen[count]) for count in (1, 2)] == [1, 2] and set(chosen[1]) < set(chosen[2])
    for count in chosen:
        assert choose(*pair, texts, [count], messages=4)[count] == chosen[count]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["only/one"], "name both models, or neither"),
        (["--text", "no/such/file"], "there is no file"),
        (["--keep", "x"], "unrecognized arguments: --keep"),
    ],
)
def test_a_command_line_that_cannot_be_measured_is_refused(
    args: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any model is loaded, with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        study_of(dial, *args)
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_only_reading_again_is_exact_on_a_hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a splice would reuse is nearer to text than its controls, and is not the text."""
    for name, value in (("PASSAGES", 2), ("TOKENS", 48), ("FORCED", 6), ("WRITTEN", 4)):
        monkeypatch.setattr(hybrid_splice, name, value)
    rows, summary = hybrid_splice.measure(hybrid_splice._tiny(), progress=lambda line: None)
    kl = {row["way"]: row["mean_kl"] for row in rows}
    assert kl["text"] < 1e-7 and summary["same_tokens"] == summary["prompts"] == 2
    assert 1e-6 < kl["read again, rows above moved"] < kl["rows moved, sharer's inputs folded"]
    controls = kl["another example's message"], kl["no message"], kl["rows moved, snapshot before"]
    assert kl["rows moved, sharer's inputs folded"] < min(controls)
    with pytest.raises(InputError, match="keep keys and values"):
        hybrid_splice.measure(make("llama"), progress=lambda line: None)


def test_the_controls_bracket_the_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and a full repair are at no distance; others' messages are farther than any repair."""
    small = {"GROUPS": 2, "TOKENS": 24, "FORCED": 4, "COUNTS": (4,), "PROMPT": "and"}
    for name, value in {**small, "DOCUMENTS": 1, "DOCUMENT": 24, "WRITTEN": 16}.items():
        monkeypatch.setattr(repairs, name, value)
    monkeypatch.setattr(repairs, "SENDERS", ("one of the keys", "who", "a reader of it", "it"))
    monkeypatch.setattr(panel, "TASKS", ("who", "what", "so", "key"))
    monkeypatch.setattr(panel, "PROMPT", "so?")
    rows, summary = repairs.measure(make("llama"), progress=lambda line: None)
    for share in ("prompt", "output"):
        kl = {row["way"]: row["mean_kl"] for row in rows if row["share"] == share}
        assert [kl["text"], kl["all recomputed"]] == pytest.approx([0, 0], abs=1e-6)
        assert min(kl["none"], kl["sink"], kl["first quarter"]) > 1e-6
        assert summary[f"kl_first_quarter_4_{share}"] == kl["first quarter"]
    four = {row["way"]: row for row in rows if row["share"] == "prompt"}
    assert four["sink"]["mean_kl"] < four["another example's messages"]["mean_kl"]
    computed = {way: row["computed_share"] for way, row in four.items()}
    assert computed["none"] < computed["sink"] < computed["deviation"] < computed["text"] == 1.0
    assert computed["first quarter"] == computed["last quarter"]
    assert max(computed["first message"], computed["last message"]) < 1
