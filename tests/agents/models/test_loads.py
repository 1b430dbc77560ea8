"""Loading: by paths, without a package, in many threads at once; and how a message reads."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_gemma3, tiny_llama
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from unspoken.agents import LocalModel
from unspoken.agents.models import gguf
from unspoken.channels.errors import ContextLengthError, ModelReferenceError, ModelSupportError
from unspoken.channels.kv.compressed import compress

THREADS = 8


def at_once(works: list[Callable[[], LocalModel]]) -> list[LocalModel]:
    """What each gives, all begun together on threads of their own."""
    start = Barrier(len(works))

    def go(work: Callable[[], LocalModel]) -> LocalModel:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(go, works))


@pytest.mark.parametrize("several", [False, True])
def test_threads_load_as_one_does(tmp_path: Path, cache: Path, several: bool) -> None:
    """Each has the model that it asked for, whole, in its own dtype; globals are as before."""
    folders = [
        tiny_llama(tmp_path / "a"),
        tiny_gemma3(tmp_path / "b"),
        tiny_llama(tmp_path / "c", 1),
    ]
    refs = [str(folder) for folder in (folders if several else folders[:1])]
    asked = [(refs[n % len(refs)], ("float32", "bfloat16")[n // 2 % 2]) for n in range(THREADS)]
    alone = {pair: LocalModel.load(pair[0], dtype=pair[1]) for pair in asked}
    verbosity = logging.get_verbosity()
    for note in cache.glob("identities/*"):
        note.unlink()
    works = [lambda ref=ref, dtype=dtype: LocalModel.load(ref, dtype=dtype) for ref, dtype in asked]
    for pair, model in zip(asked, at_once(works), strict=True):
        assert model.identity == alone[pair].identity
        assert {weight.dtype for weight in model.hf.parameters()} == {getattr(torch, pair[1])}
        ours, its = model.message("the reader").state, alone[pair].message("the reader").state
        assert ours is not None and its is not None
        assert torch.allclose(ours.layers[0].keys, its.layers[0].keys, atol=0.05)
    assert torch.get_default_dtype() == torch.float32
    assert logging.get_verbosity() == verbosity
    assert logging.set_tqdm_hook(None) is None


def test_a_path_is_a_folder_and_never_a_hub_id(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute or relative, a `Path` loads what is there, and nothing is looked up elsewhere."""
    folder = tiny_llama(tmp_path / "owner" / "name")
    monkeypatch.chdir(tmp_path)
    model = LocalModel.load(folder)
    assert LocalModel.load(Path("owner/name")).identity == model.identity
    assert LocalModel.load(model.ref).ref == str(folder)
    with pytest.raises(ModelReferenceError, match=r"there is no \./owner/other"):
        LocalModel.load(Path("owner/other"))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_extra_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """The error says what to install, and leaves nothing."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    find = gguf.find_spec
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ModelSupportError, match=f"{package}.*is not installed") as caught:
        LocalModel.load(file)
    assert caught.value.fix == 'pip install "unspoken[gguf]"'
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


def test_a_package_that_a_checkpoint_needs_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that wants a package does not read as a broken folder."""

    def wants(*_: object, **__: object) -> None:
        raise ImportError("This tokenizer requires sentencepiece")

    folder = tiny_llama(tmp_path / "model")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", wants)
    with pytest.raises(ModelSupportError, match="requires sentencepiece") as caught:
        LocalModel.load(folder)
    assert "install" in caught.value.fix


def test_a_message_longer_than_the_context_is_refused(tmp_path: Path, cache: Path) -> None:
    """As a turn of that length is, before anything is computed."""
    model = LocalModel.load(tiny_llama(tmp_path / "model", max_position_embeddings=64))
    assert model.message("the reader").tokens
    with pytest.raises(ContextLengthError, match="the message has") as caught:
        model.message("the reader of the document " * 40)
    assert "at most the 64" in caught.value.expected


def test_states_and_messages_print_no_tensors(tmp_path: Path, cache: Path) -> None:
    """A line each, however long they are."""
    model = LocalModel.load(tiny_llama(tmp_path / "model"))
    message = model.message("the reader of the document " * 40, capture=(0,))
    assert message.state is not None
    prefill = model.prefill(model.tensor(message.context))
    shown = [message, message.state, message.state.layers[0], compress(message.state, "int8")]
    for line in map(repr, [*shown, prefill]):
        assert "tensor" not in line and "\n" not in line and len(line) < 300
    assert "reader" in repr(message) and "the reader of" in repr(message)


def test_freezing_a_model_object_is_logged(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who brings a model of their own learns that it is used as it is, and frozen."""
    folder = tiny_llama(tmp_path / "model")
    theirs = LlamaForCausalLM.from_pretrained(folder)
    with caplog.at_level("INFO", logger="unspoken"):
        model = LocalModel(theirs, LocalModel.load(folder).tokenizer, ref="mine")
    assert "require no gradients" in caplog.text and "mine" in caplog.text
    assert model.hf is theirs and not any(weight.requires_grad for weight in theirs.parameters())


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, cache: Path) -> None:
    """transformers would draw them at random. One that is tied to another may be missing."""
    folder = tiny_llama(tmp_path / "it")
    weights = load_file(folder / "model.safetensors")
    lost = "model.layers.1.mlp.down_proj.weight"
    kept = {name: tensor for name, tensor in weights.items() if name != lost}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelReferenceError, match=f"does not store {lost}, and no other"):
        LocalModel.load(folder)
    headless = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    save_file(headless, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelReferenceError, match=r"does not store lm_head\.weight"):
        LocalModel.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert LocalModel.load(folder).hf.config.tie_word_embeddings
