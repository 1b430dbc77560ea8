"""Adapters of every kind that peft saves, against peft alone, and beside each other."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from flows import own_cache
from peft import PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tiny import tiny_llama
from transformers import AutoModelForCausalLM

from unspoken.agents import LocalModel
from unspoken.channels.errors import ModelReferenceError, ModelSupportError

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own, of making and saving adapters

IDS = torch.arange(5, 25)
TARGETS = {"target_modules": ["q_proj", "v_proj"]}
LORA = {**TARGETS, "r": 4}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LORA", {**LORA, "init_lora_weights": False}),
    "lora, rank-stabilised": ("LORA", {**LORA, "use_rslora": True}),
    "lora, bias": ("LORA", {**LORA, "bias": "all"}),
    "lora, bias of its own": ("LORA", {**LORA, "lora_bias": True}),
    "lora, saved modules": ("LORA", {**LORA, "modules_to_save": ["lm_head", "norm"]}),
    "lora, embeddings": ("LORA", {"r": 4, "target_modules": ["embed_tokens", "lm_head"]}),
    "lora, tokens": ("LORA", {**LORA, "trainable_token_indices": [3, 4, 6]}),
    "lora, repeated layers": ("LORA", {**LORA, "layer_replication": [[0, 2], [1, 2]]}),
    "lora, ranks": ("LORA", {**LORA, "rank_pattern": {"q_proj": 2}}),
    "lora, parameters": (
        "LORA",
        {"r": 2, "target_parameters": ["self_attn.q_proj.weight"], "target_modules": []},
    ),
    "dora": ("LORA", {**LORA, "use_dora": True}),
    "pissa": ("LORA", {**LORA, "init_lora_weights": "pissa"}),
    "olora": ("LORA", {**LORA, "init_lora_weights": "olora"}),
    "adalora": ("ADALORA", {**TARGETS, "total_step": 10}),
    "boft": ("BOFT", TARGETS),
    "beft": ("BEFT", TARGETS),
    "ia3": ("IA3", {}),
    "loha": ("LOHA", TARGETS),
    "lokr": ("LOKR", TARGETS),
    "oft": ("OFT", TARGETS),
    "layer norms": ("LN_TUNING", {}),
    "vera": ("VERA", TARGETS),
    "pvera": ("PVERA", TARGETS),
    "frod": ("FROD", TARGETS),
    "fourierft": ("FOURIERFT", {**TARGETS, "n_frequency": 50}),
    "glora": ("GLORA", TARGETS),
    "hra": ("HRA", TARGETS),
    "vblora": ("VBLORA", {**TARGETS, "vector_length": 16, "num_vectors": 8}),
    "unilora": ("UNILORA", TARGETS),
    "miss": ("MISS", {**TARGETS, "r": 8}),
    "bat": ("MISS", {**TARGETS, "r": 8, "init_weights": "bat"}),
    "randlora": ("RANDLORA", TARGETS),
    "road": ("ROAD", {**TARGETS, "group_size": 4}),
    "tokens": ("TRAINABLE_TOKENS", {"token_indices": [3, 4, 6]}),
    "hira": ("HIRA", TARGETS),
    "shira": ("SHIRA", {**TARGETS, "r": 4}),
    "c3a": ("C3A", {**TARGETS, "block_size": 8}),
    "waveft": ("WAVEFT", {**TARGETS, "n_frequency": 50}),
    "osf": ("OSF", TARGETS),
    "delora": ("DELORA", TARGETS),
    "gralora": ("GRALORA", TARGETS),
    "tinylora": ("TINYLORA", TARGETS),
    "psoft": ("PSOFT", {**TARGETS, "r": 4}),
    "peanut": ("PEANUT", TARGETS),
    "supertuning": ("SUPERTUNING", TARGETS),
    "deft": ("DEFT", TARGETS),
}

ROWS = {"num_virtual_tokens": 2, "num_layers": 2, "token_dim": 32, "num_attention_heads": 4}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "PROMPT_TUNING": ({**ROWS, "num_transformer_submodules": 1}, "rows into a context"),
    "P_TUNING": ({**ROWS, "num_transformer_submodules": 1, "encoder_hidden_size": 8}, "rows into"),
    "PREFIX_TUNING": (ROWS, "rows into a context"),
    "CPT": ({"cpt_token_ids": [3, 4], "cpt_mask": [1, 1]}, "rows into a context"),
    "POLY": (TARGETS, "task_ids"),
    "SHADOW": ({}, "cannot be computed with"),
    "LILY": (TARGETS, "over its cache are computed otherwise"),  # routed by the mean of all tokens
    "LORA": ({**LORA, "alora_invocation_tokens": [3, 4]}, "a part of a context"),
}

NOT_SAVED = {
    "ADAMSS": "needs scikit-learn to be made",
    "ADAPTION_PROMPT": "of its kind PREFIX_TUNING: rows",
    "CARTRIDGE": "of its kind PREFIX_TUNING: rows",
    "MULTITASK_PROMPT_TUNING": "of its kind PROMPT_TUNING: rows",
    "XLORA": "needs adapters of its own and another forward",
}
"""Kinds of peft that the tables leave out, and why."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("kinds")
    tiny_llama(root / "base", attention_bias=True)
    with own_cache(root / "cache"):
        yield root


@pytest.fixture(scope="module")
def base(root: Path) -> LocalModel:
    return LocalModel.load(str(root / "base"))


def save(root: Path, folder: Path, kind: str, settings: dict[str, Any]) -> None:
    """An adapter whose every weight was moved, as training does."""
    torch.manual_seed(1)
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](task_type="CAUSAL_LM", **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def by_peft(root: Path, folder: Path) -> torch.Tensor:
    """Logits by transformers and peft alone."""
    plain = AutoModelForCausalLM.from_pretrained(root / "base")
    with torch.no_grad():
        logits: torch.Tensor = PeftModel.from_pretrained(plain, folder).eval()(IDS[None]).logits[0]
    return logits


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_computes_what_peft_does(
    name: str, root: Path, base: LocalModel, tmp_path: Path
) -> None:
    """Alone and beside all adapters loaded before; the base is as it was."""
    kind, settings = KINDS[name]
    identity, before = base.identity, base.logits(IDS)
    save(root, tmp_path, kind, settings)
    expected = by_peft(root, tmp_path)
    adapted = base.with_adapter(str(tmp_path))
    torch.testing.assert_close(adapted.logits(IDS), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, before, atol=1e-3)
    assert torch.equal(base.logits(IDS), before) and base.identity == identity
    assert adapted.identity != identity
    state = adapted.read(range(5, 25))
    assert len(state.layers) == len(adapted.geometry.layers)
    torch.testing.assert_close(adapted.logits(IDS), expected, atol=1e-5, rtol=1e-5)


def test_adapters_of_different_kinds_lie_beside_each_other(
    root: Path, base: LocalModel, tmp_path: Path
) -> None:
    """None of them shows in another, in whatever order they compute."""
    names = ["lora, saved modules", "ia3", "pissa", "shira", "dora"]
    expected, models = {}, {}
    for name in names:
        save(root, tmp_path / name, *KINDS[name])
        expected[name] = by_peft(root, tmp_path / name)
        models[name] = base.with_adapter(str(tmp_path / name))
    for name in (*reversed(names), *names):
        logits = models[name].logits(IDS)
        torch.testing.assert_close(logits, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_cannot_be_served_is_refused_by_name(
    kind: str, root: Path, base: LocalModel, tmp_path: Path
) -> None:
    """And nothing is left of it in the base."""
    settings, why = REFUSED[kind]
    save(root, tmp_path, kind, settings)
    before, identity = base.logits(IDS), base.identity
    with pytest.raises(ModelSupportError, match=why) as caught:
        base.with_adapter(str(tmp_path))
    assert kind.replace("LORA", "aLoRA") in caught.value.found
    assert torch.equal(base.logits(IDS), before) and base.identity == identity


def test_the_tables_have_every_kind_of_peft() -> None:
    """A kind that a new version brings is to be tried."""
    tried = {kind for kind, _ in KINDS.values()} | set(REFUSED) | set(NOT_SAVED)
    assert {kind.value for kind in peft.PeftType} - tried == set()


def test_an_adapter_that_brings_weights_of_its_base_leaves_the_base_alone(
    root: Path, base: LocalModel, tmp_path: Path
) -> None:
    """Saved embeddings are the adapter's own, though peft loads them into the base's place."""
    from safetensors.torch import load_file, save_file

    save(root, tmp_path, "LORA", {"r": 4, "target_modules": ["embed_tokens", "lm_head"]})
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = [key for key in tensors if key.endswith("embed_tokens.base_layer.weight")]
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    before, expected = base.logits(IDS), by_peft(root, tmp_path)
    adapted = base.with_adapter(str(tmp_path))
    torch.testing.assert_close(adapted.logits(IDS), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(base.logits(IDS), before)


@pytest.mark.parametrize("way", ["transformers", "inside"])
def test_a_model_that_brings_an_adapter_is_refused_with_the_way(
    way: str, root: Path, base: LocalModel, tmp_path: Path
) -> None:
    """A model with an adapter loaded by transformers, and what is in a PeftModel."""
    save(root, tmp_path, *KINDS["lora"])
    plain: Any = AutoModelForCausalLM.from_pretrained(root / "base")
    if way == "transformers":
        plain.load_adapter(str(tmp_path))
    else:
        plain = PeftModel.from_pretrained(plain, tmp_path).get_base_model()
    with pytest.raises(ModelSupportError, match="has an adapter of peft") as caught:
        LocalModel(plain, base.tokenizer)
    assert "with_adapter(folder)" in caught.value.fix


def test_a_peft_model_is_its_base_with_its_adapter(
    root: Path, base: LocalModel, tmp_path: Path
) -> None:
    """A PeftModel computes with the adapter that is on, and is the model of its folder."""
    save(root, tmp_path, *KINDS["lora"])
    plain: Any = AutoModelForCausalLM.from_pretrained(root / "base")
    wrapped = PeftModel.from_pretrained(plain, tmp_path)
    with torch.no_grad():
        wanted = wrapped(IDS[None]).logits[0]
    model = LocalModel(wrapped, base.tokenizer)
    assert model.identity == base.with_adapter(tmp_path).identity
    weights = (model.hf, wrapped.get_base_model())
    assert len({one.get_input_embeddings().weight.data_ptr() for one in weights}) == 1
    with wrapped.disable_adapter():  # what its owner switches is not the model's affair
        torch.testing.assert_close(model.logits(IDS), wanted, rtol=1e-5, atol=1e-5)
    wrapped.merge_adapter()
    with pytest.raises(ModelSupportError, match="merged"):
        LocalModel(wrapped, base.tokenizer)


def test_an_adapter_in_a_models_place_is_refused_with_the_way(root: Path, tmp_path: Path) -> None:
    """A folder that holds an adapter alone, and one that holds a model too."""
    save(root, tmp_path / "adapter", *KINDS["lora"])
    with pytest.raises(ModelReferenceError, match="holds an adapter") as caught:
        LocalModel.load(str(tmp_path / "adapter"))
    assert "adapter=" in caught.value.fix and str(root / "base") in caught.value.fix
    both = shutil.copytree(root / "base", tmp_path / "both")
    for file in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(file, both)
    with pytest.raises(ModelSupportError, match="has an adapter of peft"):
        LocalModel.load(str(both))


def test_a_merged_model_is_a_model_of_its_own(root: Path, base: LocalModel, tmp_path: Path) -> None:
    """Merging leaves plain weights, which are other weights."""
    save(root, tmp_path, *KINDS["lora"])
    plain = AutoModelForCausalLM.from_pretrained(root / "base")
    merged: Any = PeftModel.from_pretrained(plain, tmp_path).merge_and_unload()
    model = LocalModel(merged, base.tokenizer)
    assert model.identity.weights != base.identity.weights
    torch.testing.assert_close(model.logits(IDS), by_peft(root, tmp_path), atol=1e-4, rtol=1e-4)


def test_an_adapter_loaded_from_outside_is_noticed(
    root: Path, base: LocalModel, tmp_path: Path
) -> None:
    """A program that loads one into the model's own object is told at the next computation."""
    save(root, tmp_path, *KINDS["lora"])
    model = LocalModel(AutoModelForCausalLM.from_pretrained(root / "base"), base.tokenizer)
    message = model.message("the key of the cache")
    model.hf.load_adapter(str(tmp_path))
    assert message.state is not None
    with pytest.raises(ModelSupportError, match="has an adapter of peft"):
        model.prefill(IDS[:1], [message.state])
