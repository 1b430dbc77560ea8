"""``unspoken profile``: what it measures, prints and keeps, and whom it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import call, done, refused
from flows import DOCUMENT, QUESTION, reader_solver, sibling, stored_model
from sample_adapters import save_adapter
from typer.testing import Result

from unspoken.agents import LocalModel
from unspoken.agents.cli import figure
from unspoken.channels.errors import InputError
from unspoken.channels.finetunes import measure as profiling
from unspoken.channels.finetunes.store import ProfileStore

SMALL = ("--passages", "12", "--tokens", "16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a fine-tune of it, an adapter on it, a stranger, and data."""
    root = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSPOKEN_CACHE", str(root / "cache"))
        base = stored_model(root / "base")
        tuned = sibling(base)
        tuned.hf.save_pretrained(root / "tuned")
        tuned.tokenizer.save_pretrained(root / "tuned")
        stored_model(root / "wider", hidden_size=48)
    save_adapter(root / "base", root / "poems", 1)
    (root / "text.txt").write_text("the key of the cache is in the document. " * 200)
    rows = [
        {"context": f"the key {n} of the cache", "question": "what?", "answers": ["the key"]}
        for n in range(14)
    ]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def fit(*args: object) -> Result:
    return call("profile", "fit", *args)


def measured(*args: object) -> dict[str, Any]:
    """A pair's profile, measured or found."""
    profile: dict[str, Any] = json.loads(done("profile", "fit", *args, "--json"))
    return profile


def test_a_pair_is_measured_kept_and_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["unspoken", "profile", "fit", "a b"])
    profiled = measured(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    assert set(profiled["points"][0]["places"]) == {"prefix", "after 24", "after 200"}
    assert profiled["points"][-1]["share"] == 1
    assert profiled["points"][-1]["places"]["prefix"]["kl"] == pytest.approx(0, abs=1e-5)
    assert sorted(path.name for path in Path(profiled["path"]).iterdir()) == [
        "profile.json",
        "profile.png",
    ]
    models = [LocalModel.load(str(root / name)) for name in ("base", "tuned")]
    profile = ProfileStore().find(models[0].identity, models[1].identity)
    assert profile is not None and profile.command == "unspoken profile fit 'a b'"
    quick = profile.model_copy(
        update={
            "points": tuple(point.model_copy(update={"speedup": 2.0}) for point in profile.points)
        }
    )
    ProfileStore().save(quick)  # a tiny model's text is faster than any hand-over
    flow = reader_solver(models[0], models[1], "auto", max_kl=10.0)
    (edge,) = flow.plan(document=DOCUMENT, question=QUESTION).edges
    assert edge.mode == "recompute" and edge.recompute == ()


def test_a_profile_that_is_there_is_shown(root: Path) -> None:
    """It is measured again only where that is asked for."""
    pair = root / "base", root / "tuned"
    first = measured(*pair, "--data", root / "rows.jsonl", *SMALL)
    shown = fit(*pair, "--data", root / "text.txt", *SMALL)
    assert "--again" in shown.stderr
    for words in ("0-1", "KL after 200", "rows.jsonl"):
        assert words in shown.stdout
    assert measured(*pair) == first
    again = measured(*pair, "--again", "--data", root / "text.txt", *SMALL)
    assert again["data"]["name"] == "text.txt" and again["path"] == first["path"]


def test_an_adapter_is_another_model(root: Path) -> None:
    profiled = measured(
        root / "base",
        root / "base",
        "--receiver-adapter",
        root / "poems",
        "--data",
        root / "text.txt",
        *SMALL,
    )
    assert profiled["receiver"]["ref"].endswith("poems")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("base", "base"), "the same weights"),
        (("base", "wider"), "another config"),
        (("base", "tuned", "--data", "nowhere.txt"), "no file"),
        (("base", "tuned", "--figure", "front.pdf"), ".png"),
        (("base", "tuned", "--data", "short.txt"), "at least"),
        (("base", "tuned", "--tokens=900"), "positions"),
    ],
)
def test_what_cannot_be_measured_is_refused(root: Path, args: tuple[str, ...], says: str) -> None:
    (root / "short.txt").write_text("the key")
    paths = [arg if arg.startswith("-") else root / arg for arg in args]
    assert says in refused("profile", "fit", *paths)


def test_nothing_is_kept_of_a_measurement_that_failed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise InputError("no time")

    monkeypatch.setattr(profiling, "clocked", fail)
    assert "no time" in refused(
        "profile", "fit", root / "base", root / "tuned", "--data", root / "text.txt", *SMALL
    )
    assert ProfileStore().entries() == []


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(figure, "draw_profile", fail)
    profiled = measured(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    assert [path.name for path in Path(profiled["path"]).iterdir()] == ["profile.json"]


def test_profiles_are_listed_shown_and_removed(root: Path, tmp_path: Path) -> None:
    """By folder or by its name; a figure is drawn again from what is kept."""
    empty = call("profile", "list")
    assert empty.exit_code == 0 and "measure one: unspoken profile fit A B" in empty.stdout
    data = measured(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    folder = Path(data["path"])
    (line,) = json.loads(call("profile", "list", "--json").stdout)
    assert (line["sharer"], line["dtype"], line["error"]) == (str(root / "base"), "float32", None)
    assert str(root / "tuned") in call("profile", "list").stdout
    shown = call("profile", "show", folder.name, "--figure", tmp_path / "front.svg")
    assert "layers recomputed" in shown.stdout and (tmp_path / "front.svg").exists()
    assert json.loads(call("profile", "show", folder, "--json").stdout)["points"] == data["points"]
    assert call("profile", "remove", folder.name, "--yes").exit_code == 0
    assert not folder.exists() and json.loads(call("profile", "list", "--json").stdout) == []


def test_broken_profiles_are_listed_and_can_be_removed(cache: Path) -> None:
    """What cannot be read is said, and goes away."""
    folder = cache / "profiles" / "a--b-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "profile.json").write_text("{")
    (line,) = json.loads(call("profile", "list", "--json").stdout)
    assert line["sharer"] is None and "profile.json" in line["error"]
    assert "broken" in call("profile", "list").stdout
    assert call("profile", "show", folder.name).exit_code == 1
    assert call("profile", "remove", folder, "-y").exit_code == 0 and not folder.exists()


def test_only_profiles_are_removed(tmp_path: Path) -> None:
    """A folder with other files is left alone; an unknown name is refused."""
    (tmp_path / "notes.txt").write_text("mine")
    removal = call("profile", "remove", tmp_path, "-y")
    assert removal.exit_code == 1 and (tmp_path / "notes.txt").exists()
    assert "there is no profile nowhere" in call("profile", "show", "nowhere").stderr


def test_two_models_without_a_command_are_told_which(root: Path) -> None:
    refusal = call("profile", "embedded:a", "embedded:b", "--again")
    assert refusal.exit_code == 2
    assert "unspoken profile fit embedded:a embedded:b --again" in refusal.stderr
