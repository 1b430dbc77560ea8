"""Text to token ids and back, with the care that other people's words need."""

from collections.abc import Sequence
from itertools import accumulate
from threading import RLock

from transformers import PreTrainedTokenizerBase

from unspoken.channels.errors import ModelSupportError
from unspoken.channels.message import common_prefix

__all__ = ["Detokenizer", "TextTokenizer"]

_LONGEST_PART = 8
"""Tokens after which a text that still ends in a broken character is taken as it is."""


class TextTokenizer:
    """A fast tokenizer, without its habit of adding special tokens.

    Args:
        tokenizer: A tokenizer with offsets.
        digest: The tokenizer part of the model's identity.

    Raises:
        ModelSupportError: A tokenizer without offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, digest: str) -> None:
        if not tokenizer.is_fast:
            raise ModelSupportError(
                f"the tokenizer {type(tokenizer).__name__} gives no offsets",
                expected="a fast tokenizer (one with a tokenizer.json)",
                fix="convert it with transformers' AutoTokenizer, or use another model",
            )
        self.tokenizer, self.digest = tokenizer, digest
        # Whether markers are read is a flag on the shared backend, and both the event loop and the
        # workers tokenise.
        self._lock = RLock()
        self._markers = sorted(
            (token.content for token in tokenizer.added_tokens_decoder.values()),
            key=len,
            reverse=True,
        )

    @property
    def bos(self) -> str:
        """Text of the token this tokenizer starts a context with by itself, empty for none."""
        with_specials = self.tokenizer("a").input_ids
        bare = self.tokenizer("a", add_special_tokens=False).input_ids
        leads = len(with_specials) > len(bare) and with_specials[0] == self.tokenizer.bos_token_id
        return str(self.tokenizer.bos_token) if leads else ""

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a template's text, markers read as markers; nothing is added."""
        if not text:
            return ()
        with self._lock:
            return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode_words(self, text: str) -> tuple[int, ...]:
        """Ids of somebody's words: a marker spelled out in them stays letters."""
        return self.words_with_offsets(text)[0]

    def words_with_offsets(self, text: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Ids of somebody's words, and per token the characters it stands for, as (start, stop)."""
        if not text:
            return (), []
        with self._lock:
            encoded = self.tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=True,
                return_offsets_mapping=True,
            )
        offsets = [(int(start), int(stop)) for start, stop in encoded.offset_mapping]
        return tuple(encoded.input_ids), offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        with self._lock:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def ends(self, ids: Sequence[int], text: str | None = None) -> tuple[int, ...]:
        """Per token the character of the text where its own text ends, non-decreasing.

        A token that holds part of a character ends where the character ends.

        Args:
            ids: Token ids of somebody's words.
            text: The words, where they are not just what the ids decode to (a decoder may strip a
                space, and outer tokens may hold some of a wrapper); the ends are then in this text.
        """
        decoded = self.decode(ids)
        text = decoded if text is None else text
        tokens, offsets = self.words_with_offsets(text)
        ends = [stop for _, stop in offsets]
        if tokens != tuple(ids):
            detokenizer = Detokenizer(self)
            for token in ids:
                detokenizer.push(token)
            detokenizer.finish()
            ends = _moved(detokenizer.ends(), decoded, text)
        return tuple(accumulate((min(max(end, 0), len(text)) for end in ends), max))

    def split_after_marker(self, text: str) -> tuple[str, str]:
        """A template's text cut after its last marker."""
        ends = [text.rfind(marker) + len(marker) for marker in self._markers if marker in text]
        cut = max(ends, default=0)
        return text[:cut], text[cut:]

    def split_before_marker(self, text: str) -> tuple[str, str]:
        """A template's text cut before its first marker."""
        starts = [text.find(marker) for marker in self._markers if marker in text]
        cut = min(starts, default=len(text))
        return text[:cut], text[cut:]


def _moved(ends: Sequence[int], decoded: str, text: str) -> list[int]:
    """Ends in `decoded` as ends in `text`, which a normaliser or a wrapper made different."""
    around = decoded.find(text) if text else -1
    if around >= 0:
        return [end - around for end in ends]
    same = common_prefix(decoded, text)
    tail = common_prefix(decoded[same:][::-1], text[same:][::-1])
    theirs, ours = len(decoded) - same - tail, len(text) - same - tail

    def moved(end: int) -> int:
        if end <= same:
            return end
        if end >= same + theirs:
            return end - theirs + ours
        # Between the two, in proportion: a normaliser changes few characters.
        return same + -(-(end - same) * ours // theirs)

    return [moved(end) for end in ends]


class Detokenizer:
    """Ids to text as they come, never half a character.

    Args:
        tokenizer: The tokenizer.
        stop: Strings that end the text; neither they nor anything after them is given out.
    """

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        # Decoding starts at a token whose text is known, since some decoders strip a first space.
        self._settled = self._read = 0
        self._known = ""
        self._ends: list[int] = []  # per token whose text is certain, where in the text it ends
        self._given = 0
        self._text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; the text that is now certain and was not given before."""
        self._ids.append(token)
        self._settle()
        return self._give()

    def finish(self) -> str:
        """The rest of the text once no more tokens come."""
        if self.stopped:
            return ""
        self._settle(last=True)
        return self._give(last=True)

    def _settle(self, *, last: bool = False) -> None:
        """Read the tokens that are new, unless they end within a character."""
        fresh = self._tokenizer.decode(self._ids[self._settled :])
        whole = len(fresh) > len(self._known) and not fresh.endswith("\ufffd")
        if whole or last or len(self._ids) - self._read > _LONGEST_PART:
            self._text += fresh[len(self._known) :]
            self._settled, self._read = self._read, len(self._ids)
            self._known = self._tokenizer.decode(self._ids[self._settled :])
            self._ends += [len(self._text)] * (len(self._ids) - len(self._ends))

    @property
    def text(self) -> str:
        """The text up to a stop string."""
        return self._text

    def kept(self) -> tuple[tuple[int, ...], int]:
        """Ids whose text is `text`, and how many of them are tokens taken; others are cut again."""
        whole, rest, _ = self._cut()
        return (*self._ids[:whole], *rest), whole

    def ends(self) -> tuple[int, ...]:
        """Per id kept, the character of `text` where it ends."""
        whole, _, rest = self._cut()
        return (*self._ends[:whole], *rest)

    def _cut(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """How many tokens are whole; ids and ends of what a stop string left of others."""
        if not self.stopped:
            return len(self._ids), (), ()
        whole = sum(end <= len(self._text) for end in self._ends)
        covered = self._ends[whole - 1] if whole else 0
        ids, offsets = self._tokenizer.words_with_offsets(self._text[covered:])
        return whole, ids, tuple(accumulate((covered + stop for _, stop in offsets), max))

    def _give(self, *, last: bool = False) -> str:
        starts = [self._text.find(stop, max(self._given - len(stop), 0)) for stop in self._stop]
        first = min((start for start in starts if start >= 0), default=None)
        if first is not None:
            self._text, self.stopped = self._text[:first], True
        held = 0 if self.stopped or last else self._held_back()
        certain = len(self._text) - held
        piece = self._text[self._given : certain]
        self._given = max(self._given, certain)
        return piece

    def _held_back(self) -> int:
        """Length of the longest end of the text that may be the start of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
