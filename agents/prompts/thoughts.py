"""What a model thinks before it answers: where thoughts end, by its template's own markers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from unspoken.agents.prompts.template_probes import THOUGHTS


class Reader(Protocol):
    """What reads a template's markers: a `TextTokenizer`."""

    @property
    def markers(self) -> frozenset[int]:
        """Ids that no words become."""

    def encode(self, text: str, after: str | None = None) -> tuple[int, ...]:
        """Ids of a template's text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""


CHANNELS = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
"""gpt-oss: every turn names the channel of what follows, and the answer is in the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thoughts:
    """How a template marks thoughts.

    Attributes:
        opening: What begins them.
        closing: What ends them; the answer follows.
        opened: Whether the template's own prompt begins them, so that a turn starts inside.
        ended: Whether the template's own prompt ends them: the model answers at once.
        dropped: Whether the template leaves out the thoughts of earlier turns.
        channels: Whether the markers are special tokens around every part of a turn.
    """

    opening: str
    closing: str
    opened: bool = False
    ended: bool = False
    dropped: bool = False
    channels: bool = False


def find_thoughts(source: str, prompt: str, *, dropped: bool) -> Thoughts | None:
    """How a template marks thoughts; None where it names no such markers.

    Args:
        source: The template.
        prompt: What it writes to ask for the assistant's words.
        dropped: Whether it was seen to leave out thoughts of earlier turns.
    """
    if CHANNELS[0] in source or "<|channel|>analysis" in source:
        return Thoughts(
            opening=CHANNELS[0], closing=CHANNELS[1], opened=True, dropped=True, channels=True
        )
    for opening, closing in THOUGHTS:
        if closing in source or opening in prompt:
            begun, done = prompt.rfind(opening), prompt.rfind(closing)
            return Thoughts(
                opening=opening,
                closing=closing,
                opened=begun > done,
                ended=done > begun,
                dropped=dropped,
            )
    return None


@dataclass(frozen=True, slots=True)
class Split:
    """Where an answer begins among the tokens of a turn.

    Attributes:
        token: Its first token.
        character: Its first character in the turn's text.
    """

    token: int
    character: int


def split_thoughts(
    thoughts: Thoughts, reader: Reader, ids: Sequence[int], ends: Sequence[int], text: str
) -> Split:
    """Where the answer begins; at the end of a turn that ended inside its thoughts.

    The border lies between two tokens, so that the answer keeps its tokens. Space before the answer
    goes with the thoughts.

    Args:
        thoughts: How the template marks them.
        reader: Reads its markers.
        ids: Ids of the turn's words.
        ends: Per id, the character of `text` where it ends.
        text: The words; special tokens may be missing from them.
    """
    after = _after(reader, thoughts.closing, ids, ends, text)
    if after is None:
        opening = reader.encode(thoughts.opening, "")
        begins = tuple(ids[: len(opening)]) == opening or text.lstrip().startswith(thoughts.opening)
        if not (thoughts.opened or begins):
            return Split(0, 0)
        return Split(len(ids), len(text))
    # A token that the text does not show ends, to a detokenizer, where the next one ends.
    token, stop = after
    start = max(stop, min(len(reader.decode(ids[:token])), ends[token - 1] if token else 0))
    while token < len(ids) and not text[start : ends[token]].strip():
        start = ends[token]
        token += 1
    return Split(token, start)


def _after(
    reader: Reader, marker: str, ids: Sequence[int], ends: Sequence[int], text: str
) -> tuple[int, int] | None:
    """The first token that ends after a marker, and the marker's end in the text.

    The end is 0 for a marker of special tokens, which the text may not show. None where the marker
    does not stand among the ids.
    """
    spelled = reader.encode(marker, "")
    if not reader.markers.isdisjoint(spelled):
        for start in range(len(ids) - len(spelled) + 1):
            if tuple(ids[start : start + len(spelled)]) == spelled:
                return start + len(spelled), 0
        return None
    found = text.find(marker)
    if found < 0:
        return None
    stop = found + len(marker)
    return next((n for n, end in enumerate(ends) if end > stop), len(ids)), stop
