"""Text to token ids and back, with the care that other people's words need."""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from unspoken.agents.prompts.backend import MOST_KEPT
from unspoken.agents.prompts.markers import MarkedText
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.message import common_prefix

_SHORT = 64
"""Tokens of a message whose surroundings are kept: many receivers may quote it."""

_LONGEST_PART = 8
"""Tokens after which a text that still ends in a broken character is taken as it is."""


class TextTokenizer(MarkedText):
    """A fast tokenizer that reads a template's markers, and none in anybody's words.

    It may be used from any thread: nothing in it changes after its template is known.

    Args:
        tokenizer: A tokenizer with offsets.
        digest: The tokenizer part of the model's identity.

    Attributes:
        loaded: When it was made: the time that a template writes.

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
        super().__init__(tokenizer)
        self._short_around = lru_cache(MOST_KEPT)(self._around)
        self.loaded = datetime.now().astimezone()

    @property
    def bos(self) -> str:
        """Text of the token this tokenizer starts a context with by itself, empty for none."""
        leads = self._backend.starts_with()[:1] == (self.tokenizer.bos_token_id,)
        return str(self.tokenizer.bos_token) if leads else ""

    def encode_words(self, text: str) -> tuple[int, ...]:
        """Ids of somebody's words: a marker spelled out in them stays letters."""
        return self.words_with_offsets(text)[0]

    def without_markers(
        self, ids: Sequence[int], ends: Sequence[int], text: str, first: int = 0
    ) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Sampled ids in which the markers of turns became letters.

        Args:
            ids: The ids.
            ends: Per id, the character of the text where it ends.
            text: Their text; a marker that it does not show is left out.
            first: How many of the first stay as they are.

        Returns:
            Ids, their ends, and how many of the first are as they were.
        """
        kept, kept_ends, same = list[int](), list[int](), len(ids)
        for index, id in enumerate(ids):
            if index < first or id not in self.turn_markers:
                kept.append(id)
                kept_ends.append(ends[index])
                continue
            same = min(same, index)
            token = self._backend.added.get(id)
            if token is None or token.special:
                continue  # the text does not show it
            start, stop = ends[index - 1] if index else 0, ends[index]
            left = text[max(0, start - 16) : start]
            letters, offsets = self.words_with_offsets(token.content, after=left)
            kept += letters
            kept_ends += [min(start + end, stop) for _, end in offsets]
        return tuple(kept), tuple(kept_ends), same

    def around(self, ids: Sequence[int], text: str) -> tuple[str, str]:
        """What ids that go on a text hold before and behind `text`; empty where that is unclear."""
        if len(ids) <= _SHORT:
            return self._short_around(tuple(ids), text)
        return self._around(ids, text)

    def _around(self, ids: Sequence[int], text: str) -> tuple[str, str]:
        anchor = self.encode_words("a")
        held = self.decode((*anchor, *ids)).removeprefix(self.decode(anchor))
        start = held.find(text)
        return ("", "") if start < 0 or not text else (held[:start], held[start + len(text) :])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._backend.decode(ids)

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
            ends = _moved(detokenizer.raw_ends(), decoded, text)
        return tuple(accumulate((min(max(end, 0), len(text)) for end in ends), max))


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
        self._ends: list[int] = []  # per token whose text is certain, where in the text it ends
        self._given = 0
        self._text = ""
        self.stopped = False
        self._known_cut: tuple[object, tuple[tuple[int, ...], tuple[int, ...], int]] | None = None
        self.verbatim = 0
        """How many first tokens are kept as they are, markers of turns too."""

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
        if self._read == len(self._ids):
            return
        fresh = self._tokenizer.decode(self._ids[self._settled :])
        before = self._ids[self._settled : self._read]
        known = len(self._tokenizer.decode(before)) if before else 0
        whole = len(fresh) > known and not fresh.endswith("\ufffd")
        if whole or last or len(self._ids) - self._read > _LONGEST_PART:
            self._text += fresh[known:]
            self._settled, self._read = self._read, len(self._ids)
            self._ends += [len(self._text)] * (len(self._ids) - len(self._ends))

    @property
    def text(self) -> str:
        """The text up to a stop string."""
        return self._text

    def kept(self) -> tuple[tuple[int, ...], int]:
        """Ids whose text is `text`, and how many of them are tokens taken; others are cut again.

        Markers of turns are not among them: they are spelled, or left out where the text is.
        """
        ids, _, same = self._handed_on()
        return ids, same

    def ends(self) -> tuple[int, ...]:
        """Per id kept, the character of `text` where it ends."""
        return self._handed_on()[1]

    def raw_ids(self) -> tuple[int, ...]:
        """The tokens taken."""
        return tuple(self._ids)

    def raw_ends(self) -> tuple[int, ...]:
        """Per token taken, the character where it ends."""
        return tuple(self._ends)

    def _handed_on(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Ids kept, their ends, and how many are tokens taken."""
        now = len(self._ids), len(self._ends), self._text, self.verbatim
        if self._known_cut is None or self._known_cut[0] != now:
            whole, rest, rest_ends = self._cut()
            taken, ends = self._ids[:whole], self._ends[:whole]
            ids, ends_kept, same = self._tokenizer.without_markers(
                taken, ends, self._text, self.verbatim
            )
            self._known_cut = now, ((*ids, *rest), (*ends_kept, *rest_ends), same)
        return self._known_cut[1]

    def _cut(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """How many tokens are whole; ids and ends of what a stop string left of others."""
        if not self.stopped:
            return len(self._ids), (), ()
        whole = sum(end <= len(self._text) for end in self._ends)
        covered = self._ends[whole - 1] if whole else 0
        left = self._text[max(0, covered - 16) : covered] if covered else None
        ids, offsets = self._tokenizer.words_with_offsets(self._text[covered:], after=left)
        return whole, ids, tuple(accumulate((covered + stop for _, stop in offsets), max))

    def _give(self, *, last: bool = False) -> str:
        if self._stop:
            self._look_for_stop()
        held = 0 if self.stopped or last else self._held_back()
        certain = len(self._text) - held
        piece = self._text[self._given : certain]
        self._given = max(self._given, certain)
        return piece

    def _look_for_stop(self) -> None:
        """End the text where the first stop string begins."""
        starts = [self._text.find(stop, max(self._given - len(stop), 0)) for stop in self._stop]
        first = min((start for start in starts if start >= 0), default=None)
        if first is not None:
            self._text, self.stopped = self._text[:first], True

    def _held_back(self) -> int:
        """Length of the longest end of the text that may be the start of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
