"""GGUF files turned into safetensors, once, whatever happens on the way."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from processes import LIMIT_S, environment, until
from sample_adapters import save_adapter
from tiny import CHATML
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from unspoken.agents.models import catalog, gguf
from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import ModelReferenceError, ModelSupportError
from unspoken.channels.storage.files import Progress, digest_sha256


def test_parts_are_joined(cache: Path, made: Path, tmp_path: Path) -> None:
    """A GGUF in several parts gives the model that the whole one gives."""
    data, parts = (made / "tiny.gguf").read_bytes(), []
    for number, start in enumerate(range(0, len(data), 40_000)):
        parts.append(tmp_path / f"part{number}")
        parts[-1].write_bytes(data[start : start + 40_000])
    digest = digest_sha256((made / "tiny.gguf",))
    source = gguf.GgufSource(
        ref="x", name="tiny", sha256=digest, locate=lambda: tuple(parts), fix=""
    )
    assert len(parts) > 1
    assert gguf.prepare_gguf(source) == catalog.prepare(str(made / "tiny.gguf"))


def test_gguf_becomes_the_same_model(cache: Path, made: Path) -> None:
    """A prepared GGUF gives the logits, template, ids and eos of the model it was made from."""
    stages: list[tuple[str, float]] = []
    folder = catalog.prepare(str(made / "tiny.gguf"), progress=lambda *stage: stages.append(stage))
    assert folder.parent == cache / "models"
    ids = torch.arange(3, 40)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(one)(ids).logits for one in (folder, made / "llama")
    ]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    tokenizer, original = (AutoTokenizer.from_pretrained(one) for one in (folder, made / "llama"))
    assert tokenizer.chat_template == original.chat_template == CHATML
    assert tokenizer("the café <|im_end|>").input_ids == original("the café <|im_end|>").input_ids
    assert GenerationConfig.from_pretrained(folder).eos_token_id == tokenizer.eos_token_id
    assert list(dict(stages)) == ["check", "dequantise", "write", "digest"]
    assert set(dict(stages).values()) == {1.0}
    assert all(0 <= done <= 1 for _, done in stages)


def test_second_call_converts_nothing(
    cache: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was prepared is found, not made again."""
    first = catalog.prepare(str(made / "tiny.gguf"))
    monkeypatch.setattr(gguf, "convert", None)
    monkeypatch.setattr(catalog, "digest_sha256", None)
    assert catalog.prepare(str(made / "tiny.gguf"), verify=True) == first


def test_what_an_earlier_version_converted_is_converted_again(cache: Path, made: Path) -> None:
    """Its folder is removed once the new one stands; one of another GGUF stays."""
    folder = catalog.prepare(str(made / "tiny.gguf"))
    older = folder.with_name(folder.name.replace(f"-v{gguf.FORMAT}", "-v1"))
    other = folder.with_name(f"other-{'0' * 16}-v1")
    for place in (older, other):
        place.mkdir()
        (place / "config.json").write_text("{}")
    shutil.rmtree(folder)
    stages: list[str] = []
    report: Progress = lambda stage, done: stages.append(stage)  # noqa: E731
    assert catalog.prepare(str(made / "tiny.gguf"), progress=report) == folder
    assert other.exists() and not older.exists()
    assert stages[-1] == "remove what an earlier version converted"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "prepared.json"])
@pytest.mark.parametrize("how", ["flipped", "shorter", "gone"])
def test_broken_file_is_made_again(cache: Path, made: Path, name: str, how: str) -> None:
    """A prepared folder with a changed, cut or lost file is rebuilt."""
    folder = catalog.prepare(str(made / "tiny.gguf"))
    good = (folder / name).read_bytes()
    if how == "gone":
        (folder / name).unlink()
    else:
        changed = good[:-1] if how == "shorter" else bytes([good[0] ^ 1]) + good[1:]
        (folder / name).write_bytes(changed)
    assert not gguf.is_whole(folder)
    assert catalog.prepare(str(made / "tiny.gguf")) == folder
    assert gguf.is_whole(folder, verify=True)
    assert hidden(cache) == []


def test_large_files_are_read_only_when_asked(
    cache: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that keep size and time are taken on trust, unless `verify` is set."""
    monkeypatch.setattr(gguf, "SMALL", 0)
    weights = catalog.prepare(str(made / "tiny.gguf")) / "model.safetensors"
    times, good = weights.stat(), weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert gguf.is_whole(weights.parent)
    assert not gguf.is_whole(weights.parent, verify=True)
    catalog.prepare(str(made / "tiny.gguf"), verify=True)
    assert weights.read_bytes() == good


def test_transformers_is_quiet_and_put_back(
    cache: Path, made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Conversion prints nothing and leaves transformers' logging as it was."""
    transformers_logging.set_verbosity(logging.INFO)
    try:
        catalog.prepare(str(made / "tiny.gguf"))
        assert transformers_logging.get_verbosity() == logging.INFO
    finally:
        transformers_logging.set_verbosity(logging.WARNING)
    assert transformers_logging.set_tqdm_hook(None) is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_ends_early_leaves_nothing(
    cache: Path, made: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """An interrupt or a full disk leaves no folder, and the next call works."""
    real = gguf.convert

    def broken(source: Path, folder: Path, report: Any) -> None:
        real(source, folder, report)
        raise error

    monkeypatch.setattr(gguf, "convert", broken)
    with pytest.raises((KeyboardInterrupt, ModelReferenceError)) as caught:
        catalog.prepare(str(made / "tiny.gguf"))
    if isinstance(caught.value, ModelReferenceError):
        assert "UNSPOKEN_CACHE" in caught.value.fix
    assert hidden(cache) == []
    assert list((cache / "models").glob("[!.]*")) == []
    monkeypatch.setattr(gguf, "convert", real)
    assert gguf.is_whole(catalog.prepare(str(made / "tiny.gguf")))


def test_full_disk_in_the_middle_of_the_weights(cache: Path, made: Path) -> None:
    """Weights that do not fit give one error with the fix, and no folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(ModelReferenceError) as caught:
            catalog.prepare(str(made / "tiny.gguf"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "UNSPOKEN_CACHE" in caught.value.fix
    assert list((cache / "models").glob("[!.]*")) == []
    assert hidden(cache) == []


@pytest.mark.parametrize(
    "content", [b"GGUF", b"GGUF" + bytes(200), b"GGUF\x03\0\0\0" + b"\xff" * 64]
)
def test_gguf_that_cannot_be_read(cache: Path, tmp_path: Path, content: bytes) -> None:
    """A GGUF that is cut short or of no known architecture is refused by name."""
    file = tmp_path / "odd.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelSupportError, match=r"odd\.gguf cannot be converted"):
        catalog.prepare(str(file))
    assert hidden(cache) == []


def test_gguf_without_some_weights(cache: Path, made: Path, tmp_path: Path) -> None:
    """A GGUF that lacks weights is refused; they would be random numbers."""
    data = (made / "tiny.gguf").read_bytes()
    file = tmp_path / "lacking.gguf"
    file.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    with pytest.raises(ModelSupportError, match="no values for 1 weights"):
        catalog.prepare(str(file))


# Several processes

WORKER = """
import sys, time
from pathlib import Path
from unspoken.agents.models import catalog, gguf
desk, name, source = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def convert(source, folder, report):
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("half")
    (desk / f"{name}.converts").touch()
    while not (desk / "go").exists():
        time.sleep(0.02)

def progress(stage, done):
    if stage.startswith("waiting"):
        (desk / f"{name}.waits").touch()

gguf.convert = convert
print(catalog.prepare(source, progress=progress))
"""


def worker(desk: Path, name: str, made: Path) -> "subprocess.Popen[str]":
    """Start a process that prepares tiny.gguf with a converter that waits for `desk`/go."""
    command = [sys.executable, "-c", WORKER, str(desk), name, str(made / "tiny.gguf")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())


def hidden(cache: Path) -> list[str]:
    """What a conversion left beside the models, locks aside."""
    return [one.name for one in (cache / "models").glob(".*") if one.suffix != ".lock"]


def test_two_processes_convert_once(cache: Path, made: Path, tmp_path: Path) -> None:
    """The second process waits, says so, and takes what the first one made."""
    first = worker(tmp_path, "first", made)
    until(tmp_path.joinpath("first.converts").exists)
    second = worker(tmp_path, "second", made)
    until(tmp_path.joinpath("second.waits").exists)
    tmp_path.joinpath("go").touch()
    folders = [process.communicate(timeout=LIMIT_S)[0].strip() for process in (first, second)]
    assert folders[0] == folders[1] and gguf.is_whole(Path(folders[0]))
    assert not tmp_path.joinpath("second.converts").exists()


def test_killed_process_leaves_nothing_that_counts(cache: Path, made: Path, tmp_path: Path) -> None:
    """After kill -9 nothing is taken for the model, and the next call clears up and converts."""
    process = worker(tmp_path, "first", made)
    until(tmp_path.joinpath("first.converts").exists)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT_S)
    assert list((cache / "models").glob("[!.]*")) == []
    assert len(hidden(cache)) == 1
    folder = catalog.prepare(str(made / "tiny.gguf"))
    assert gguf.is_whole(folder, verify=True)
    assert (folder / "model.safetensors").stat().st_size > 10_000
    assert hidden(cache) == []


def test_an_adapter_on_a_gguf(cache: Path, made: Path, tmp_path: Path) -> None:
    """One trained on the model's safetensors computes on its GGUF what peft computes of it."""
    save_adapter(made / "llama", tmp_path / "poems", 0)
    model = LocalModel.load(made / "tiny.gguf", adapter=tmp_path / "poems")
    base = AutoModelForCausalLM.from_pretrained(made / "llama")
    ids = torch.arange(3, 23)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, tmp_path / "poems").eval()(ids[None]).logits[0]
    torch.testing.assert_close(model.logits(ids), expected, rtol=1e-4, atol=1e-4)
