"""``unspoken bridge``: what it prints, and which bridge it takes a person to mean."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import call, done, refused
from sample_bridges import AUDIT, identity, manifest, tensors

from unspoken.agents.models.notes import folder_key, remember
from unspoken.channels.bridges.folder import read, write
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.bridges.trust import record

PAIR = ("owner/Alpha", "owner/Beta")


@pytest.fixture
def saved() -> Path:
    """A bridge in the user's store."""
    return BridgeStore().save(manifest(audit=AUDIT), tensors())


def bridge(*args: object) -> str:
    return done("bridge", *args)


def bridge_refused(*args: object) -> str:
    return refused("bridge", *args)


def test_an_empty_list_says_where_it_looked(cache: Path) -> None:
    """Nothing there is not an error; the way to a bridge is shown."""
    said = bridge("list")
    assert str(cache / "bridges") in said and "unspoken bridge fit A B" in said
    assert json.loads(bridge("list", "--json")) == []


def test_list_shows_the_figures(saved: Path) -> None:
    """One line per bridge; unknown figures are dashes."""
    BridgeStore().save(manifest("c/d"), tensors())
    said = bridge("list")
    heads = "sharer receiver size message kept sharer adds task difference date path"
    assert all(name in said for name in heads.split())
    (line,) = [line for line in said.splitlines() if str(saved) in line]
    for part in (*PAIR, "0.700", "0.100", "-0.010", "kB"):
        assert part in line
    (other,) = [line for line in said.splitlines() if "c/d" in line]
    assert other.count("–") == 3


def test_list_json(saved: Path) -> None:
    """The same as data."""
    (line,) = json.loads(bridge("list", "--json"))
    assert line["path"] == str(saved) and line["error"] is None
    assert (line["sharer"], line["receiver"]) == PAIR
    assert (line["message_kept_low"], line["sharer_adds_low"]) == (0.7, 0.1)
    assert line["bytes"] > 1000


def test_list_and_show_say_where_a_bridge_was_measured(saved: Path) -> None:
    """One from elsewhere is listed with the way to make it count."""
    said = bridge("list")
    assert "1 not measured here: unspoken bridge audit" in said
    assert json.loads(bridge("list", "--json"))[0]["measured_here"] is False
    assert "its audit is not believed" in bridge("show", saved)
    record(read(saved)[0])
    assert "not measured here" not in bridge("list")
    assert json.loads(bridge("list", "--json"))[0]["measured_here"] is True
    assert "is not believed" not in bridge("show", saved)


def test_list_shows_broken_bridges(saved: Path) -> None:
    """A broken one is listed, with what is wrong and what to do."""
    os.truncate(saved / "bridge.safetensors", 10)
    said = bridge("list")
    assert "broken" in said and "has 10 bytes" in said and "unspoken bridge pull" in said
    (saved / "bridge.json").write_text("{")
    (line,) = json.loads(bridge("list", "--json"))
    assert line["sharer"] is None and "is not JSON" in line["error"]
    assert "?" in bridge("list")


@pytest.mark.parametrize(
    "words", [lambda saved: PAIR, lambda saved: (saved,), lambda saved: (saved.name,)]
)
def test_show_by_models_or_folder(saved: Path, words: Callable[[Path], tuple[object, ...]]) -> None:
    """Both models, the folder, or its name in the store lead to the bridge."""
    said = bridge("show", *words(saved))
    for part in (
        *PAIR,
        "2 layers, float32",
        "1,234 tokens of built-in",
        "config: rank",
        "fit: seconds",
        "full text",
        "a | b",
        "accuracy",
        "retention",
        "0.812",
        "message_kept_low",
        "qa.jsonl",
    ):
        assert part in said, part


def test_show_json_is_the_manifest(saved: Path) -> None:
    """All of the manifest, and where it is."""
    found = json.loads(bridge("show", *PAIR, "--json"))
    assert found.pop("path") == str(saved)
    assert found == json.loads((saved / "bridge.json").read_text())


def test_show_says_what_is_missing_or_broken(saved: Path) -> None:
    """A bridge without an audit says how to get one; a broken one is an error."""
    BridgeStore().save(manifest("c/d"), tensors())
    assert "unspoken bridge audit" in bridge("show", "c/d", PAIR[1])
    os.truncate(saved / "bridge.safetensors", 10)
    assert "has 10 bytes" in bridge_refused("show", *PAIR)


def test_a_bridge_that_is_not_there(saved: Path) -> None:
    """The error lists what is there, and the command that makes the missing one."""
    for command in ("show", "remove"):
        said = bridge_refused(command, "owner/Beta", "owner/Alpha")
        assert "there is no bridge from owner/Beta to owner/Alpha" in said
        assert "one of: owner/Alpha owner/Beta" in said
        assert "unspoken bridge fit owner/Beta owner/Alpha" in said
    assert "there is no bridge at nowhere" in bridge_refused("show", "nowhere")
    (saved / "bridge.json").write_text("{")
    assert f"{saved} (broken)" in bridge_refused("show", *PAIR)
    bridge("remove", saved, "--yes")
    assert "which holds none yet" in bridge_refused("show", *PAIR)


def _model(folder: Path, name: str) -> Path:
    """A model's folder whose identity was computed before; nothing in it can be loaded."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(name)
    remember(folder, identity(name), folder_key(folder))
    return folder


def test_models_are_known_by_identity(saved: Path, tmp_path: Path) -> None:
    """A known identity decides, whatever the model is called; nothing is loaded."""
    alpha, beta = _model(tmp_path / "one", PAIR[0]), _model(tmp_path / "two", PAIR[1])
    assert str(saved) in bridge("show", alpha, beta)
    assert str(saved) in bridge("show", alpha, PAIR[1])
    named = manifest()
    side = named.sharer.model_copy(update={"ref": str(alpha)})
    BridgeStore().save(named.model_copy(update={"sharer": side}), tensors())
    assert str(saved) in bridge("show", alpha, beta)
    _model(alpha, "trained since")
    assert "there is no bridge" in bridge_refused("show", alpha, beta)


def test_two_bridges_of_one_name_must_be_told_apart(saved: Path) -> None:
    """Where only the reference is known, and two models went by it, the folder decides."""
    other = manifest()
    weights = other.sharer.identity.model_copy(update={"weights": "other"})
    side = other.sharer.model_copy(update={"identity": weights})
    second = BridgeStore().save(other.model_copy(update={"sharer": side}), tensors())
    said = bridge_refused("show", *PAIR)
    assert "more than one bridge" in said and str(saved) in said and str(second) in said
    assert str(second) in bridge("show", second)


def test_remove_asks_first(saved: Path) -> None:
    """No is no; --yes does not ask."""
    result = call("bridge", "remove", *PAIR, answer="n\n")
    assert result.exit_code == 1 and saved.exists()
    assert str(saved) in result.stderr
    assert call("bridge", "remove", *PAIR, answer="y\n").exit_code == 0 and not saved.exists()
    again = BridgeStore().save(manifest(), tensors())
    assert bridge("remove", again, "--yes").strip() == str(again) and not again.exists()


def test_remove_leaves_other_folders_alone(tmp_path: Path) -> None:
    """A folder that is no bridge is not removed by mistake."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "notes.txt").write_text("mine")
    assert "is no bridge's folder" in bridge_refused("remove", tmp_path / "precious", "--yes")
    assert (tmp_path / "precious" / "notes.txt").exists()


@pytest.mark.parametrize("by_pair", [True, False])
def test_push_and_pull_by_a_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_pair: bool
) -> None:
    """A bridge goes to a folder and into another person's store."""
    out = tmp_path / "out"
    words: tuple[Any, ...] = PAIR if by_pair else (saved,)
    monkeypatch.chdir(tmp_path)
    bridge("push", *words, "./out")
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "other"))
    pulled = Path(bridge("pull", out).strip())
    assert pulled == tmp_path / "other" / "bridges" / saved.name
    assert read(pulled)[0] == read(out)[0] == read(saved)[0]


def test_push_and_pull_refuse(saved: Path, tmp_path: Path) -> None:
    """Wrong counts of words, things that are not bridges, and bridges that are broken."""
    assert "two or three arguments, not 1" in bridge_refused("push", saved)
    assert "two or three arguments, not 4" in bridge_refused("push", *PAIR, "a", "b")
    assert "there is no bridge at" in bridge_refused("pull", tmp_path / "none")
    write(tmp_path / "cut", manifest(), tensors())
    os.truncate(tmp_path / "cut" / "bridge.safetensors", 10)
    assert "has 10 bytes" in bridge_refused("pull", tmp_path / "cut")
    assert "has 10 bytes" in bridge_refused("push", tmp_path / "cut", tmp_path / "out")
    assert "owner/nowhere cannot be pulled" in bridge_refused("pull", "owner/nowhere")
    assert "owner/name" in bridge_refused("pull", "not an id")
