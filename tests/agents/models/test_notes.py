"""What is kept of a folder holds until one of its files changes."""

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from unspoken.agents import LocalModel
from unspoken.agents.models import identity, notes, pretrained
from unspoken.agents.models.identity import model_identity
from unspoken.agents.models.notes import (
    cached_identity,
    cached_positions,
    cached_refusals,
    folder_key,
    remember,
)
from unspoken.agents.models.proofs import proven
from unspoken.channels.errors import ModelReferenceError
from unspoken.channels.kv.geometry import ModelIdentity

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama in bfloat16, with an output layer of its own."""
    return tiny_llama(tmp_path / "llama", dtype="bfloat16")


def whose(folder: Path) -> ModelIdentity:
    """The identity of the model in `folder`, computed."""
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    return model_identity(loaded, AutoTokenizer.from_pretrained(folder))


def keep(folder: Path) -> None:
    """Remember an identity for a folder."""
    remember(folder, ModelIdentity("a", "b", "c"), folder_key(folder))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make hashing weights, and proving how keys are rotated, an error."""

    def fail(model: Any) -> str:
        raise AssertionError("computed again")

    monkeypatch.setattr(identity, "weights_digest", fail)
    monkeypatch.setattr(proven, "prove_positions", fail)


def test_identity_is_kept(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged folder is not hashed or proved twice, by whatever path it is reached."""
    assert cached_identity(folder) is None and cached_positions(folder) is None
    first = LocalModel.load(str(folder))
    forbid(monkeypatch)
    link = folder.parent / "link"
    link.symlink_to(folder)
    for path in (folder, link, folder / ".." / "llama"):
        again = LocalModel.load(str(path), dtype="bfloat16")
        assert again.identity == first.identity
        assert again.key_positions == first.key_positions == ("rotated",) * 2
    with pytest.raises(AssertionError, match="computed again"):
        LocalModel(first.hf, first.tokenizer)


def test_identities_of_rounded_weights_are_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each type that a folder was loaded in, and each model computed once."""
    folder, types = tiny_llama(tmp_path / "wide"), ("float32", "bfloat16", "int8")
    first = [LocalModel.load(str(folder), dtype=dtype).identity for dtype in types]
    forbid(monkeypatch)
    assert [LocalModel.load(str(folder), dtype=dtype).identity for dtype in types] == first
    assert len({identity.weights for identity in first}) == len(types)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("how", ["touched", "longer", "gone"])
def test_changed_file_forgets(folder: Path, name: str, how: str) -> None:
    """A file with another time or size, or a lost one, ends the memory."""
    keep(folder)
    assert cached_identity(folder) == ModelIdentity("a", "b", "c")
    file = folder / name
    stat = file.stat()
    if how == "touched":
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif how == "longer":
        file.write_bytes(file.read_bytes() + b" ")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        file.unlink()
    assert cached_identity(folder) is None


def test_a_folder_replaced_by_one_of_equal_size_and_time_is_another(
    folder: Path, tmp_path: Path
) -> None:
    """A copy that keeps the times of its files is not taken for what it replaced."""
    first = LocalModel.load(str(folder))
    other = tiny_llama(tmp_path / "other", seed=1, dtype="bfloat16")
    for file in folder.iterdir():
        stat = file.stat()
        new = other / file.name
        assert new.stat().st_size == stat.st_size
        os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    shutil.rmtree(folder)
    other.rename(folder)
    assert LocalModel.load(str(folder)).identity.weights != first.identity.weights


def test_a_file_written_in_place_at_equal_size_and_time_is_another(folder: Path) -> None:
    """Its inode is the same; the time of its last change is not."""
    keep(folder)
    file = folder / "model.safetensors"
    stat = file.stat()
    with file.open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\1")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cached_identity(folder) is None


def test_files_changed_while_they_are_read_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read and what is there now may be two models; neither is noted as the other."""
    other = tiny_llama(tmp_path / "other", seed=1, dtype="bfloat16")

    read_pretrained = pretrained.read_pretrained

    def read(*args: Any) -> Any:
        loaded = read_pretrained(*args)
        shutil.copy(other / "model.safetensors", folder)
        return loaded

    monkeypatch.setattr(pretrained, "read_pretrained", read)
    with pytest.raises(ModelReferenceError, match="changed while"):
        LocalModel.load(str(folder))
    assert cached_identity(folder) is None


def test_new_weights_file_forgets_and_notes_do_not(folder: Path) -> None:
    """A file that a loader would read ends the memory; a read-me does not."""
    keep(folder)
    folder.joinpath("README.md").write_text("hello")
    assert cached_identity(folder) is not None
    folder.joinpath("adapter_config.json").write_text("{}")
    assert cached_identity(folder) is None


def test_hub_links_are_followed(folder: Path, tmp_path: Path) -> None:
    """In a snapshot of links, it is the blobs that count."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    keep(snapshot)
    assert cached_identity(snapshot) is not None
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert cached_identity(snapshot) is None


def test_other_readers_forget(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of transformers may read a file otherwise, so it computes again."""
    keep(folder)
    monkeypatch.setattr(metadata, "version", lambda name: "0")
    assert cached_identity(folder) is None


@pytest.mark.parametrize("note", ["", "[]", "{", '{"key": 1}'])
def test_broken_note_is_no_note(folder: Path, cache: Path, note: str) -> None:
    """A note that cannot be read counts as none, and the next one replaces it."""
    keep(folder)
    (kept,) = (cache / "identities").iterdir()
    kept.write_text(note)
    assert cached_identity(folder) is None
    keep(folder)
    assert json.loads(kept.read_text())["identity"]["weights"] == "a"


def test_unwritable_cache_costs_no_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache cannot be written, the identity is computed all the same."""
    tmp_path.joinpath("file").write_text("")
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "file" / "cache"))
    assert LocalModel.load(str(folder)).identity == whose(folder)


def test_why_turns_are_not_batched_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each way of computing, since rounding decides; `models show` reads it."""
    answers = iter(["its attention is its own", None])
    monkeypatch.setattr(proven, "refusal", lambda backbone: next(answers))
    types = ("float32", "bfloat16", "float32", "bfloat16")
    whys = [LocalModel.load(str(folder), dtype=dtype).refuses_batches for dtype in types]
    assert whys == ["its attention is its own", None] * 2
    assert set(cached_refusals(folder, "batches").values()) == set(whys)


def test_another_version_proves_batching_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may batch what the one before could not."""
    answers = iter(["its attention is its own", None])
    monkeypatch.setattr(proven, "refusal", lambda backbone: next(answers))
    assert LocalModel.load(str(folder)).refuses_batches == "its attention is its own"
    monkeypatch.setattr(notes, "running_version", lambda: "99.0")
    assert cached_refusals(folder, "batches") == {}
    assert LocalModel.load(str(folder)).refuses_batches is None
