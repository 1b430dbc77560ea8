"""A tokenizer's backend of one's own: what others set on theirs does not reach it."""

from collections.abc import Sequence
from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase

Token = tuple[int, int, int]
"""An id, and the characters it stands for: start and stop."""

_ANCHORS = ("\n", "a", ".", " ", "0", "a ")
"""Texts that words may follow: most tokenizers put a border after one of them."""

SHORT, MOST_KEPT = 128, 1024
"""Characters of a text whose tokens are kept, and how many such texts."""


class Backend:
    """Encodes with a backend that shares its model with the tokenizer's, and no setting.

    Truncation, padding and the reading of markers are switches on a tokenizer. Whoever calls it
    turns them, from any thread. Here nothing turns.

    Args:
        tokenizer: A fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        theirs: Tokenizer = tokenizer.backend_tokenizer
        self.added: dict[int, AddedToken] = theirs.get_added_tokens_decoder()
        # An added token gets the id that the model has for it, so the first model is just these.
        ids = {token.content: number for number, token in self.added.items()}
        self._full = Tokenizer(models.WordLevel(vocab=ids, unk_token=""))
        self._bare = Tokenizer(theirs.model)
        if theirs.normalizer is not None:
            self._full.normalizer = self._bare.normalizer = theirs.normalizer
        self._full.add_tokens([token for _, token in sorted(self.added.items())])
        self._full.model = theirs.model
        if theirs.pre_tokenizer is not None:
            self._full.pre_tokenizer = self._bare.pre_tokenizer = theirs.pre_tokenizer
        if theirs.post_processor is not None:
            self._full.post_processor = theirs.post_processor
        if theirs.decoder is not None:
            self._full.decoder = theirs.decoder
        bpe = isinstance(theirs.model, models.BPE)
        cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)) and not bpe
        self._clean = tokenizer.clean_up_tokenization if cleans else None
        # What a template writes around turns is encoded for every turn.
        self._short = lru_cache(MOST_KEPT)(self._encoded)
        self._short_after = lru_cache(MOST_KEPT)(self._encoded_after)

    def starts_with(self) -> tuple[int, ...]:
        """The ids that the tokenizer puts before any text by itself."""
        whole, bare = (self._full.encode("a", add_special_tokens=add).ids for add in (True, False))
        extra = len(whole) - len(bare)
        return next((tuple(whole[:n]) for n in range(extra, 0, -1) if whole[n:] == bare), ())

    def decode(self, ids: Sequence[int], *, markers: bool = False) -> str:
        """Text of ids, special tokens left out, or with `markers` spelled out."""
        text: str = self._full.decode(list(ids), skip_special_tokens=not markers)
        return self._clean(text) if self._clean else text

    def encode(self, text: str) -> tuple[Token, ...]:
        """Tokens of a text, markers read.

        A marker that swallows the spaces beside it stands for its own characters alone.
        """
        return self._short(text) if len(text) <= SHORT else self._encoded(text)

    def _encoded(self, text: str) -> tuple[Token, ...]:
        if not text:
            return ()
        encoded = self._full.encode(text, add_special_tokens=False)
        tokens = []
        for number, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            token = self.added.get(number)
            if token is not None and (token.lstrip or token.rstrip):
                span = text[start:stop]
                start += len(span) - len(span.lstrip()) if token.lstrip else 0
                stop -= len(span) - len(span.rstrip()) if token.rstrip else 0
                stop = max(start, stop)
            tokens.append((number, start, stop))
        return tuple(tokens)

    def encode_after(self, left: str, text: str) -> tuple[Token, ...]:
        """Tokens of a text that goes on: without what a tokenizer puts at a text's beginning.

        Args:
            left: What stands right before, empty where that is not known.
            text: The text.
        """
        if len(left) + len(text) <= SHORT:
            return self._short_after(left, text)
        return self._encoded_after(left, text)

    def _encoded_after(self, left: str, text: str) -> tuple[Token, ...]:
        for anchor in (left, *_ANCHORS):
            before, tokens = len(anchor), self.encode(anchor + text) if anchor else ()
            count = sum(start < before for _, start, _ in tokens)
            leads = tokens[:count]
            # A token over the border would be cut, and a marker among the anchors opens a text.
            clean = anchor == left or not any(number in self.added for number, _, _ in leads)
            if leads and clean and all(stop <= before for _, _, stop in leads):
                return tuple(
                    (id, start - before, stop - before) for id, start, stop in tokens[count:]
                )
        return self.encode(text)

    def letters(self, text: str) -> list[int]:
        """Ids of a text for the model alone: no added token is read in it."""
        return list(self._bare.encode(text, add_special_tokens=False).ids) if text else []
