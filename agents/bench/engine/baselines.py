"""What the engine is measured against: transformers itself, on the same weights, left as it is."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.pretrained import cast, read_pretrained

__all__ = ["Plain", "copied"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plain:
    """A model as transformers loads it: its own linear layers, its own attention, no hooks.

    Attributes:
        hf: The model.
        pad: Id that fills up the shorter prompts of a batch.
        stop_ids: Ids that end a turn, as `LocalModel.stop_ids`.
    """

    hf: PreTrainedModel
    pad: int
    stop_ids: tuple[int, ...]

    @classmethod
    def of(cls, model: LocalModel) -> "Plain":
        """transformers' own model of the same weights, in the same dtype, on the same device.

        It is loaded again from its folder, since an engine may have changed the layers of the model
        in hand. A model that was made in memory is made again from its weights.
        """
        hf: Any = _loaded_again(model) or _made_again(model)
        cast(hf, model.dtype)
        pad, stop_ids = model.tokenizer.pad_token_id or 0, tuple(sorted(model.stop_ids))
        # A checkpoint's penalties and temperatures are not the engine's defaults either.
        hf.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            pad_token_id=pad, eos_token_id=list(stop_ids)
        )
        return cls(hf=hf.to(model.device).eval().requires_grad_(False), pad=pad, stop_ids=stop_ids)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        *,
        exactly: bool = False,
        cache: DynamicCache | None = None,
    ) -> list[tuple[int, ...]]:
        """Greedy ids after each prompt, all prompts in one batch; without those that end a turn.

        Args:
            prompts: Ids of each prompt; shorter ones are padded on the left.
            tokens: Most new tokens.
            exactly: Whether nothing ends a turn before, so that there are so many.
            cache: The state of the beginning of the only prompt; it grows.
        """
        longest = max(map(len, prompts))
        padded = [[self.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        hf: Any = self.hf
        written = hf.generate(
            input_ids=torch.tensor(padded, device=hf.device),
            attention_mask=torch.tensor(mask, device=hf.device),
            max_new_tokens=tokens,
            min_new_tokens=tokens if exactly else None,
            past_key_values=cache,
            do_sample=False,
        )
        return [self._until_stop(row[longest:].tolist()) for row in written]

    @torch.no_grad()
    def prefill(self, ids: Sequence[int], cache: DynamicCache | None = None) -> DynamicCache:
        """The state of `ids`, by one forward; of a prefix in `cache` and of `ids`, which follow."""
        hf: Any = self.hf
        cache = self.empty_cache() if cache is None else cache
        new = torch.tensor([ids], device=hf.device)
        hf(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def empty_cache(self) -> DynamicCache:
        """transformers' own cache for this model, with sliding layers that slide."""
        return DynamicCache(config=self.hf.config)

    def _until_stop(self, ids: list[int]) -> tuple[int, ...]:
        end = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return tuple(ids[:end])


def copied(cache: DynamicCache) -> DynamicCache:
    """A cache that grows apart from this one, by the copy that transformers' own guide makes."""
    return copy.deepcopy(cache)


def _loaded_again(model: LocalModel) -> PreTrainedModel | None:
    folder = model.hf.name_or_path
    if not folder or not Path(folder).is_dir():
        return None
    return read_pretrained(model.ref, Path(folder), model.dtype, None)[0]


def _made_again(model: LocalModel) -> PreTrainedModel:
    config = copy.deepcopy(model.hf.config)
    config._attn_implementation = "sdpa"
    hf: Any = type(model.hf)(config)
    hf.load_state_dict(model.hf.state_dict())
    return hf  # type: ignore[no-any-return]
