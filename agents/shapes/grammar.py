"""Turns that keep to a grammar: which tokens may come, which must, and the way to the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.numpy import fill_next_token_bitmask
from torch import Tensor

from unspoken.agents.engines.constraints import Constraint
from unspoken.agents.engines.drafts import LONGEST
from unspoken.agents.shapes.vocabulary import Vocabulary
from unspoken.channels.errors import ContextLengthError, RunError

MOST_STEPS = 512
"""Most tokens that a shortest answer may have."""

MARGIN = 32
"""With twice the shortest answer and so many tokens left, the way to the end is watched."""


@dataclass(frozen=True, eq=False)
class ShapeGrammar:
    """What an answer may be, for any number of turns; keeps `engines.constraints.Grammar`.

    Attributes:
        vocabulary: The model's tokens.
        text: The grammar as llguidance reads it.
        after: Ids after which the answer begins, such as the end of thoughts; empty for at once.
    """

    vocabulary: Vocabulary
    text: str
    after: tuple[int, ...] = ()

    @cached_property
    def matcher(self) -> LLMatcher:
        """A matcher at the start, which turns copy.

        Raises:
            ValueError: llguidance refuses the grammar.
        """
        matcher = LLMatcher(self.vocabulary.tokens, self.text, log_level=0)
        if matcher.is_error():
            raise ValueError(" ".join(matcher.get_error().split())[:200])
        return matcher

    @cached_property
    def shortest(self) -> tuple[int, ...] | None:
        """A short answer; None where none was found."""
        return shortest_end(self.matcher, self.vocabulary)

    @property
    def least(self) -> int:
        """Tokens that a turn must have room for, as far as is known; before `after` stands one."""
        return bool(self.after) + len(self.after) + len(self.shortest or ())

    def begin(self, room: int) -> Constraint:
        """The constraint of a turn that has `room` tokens.

        Raises:
            ContextLengthError: No answer is so short.
        """
        if self.least > room:
            raise ContextLengthError(
                f"{room} tokens are left for an answer of {self.least} and more",
                expected="room for an answer of its shape",
                fix="shorten the inputs, raise max_new_tokens, or use a model of a longer context",
            )
        return LateConstraint(self, room) if self.after else ShapeConstraint(self, room)

    def accepts(self, ids: Sequence[int]) -> bool:
        """Whether tokens are a whole answer."""
        matcher = self.matcher.deep_copy()
        return matcher.try_consume_tokens(list(ids)) == len(ids) and bool(matcher.is_accepting())


def shortest_end(
    matcher: LLMatcher, vocabulary: Vocabulary, most: int = MOST_STEPS
) -> tuple[int, ...] | None:
    """Tokens that lead a matcher to the end of an answer soon; None where no end was found.

    They take what closes the sooner, which is mostly the shortest way and not always.

    Args:
        matcher: Where the answer stands.
        vocabulary: The model's tokens.
        most: How many tokens there may be.
    """
    ahead, ids = matcher.deep_copy(), list[int]()
    while not ahead.is_accepting():
        forced = ahead.compute_ff_tokens() or [_nearest(ahead, vocabulary)]
        if len(ids) + len(forced) > most or not ahead.consume_tokens(forced):
            return None
        ids += forced
    return tuple(ids)


def _nearest(matcher: LLMatcher, vocabulary: Vocabulary) -> int:
    """The token that leads to an end the sooner; else the first that may come."""
    for token in vocabulary.closing:
        if matcher.validate_tokens([token]):
            return token
    mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return int(np.unpackbits(mask, bitorder="little").argmax())


class ShapeConstraint:
    """What one answer may still be; keeps `unspoken.agents.engines.constraints.Constraint`.

    Near its limit of tokens it knows a way to the end. A token after which no way would fit is not
    taken: the answer ends by the way that is known, whole and cut short.

    Args:
        grammar: What it may be.
        room: How many tokens it has.
    """

    def __init__(self, grammar: ShapeGrammar, room: int) -> None:
        self._vocabulary, self._left = grammar.vocabulary, room
        self._matcher: LLMatcher = grammar.matcher.deep_copy()
        self._watched = 2 * len(grammar.shortest or ()) + MARGIN
        fits = grammar.shortest is not None and len(grammar.shortest) <= room
        self._end = grammar.shortest if fits else None
        self.cut = False

    @property
    def words(self) -> int:
        """Length of a mask."""
        return self._vocabulary.words

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return self.cut or bool(self._matcher.is_stopped())

    @property
    def guessable(self) -> bool:
        """Whether drafts may be computed: none where a token may yet be taken back."""
        return self._left > self._watched + LONGEST

    def fill(self, masks: Tensor, drafts: Sequence[int]) -> None:
        """Write what may come next, and after each draft."""
        taken, rows = 0, masks.numpy()
        for row, draft in enumerate((*drafts, None)):
            fill_next_token_bitmask(self._matcher, rows, row)
            if not rows[row].any():  # a fault of the matcher, which the next push tells of
                rows[row] = -1
            if draft is None or not self._matcher.try_consume_tokens([draft]):
                break
            taken += 1
        if taken:
            self._matcher.rollback(taken)

    def push(self, token: int) -> tuple[int, ...]:
        """Take a token; the tokens that are written in its place."""
        before, self._left = self._end, self._left - 1
        if not self._matcher.consume_token(token):
            raise RunError(
                f"token {token} does not fit the shape: {self._matcher.get_error()[:200]}",
                expected="a token that the schema, the choices or the regex allow",
                fix="simplify the schema or the regex",
            )
        if before and before[0] == token:
            self._end = before[1:]
            return (token,)
        self._end = None
        if self._left <= self._watched:
            end = self._way(before)
            if end is not None:
                self._end = end
            elif before is not None:
                self._matcher.rollback(1)
                self._matcher.consume_tokens(list(before))
                self._left -= len(before) - 1
                self.cut = True
                return before
        return (token,)

    def _way(self, known: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """A way to the end that fits: mostly that of before, which is tried without a search."""
        if known is not None and len(known) <= self._left:
            taken = self._matcher.try_consume_tokens(list(known))
            ends = taken == len(known) and bool(self._matcher.is_accepting())
            if taken:
                self._matcher.rollback(taken)
            if ends:
                return known
        return shortest_end(self._matcher, self._vocabulary, self._left)

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next."""
        return tuple(self._matcher.compute_ff_tokens()[: max(self._left, 0)])


class LateConstraint:
    """A constraint that begins after some ids, such as the end of thoughts.

    Until then all tokens may come but those that end the turn. Where the limit is near, what stands
    before the answer is ended, so that there is room for one.

    Args:
        grammar: What the answer may be, and after which ids it begins.
        room: How many tokens there are in all.
    """

    def __init__(self, grammar: ShapeGrammar, room: int) -> None:
        self._grammar, self._left = grammar, room
        self._kept = 2 * len(grammar.shortest or ()) + MARGIN
        # A marker of plain letters may be sampled as other tokens than its own: `>` with a line's
        # end, for one. Then its text tells.
        tokens, after = grammar.vocabulary.tokens, grammar.after
        plain = not any(map(tokens.is_special_token, after))
        self._border = tokens.decode_str(list(after)) if plain else ""
        self._most = max(len(after), len(self._border))
        self._last: tuple[int, ...] = ()
        self._free = torch.from_numpy(grammar.vocabulary.without_stops())
        self._answer: ShapeConstraint | None = None

    @property
    def words(self) -> int:
        """Length of a mask."""
        return self._grammar.vocabulary.words

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return self._answer is not None and self._answer.over

    @property
    def cut(self) -> bool:
        """Whether the limit of tokens ended the answer."""
        return self._answer is not None and self._answer.cut

    @property
    def guessable(self) -> bool:
        """Whether drafts may be computed: none while the border may stand among them."""
        return self._answer is not None and self._answer.guessable

    def fill(self, masks: Tensor, drafts: Sequence[int]) -> None:
        """Write what may come next."""
        if self._answer is None:
            masks[:] = self._free
        else:
            self._answer.fill(masks, drafts)

    def push(self, token: int) -> tuple[int, ...]:
        """Take a token; the tokens that are written in its place."""
        self._left -= 1
        if self._answer is not None:
            return self._answer.push(token)
        after = self._grammar.after
        self._last = (*self._last, token)[-self._most :]
        if self._last[-len(after) :] == after or self._shows_border():
            self._answer = ShapeConstraint(self._grammar, self._left)
        return (token,)

    def _shows_border(self) -> bool:
        tokens = self._grammar.vocabulary.tokens
        return bool(self._border) and self._border in tokens.decode_str(list(self._last))

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next: what the border lacks, where the limit is near."""
        if self._answer is not None:
            return self._answer.forced()
        after = self._grammar.after
        begun = next(
            n for n in range(len(after) - 1, -1, -1) if self._last[-n:] == after[:n] or not n
        )
        return after[begun:] if self._left <= len(after) - begun + self._kept else ()
