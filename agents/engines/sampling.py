"""Choosing the next token, with transformers' own logits processors in its own order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from unspoken.agents.engines.base import Sampling
from unspoken.agents.engines.constraints import Constraint, masked
from unspoken.channels.kv.transfer import numbers_at


class Sampler:
    """Greedy at temperature 0, else by chance with a seed of its own.

    Args:
        settings: How to choose.
        ids: The ids of the context, which penalties look at.
        device: Where the logits are.
        constraint: What may come; None for every token.
    """

    def __init__(
        self,
        settings: Sampling,
        ids: Sequence[int],
        device: torch.device,
        constraint: Constraint | None = None,
    ) -> None:
        self.constraint = constraint
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
        if self.constraint is not None:  # where penalties leave nothing of what may come, it counts
            nothing = scores.max() == -torch.inf
            scores = torch.where(nothing, logits.to(torch.float32), scores)
        if self._greedy:
            token: Tensor = scores.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator)
        if self._keeps_ids:
            self._ids = torch.cat((self._ids, token[None]), dim=1)
        return token

    def wrote(self, tokens: Sequence[int]) -> None:
        """Let penalties look at what was written in place of the last token, or besides it."""
        if self._keeps_ids:
            written = numbers_at([tokens], self._ids.device)
            self._ids = torch.cat((self._ids[:, :-1], written), dim=1)


@dataclass(frozen=True, slots=True)
class Scorer:
    """Gives log-probabilities of given tokens instead of choosing one.

    Attributes:
        ids: After each of the last tokens, the ids whose log-probabilities are wanted.
    """

    ids: tuple[tuple[int, ...], ...]

    def __call__(self, logits: Tensor) -> Tensor:
        """The bits of the log-probabilities, as whole numbers beside the tokens of others.

        Args:
            logits: Those after the last tokens, (tokens, vocabulary).
        """
        logs = logits.float().log_softmax(dim=-1)
        rows = [row for row, ids in enumerate(self.ids) for _ in ids]
        ids = [token for ids in self.ids for token in ids]
        where = numbers_at((rows, ids), logits.device)
        return logs[where[0], where[1]].view(torch.int32).long()

    @staticmethod
    def read(bits: Sequence[int]) -> tuple[float, ...]:
        """Log-probabilities in the order of the ids."""
        return tuple(torch.tensor(bits, dtype=torch.int32).view(torch.float32).tolist())


Row = tuple[Sampler | Scorer, Tensor, Sequence[int]]
"""Of a turn, its sampler, the logits after some of its tokens (tokens, vocabulary), and the drafts
among those tokens. Only a sampler that takes the likeliest token may have some.
"""


def sample(rows: Sequence[Row]) -> list[list[int] | Exception]:
    """The next tokens of several turns; the one wait for the device that a round has.

    Returns:
        Per turn, the token after each, or what went wrong; the bits that a `Scorer` gives.
    """
    if not rows:
        return []
    given, failed = _constrained(rows)
    chosen: list[Tensor] = [logits.new_empty(0, dtype=torch.long) for logits in given]
    takers = [n for n, (sampler, _, _) in enumerate(rows) if _takes_likeliest(sampler)]
    plain = [number for number in takers if number not in failed]
    if plain:
        logits = [given[number] for number in plain]
        tokens = (logits[0] if len(plain) == 1 else torch.cat(logits)).argmax(dim=-1)
        start = 0
        for number, part in zip(plain, logits, strict=True):
            chosen[number] = tokens[start : start + len(part)]
            start += len(part)
    for number, (sampler, _, _) in enumerate(rows):
        if number not in failed and not _takes_likeliest(sampler):
            try:
                every = isinstance(sampler, Scorer)
                chosen[number] = sampler(given[number] if every else given[number][-1])
            except Exception as error:  # such as logits that are no numbers
                failed[number] = error
    flat = iter(torch.cat(chosen).tolist())
    read = [[int(next(flat)) for _ in range(len(part))] for part in chosen]
    return [failed.get(number, part) for number, part in enumerate(read)]


def _takes_likeliest(sampler: Sampler | Scorer) -> bool:
    return not isinstance(sampler, Scorer) and sampler.takes_likeliest


def _constrained(rows: Sequence[Row]) -> tuple[list[Tensor], dict[int, Exception]]:
    """The logits of each turn without what it may not write; where that failed, why."""
    given, failed = [logits for _, logits, _ in rows], dict[int, Exception]()
    bound = {
        number: (sampler.constraint, logits, drafts)
        for number, (sampler, logits, drafts) in enumerate(rows)
        if isinstance(sampler, Sampler) and sampler.constraint is not None
    }
    if bound:
        for number, logits in zip(bound, masked(list(bound.values())), strict=True):
            if isinstance(logits, Exception):
                failed[number] = logits
            else:
                given[number] = logits
    return given, failed


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
