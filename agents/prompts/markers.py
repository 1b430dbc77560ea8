"""Text to ids where a template's text has markers and somebody's words have none.

Any tokenizer may make a marker of letters: an added token is looked for in all of a text, and a
model may have the marker among its own pieces. So a text is encoded as a whole, which gives the ids
that the template would have. Where words have become a marker, the text is cut inside of it, and
encoded again in parts.
"""

from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from unspoken.agents.prompts.backend import MOST_KEPT, SHORT, Backend, Token
from unspoken.agents.prompts.template_probes import THOUGHTS

_RARE = "𒀀 ꙮ 𐌰 ᚛"
"""Letters that a vocabulary without bytes lacks."""


class MarkedText:
    """Reads a template's markers, and none in anybody's words.

    Args:
        tokenizer: A fast tokenizer.

    Attributes:
        tokenizer: The tokenizer.
        markers: Ids that no words become: special tokens, and those that the template names.
        turn_markers: Those of them that stand around turns: no output hands them on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._backend = tokenizer, Backend(tokenizer)
        added = self._backend.added
        special = {number for number, token in added.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        # What letters become that the vocabulary lacks: a marker only where it is spelled.
        self._unknown = (special & set(self._backend.letters(_RARE))) - ends
        # Agents of one workflow read and ask much the same.
        self._short = lru_cache(MOST_KEPT)(self._words)
        self.markers = frozenset(special)
        thoughts = {tag for pair in THOUGHTS for tag in pair}
        self._thoughts = {n for n, token in added.items() if token.content in thoughts}
        self.turn_markers = frozenset(special - self._unknown - self._thoughts)
        templates = tokenizer.chat_template or ""
        self.know(templates.values() if isinstance(templates, dict) else [templates], turns=False)

    def know(self, texts: Iterable[str], *, turns: bool = True) -> None:
        """Count the added tokens in a template's texts as markers, special ones or not.

        Args:
            texts: The template's source, or what it writes.
            turns: Whether it is what it writes around turns.
        """
        named = self._named(texts)
        self.markers |= named
        if turns:
            self.turn_markers |= named - self._thoughts
            self._unknown -= named
        self._short.cache_clear()  # what was cut before knew less

    def keep(self, texts: Iterable[str], turns: Iterable[str]) -> None:
        """Take for no marker of turns what the assistant itself writes, as around a call of a tool.

        Args:
            texts: What it writes.
            turns: What stands around turns.
        """
        self.turn_markers -= self._named(texts) - self._named(turns)

    def _named(self, texts: Iterable[str]) -> frozenset[int]:
        """The added tokens in texts."""
        written = "\n".join(texts)
        return frozenset(
            number
            for number, token in self._backend.added.items()
            if token.content.strip() and token.content in written
        )

    def marks_turns(self, text: str) -> bool:
        """Whether a template's text has a marker that no words become."""
        return not self.turn_markers.isdisjoint(self.encode(text))

    def swallows_space(self, text: str) -> bool:
        """Whether a template's text begins with a marker that swallows the space before it."""
        first = self._backend.added.get(next(iter(self.encode(text)), -1))
        return first is not None and first.lstrip

    def encode(self, text: str, after: str | None = None) -> tuple[int, ...]:
        """Ids of a template's text, markers read as markers; nothing is added.

        Args:
            text: The text.
            after: What stands before it, empty for somebody's words; None where it stands first.
        """
        return tuple(number for number, _, _ in self._tokens(text, after))

    def words_with_offsets(
        self, words: str, *, before: str = "", behind: str = "", after: str | None = None
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Ids of somebody's words, and per token the characters it stands for, as (start, stop).

        Args:
            words: The words, in which markers stay letters.
            before: The template's text before them, in which markers are read.
            behind: The template's text behind them.
            after: What stands before all of that; None where it stands first.

        Returns:
            Ids and offsets of the three texts as one.
        """
        if len(before) + len(words) + len(behind) + len(after or "") <= SHORT:
            return self._short(words, before, behind, after)
        return self._words(words, before, behind, after)

    def _words(
        self, words: str, before: str, behind: str, after: str | None
    ) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        text = before + words + behind
        first, last = len(before), len(before) + len(words)
        own = {
            (id, start + offset)
            for part, left, offset in ((before, after, 0), (behind, None, last))
            for id, start, _ in self._marked(self._tokens(part, left), part)
        }
        cuts = {0, len(text)}
        while True:
            tokens = self._parts(text, cuts, after, {start for _, start in own})
            marked = set(self._marked(tokens, text))
            strange = {token for token in marked if token[:2] not in own}
            wanted = {_cut(token, first, last) for token in strange}
            for id, start in own - {token[:2] for token in marked}:
                wanted |= {start, start + len(self._backend.added[id].content)}
            if wanted <= cuts:
                break
            cuts |= wanted
        kept = [item for token in tokens for item in self._spelled(token, text, strange)]
        return tuple(id for id, _, _ in kept), tuple((start, stop) for _, start, stop in kept)

    def _tokens(self, text: str, after: str | None) -> tuple[Token, ...]:
        if after is None:
            return self._backend.encode(text)
        return self._backend.encode_after(after, text)

    def _marked(self, tokens: Iterable[Token], text: str) -> list[Token]:
        """Markers among tokens of a text, but for the unknown token that stands for letters."""
        return [
            (id, start, stop)
            for id, start, stop in tokens
            if id in self.markers
            and (id not in self._unknown or text[start:stop] == self._backend.added[id].content)
        ]

    def _parts(
        self, text: str, cuts: Iterable[int], after: str | None, own: Collection[int]
    ) -> list[Token]:
        """Tokens of a text none of which stands over a cut.

        What stands before a cut at a marker of the template's own does not matter to it.
        """
        tokens: list[Token] = []
        for start, stop in pairwise(sorted(cuts)):
            left = text[max(0, start - 16) : start] if start else after
            left = None if start in own and start else left
            tokens += [
                (id, start + begin, start + end)
                for id, begin, end in self._tokens(text[start:stop], left)
            ]
        return tokens

    def _spelled(self, token: Token, text: str, strange: Collection[Token]) -> list[Token]:
        """A token, or the letters of one that no cut could break."""
        if token not in strange:
            return [token]
        _, start, stop = token
        letters = self._backend.letters(text[start:stop])
        return [
            (id, start, stop) for id in letters if id not in self.markers or id in self._unknown
        ]


def _cut(token: Token, first: int, last: int) -> int:
    """Where to cut a marker that words spell: at the words' border, or inside of it."""
    _, start, stop = token
    border = next((border for border in (first, last) if start < border < stop), None)
    return min(start + 1, stop) if border is None else border
