"""Composing an agent's context: token ids first, the same way for every channel; state is found for them later."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unspoken.agents.template import ChatTemplate
from unspoken.agents.tokens import TokenCodec
from unspoken.channels.base import Span
from unspoken.channels.message import Message, Segment

__all__ = ["Composed", "Composer", "Quote", "Turn"]


@dataclass(frozen=True, slots=True)
class Quote:
    """One segment of a message, to stand in the receiver's context.

    Attributes:
        message: The message.
        segment: Which of its segments.
    """

    message: Message
    segment: Segment


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn before it has token ids.

    Attributes:
        role: ``user`` or ``assistant``.
        pieces: Words of one's own and words of messages, in order.
    """

    role: str
    pieces: tuple[str | Quote, ...]

    @property
    def text(self) -> str:
        """The words."""
        return "".join(
            piece if isinstance(piece, str) else piece.segment.text for piece in self.pieces
        )


@dataclass(frozen=True, slots=True)
class Composed:
    """A context as token ids.

    Attributes:
        ids: All token ids.
        segments: Its turns; a leading system turn is the first.
        placed: Where message tokens stand, with the message's identity in memory as key.
    """

    ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    placed: tuple[tuple[Message, Span], ...] = ()

    def spans(self, message: Message) -> tuple[Span, ...]:
        """Where one message's tokens stand."""
        return tuple(span for owner, span in self.placed if owner is message)

    def extended(self, segment: Segment, spans: Sequence[tuple[Message, Span]] = ()) -> "Composed":
        """This context with one more turn."""
        return Composed(self.ids + segment.ids, (*self.segments, segment), (*self.placed, *spans))


class Composer:
    """Composes contexts in one model's template.

    Args:
        codec: The model's tokenizer.
        template: The model's chat template, taken apart.
    """

    def __init__(self, codec: TokenCodec, template: ChatTemplate) -> None:
        self.codec, self.template = codec, template

    def opening(self, system: str | None) -> Composed:
        """The leading turn: a system prompt, or what the template opens with by itself."""
        if system is None or self.template.system is None:
            ids = self.codec.encode(self.template.opening)
            return Composed().extended(Segment("system", ids, (0, 0), "", 0)) if ids else Composed()
        before, after = self.template.system
        ids, bounds = self._wrap(before, (system,), after)
        return Composed().extended(Segment("system", ids, bounds[0], system, 0))

    def compose(
        self, turns: Sequence[Turn], *, system: str | None = None, earlier: Composed | None = None
    ) -> Composed:
        """Append turns to an earlier context, or to a new one.

        Args:
            turns: The new turns, in order.
            system: The system prompt of a new context.
            earlier: A context of finished turns to go on from.
        """
        turns = list(turns)
        if earlier is None:
            earlier = self.opening(system)
            if system is not None and self.template.system is None and turns:
                turns.insert(0, Turn("system", (system,)))
        context = replace(earlier, placed=())
        for group in self._groups(turns):
            context = self._append(context, group)
        return context

    def ask(self, context: Composed) -> tuple[int, ...]:
        """The ids that ask for the assistant's words."""
        return self.codec.encode(self.template.prompt)

    def close(self, role: str = "assistant") -> tuple[int, ...]:
        """The ids that close a turn of `role`."""
        return self.codec.encode(self.template.wrappers[role][1])

    def _groups(self, turns: Sequence[Turn]) -> list[list[Turn]]:
        """Turns that share one wrapper: a system prompt that has none of its own, and what the template merges."""
        groups: list[list[Turn]] = []
        for turn in turns:
            last = groups[-1][-1].role if groups else ""
            if last == "system" or (self.template.merges and last == turn.role):
                groups[-1].append(turn)
            else:
                groups.append([turn])
        return groups

    def _append(self, context: Composed, group: Sequence[Turn]) -> Composed:
        role = group[-1].role
        before, after = self.template.wrappers[role]
        if role == "user" and not any(one.role != "system" or one.text for one in context.segments):
            before = self.template.first
        kept = self._kept_whole(group, before, after)
        if kept is not None:
            segment = replace(kept.segment, position=len(context.ids))
            span = Span(segment.position, kept.segment.position, len(segment.ids))
            return context.extended(segment, [(kept.message, span)])
        pieces: list[str | Quote] = []
        parts = []
        for turn in group:
            pieces += ["\n\n"] if pieces else []
            parts.append((turn, len(pieces)))
            pieces += turn.pieces or ("",)
        ids, bounds = self._wrap(before, pieces, after)
        return self._tiled(context, ids, bounds, parts)

    def _tiled(
        self,
        context: Composed,
        ids: tuple[int, ...],
        bounds: Sequence[tuple[int, int]],
        parts: Sequence[tuple[Turn, int]],
    ) -> Composed:
        """Cut the tokens of one wrapper into a segment per turn, each from the end of the words before it."""
        at = 0
        for turn, first in parts:
            count = max(len(turn.pieces), 1)
            start, stop = bounds[first][0], bounds[first + count - 1][1]
            end = len(ids) if turn is parts[-1][0] else stop
            position = len(context.ids)
            segment = Segment(turn.role, ids[at:end], (start - at, stop - at), turn.text, position)
            spans = [
                (piece.message, self._span(piece, position - at + bounds[first + index][0]))
                for index, piece in enumerate(turn.pieces)
                if isinstance(piece, Quote) and self._same_tokenizer(piece)
            ]
            context = context.extended(segment, spans)
            at = end
        return context

    def _span(self, quote: Quote, at: int) -> Span:
        source = quote.segment.position + quote.segment.content[0]
        return Span(at, source, len(quote.segment.words))

    def _kept_whole(self, group: Sequence[Turn], before: str, after: str) -> Quote | None:
        """The quote whose own turn, wrapper included, is just what this template would write."""
        if len(group) != 1 or len(group[0].pieces) != 1 or isinstance(group[0].pieces[0], str):
            return None
        quote = group[0].pieces[0]
        if quote.segment.role != group[0].role or not self._same_tokenizer(quote):
            return None
        ids, (start, stop) = quote.segment.ids, quote.segment.content
        around = (ids[:start], ids[stop:]) == (self.codec.encode(before), self.codec.encode(after))
        return (
            quote if around or self._wrap(before, (quote.segment.text,), after)[0] == ids else None
        )

    def _same_tokenizer(self, quote: Quote) -> bool:
        return quote.message.identity.tokenizer == self.codec.digest

    def _wrap(
        self, before: str, pieces: Sequence[str | Quote], after: str
    ) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """Ids of pieces in a wrapper, and where each piece stands in them, as (start, stop).

        Words are tokenised together with the wrapper's text up to its nearest marker, since tokens may join the
        two; markers inside words stay words. A quote between equal tokenizers keeps its ids.
        """
        head, lead = self.codec.split_after_marker(before)
        tail, rest = self.codec.split_before_marker(after)
        ids = list(self.codec.encode(head))
        bounds: list[tuple[int, int]] = []
        text, inside = lead, list[tuple[int, int]]()
        for piece in pieces:
            if isinstance(piece, Quote) and self._same_tokenizer(piece):
                known = None if bounds or inside else self._joined(head, text, piece)
                bounds += self._run(ids, text, inside, known)
                bounds.append((len(ids), len(ids) + len(piece.segment.words)))
                ids += piece.segment.words
                text, inside = "", []
            else:
                words = piece if isinstance(piece, str) else piece.segment.text
                inside.append((len(text), len(text) + len(words)))
                text += words
        bounds += self._run(ids, text + tail, inside, None)
        ids += self.codec.encode(rest)
        return tuple(ids), bounds

    def _run(
        self,
        ids: list[int],
        text: str,
        inside: Sequence[tuple[int, int]],
        known: tuple[int, ...] | None,
    ) -> list[tuple[int, int]]:
        """Append the tokens of text; where its parts, given in characters, stand in the ids."""
        base = len(ids)
        if known is not None:
            ids += known
            return []
        tokens, offsets = self.codec.words_with_offsets(text)
        ids += tokens
        bounds = []
        for first, last in inside:
            start = sum(end <= first for _, end in offsets)
            stop = sum(begin < last for begin, _ in offsets)
            bounds.append((base + start, base + max(start, stop)))
        return bounds

    def _joined(self, head: str, lead: str, quote: Quote) -> tuple[int, ...] | None:
        """Ids of a turn's lead before a quote that had this very lead at its sharer: its first token may hold some."""
        segment, opening = quote.segment, self.codec.encode(head)
        before = segment.ids[: segment.content[0]]
        text = self.codec.decode(before[len(opening) :]) + self.codec.decode(segment.words)
        same = before[: len(opening)] == opening and text.startswith(lead + segment.text)
        return before[len(opening) :] if same else None
