"""What a checkpoint's ``generation_config.json`` asks of sampling."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

APPLIED = (
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
)
"""Settings that ``generate: {defaults: checkpoint}`` applies, by transformers' names."""

_OTHERS = (
    "num_beams",
    "guidance_scale",
    "sequence_bias",
    "min_length",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "watermarking_config",
)


def asked_of_sampling(config: GenerationConfig | None) -> Mapping[str, Any]:
    """The settings of sampling that a checkpoint sets, by transformers' names.

    Those that are not in `APPLIED` are there too, for people to know of.
    """
    given = config.to_diff_dict() if config is not None else {}
    return {
        name: given[name]
        for name in (*APPLIED, *_OTHERS)
        if given.get(name) not in (None, False, [], {})
    }


def ending_ids(
    config: GenerationConfig | None, eos: int | None, closing: Sequence[int]
) -> frozenset[int]:
    """Token ids that end an assistant's turn.

    Args:
        config: What the checkpoint says; a list of ids there needs no other.
        eos: The tokenizer's own.
        closing: Markers with which the chat template closes the turn; the first of them counts.
    """
    configured = getattr(config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured, eos]
    return frozenset(token for token in (*ids, *closing[:1]) if token is not None)
