"""The model of an agent that has none: its words become bytes, and it has no states."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import cache
from typing import NoReturn

import torch
from blake3 import blake3
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unspoken.agents.delegates.engine import DelegateEngine
from unspoken.agents.engines.base import States
from unspoken.agents.models.identity import tokenizer_digest
from unspoken.agents.prompts.chat_template import ChatTemplate
from unspoken.agents.prompts.context import ContextBuilder
from unspoken.agents.prompts.parity import context_builder_of
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import Prefill

Answer = Callable[[str], Awaitable[str]]
"""Gives the words that answer words."""

_MOST_POSITIONS = 2**31


@cache
def byte_words() -> tuple[TextTokenizer, ContextBuilder]:
    """A tokenizer of single bytes, which any text comes back from, and paragraphs as turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, clean_up_tokenization_spaces=False
    )
    text = TextTokenizer(tokenizer, tokenizer_digest(tokenizer))
    return text, context_builder_of(text)


class Delegate:
    """What answers in a model's place, as workflows take models.

    Args:
        kind: What it is, for people: ``a function`` or ``a workflow``.
        name: Which one; two of one name and kind are one to a run that goes on.
        answer: Answers a turn; None where a run brings what does.
    """

    ref = ""
    adapter: str | None = None
    asked: Mapping[str, object] = {}
    generation: Mapping[str, object] = {}
    shifts_keys = False
    max_positions = _MOST_POSITIONS
    stop_ids: frozenset[int] = frozenset()
    dtype = torch.float32
    device = torch.device("cpu")
    geometry = CacheGeometry((LayerGeometry(kv_heads=1, head_dim=2),), 2, _MOST_POSITIONS)

    def __init__(self, kind: str, name: str, answer: Answer | None = None) -> None:
        self.kind, self.name, self.answer = kind, name, answer
        digest = blake3(f"{kind} {name}".encode()).hexdigest()
        self.identity = ModelIdentity(digest, digest, self.text.digest)

    @property
    def text(self) -> TextTokenizer:
        """Bytes."""
        return byte_words()[0]

    @property
    def template(self) -> ChatTemplate:
        """Paragraphs."""
        return self.context_builder.template

    @property
    def context_builder(self) -> ContextBuilder:
        """Composes paragraphs."""
        return byte_words()[1]

    def make_engine(self, states: States) -> DelegateEngine:
        """Its engine for a run."""
        return DelegateEngine(self)

    def rotary(self, name: str) -> Rotary:
        """None: it has no states."""
        self._refuse()

    def embed(self, ids: Tensor) -> Tensor:
        """None."""
        self._refuse()

    def prefill(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        positions: Tensor | None = None,
        capture: Collection[int] = (),
    ) -> Prefill:
        """None."""
        self._refuse()

    def run_layers(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        state: Sequence[KVState] = (),
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """None."""
        self._refuse()

    def logits(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        *,
        last: int | None = None,
        grad: bool = False,
    ) -> Tensor:
        """None."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ModelSupportError(
            f"{self.kind} computes no tokens", expected="a model", fix="let a model's agent do it"
        )
