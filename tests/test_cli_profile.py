"""``unspoken profile``: what it measures, prints and keeps, and whom it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from flows import DOCUMENT, QUESTION, reader_solver, sibling, tiny_model
from test_adapters import save_adapter
from typer.testing import CliRunner, Result

from unspoken.agents import LocalModel, profiling
from unspoken.agents.cli import figure
from unspoken.agents.cli.main import app
from unspoken.channels.errors import InputError
from unspoken.channels.profiles.store import ProfileStore

SMALL = ("--passages", "12", "--tokens", "16")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a fine-tune of it, an adapter on it, a stranger, and data."""
    root = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSPOKEN_CACHE", str(root / "cache"))
        base = tiny_model(root / "base")
        sibling(base, root / "tuned")
        tiny_model(root / "wider", hidden_size=48)
    save_adapter(root / "base", root / "poems", 1)
    (root / "text.txt").write_text("the key of the cache is in the document. " * 200)
    rows = [
        {"context": f"the key {n} of the cache", "question": "what?", "answers": ["the key"]}
        for n in range(14)
    ]
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "UNSPOKEN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def call(*args: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, args)])


def measured(*args: object) -> dict[str, Any]:
    result = call(*args, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*args: object) -> str:
    result = call(*args)
    assert result.exit_code in (1, 2)
    return result.stderr


def test_a_pair_is_measured_kept_and_used(root: Path) -> None:
    found = measured(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    assert set(found["points"][0]["places"]) == {"prefix", "after 24", "after 200"}
    assert found["points"][-1]["share"] == 1
    assert found["points"][-1]["places"]["prefix"]["kl"] == pytest.approx(0, abs=1e-5)
    assert sorted(path.name for path in Path(found["path"]).iterdir()) == [
        "profile.json",
        "profile.png",
    ]
    models = [LocalModel.load(str(root / name)) for name in ("base", "tuned")]
    profile = ProfileStore().find(models[0].identity, models[1].identity)
    assert profile is not None and profile.command.startswith("unspoken ")
    quick = profile.model_copy(
        update={"points": tuple(one.model_copy(update={"speedup": 2.0}) for one in profile.points)}
    )
    ProfileStore().save(quick)  # a tiny model's text is faster than any hand-over
    flow = reader_solver(models[0], models[1], "auto", max_kl=10.0)
    (edge,) = flow.plan(document=DOCUMENT, question=QUESTION).edges
    assert edge.mode == "recompute" and edge.recompute == ()


def test_a_pair_that_has_one_is_said_to(root: Path) -> None:
    measured(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    result = call(root / "base", root / "tuned", "--data", root / "rows.jsonl", *SMALL)
    assert "--again" in result.stderr and "text.txt" in result.stdout


def test_a_profile_that_is_there_is_shown(root: Path) -> None:
    first = measured(root / "base", root / "tuned", "--data", root / "rows.jsonl", *SMALL)
    second = measured(root / "base", root / "tuned")
    assert second == first
    third = measured(root / "base", root / "tuned", "--again", "--data", root / "text.txt", *SMALL)
    assert third["data"]["name"] == "text.txt" and third["path"] == first["path"]


def test_a_table_names_layers_and_distances(root: Path) -> None:
    result = call(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    assert result.exit_code == 0, result.stderr
    for word in ("layers anew", "none", "0-1", "KL after 200", "nats a token", "text.txt"):
        assert word in result.stdout


def test_an_adapter_is_another_model(root: Path) -> None:
    found = measured(
        root / "base",
        root / "base",
        "--receiver-adapter",
        root / "poems",
        "--data",
        root / "text.txt",
        *SMALL,
    )
    assert found["receiver"]["ref"].endswith("poems")


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
    made = [str(root / one) if not one.startswith("-") else one for one in args]
    assert says in refused(*made)


def test_nothing_is_kept_of_a_measurement_that_failed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise InputError("no clock")

    monkeypatch.setattr(profiling, "clocked", fail)
    assert "no clock" in refused(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    assert ProfileStore().entries() == []


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(figure, "draw_profile", fail)
    found = measured(root / "base", root / "tuned", "--data", root / "text.txt", *SMALL)
    assert [path.name for path in Path(found["path"]).iterdir()] == ["profile.json"]
