"""The text part of a multimodal checkpoint, as a causal language model of its own.

transformers reads the checkpoint whole, so that every name and layout of weights is its affair. Its
decoder then goes into the causal class of the text configuration, and the rest is let go. Some
decoders have no such class since they give each token three positions, for images. Of text all
three are one number, so the plain class of the family computes the same; that is tried each time.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from unspoken.channels.errors import ModelSupportError

TWINS = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_omni_moe_text": "qwen3_moe",
}
"""Text parts without a causal class of their own, and the model type whose class computes them."""

_TRIED = 8
"""Tokens on which a twin is compared with the whole model."""


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of a model that reads more than text, its text part apart."""
    known = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    return known and config.get_text_config(decoder=True) is not config


def causal_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration that a checkpoint's causal language model has: its own, or its text part's.

    Raises:
        ModelSupportError: A multimodal model whose text part is no causal model of transformers.
    """
    if not is_multimodal(config):
        return config
    text = config.get_text_config(decoder=True)
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return text
    twin = TWINS.get(text.model_type)
    if twin is None:
        raise ModelSupportError(
            f"the text part of a {config.model_type} model, {text.model_type}, is no causal model "
            "of its own",
            expected="a text part that transformers has a causal language model for",
            fix="use a text-only checkpoint of the family",
        )
    plain = AutoConfig.for_model(twin)
    given = {name: value for name, value in text.to_dict().items() if hasattr(plain, name)}
    given.pop("model_type", None)
    made = AutoConfig.for_model(twin, **given)
    made.rope_parameters = _of_text(text.rope_parameters)
    made.dtype = text.dtype
    return made


def _of_text(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings without what tells images' positions apart."""
    kept = {name: value for name, value in rope.items() if not name.startswith("mrope")}
    if kept.get("rope_type") == "mrope":
        kept["rope_type"] = "default"
    return kept


def text_part(whole: PreTrainedModel) -> PreTrainedModel:
    """The causal language model in a multimodal one; its weights are the very same tensors.

    Args:
        whole: The multimodal model, on the CPU.

    Raises:
        ModelSupportError: A text part that no causal class of transformers computes.
    """
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()  # type: ignore[no-untyped-call]
    config = causal_config(whole.config)
    embedding = decoder.get_input_embeddings()
    config.tie_word_embeddings = bool(head is not None and head.weight is embedding.weight)
    causal: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if type(decoder) is causal:
        return _finished(decoder, whole)  # Llama 4 keeps a whole causal model inside
    with torch.device("meta"):
        text: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation=decoder.config._attn_implementation, trust_remote_code=False
        )
    own = type(text.base_model) is type(decoder)
    if own:
        setattr(text, text.base_model_prefix, decoder)
        text.config = decoder.config
    else:
        _take_weights(text.base_model, decoder, config)
    text.set_output_embeddings(head)  # type: ignore[no-untyped-call]
    if any(tensor.is_meta for tensor in (*text.parameters(), *text.buffers())):
        raise _unlike(whole)
    text = _finished(text, whole)
    if not own and not _same_logits(text, whole):
        raise _unlike(whole)
    return text


def _finished(text: PreTrainedModel, whole: PreTrainedModel) -> PreTrainedModel:
    if whole.generation_config is not None:
        text.generation_config = whole.generation_config
    return text.eval()  # type: ignore[no-untyped-call,no-any-return]


def _take_weights(base: nn.Module, decoder: nn.Module, config: PreTrainedConfig) -> None:
    """Put a decoder's tensors into another class of equal names; rotary buffers are made anew."""
    try:
        base.load_state_dict(decoder.state_dict(), strict=True, assign=True)
    except RuntimeError:
        return  # what is missing stays without values, and is refused
    rotary: Any = base.rotary_emb
    base.rotary_emb = type(rotary)(config=config)


@torch.no_grad()
def _same_logits(text: PreTrainedModel, whole: PreTrainedModel) -> bool:
    """Whether both give the same logits after a few tokens."""
    marks = {
        value
        for config in (whole.config, whole.config.get_text_config(decoder=True))
        for name, value in config.to_dict().items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    plain = [number for number in range(len(marks) + _TRIED) if number not in marks][:_TRIED]
    ids = torch.tensor([plain])
    ours, theirs = (model.eval()(input_ids=ids).logits.float() for model in (text, whole))  # type: ignore[no-untyped-call]
    return bool((ours - theirs).abs().max() <= 1e-2 * theirs.std())


def _unlike(whole: PreTrainedModel) -> ModelSupportError:
    return ModelSupportError(
        f"the text part of a {whole.config.model_type} model is not what its family's causal class "
        "computes",
        expected="a decoder whose weights and logits are those of that class",
        fix="use a text-only checkpoint of the family, or another version of transformers",
    )
