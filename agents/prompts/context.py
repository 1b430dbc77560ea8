"""An agent's context as token ids: composed first, and alike for every channel.

State is looked for afterwards, by position. So ids never depend on how a message travels, and text
can take over from any channel.

Ids of parts cannot be laid end to end, since a tokenizer joins letters across a border: a wrapper's
space and the first word may be one token. A turn is therefore tokenised as a whole. A message of
the same tokenizer keeps its ids, since its state belongs to them. It also keeps its wrapper's where
this template writes the same turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from unspoken.agents.prompts.chat_template import ChatTemplate
from unspoken.agents.prompts.template_probes import NO_TRIM
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.prompts.tool_turns import ToolCall, returned
from unspoken.agents.prompts.wrapping import Place, joined_ends, wrapped
from unspoken.channels.base import Span, TextSpan
from unspoken.channels.message import Message, Segment


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
        role: ``user``, ``assistant`` or ``tool``.
        pieces: The prompt's own words and words of messages, in order.
        call: Of a tool's turn, the call that it is the result of.
    """

    role: str
    pieces: tuple[str | Quote, ...]
    call: ToolCall = field(default=ToolCall(name="tool"), kw_only=True)

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
        return Context(self.ids, self.segments)

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


class ContextBuilder:
    """Composes contexts with a model's tokenizer and its chat template."""

    def __init__(self, text: TextTokenizer, template: ChatTemplate) -> None:
        self.text, self.template = text, template

    def opening(self, system: str | None) -> Context:
        """The leading turn: a system prompt, or what the template opens with by itself."""
        around = self.template.system or self.template.inline_system
        if system is None or around is None:
            ids = self.text.encode(self.template.opening)
            opening = Segment(role="system", ids=ids, content=(0, 0), text="", position=0)
            return Context().extended(opening) if ids else Context()
        system = self.template.trim("system").of(system)
        ids, (place,) = self._wrap(around[0], (system,), around[1])
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
        turns = [self._as_written(turn) for turn in turns]
        if earlier is None:
            system = self.template.tools.introduced(system)
            own = self.template.system is not None
            first_turn = self.template.inline_system is not None and bool(turns)
            inline = bool(system) and first_turn and turns[0].role == "user"
            earlier = self.opening(system if own or inline else None)
            if system and turns and not own and not inline:
                turns.insert(0, ChatTurn("system", (system,)))
        context = earlier.bare()
        for group in self._groups(turns):
            if group[0].role != "tool":
                context = self._append(context, group)
                continue
            for number, turn in enumerate(group):
                around = self.template.tools.around(number, len(group), turn.call)
                context = self._append(context, [turn], around)
        return context

    def _as_written(self, turn: ChatTurn) -> ChatTurn:
        """A tool's turn as the template has it: of its own kind, or a user turn."""
        tools = self.template.tools
        if turn.role != "tool":
            return turn
        if tools.plain:
            return ChatTurn("user", (returned(turn.call.name), *turn.pieces))
        pieces = [one if isinstance(one, Quote) else tools.result_words(one) for one in turn.pieces]
        return replace(turn, pieces=tuple(pieces))

    def rewritten(self, context: Context, turn: Segment) -> Context:
        """A context whose last turn has other words, wrapped as an earlier turn is.

        Args:
            context: The context.
            turn: Its last turn, the words that stay being its content.
        """
        earlier = Context(context.ids[: turn.position], context.segments[:-1])
        before, after = self.template.wrappers[turn.role]
        ids, (place,) = wrapped(
            self.text, (turn,), before=before, behind=after, after=self._left(earlier)
        )
        words = place.start, place.stop
        return earlier.extended(replace(turn, ids=ids, content=words))

    def ask(self, context: Context | None = None) -> tuple[int, ...]:
        """The ids that ask for the assistant's words after a context, or after a user's turn."""
        answers_tool = context is not None and "tool" in {one.role for one in context.segments[-1:]}
        own = self.template.tools.prompt if answers_tool else None
        after = self.template.wrappers["tool" if answers_tool else "user"][1]
        return self.text.encode(self.template.prompt if own is None else own, after=after)

    def close(self, role: str = "assistant") -> tuple[int, ...]:
        """The ids that close a turn of `role`."""
        return self.text.encode(self.template.wrappers[role][1], after="")

    def _groups(self, turns: Sequence[ChatTurn]) -> list[list[ChatTurn]]:
        """Turns that share a wrapper: as the template merges them, or behind a system prompt."""
        groups: list[list[ChatTurn]] = []
        for turn in turns:
            last = groups[-1][-1].role if groups else ""
            merged = turn.role == "tool" or self.template.merges
            if last == "system" or (merged and last == turn.role):
                groups[-1].append(turn)
            else:
                groups.append([turn])
        return groups

    def _append(
        self, context: Context, group: Sequence[ChatTurn], around: tuple[str, str] | None = None
    ) -> Context:
        role, left = group[-1].role, self._left(context)
        inline = self._in_first_turn(context)
        before, after = around or self.template.wrappers[role]
        if role == "user" and not any(
            segment.role != "system" or segment.text for segment in context.segments
        ):
            before = self.template.first
        elif inline:
            before = ""
        group = [self._trimmed(turn, "inline" if inline else turn.role) for turn in group]
        whole = self._kept_whole(group, before, after, left)
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
        ids, places = self._wrap(before, pieces, after, left)
        return self._tiled(context, ids, places, list(zip(group, first_pieces, strict=True)))

    def _tiled(
        self,
        context: Context,
        ids: tuple[int, ...],
        places: Sequence[Place],
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
            ends = joined_ends(inside, [len(_words(piece)) for piece in turn.pieces])
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
                if isinstance(piece, Quote) and self._keeps_ids(piece):
                    spans.append((piece.message, _span(piece, origin + place.start)))
                elif isinstance(piece, Quote) and not self._same_tokenizer(piece):
                    text = _text_span(piece, place, origin)
                    texts += [] if text is None else [(piece.message, text)]
            context = context.extended(segment, spans, texts)
            begin = end
        return context

    def _in_first_turn(self, context: Context) -> bool:
        """Whether a context is a system prompt that the words of the first user turn go on."""
        return self.template.system is None and [
            segment.role for segment in context.segments if segment.text
        ] == ["system"]

    def _left(self, context: Context) -> str | None:
        """What stands before the next turn: its tokens may depend on it. None at the beginning."""
        if not context.segments:
            return None
        last = context.segments[-1]
        if last.role == "system":
            around = self.template.system or self.template.inline_system
            return around[1] if last.text and around else self.template.opening
        return self.template.wrappers[last.role][1] or last.text[-16:]

    def _trimmed(self, turn: ChatTurn, where: str) -> ChatTurn:
        """A turn without what the template trims off its words; quotes keep theirs."""
        trim = self.template.trim(where)
        if trim == NO_TRIM:
            return turn
        pieces = list(turn.pieces)
        for index, piece in enumerate(pieces):
            pieces[index] = piece if isinstance(piece, Quote) else piece.lstrip(trim.left)
            if pieces[index]:
                break
        for index in reversed(range(len(pieces))):
            piece = pieces[index]
            pieces[index] = piece if isinstance(piece, Quote) else piece.rstrip(trim.right)
            if pieces[index]:
                break
        return turn if (*pieces,) == turn.pieces else replace(turn, pieces=tuple(pieces))

    def _kept_whole(
        self, group: Sequence[ChatTurn], before: str, after: str, left: str | None
    ) -> Quote | None:
        """The quote whose own turn, wrapper included, is just what this template would write."""
        if len(group) != 1 or len(group[0].pieces) != 1 or isinstance(group[0].pieces[0], str):
            return None
        quote = group[0].pieces[0]
        if quote.segment.role != group[0].role or not self._keeps_ids(quote):
            return None
        ids, (start, stop) = quote.segment.ids, quote.segment.content
        around = self.text.encode(before, left), self.text.encode(after, "")
        same = (ids[:start], ids[stop:]) == around
        same = same or self._wrap(before, (quote.segment.text,), after, left)[0] == ids
        return quote if same else None

    def _same_tokenizer(self, quote: Quote) -> bool:
        return quote.message.identity.tokenizer == self.text.digest

    def _keeps_ids(self, quote: Quote) -> bool:
        """Whether a quote's tokens can stand here: ours, and none that opens or closes a turn."""
        return self._same_tokenizer(quote) and self.text.turn_markers.isdisjoint(
            quote.segment.words
        )

    def _wrap(
        self, before: str, pieces: Sequence[str | Quote], after: str, left: str | None = None
    ) -> tuple[tuple[int, ...], list[Place]]:
        """Ids of pieces in a wrapper, and where each piece stands in them."""
        parts = [
            piece.segment if isinstance(piece, Quote) and self._keeps_ids(piece) else _words(piece)
            for piece in pieces
        ]
        return wrapped(self.text, parts, before=before, behind=after, after=left)


def _span(quote: Quote, start: int) -> Span:
    """The ids of a quote, of which the first is at `start`."""
    source = quote.segment.position + quote.segment.content[0]
    return Span(start, source, len(quote.segment.words))


def _text_span(quote: Quote, place: Place, origin: int) -> TextSpan | None:
    """The tokens that hold a quote's words alone, `origin` being the position of the first id."""
    start, stop = place.own
    if start == stop:
        return None
    segments = quote.message.segments
    number = next(n for n, segment in enumerate(segments) if segment is quote.segment)
    return TextSpan(origin + start, number, place.ends[start - place.start : stop - place.start])
