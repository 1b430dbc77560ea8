"""Digests that say whose a state is."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import python
from tiny import WORDS, tiny_gemma3, tiny_llama, tiny_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from unspoken.agents.models import identity
from unspoken.agents.models.identity import model_identity
from unspoken.channels.errors import IdentityMismatch, ModelSupportError
from unspoken.channels.kv.geometry import ModelIdentity

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama in bfloat16, with an output layer of its own."""
    return tiny_llama(tmp_path / "llama", dtype="bfloat16")


def load(folder: Path, **settings: Any) -> Any:
    """The model in `folder`, in its own dtype."""
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def whose(folder: Path, **settings: Any) -> ModelIdentity:
    """The identity of the model in `folder`, computed."""
    return model_identity(load(folder, **settings), AutoTokenizer.from_pretrained(folder))


def test_storage_does_not_matter(folder: Path, tmp_path: Path) -> None:
    """Shards, .bin files and bfloat16 loaded as float32 give one identity."""
    known, model = whose(folder), load(folder)
    assert model.dtype == torch.bfloat16
    shards, pickled, wide = (tmp_path / name for name in ("shards", "bin", "wide"))
    for copy in (shards, pickled, wide):
        shutil.copytree(folder, copy)
        (copy / "model.safetensors").unlink()
    model.save_pretrained(shards, max_shard_size="20KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    model.float().save_pretrained(wide)
    assert {whose(one) for one in (shards, pickled, wide)} == {known}
    assert whose(folder, dtype=torch.float32) == known


def test_rounding_is_another_model(tmp_path: Path) -> None:
    """A checkpoint rounded to fewer bits has another identity, as documented."""
    folder = tiny_llama(tmp_path / "llama")
    assert whose(folder, dtype=torch.bfloat16).differing(whose(folder)) == "weights"


def test_processes_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process, with another hash seed, computes the same identity."""
    code = f"""
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from unspoken.agents.models.identity import model_identity
folder = Path({str(folder)!r})
model = AutoModelForCausalLM.from_pretrained(folder)
print(model_identity(model, AutoTokenizer.from_pretrained(folder)))
"""
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert python(code).stdout.strip() == str(whose(folder))


@pytest.mark.parametrize("tied", [True, False])
def test_ties_are_merged(tmp_path: Path, tied: bool) -> None:
    """An output layer written beside its tied embedding adds nothing; an untied one counts."""
    folder = tiny_llama(tmp_path / "llama", tie_word_embeddings=tied)
    explicit = tmp_path / "explicit"
    shutil.copytree(folder, explicit)
    (explicit / "model.safetensors").unlink()
    state = {name: tensor.clone() for name, tensor in load(folder).state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    torch.save(state, explicit / "pytorch_model.bin")
    assert (whose(explicit) == whose(folder)) is tied


def test_base_prefix_does_not_matter(tmp_path: Path) -> None:
    """A tied model has one digest with and without its output head class."""
    folder = tiny_llama(tmp_path / "llama", tie_word_embeddings=True)
    bare = AutoModel.from_pretrained(folder)
    assert identity.weights_digest(bare) == identity.weights_digest(load(folder))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_one_weight_counts(folder: Path, name: str) -> None:
    """One changed value gives other weights, and requiring the old ones names the field."""
    known, model = whose(folder), load(folder)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] += 1
    changed = model_identity(model, AutoTokenizer.from_pretrained(folder))
    assert known.differing(changed) == "weights"
    assert (known.config, known.tokenizer) == (changed.config, changed.tokenizer)
    with pytest.raises(IdentityMismatch) as caught:
        known.require(changed, "the state of reader")
    assert caught.value.field == "weights"


def test_swapped_weights_count(folder: Path) -> None:
    """Two layers of one shape that change places are other weights."""
    model = load(folder)
    known = identity.weights_digest(model)
    model.model.layers = torch.nn.ModuleList(reversed(model.model.layers))
    assert identity.weights_digest(model) != known


def test_pieces_do_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest does not depend on how much is hashed at a time."""
    known = identity.weights_digest(load(folder))
    monkeypatch.setattr(identity, "CHUNK", 97)
    assert identity.weights_digest(load(folder)) == known


def test_views_and_strides_do_not_matter(folder: Path) -> None:
    """A weight laid out in another order in memory is the same weight."""
    model = load(folder)
    known = identity.weights_digest(model)
    weight = model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(weight.detach().t().contiguous().t())
    assert not model.lm_head.weight.is_contiguous()
    assert identity.weights_digest(model) == known


def test_weights_that_are_not_in_memory(folder: Path) -> None:
    """Offloaded weights cannot be told, and are refused by name."""
    with pytest.raises(ModelSupportError, match=r"embed_tokens\.weight is not in memory"):
        identity.weights_digest(load(folder).to("meta"))


def test_adapter_settings_count(folder: Path) -> None:
    """A scaling that no weight shows is part of the weights; where it came from is not."""

    class Settings(dict[str, Any]):
        to_dict = dict.copy

    def digest(**settings: Any) -> str:
        model = load(folder)
        model.peft_config = {"default": Settings(r=8, target_modules={"q", "v"}, **settings)}
        return identity.weights_digest(model)

    plain = digest(lora_alpha=16)
    assert plain != digest(lora_alpha=32)
    assert plain != identity.weights_digest(load(folder))
    assert plain == digest(lora_alpha=16, base_model_name_or_path="elsewhere")


def config_of(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in `folder`."""
    config: PreTrainedConfig = load(folder).config
    return config


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, False),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, False),
        ({"rms_norm_eps": 1e-5}, False),
        ({"hidden_act": "gelu"}, False),
        ({"rms_norm_eps": 9.999999974752427e-07}, True),
        ({"rope_parameters": {"rope_theta": 10000}}, True),
        ({"max_position_embeddings": 4096}, True),
        ({"dtype": "bfloat16"}, True),
        ({"eos_token_id": 5}, True),
        ({"architectures": ["Other"]}, True),
    ],
)
def test_config_parts(tmp_path: Path, changed: dict[str, Any], same: bool) -> None:
    """What shapes a cache counts; dtype, names and noise of a GGUF's floats do not."""
    one = config_of(tiny_llama(tmp_path / "one", rms_norm_eps=1e-6))
    other = config_of(tiny_llama(tmp_path / "other", **({"rms_norm_eps": 1e-6} | changed)))
    assert (identity.config_digest(one) == identity.config_digest(other)) is same


def test_windows_and_layer_types_count(tmp_path: Path) -> None:
    """Another window, or another order of layer types, is another configuration."""
    plain = config_of(tiny_gemma3(tmp_path / "plain"))
    window = config_of(tiny_gemma3(tmp_path / "window", sliding_window=16))
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
    order = config_of(tiny_gemma3(tmp_path / "order", layer_types=kinds))
    assert len({identity.config_digest(one) for one in (plain, window, order)}) == 3


def test_dynamic_rope_depends_on_its_length(tmp_path: Path) -> None:
    """Where rotation depends on the model's length, the length counts."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    digests = {
        identity.config_digest(
            config_of(
                tiny_llama(tmp_path / str(size), rope_parameters=rope, max_position_embeddings=size)
            )
        )
        for size in (1024, 2048)
    }
    assert len(digests) == 2


def test_tokenizer_counts_without_its_template(folder: Path) -> None:
    """Other merges or another eos change the digest; template, padding and use do not."""
    tokenizer = tiny_tokenizer()
    known = identity.tokenizer_digest(tokenizer)
    assert identity.tokenizer_digest(AutoTokenizer.from_pretrained(folder)) == known
    tokenizer.chat_template = "other"
    tokenizer(["a", "the cache"], padding=True, truncation=True, max_length=2)
    assert identity.tokenizer_digest(tokenizer) == known
    tokenizer.eos_token = "<|endoftext|>"
    assert identity.tokenizer_digest(tokenizer) != known
    assert identity.tokenizer_digest(tiny_tokenizer(WORDS[:-1])) != known


def test_slow_tokenizer_is_refused() -> None:
    """A tokenizer without a backend is refused."""
    slow: Any = object()
    with pytest.raises(ModelSupportError, match="slow tokenizer"):
        identity.tokenizer_digest(slow)
