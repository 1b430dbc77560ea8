"""Questions about real paragraphs, made without any model."""

import random
import re
from collections import Counter
from dataclasses import dataclass

from unspoken.channels.data.wording import phrases

DATE = r"\d{1,2} [A-Z][a-z]+ \d{4}|[A-Z][a-z]+ \d{1,2} ?, \d{4}"
NUMBER = r"\d[\d,.]*\d|\d+"
NAMES = r"(?<=\w )[A-Z][\w'-]+(?: (?:of |the |de )?[A-Z][\w'-]+)+"
CANDIDATES = re.compile(rf"(?<![\w@])(?:{DATE}|{NUMBER}|{NAMES})(?![\w@])")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and its answer word for word as it stands in the text."""

    question: str
    answer: str


def cloze(piece: str, rng: random.Random) -> Question | None:
    """A question that `piece` answers word for word, or None where nothing in it can be asked for.

    Either a sentence with a name, date, number or rare word left out, or the words that come after
    a quoted few.
    """
    sentences = [text for text in _sentences(piece) if 8 <= len(text.split()) <= 45]
    rng.shuffle(sentences)
    makers = [_blank, _follow] if rng.random() < 0.6 else [_follow, _blank]
    for make in makers:
        for sentence in sentences[:8]:
            if question := make(sentence, piece, rng):
                return question
    return None


def _sentences(piece: str) -> list[str]:
    """Sentences, each on one line of its own in the piece."""
    return [
        sentence.strip()
        for line in piece.splitlines()
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z“\"])", line)
        if "<unk>" not in sentence and not sentence.lstrip().startswith("=")
    ]


def _blank(sentence: str, piece: str, rng: random.Random) -> Question | None:
    """The sentence without one of its names, dates, numbers or rare words."""
    matches = sorted({match.group() for match in CANDIDATES.finditer(sentence)})
    answers = [text for text in matches if sentence.count(text) == 1] or _rare(sentence, piece)
    if not answers:
        return None
    answer = rng.choice(answers)
    gap = re.sub(rf"(?<!\w){re.escape(answer)}(?!\w)", "____", sentence, count=1)
    if gap == sentence:
        return None
    return Question(rng.choice(phrases().blanks).format(gap=gap), answer)


def _rare(sentence: str, piece: str) -> list[str]:
    """Long words of the sentence that the piece has only once."""
    counts = Counter(re.findall(r"\w+", piece))
    return sorted({word for word in re.findall(r"[a-z]{7,}", sentence) if counts[word] == 1})


def _follow(sentence: str, piece: str, rng: random.Random) -> Question | None:
    """Five to eight words that the piece has once, and the three to eight words after them."""
    words = [match.span() for match in re.finditer(r"\S+", sentence)]
    cue_words, answer_words = rng.randint(5, 8), rng.randint(3, 8)
    last = len(words) - cue_words - 3
    if last < 0:
        return None
    start = rng.randint(0, last)
    middle = start + cue_words
    end = min(middle + answer_words, len(words))
    cue = sentence[words[start][0] : words[middle - 1][1]]
    answer = sentence[words[middle][0] : words[end - 1][1]].rstrip(" .,;:!?")
    if piece.count(cue) != 1 or answer in cue or len(re.findall(r"\w+", answer)) < 2:
        return None
    return Question(rng.choice(phrases().continuations).format(cue=cue), answer)
