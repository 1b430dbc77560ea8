"""Choosing the next token, with transformers' own logits processors in its own order."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from unspoken.agents.engines.base import Sampling


class Sampler:
    """Greedy at temperature 0, else by chance with a seed of its own.

    Args:
        settings: How to choose.
        ids: The ids of the context, which penalties look at.
        device: Where the logits are.
    """

    def __init__(self, settings: Sampling, ids: Sequence[int], device: torch.device) -> None:
        self._greedy = settings.temperature == 0
        penalties = list(_penalties(settings, len(ids), device))
        warpers = [] if self._greedy else list(_warpers(settings, device))
        self._processors = LogitsProcessorList([*penalties, *warpers])
        # Warpers look at no ids, so without penalties none are kept.
        self._ids = torch.tensor([list(ids) if penalties else []], dtype=torch.long, device=device)
        self._keeps_ids = bool(penalties)
        self._generator: torch.Generator | None = None
        if self._greedy:
            return
        self._generator = torch.Generator(device=device)
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)

    @property
    def takes_likeliest(self) -> bool:
        """Whether it takes the likeliest token, whatever stands before it."""
        return self._greedy and not self._processors

    def __call__(self, logits: Tensor) -> Tensor:
        """The next token, shape (1,), of logits (vocabulary,); it stays on the device."""
        if self.takes_likeliest:
            return logits.argmax(dim=-1, keepdim=True)
        ids: Any = self._ids
        scores: Any = logits[None].to(torch.float32, copy=True)
        scores = self._processors(ids, scores)[0]
        if self._greedy:
            token: Tensor = scores.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator)
        if self._keeps_ids:
            self._ids = torch.cat((self._ids, token[None]), dim=1)
        return token


def sample(rows: Sequence[tuple[Sampler, Tensor]]) -> list[list[int] | Exception]:
    """The next tokens of several turns; the one wait for the device that a round has.

    Args:
        rows: Per turn, its sampler and the logits after some of its tokens, (tokens, vocabulary).
            Only a sampler that takes the likeliest token may have those of several.

    Returns:
        Per turn, the token after each, or what went wrong.
    """
    if not rows:
        return []
    chosen: list[Tensor] = [logits.new_empty(0, dtype=torch.long) for _, logits in rows]
    plain = [number for number, (sampler, _) in enumerate(rows) if sampler.takes_likeliest]
    if plain:
        logits = [rows[number][1] for number in plain]
        tokens = (logits[0] if len(plain) == 1 else torch.cat(logits)).argmax(dim=-1)
        start = 0
        for number, part in zip(plain, logits, strict=True):
            chosen[number] = tokens[start : start + len(part)]
            start += len(part)
    failed: dict[int, Exception] = {}
    for number, (sampler, logits_of_one) in enumerate(rows):
        if not sampler.takes_likeliest:
            try:
                chosen[number] = sampler(logits_of_one[-1])
            except Exception as error:  # such as logits that are no numbers
                failed[number] = error
    flat = iter(torch.cat(chosen).tolist())
    read = [[int(next(flat)) for _ in range(len(part))] for part in chosen]
    return [failed.get(number, part) for number, part in enumerate(read)]


def _penalties(settings: Sampling, prompt: int, device: torch.device) -> Iterator[Any]:
    """What applies to greedy decoding too."""
    stop_ids = sorted(settings.stop_ids)
    if settings.repetition_penalty not in (None, 1.0):
        yield hf.RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        yield hf.NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size)
    if settings.bad_ids:
        bad = [list(ids) for ids in settings.bad_ids]
        yield hf.NoBadWordsLogitsProcessor(bad, stop_ids or None)
    if settings.min_tokens and stop_ids:
        least = settings.min_tokens
        yield hf.MinNewTokensLengthLogitsProcessor(prompt, least, stop_ids, device=str(device))
    if settings.suppressed:
        yield hf.SuppressTokensLogitsProcessor(list(settings.suppressed), device=str(device))


def _warpers(settings: Sampling, device: torch.device) -> Iterator[Any]:
    """What narrows the choice by chance."""
    if settings.temperature != 1:
        yield hf.TemperatureLogitsWarper(float(settings.temperature))
    if settings.top_h is not None:
        yield hf.TopHLogitsWarper(settings.top_h)
    if settings.top_k is not None:
        yield hf.TopKLogitsWarper(settings.top_k)
    if settings.top_p is not None and settings.top_p < 1:
        yield hf.TopPLogitsWarper(settings.top_p)
    if settings.min_p is not None:
        yield hf.MinPLogitsWarper(settings.min_p)
    if settings.typical_p is not None and settings.typical_p < 1:
        yield hf.TypicalLogitsWarper(settings.typical_p)
    if settings.epsilon_cutoff:
        yield hf.EpsilonLogitsWarper(settings.epsilon_cutoff)
    if settings.eta_cutoff:
        yield hf.EtaLogitsWarper(settings.eta_cutoff, device=str(device))
