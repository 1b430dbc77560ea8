"""A checkpoint's tokenizer: as transformers reads it, or as the conversion of a GGUF wrote it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from unspoken.channels.errors import ModelSupportError
from unspoken.channels.storage.files import read_json, write_json

AS_WRITTEN = "unspoken_as_written"
"""Entry of a tokenizer_config.json: no class of transformers builds the tokenizer anew."""


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint's folder; code that it brings is never run.

    For some architectures (Qwen2, Phi-3, Nemotron) transformers builds its own class from the
    vocabulary, whatever the files say. A tokenizer that `save_tokenizer` wrote is read as it is.
    """
    if (read_json(folder / "tokenizer_config.json") or {}).get(AS_WRITTEN):
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
        return tokenizer
    read: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return read


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer into the folder of its model, such that `read_tokenizer` reads the same.

    Args:
        tokenizer: A fast tokenizer.
        folder: Where the model's config.json is already: it decides the class that is read.

    Raises:
        ModelSupportError: The tokenizer changes when it is saved and loaded.
    """
    tokenizer.save_pretrained(folder)
    if difference(tokenizer, read_tokenizer(folder)) is None:
        return
    plain = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer.backend_tokenizer,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        **tokenizer.special_tokens_map,
    )
    plain.chat_template = tokenizer.chat_template
    plain.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    write_json(settings, {**(read_json(settings) or {}), AS_WRITTEN: True})
    if (changed := difference(tokenizer, read_tokenizer(folder))) is not None:
        raise ModelSupportError(f"{changed} changes when it is saved and loaded")


def difference(tokenizer: PreTrainedTokenizerBase, reloaded: PreTrainedTokenizerBase) -> str | None:
    """The first part of a tokenizer that another one has otherwise; None where there is none."""
    for name in ("chat_template", "special_tokens_map", "all_special_ids"):
        if getattr(tokenizer, name) != getattr(reloaded, name):
            return f"the tokenizer's {name}"
    same = tokenizer.backend_tokenizer.to_str() == reloaded.backend_tokenizer.to_str()
    return None if same else "the tokenizer"
