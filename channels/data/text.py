"""The text that bridges are fitted on, and the part of it that is kept for their audit."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from blake3 import blake3

from unspoken.channels.data.builtin import builtin_text
from unspoken.channels.data.sources import read_source
from unspoken.channels.errors import InputError
from unspoken.channels.sequences import distinct

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
SHARE = 0.05
SHORTEST = 80
TITLE = re.compile(r"^ ?= [^=\n].*[^=\n] = ?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Pieces of plain English.

    Attributes:
        train: What bridges are fitted on.
        validation: Pieces of other documents, for the audit.
        sources: The names it was loaded from.
        digest: BLAKE3 of all pieces, in hex: equal corpora give equal digests.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    sources: tuple[str, ...]
    digest: str

    @property
    def characters(self) -> int:
        """Characters of all training pieces."""
        return sum(map(len, self.train))

    def stream(self, seed: int = 0) -> Iterator[str]:
        """The training pieces without end, in a new order at each pass; equal for equal seeds."""
        rng = random.Random(seed)
        while self.train:
            yield from rng.sample(self.train, len(self.train))

    def held_out(self, seed: int = 0) -> Iterator[str]:
        """The validation pieces without end; the training pieces where there are no others."""
        return replace(self, train=self.validation or self.train).stream(seed)


def load_corpus(
    sources: Sequence[str] = ("builtin",), *, seed: int = 0, detokenized: bool = False
) -> Corpus:
    """Read the sources, cut them into pieces, and set about 5 % of each aside.

    Args:
        sources: ``builtin``, files, folders, or ``hub:NAME[/config][:split]``; see `read_source`.
        seed: Decides which documents are held out.
        detokenized: Undo WikiText's spacing where a source has it. Models are evaluated on the raw
            text, so text stays as it is by default.

    Raises:
        InputError: no source, or one that cannot be read or holds no text.
    """
    if not sources:
        raise InputError("no text to fit on", expected="at least one source, such as `builtin`")
    train: list[str] = []
    validation: list[str] = []
    for source in sources:
        text = read_source(source)
        train_pieces, held_pieces = split(detokenize(text) if detokenized else text, seed)
        if not train_pieces:
            raise InputError(
                f"{source!r} holds no text that is long enough",
                expected=f"paragraphs of at least {SHORTEST} characters",
            )
        train += train_pieces
        validation += held_pieces
    held = set(validation)
    fitted = tuple(piece for piece in distinct(train) if piece not in held)
    audited = tuple(distinct(validation))
    digest = blake3("\f".join((*fitted, "", *audited)).encode()).hexdigest()
    return Corpus(train=fitted, validation=audited, sources=tuple(sources), digest=digest)


def split(text: str, seed: int = 0) -> tuple[list[str], list[str]]:
    """Pieces to train on and pieces held out, of 80 characters or more; no document is in both.

    A document is chosen by a hash of the seed and its own words, so that it does not depend on
    what stands around it. A text of one document is all trained on.
    """
    every = documents(text)
    held = _validation_documents(every, seed)
    train_pieces: list[str] = []
    held_pieces: list[str] = []
    for document in every:
        pieces = held_pieces if document in held else train_pieces
        pieces += (run for run in paragraphs(document) if len(run.strip()) >= SHORTEST)
    return train_pieces, held_pieces


def _validation_documents(every: Sequence[str], seed: int) -> set[str]:
    """Documents to hold out: in the order of their hashes, until `SHARE` of all characters."""
    if len(every) < 2:
        return set()
    ranked = sorted(every, key=lambda text: blake3(f"{seed}\f{text}".encode()).digest())
    quota = SHARE * sum(map(len, every))
    fitting = [text for text in ranked if len(text) <= 2 * quota] or [min(ranked, key=len)]
    held: set[str] = set()
    characters = 0
    for document in fitting:
        if characters >= quota:
            break
        held.add(document)
        characters += len(document)
    return held


def documents(text: str) -> list[str]:
    """The distinct documents of a text.

    Form feeds part them, or WikiText's titles; else they are runs of paragraphs. Texts of under 80
    characters, too short to learn from, are left out.
    """
    if "\f" in text:
        parts = [article for part in text.split("\f") for article in _articles(part)]
    elif TITLE.search(text):
        parts = _articles(text)
    else:
        parts = paragraphs(text)
    stripped = (part.strip("\n") for part in parts)
    return distinct(part for part in stripped if len(part.strip()) >= SHORTEST)


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
    return [run.strip("\n") for run in runs if run.strip()]


def _cut(paragraph: str, size: int) -> Iterator[str]:
    """A paragraph in parts of at most `size` characters, cut after sentences where it has any."""
    while len(paragraph) > size:
        ends = [match.end() for match in re.finditer(r"[.!?][\"')]?\s+|\n", paragraph[:size])]
        end = ends[-1] if ends else size
        yield paragraph[:end]
        paragraph = paragraph[end:]
    yield paragraph


def detokenize(text: str) -> str:
    """WikiText's spacing undone; a text without `` @-@ `` and its like is returned as it is."""
    if not re.search(r" @[-,.]@ ", text):
        return text
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]])(?=[\s,.;:!?)\]\"']|$)", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r" ('(?:s|re|ve|ll|d|m|t))\b", r"\1", text)
    text = re.sub(r"(\w)s ' ", r"\1s' ", text)
    return re.sub(r'(?<!\S)" ([^"\n]*?) "(?!\w)', r'"\1"', text)
