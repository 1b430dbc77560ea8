"""transformers as its users run it: a model of a folder, `generate`, and its own cache."""

import copy
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .serving import Job


class FirstToken(StoppingCriteria):
    """Stops nothing; notes when it was asked first, which is after the first token."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Of each row, whether it ends here."""
        self.at = self.at or perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Plain:
    """A model as transformers loads it, and a count of the tokens that it computes.

    Args:
        job: Its folder, dtype, ids and number of threads.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job["threads"])
        dtype = getattr(torch, job["dtype"])
        loaded: Any = AutoModelForCausalLM
        self.hf: Any = loaded.from_pretrained(job["folder"], dtype=dtype).eval()
        # A checkpoint's penalties and temperatures are no side's defaults here.
        self.hf.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            pad_token_id=job["pad"], eos_token_id=job["stop_ids"]
        )
        self.pad, self.computed = job["pad"], 0
        self.about = f"transformers {transformers.__version__}, {job['dtype']}"
        self.hf.register_forward_pre_hook(self._count, with_kwargs=True)

    def generate(
        self, prompts: Sequence[Sequence[int]], tokens: int, cache: DynamicCache | None = None
    ) -> tuple[list[list[int]], float]:
        """So many greedy ids after each prompt, all in one batch, and when the first were there.

        Args:
            prompts: Shorter ones are padded on the left.
            tokens: How many.
            cache: The state of the beginning of the only prompt; it grows.
        """
        longest, first = max(map(len, prompts)), FirstToken()
        padded = [[self.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.no_grad():
            written = self.hf.generate(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                past_key_values=cache,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([first]),
            )
        assert first.at is not None
        return [row[longest:].tolist() for row in written], first.at

    def read(self, ids: Sequence[int], cache: DynamicCache) -> None:
        """Put the state of `ids` into a cache, by one forward."""
        with torch.no_grad():
            self.hf(
                input_ids=torch.tensor([list(ids)]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )

    def empty_cache(self) -> DynamicCache:
        """transformers' own cache for this model."""
        return DynamicCache(config=self.hf.config)

    def _count(self, module: PreTrainedModel, args: Any, given: dict[str, Any]) -> None:
        ids = given.get("input_ids", args[0] if args else None)
        rows = ids if ids is not None else given["inputs_embeds"]
        self.computed += rows.shape[0] * rows.shape[1]


def copied(cache: DynamicCache) -> DynamicCache:
    """A cache that grows apart from this one, by the copy that transformers' own guide makes."""
    return copy.deepcopy(cache)


def counting(plain: Plain, run: Callable[[], None]) -> int:
    """How many tokens a model computes in a run."""
    before = plain.computed
    run()
    return plain.computed - before
