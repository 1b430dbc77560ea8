"""An agent's context as token ids: composed first, and alike for every channel.

State is looked for afterwards, by position. So ids never depend on how a message travels, and text
can take over from any channel.

Ids of parts cannot be laid end to end, since a tokenizer joins letters across a border: a wrapper's
space and the first word may be one token. Words are tokenised together with the wrapper's text up
to its nearest marker, which no token crosses. A message of the same tokenizer keeps its ids, since
its state belongs to them. It also keeps its wrapper's where this template writes the same turn.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from itertools import accumulate

from unspoken.agents.prompts.chat_template import ChatTemplate
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.channels.base import Span, TextSpan
from unspoken.channels.message import Message, Segment

__all__ = ["ChatTurn", "Context", "ContextBuilder", "Quote"]


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
class ChatTurn:
    """A turn before it has token ids.

    Attributes:
        role: ``user`` or ``assistant``.
        pieces: The prompt's own words and words of messages, in order.
    """

    role: str
    pieces: tuple[str | Quote, ...]

    @property
    def text(self) -> str:
        """The words."""
        return "".join(map(_words, self.pieces))


def _words(piece: str | Quote) -> str:
    return piece if isinstance(piece, str) else piece.segment.text


@dataclass(frozen=True, slots=True)
class Context:
    """A context as token ids.

    Attributes:
        ids: All token ids.
        segments: Its turns; a leading system turn is the first.
        placed: Where message tokens stand, with the message's identity in memory as key.
        reworded: Where the words of other tokenizers' messages stand, keyed the same way.
    """

    ids: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    placed: tuple[tuple[Message, Span], ...] = ()
    reworded: tuple[tuple[Message, TextSpan], ...] = ()

    def spans(self, message: Message) -> tuple[Span, ...]:
        """Where one message's tokens stand."""
        return tuple(span for owner, span in self.placed if owner is message)

    def texts(self, message: Message) -> tuple[TextSpan, ...]:
        """Where one message's words stand in tokens of this context's own tokenizer."""
        return tuple(span for owner, span in self.reworded if owner is message)

    def bare(self) -> "Context":
        """This context without the messages it holds."""
        return replace(self, placed=(), reworded=())

    def extended(
        self,
        segment: Segment,
        spans: Sequence[tuple[Message, Span]] = (),
        texts: Sequence[tuple[Message, TextSpan]] = (),
    ) -> "Context":
        """This context with one more turn."""
        return Context(
            self.ids + segment.ids,
            (*self.segments, segment),
            (*self.placed, *spans),
            (*self.reworded, *texts),
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a piece stands among ids.

    Attributes:
        start: Its first token, which may hold some of what stands before it.
        stop: After its last token, which may hold some of what follows.
        own: First and last (exclusive) of those tokens that hold nothing but the piece.
        ends: Per token start … stop - 1, the character of the piece where it ends; empty where that
            is not known.
    """

    start: int
    stop: int
    _: KW_ONLY
    own: tuple[int, int]
    ends: tuple[int, ...]


class ContextBuilder:
    """Composes contexts with a model's tokenizer and its chat template."""

    def __init__(self, text: TextTokenizer, template: ChatTemplate) -> None:
        self.text, self.template = text, template

    def opening(self, system: str | None) -> Context:
        """The leading turn: a system prompt, or what the template opens with by itself."""
        if system is None or self.template.system is None:
            ids = self.text.encode(self.template.opening)
            return (
                Context().extended(
                    Segment(role="system", ids=ids, content=(0, 0), text="", position=0)
                )
                if ids
                else Context()
            )
        before, after = self.template.system
        ids, (place,) = self._wrap(before, (system,), after)
        words = place.start, place.stop
        return Context().extended(
            Segment(role="system", ids=ids, content=words, text=system, position=0, ends=place.ends)
        )

    def compose(
        self,
        turns: Sequence[ChatTurn],
        *,
        system: str | None = None,
        earlier: Context | None = None,
    ) -> Context:
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
                turns.insert(0, ChatTurn("system", (system,)))
        context = earlier.bare()
        for group in self._groups(turns):
            context = self._append(context, group)
        return context

    def ask(self) -> tuple[int, ...]:
        """The ids that ask for the assistant's words."""
        return self.text.encode(self.template.prompt)

    def close(self, role: str = "assistant") -> tuple[int, ...]:
        """The ids that close a turn of `role`."""
        return self.text.encode(self.template.wrappers[role][1])

    def _groups(self, turns: Sequence[ChatTurn]) -> list[list[ChatTurn]]:
        """Turns that share a wrapper: as the template merges them, or behind a system prompt."""
        groups: list[list[ChatTurn]] = []
        for turn in turns:
            last = groups[-1][-1].role if groups else ""
            if last == "system" or (self.template.merges and last == turn.role):
                groups[-1].append(turn)
            else:
                groups.append([turn])
        return groups

    def _append(self, context: Context, group: Sequence[ChatTurn]) -> Context:
        role = group[-1].role
        before, after = self.template.wrappers[role]
        if role == "user" and not any(
            segment.role != "system" or segment.text for segment in context.segments
        ):
            before = self.template.first
        whole = self._kept_whole(group, before, after)
        if whole is not None:
            segment = replace(whole.segment, position=len(context.ids))
            span = Span(segment.position, whole.segment.position, len(segment.ids))
            return context.extended(segment, [(whole.message, span)])
        pieces: list[str | Quote] = []
        first_pieces = []
        for turn in group:
            pieces += ["\n\n"] if pieces else []
            first_pieces.append(len(pieces))
            pieces += turn.pieces or ("",)
        ids, places = self._wrap(before, pieces, after)
        return self._tiled(context, ids, places, list(zip(group, first_pieces, strict=True)))

    def _tiled(
        self,
        context: Context,
        ids: tuple[int, ...],
        places: Sequence[_Place],
        turns: Sequence[tuple[ChatTurn, int]],
    ) -> Context:
        """Cut one wrapper's ids into a segment per turn, each from the end of the words before it.

        Each of `turns` comes with the number of its first piece.
        """
        begin, origin = 0, len(context.ids)
        for turn, first in turns:
            inside = places[first : first + max(len(turn.pieces), 1)]
            start, stop = inside[0].start, inside[-1].stop
            end = len(ids) if turn is turns[-1][0] else stop
            content = start - begin, stop - begin
            ends = _joined_ends(inside, turn)
            segment = Segment(
                role=turn.role,
                ids=ids[begin:end],
                content=content,
                text=turn.text,
                position=origin + begin,
                ends=ends,
            )
            spans, texts = [], []
            for piece, place in zip(turn.pieces, inside, strict=False):
                if not isinstance(piece, Quote):
                    continue
                if self._same_tokenizer(piece):
                    spans.append((piece.message, _span(piece, origin + place.start)))
                    continue
                text = _text_span(piece, place, origin)
                if text is not None:
                    texts.append((piece.message, text))
            context = context.extended(segment, spans, texts)
            begin = end
        return context

    def _kept_whole(self, group: Sequence[ChatTurn], before: str, after: str) -> Quote | None:
        """The quote whose own turn, wrapper included, is just what this template would write."""
        if len(group) != 1 or len(group[0].pieces) != 1 or isinstance(group[0].pieces[0], str):
            return None
        quote = group[0].pieces[0]
        if quote.segment.role != group[0].role or not self._same_tokenizer(quote):
            return None
        ids, (start, stop) = quote.segment.ids, quote.segment.content
        around = (ids[:start], ids[stop:]) == (self.text.encode(before), self.text.encode(after))
        same = around or self._wrap(before, (quote.segment.text,), after)[0] == ids
        return quote if same else None

    def _same_tokenizer(self, quote: Quote) -> bool:
        return quote.message.identity.tokenizer == self.text.digest

    def _wrap(
        self, before: str, pieces: Sequence[str | Quote], after: str
    ) -> tuple[tuple[int, ...], list[_Place]]:
        """Ids of pieces in a wrapper, and where each piece stands in them.

        Markers inside words stay words.
        """
        head, lead = self.text.split_after_marker(before)
        tail, rest = self.text.split_before_marker(after)
        ids = list(self.text.encode(head))
        places: list[_Place] = []
        text, inside = lead, list[tuple[int, int]]()
        for piece in pieces:
            if isinstance(piece, Quote) and self._same_tokenizer(piece):
                opening = None if places or inside else self._joined(head, text, piece)
                if opening is None:
                    places += self._tokenised(ids, text, inside)
                ids += opening or ()
                here = len(ids), len(ids) + len(piece.segment.words)
                places.append(_Place(*here, own=here, ends=piece.segment.ends))
                ids += piece.segment.words
                text, inside = "", []
            else:
                inside.append((len(text), len(text) + len(_words(piece))))
                text += _words(piece)
        places += self._tokenised(ids, text + tail, inside)
        ids += self.text.encode(rest)
        return tuple(ids), places

    def _tokenised(
        self, ids: list[int], text: str, inside: Sequence[tuple[int, int]]
    ) -> list[_Place]:
        """Append the tokens of text; where its parts, given in characters, stand in the ids."""
        base = len(ids)
        tokens, offsets = self.text.words_with_offsets(text)
        ids += tokens
        return [_place(offsets, first, last, base) for first, last in inside]

    def _joined(self, head: str, lead: str, quote: Quote) -> tuple[int, ...] | None:
        """Ids of the lead before a quote that had the same lead at its sharer, else None."""
        segment, opening = quote.segment, self.text.encode(head)
        before = segment.ids[: segment.content[0]]
        text = self.text.decode(before[len(opening) :]) + self.text.decode(segment.words)
        same = before[: len(opening)] == opening and text.startswith(lead + segment.text)
        return before[len(opening) :] if same else None


def _place(offsets: Sequence[tuple[int, int]], first: int, last: int, base: int) -> _Place:
    """Where characters first … last - 1 of a text stand, its tokens beginning at `base`."""
    start = sum(end <= first for _, end in offsets)
    stop = max(start, sum(begin < last for begin, _ in offsets))
    here = range(start, stop)
    own_start = next((n for n in here if offsets[n][0] >= first), stop)
    own_stop = next((n + 1 for n in reversed(here) if offsets[n][1] <= last), own_start)
    ends = accumulate((min(max(offsets[n][1], first), last) - first for n in here), max)
    own = base + own_start, base + max(own_start, own_stop)
    return _Place(base + start, base + stop, own=own, ends=tuple(ends))


def _joined_ends(places: Sequence[_Place], turn: ChatTurn) -> tuple[int, ...]:
    """Where in a turn's text the tokens of its pieces end; empty where a piece does not know."""
    if any(len(place.ends) != place.stop - place.start for place in places):
        return ()
    ends = [0] * (places[-1].stop - places[0].start)
    before = 0
    for piece, place in zip(turn.pieces, places, strict=False):
        for index, end in enumerate(place.ends, place.start - places[0].start):
            ends[index] = before + end
        before += len(_words(piece))
    return tuple(accumulate(ends, max))


def _span(quote: Quote, start: int) -> Span:
    """The ids of a quote, of which the first is at `start`."""
    source = quote.segment.position + quote.segment.content[0]
    return Span(start, source, len(quote.segment.words))


def _text_span(quote: Quote, place: _Place, origin: int) -> TextSpan | None:
    """The tokens that hold a quote's words alone, `origin` being the position of the first id."""
    start, stop = place.own
    if start == stop:
        return None
    segments = quote.message.segments
    number = next(n for n, segment in enumerate(segments) if segment is quote.segment)
    return TextSpan(origin + start, number, place.ends[start - place.start : stop - place.start])
