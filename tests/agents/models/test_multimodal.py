"""Multimodal checkpoints are served by their text part."""

from functools import cache as once
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sample_adapters import save_adapter
from tiny import tiny_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    ShieldGemma2ForImageClassification,
)

from unspoken.agents import Agent, Workflow
from unspoken.agents.cli.models import _geometry, _hollow
from unspoken.agents.models.checkpoints.text_part import causal_config
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn
from unspoken.channels.errors import ModelReferenceError, ModelSupportError

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 2,
}
SEES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_SEES = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 2}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({"sliding_window": 8, "query_pre_attn_scalar": 8}, SEES),
    "mistral3": ({}, SEES),
    "qwen2_vl": ({"rope_parameters": MROPE}, QWEN_SEES),
    "qwen2_5_vl": ({"rope_parameters": MROPE}, {**QWEN_SEES, "out_hidden_size": 32}),
    "qwen3_vl": (
        {"rope_parameters": MROPE},
        {"depth": 1, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2}
        | {"intermediate_size": 16, "deepstack_visual_indexes": []},
    ),
    "llava": ({"model_type": "llama"}, {**SEES, "model_type": "clip_vision_model"}),
}


@once
def saved(kind: str, root: Path) -> Path:
    """A tiny random model of a kind and its tokenizer, in a folder."""
    tokenizer, folder = tiny_tokenizer(), root / kind
    text, sees = KINDS[kind]
    size = {"vocab_size": len(tokenizer) + 8}
    marks = {
        name: len(tokenizer) + number
        for number, name in enumerate(
            ("image_token_id", "video_token_id", "vision_start_token_id", "image_token_index")
        )
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            kind, text_config={**TEXT, **size, **text}, vision_config=sees, **marks
        )
        model = AutoModelForMultimodalLM.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multimodal")


def wrote(folder: Path, local: LocalModel, words: str) -> str:
    """What transformers' own generate writes after a user's words."""
    whole = AutoModelForMultimodalLM.from_pretrained(folder, dtype=torch.float32).eval()
    builder = local.context_builder
    ids = torch.tensor([builder.compose([ChatTurn("user", (words,))]).ids + builder.ask()])
    mask = torch.ones_like(ids)
    out = whole.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    return local.decode(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_text_equals_generate(cache: Path, root: Path, kind: str) -> None:
    """The text part writes what the whole model writes of a text, and is shown without weights."""
    folder = saved(kind, root)
    local = LocalModel.load(folder)
    writer = Agent("writer", local, "{{ inputs.words }}", generate={"max_new_tokens": 8})
    result = Workflow("it", [writer]).run(words="the café who")
    assert result["writer"].text == wrote(folder, local, "the café who")
    hollow, _ = _hollow(str(folder), folder)
    unread = root / "of which nothing is noted"
    assert _geometry(hollow, unread) == local.backbone.geometry


def test_text_part_is_the_text_model(cache: Path, root: Path) -> None:
    """A text part is one model with the text-only checkpoint of its weights, and holds no more."""
    local = LocalModel.load(saved("gemma3", root))
    local.hf.save_pretrained(root / "text")
    local.tokenizer.save_pretrained(root / "text")
    assert LocalModel.load(root / "text").identity == local.identity
    assert not any("vision" in name for name in local.hf.state_dict())


def test_text_part_without_a_causal_class(root: Path) -> None:
    """A text part that transformers has no causal model for is refused by its name."""
    config = AutoConfig.for_model("mllama")
    with pytest.raises(ModelSupportError, match="mllama_text_model"):
        causal_config(config)


def test_a_classifier_s_checkpoint_is_refused(root: Path, tmp_path: Path) -> None:
    """ShieldGemma 2 names its weights otherwise than the class that writes text looks for them."""
    size = {"vocab_size": len(tiny_tokenizer()) + 8, **KINDS["gemma3"][0]}
    config = AutoConfig.for_model(
        "shieldgemma2", text_config={**TEXT, **size}, vision_config=SEES, image_token_index=3
    )
    ShieldGemma2ForImageClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelReferenceError, match=r"does not store .* and \d+ other weights"):
        LocalModel.load(tmp_path)


def test_an_adapter_of_the_text_part(cache: Path, root: Path, tmp_path: Path) -> None:
    """One trained on the text part is served; one trained on the whole model is refused by name."""
    local = LocalModel.load(saved("gemma3", root))
    local.hf.save_pretrained(tmp_path / "text")
    save_adapter(tmp_path / "text", tmp_path / "poems", 0)
    ids = torch.arange(3, 23)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, tmp_path / "poems").eval()(ids[None]).logits[0]
    poems = local.with_adapter(tmp_path / "poems")
    torch.testing.assert_close(poems.logits(ids), expected, rtol=1e-4, atol=1e-4)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    whole = AutoModelForMultimodalLM.from_pretrained(saved("gemma3", root))
    get_peft_model(whole, config).save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelReferenceError, match="which the model does not have"):
        local.with_adapter(tmp_path / "whole")
