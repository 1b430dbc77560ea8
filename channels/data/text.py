"""The text that bridges are fitted on, and the part of it that is kept for their audit."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from blake3 import blake3

from unspoken.channels.data.builtin import builtin_text
from unspoken.channels.data.sources import read_source
from unspoken.channels.errors import InputError

__all__ = [
    "Corpus",
    "builtin_text",
    "detokenize",
    "documents",
    "load_corpus",
    "paragraphs",
    "split",
]

PIECE = 4000
SHORTEST = 80
TITLE = re.compile(r"^ ?= [^=\n].*[^=\n] = ?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Pieces of plain English.

    Attributes:
        train: What bridges are fitted on.
        held_out: Pieces of other documents, for the audit.
        sources: The names it was loaded from.
        digest: BLAKE3 of all pieces, in hex: equal corpora give equal digests.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    sources: tuple[str, ...]
    digest: str

    @property
    def characters(self) -> int:
        """Characters of all training pieces."""
        return sum(map(len, self.train))

    def stream(self, seed: int = 0) -> Iterator[str]:
        """The training pieces without end, in a new order at each pass; equal seeds give equal
        streams.
        """
        rng = random.Random(seed)
        while self.train:
            yield from rng.sample(self.train, len(self.train))


def load_corpus(
    sources: Sequence[str] = ("builtin",),
    *,
    seed: int = 0,
    size: int = PIECE,
    detokenized: bool = False,
) -> Corpus:
    """Read the sources, cut them into pieces, and set about 5 % of each aside.

    Args:
        sources: ``builtin``, files, folders, or ``hub:NAME[/config][:split]``; see `read_source`.
        seed: Decides which documents are held out.
        size: Most characters of a piece.
        detokenized: Undo WikiText's spacing where a source has it. Models are evaluated on the raw
            text, so text stays as it is by default.

    Raises:
        InputError: no source, or one that cannot be read or holds no text.
    """
    if not sources:
        raise InputError("no text to fit on", expected="at least one source, such as `builtin`")
    train: dict[str, None] = {}
    held_out: dict[str, None] = {}
    for source in sources:
        text = read_source(source)
        fitted, kept = split(detokenize(text) if detokenized else text, seed, size=size)
        if not fitted:
            raise InputError(
                f"{source!r} holds no text to speak of",
                expected=f"paragraphs of at least {SHORTEST} characters",
            )
        train.update(dict.fromkeys(fitted))
        held_out.update(dict.fromkeys(kept))
    fresh = tuple(piece for piece in train if piece not in held_out)
    digest = blake3("\f".join((*fresh, "", *held_out)).encode()).hexdigest()
    return Corpus(fresh, tuple(held_out), tuple(sources), digest)


def split(
    text: str, seed: int = 0, *, share: float = 0.05, size: int = PIECE
) -> tuple[list[str], list[str]]:
    """Pieces to train on and pieces held out, of 80 characters or more; no document is in both.

    A document is chosen by a hash of the seed and its own words, so that it does not depend on
    what stands around it. A text of one document is all trained on.
    """
    found = documents(text, size)
    kept = _chosen(found, seed, share)
    parts: tuple[list[str], list[str]] = ([], [])
    for document in found:
        pieces = paragraphs(document, size)
        parts[document in kept].extend(one for one in pieces if len(one.strip()) >= SHORTEST)
    return parts


def _chosen(found: Sequence[str], seed: int, share: float) -> set[str]:
    """Documents to hold out: in the order of their hashes, until `share` of all characters."""
    if len(found) < 2 or share <= 0:
        return set()
    ranked = sorted(found, key=lambda one: blake3(f"{seed}\f{one}".encode()).digest())
    quota = share * sum(map(len, found))
    fitting = [one for one in ranked if len(one) <= 2 * quota] or [min(ranked, key=len)]
    kept: set[str] = set()
    held = 0
    for document in fitting:
        if held >= quota:
            break
        kept.add(document)
        held += len(document)
    return kept


def documents(text: str, size: int = PIECE) -> list[str]:
    """The distinct documents of a text: its form feeds part them, or WikiText's titles, else runs
    of paragraphs.

    Texts too short to learn from (under 80 characters) are left out.
    """
    if "\f" in text:
        found = [one for part in text.split("\f") for one in _articles(part)]
    elif TITLE.search(text):
        found = _articles(text)
    else:
        found = paragraphs(text, size)
    stripped = (one.strip("\n") for one in found)
    return list(dict.fromkeys(one for one in stripped if len(one.strip()) >= SHORTEST))


def _articles(text: str) -> list[str]:
    """A text cut before each WikiText title, `` = Title = ``; titles of sections stay inside."""
    starts = [0, *(match.start() for match in TITLE.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(starts) if b > a]


def paragraphs(text: str, size: int = PIECE) -> list[str]:
    """The text in runs of whole paragraphs, each of at most `size` characters.

    A paragraph that is longer than that is cut after a sentence, or failing that anywhere.
    """
    runs: list[str] = []
    run = ""
    for paragraph in re.split(r"(?<=\n\n)(?!\n)|(?<=\n \n)", text.replace("\r\n", "\n")):
        for part in _cut(paragraph, size):
            if run and len(run) + len(part) > size:
                runs.append(run)
                run = ""
            run += part
    runs.append(run)
    return [one.strip("\n") for one in runs if one.strip()]


def _cut(paragraph: str, size: int) -> Iterator[str]:
    """A paragraph in parts of at most `size` characters, cut after sentences where there are any."""
    while len(paragraph) > size:
        ends = [match.end() for match in re.finditer(r"[.!?][\"')]?\s+|\n", paragraph[:size])]
        end = ends[-1] if ends else size
        yield paragraph[:end]
        paragraph = paragraph[end:]
    yield paragraph


def detokenize(text: str) -> str:
    """WikiText's spacing undone; any other text, one without `` @-@ `` and its like, is returned as
    it is.
    """
    if not re.search(r" @[-,.]@ ", text):
        return text
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]])(?=[\s,.;:!?)\]\"']|$)", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r" ('(?:s|re|ve|ll|d|m|t))\b", r"\1", text)
    text = re.sub(r"(\w)s ' ", r"\1s' ", text)
    return re.sub(r'(?<!\S)" ([^"\n]*?) "(?!\w)', r'"\1"', text)
