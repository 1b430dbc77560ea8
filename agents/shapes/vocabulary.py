"""A model's tokens as llguidance reads them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer

from unspoken.agents.models.base import AgentModel
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.storage.forks import ForkLock

_CLOSING = ('"', "}", "]", "0", "null", '"}', '"]')
"""What ends a value soon, the sooner the earlier."""


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """A tokenizer, and what shapes need of it.

    Attributes:
        tokens: The tokenizer as llguidance has it.
        stop_ids: Ids that end a turn.
        closing: Tokens that lead to the end of an answer, the shortest way first.
    """

    tokens: LLTokenizer
    stop_ids: frozenset[int]
    closing: tuple[int, ...]

    @property
    def words(self) -> int:
        """Length of a mask, 32 tokens to a word."""
        return (self.tokens.vocab_size + 31) // 32

    def without_stops(self) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
        """The mask of all tokens but the stop ids, (words,)."""
        bits = np.ones(32 * self.words, dtype=np.uint8)
        bits[[token for token in self.stop_ids if token < len(bits)]] = 0
        return np.packbits(bits, bitorder="little").view(np.int32)


_vocabularies: dict[tuple[str, frozenset[int]], Vocabulary] = {}
_lock = ForkLock()


def vocabulary_of(model: AgentModel) -> Vocabulary:
    """The vocabulary of a model; making it takes a second once, for a large one.

    Raises:
        ModelSupportError: A tokenizer that llguidance cannot read.
    """
    key = model.text.digest, model.stop_ids
    with _lock:
        if key not in _vocabularies:
            _vocabularies[key] = _made(model)
        return _vocabularies[key]


def _made(model: AgentModel) -> Vocabulary:
    tokenizer: Any = model.text.tokenizer
    try:
        tokens = from_tokenizer(tokenizer, eos_token=sorted(model.stop_ids))
        found = [tokens.greedy_tokenize(text) for text in _CLOSING]
    except Exception as error:  # a library of another language tells of all kinds by few
        raise ModelSupportError(
            f"the tokenizer of {model.ref or 'a model in memory'} cannot be read for shapes: "
            f"{str(error)[:200]}",
            expected="a byte-level tokenizer, or one that falls back to bytes",
            fix="use choices, which need no grammar, or another model",
        ) from error
    closing = dict.fromkeys(ids[0] for ids in found if len(ids) == 1)
    return Vocabulary(tokens, model.stop_ids, tuple(closing))
