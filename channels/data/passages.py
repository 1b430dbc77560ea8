"""Synthetic passages of private facts, with questions that only they answer; seeded, endless."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unspoken.channels.data.cloze import Question, cloze
from unspoken.channels.data.recall import recall_question, recall_records, render_recall
from unspoken.channels.data.values import invent, value_names
from unspoken.channels.data.wording import Fact, Kind, kinds, phrases, unseen_kinds

__all__ = [
    "FactPassage",
    "Question",
    "cloze",
    "fact_passage",
    "fact_passages",
    "recall_question",
    "recall_records",
    "render_recall",
    "unseen_passages",
]

FEWEST_WORDS, MOST_WORDS = 60, 250
FEWEST_FACTS, MOST_FACTS = 4, 12


@dataclass(frozen=True, slots=True)
class FactPassage:
    """A passage of 60 to 250 words and one question per fact in it.

    Attributes:
        kind: What it is about.
        text: The passage.
        questions: Their answers are verbatim in the text, and nowhere else.
    """

    kind: str
    text: str
    questions: tuple[Question, ...]


def fact_passages(seed: int = 0) -> Iterator[FactPassage]:
    """Passages without end; equal seeds give equal ones."""
    rng = random.Random(seed)
    while True:
        yield fact_passage(rng)


def unseen_passages(seed: int = 0) -> Iterator[FactPassage]:
    """Passages without end of kinds that no bridge is fitted on."""
    rng = random.Random(seed)
    while True:
        yield fact_passage(rng, rng.choice(unseen_kinds()))


def fact_passage(rng: random.Random, kind: Kind | None = None) -> FactPassage:
    """One passage of the kind, or of any."""
    kind = kind or rng.choice(kinds())
    while True:
        used: set[str] = set()
        stated = _tell(rng, kind, used)
        sentences = [sentence for sentence, _ in stated]
        _weave(rng, kind.asides, sentences, used)
        text = _lay_out(rng, sentences)
        questions = tuple(question for _, question in stated)
        if len(text.split()) <= MOST_WORDS and all(_fair(asked, text) for asked in questions):
            return FactPassage(kind.name, text, questions)


def _fair(question: Question, text: str) -> bool:
    """Whether the answer stands in the text and not in the question."""
    return question.answer in text and question.answer.lower() not in question.question.lower()


def _tell(rng: random.Random, kind: Kind, used: set[str]) -> list[tuple[str, Question]]:
    """Sentences with a question each: the opening, then facts about two to four subjects."""
    shared = {slot: invent(rng, name, used) for slot, name in kind.shared.items()}
    stated = [_state(rng, rng.choice(kind.opening), shared)]
    subjects = [
        shared | {slot: invent(rng, name, used) for slot, name in kind.each.items()}
        for _ in range(rng.randint(2, 4))
    ]
    pairs = [(slots, fact) for slots in subjects for fact in kind.facts]
    count = rng.randint(FEWEST_FACTS, min(MOST_FACTS, len(pairs) + 1)) - 1
    chosen = sorted(rng.sample(range(len(pairs)), count))
    if rng.random() < 0.4:
        rng.shuffle(chosen)
    return stated + [_state(rng, pairs[i][1], pairs[i][0]) for i in chosen]


def _state(rng: random.Random, fact: Fact, slots: dict[str, str]) -> tuple[str, Question]:
    """One way to say a fact, and one way to ask for it."""
    slot = rng.choice(sorted(fact.asks))
    question = _articles(rng.choice(fact.asks[slot]).format_map(slots))
    if rng.random() < 0.3:
        question = rng.choice(phrases().leads).format(q=question[0].lower() + question[1:])
    said = rng.choice(fact.says)
    if rng.random() < 0.15 and "\n" not in said:
        link = rng.choice(phrases().links)
        said = link + (said if said.startswith("{") else said[0].lower() + said[1:])
    return _articles(said.format_map(slots)), Question(question, slots[slot])


def _articles(text: str) -> str:
    """`text` with "an" where a vowel follows, and one stop after a.m."""
    text = re.sub(r"\b([Aa]) (?=[aeio]\w|8)", r"\1n ", text)
    return text.replace(".m..", ".m.")


def _weave(rng: random.Random, asides: Sequence[str], sentences: list[str], used: set[str]) -> None:
    """Set sentences that nobody asks about between the others."""
    spare = rng.sample(asides, len(asides))
    least, words = rng.randint(1, 4), rng.randint(FEWEST_WORDS, 2 * FEWEST_WORDS)
    while least > 0 or sum(len(sentence.split()) for sentence in sentences) < words:
        if spare:
            template = spare.pop()
            fresh = {name: invent(rng, name, used) for name in re.findall(r"{(\w+)}", template)}
            aside = _articles(template.format_map(fresh))
        else:
            name = rng.choice(value_names())
            filler = rng.choice(phrases().fillers)
            aside = filler.format(v=invent(rng, name, used))
        sentences.insert(rng.randint(1, len(sentences)), aside)
        least -= 1


def _lay_out(rng: random.Random, sentences: list[str]) -> str:
    """Mostly one paragraph; sometimes several, or a list."""
    style = rng.random()
    if style < 0.6:
        return " ".join(sentences)
    if style < 0.85:
        cut = rng.randint(1, len(sentences) - 1)
        return " ".join(sentences[:cut]) + "\n\n" + " ".join(sentences[cut:])
    mark = rng.choice(("- ", "* ", "", "• "))
    return "\n".join([sentences[0], *(mark + sentence for sentence in sentences[1:])])
