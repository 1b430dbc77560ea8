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
        ids, content = self._wrap(before, (system,), after)[:2]
        return Composed().extended(Segment("system", ids, content, system, 0))

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
                turns[0] = replace(turns[0], pieces=(f"{system}\n\n", *turns[0].pieces))
        context = replace(earlier, placed=())
        for turn in self._merged(turns):
            context = self._append(context, turn)
        return context

    def ask(self, context: Composed) -> tuple[int, ...]:
        """The ids that ask for the assistant's words."""
        return self.codec.encode(self.template.prompt)

    def close(self, role: str = "assistant") -> tuple[int, ...]:
        """The ids that close a turn of `role`."""
        return self.codec.encode(self.template.wrappers[role][1])

    def _merged(self, turns: Sequence[Turn]) -> list[Turn]:
        merged: list[Turn] = []
        for turn in turns:
            if self.template.merges and merged and merged[-1].role == turn.role:
                merged[-1] = Turn(turn.role, (*merged[-1].pieces, "\n\n", *turn.pieces))
            else:
                merged.append(turn)
        return merged

    def _append(self, context: Composed, turn: Turn) -> Composed:
        at = len(context.ids)
        before, after = self.template.wrappers[turn.role]
        if turn.role == "user" and not any(
            segment.role != "system" or segment.text for segment in context.segments
        ):
            before = self.template.first
        kept = self._kept_whole(turn, before, after)
        if kept is not None:
            segment = replace(kept.segment, position=at)
            span = Span(at, kept.segment.position, len(segment.ids))
            return context.extended(segment, [(kept.message, span)])
        ids, content, quotes = self._wrap(before, turn.pieces, after)
        segment = Segment(turn.role, ids, content, turn.text, at)
        spans = []
        for quote, start in quotes:
            source = quote.segment.position + quote.segment.content[0]
            spans.append((quote.message, Span(at + start, source, len(quote.segment.words))))
        return context.extended(segment, spans)

    def _kept_whole(self, turn: Turn, before: str, after: str) -> Quote | None:
        """The quote whose own turn, wrapper included, is just what this template would write."""
        if len(turn.pieces) != 1 or isinstance(turn.pieces[0], str):
            return None
        quote = turn.pieces[0]
        if quote.segment.role != turn.role or not self._same_tokenizer(quote):
            return None
        ids, (start, stop) = quote.segment.ids, quote.segment.content
        wrapped = self._wrap(before, (quote.segment.text,), after)[0]
        around = (ids[:start], ids[stop:]) == (self.codec.encode(before), self.codec.encode(after))
        return quote if around or wrapped == ids else None

    def _same_tokenizer(self, quote: Quote) -> bool:
        return quote.message.identity.tokenizer == self.codec.digest

    def _wrap(
        self, before: str, pieces: Sequence[str | Quote], after: str
    ) -> tuple[tuple[int, ...], tuple[int, int], list[tuple[Quote, int]]]:
        """Ids of a turn, where its words stand in them, and where each quote starts.

        Words are tokenised together with the wrapper's text up to its nearest marker, since tokens may join the
        two; markers inside words stay words. A quote between equal tokenizers keeps its ids.
        """
        head, lead = self.codec.split_after_marker(before)
        tail, rest = self.codec.split_before_marker(after)
        runs: list[str | Quote] = [lead]
        for piece in (*pieces, tail):
            quoted = isinstance(piece, Quote) and self._same_tokenizer(piece)
            text = "" if quoted else (piece if isinstance(piece, str) else piece.segment.text)
            if quoted:
                runs += [piece, ""]
            else:
                runs[-1] = str(runs[-1]) + text
        ids = list(self.codec.encode(head))
        quotes: list[tuple[Quote, int]] = []
        bounds: list[tuple[int, int]] = []
        for run in runs:
            if isinstance(run, Quote):
                quotes.append((run, len(ids)))
                ids += run.segment.words
            else:
                bounds.append((len(ids), len(run)))
                known = None if len(bounds) > 1 else self._joined(head, run, runs[1:2])
                ids += self.codec.encode_words(run) if known is None else known
        at_once = bool(quotes) and runs[0] == lead
        start = quotes[0][1] if at_once else self._words_start(lead, runs, bounds)
        stop = self._words_stop(tail, runs, len(ids))
        ids += self.codec.encode(rest)
        return tuple(ids), (start, max(start, stop)), quotes

    def _joined(
        self, head: str, lead: str, following: Sequence[str | Quote]
    ) -> tuple[int, ...] | None:
        """Ids of a turn's lead before a quote that had this very lead at its sharer: its first token may hold some."""
        if len(following) != 1 or not isinstance(following[0], Quote):
            return None
        segment, opening = following[0].segment, self.codec.encode(head)
        before = segment.ids[: segment.content[0]]
        text = self.codec.decode(before[len(opening) :]) + self.codec.decode(segment.words)
        same = before[: len(opening)] == opening and text.startswith(lead + segment.text)
        return before[len(opening) :] if same else None

    def _words_start(
        self, lead: str, runs: Sequence[str | Quote], bounds: Sequence[tuple[int, int]]
    ) -> int:
        """Index of the first token that holds any of the words."""
        first = str(runs[0])
        offsets = self.codec.offsets(first)
        inside = next(
            (index for index, (_, end) in enumerate(offsets) if end > len(lead)), len(offsets)
        )
        return bounds[0][0] + inside

    def _words_stop(self, tail: str, runs: Sequence[str | Quote], length: int) -> int:
        """Index after the last token that holds any of the words."""
        last = str(runs[-1])
        edge = len(last) - len(tail)
        offsets = self.codec.offsets(last)
        return length - sum(start >= edge for start, _ in offsets) if tail else length
