"""Inputs that two models read both, and how they go on: what a fuser learns from."""

import random
from collections.abc import Iterator, Sequence

from unspoken.channels.bridges.fit.samples import Sample, Target, fact_sample
from unspoken.channels.data.passages import fact_passages
from unspoken.channels.data.trivia import common_question, kept_back


def choice_prompt(question: str, hint: str = "") -> str:
    """A question without a context; a hint stands between it and the answer."""
    said = f"\nHint: {hint}" if hint else ""
    return f"Question: {question}{said}\nAnswer:"


def draw_fuse_samples(
    pieces: Iterator[str], seed: int, *, validation: bool = False
) -> Iterator[Sample]:
    """Samples without end: questions of common knowledge, plain text, private facts.

    Args:
        pieces: Pieces of plain text, without end.
        seed: Of all that is drawn.
        validation: Whether to ask the questions that are kept back, or the others.
    """
    rng = random.Random(seed)
    facts = fact_passages(seed)
    while True:
        frame = "chat" if rng.random() < 0.25 else "bare"
        draw = rng.random()
        sample: Sample | None
        if draw < 0.5:
            sample = _choice(rng, frame, validation=validation)
        elif draw < 0.85:
            sample = _plain(next(pieces), rng, frame)
        else:
            sample = fact_sample(next(facts), rng, 2, frame)
        if sample is not None:
            yield sample


def _choice(rng: random.Random, frame: str, *, validation: bool) -> Sample:
    """A question of common knowledge, its right answer and a wrong one, in that order."""
    question, options, answer = common_question(rng)
    while kept_back(question, options[answer]) != validation:
        question, options, answer = common_question(rng)
    wrong = rng.choice([option for option in options if option != options[answer]])
    asked = _listing(question, options) if rng.random() < 0.3 else question
    shown = ((options[answer], "choice"), (wrong, "wrong"))
    bare = frame == "bare"
    prompt = "" if bare else "\nAnswer in a few words."
    targets = tuple(Target(prompt, f" {option}", kind) for option, kind in shown)
    return Sample(choice_prompt(asked) if bare else f"Question: {asked}", targets, frame)


def _listing(question: str, options: Sequence[str]) -> str:
    return f"{question}\nOptions: {', '.join(options)}"


def _plain(piece: str, rng: random.Random, frame: str) -> Sample | None:
    """About 60 words, and the next 24."""
    spaces = [index for index, letter in enumerate(piece) if letter.isspace()]
    length = int(60 * rng.uniform(0.4, 1.4))
    if len(spaces) < length + 30:
        return None
    start = rng.randrange(len(spaces) - length - 25)
    first, cut, end = (spaces[start + n] for n in (0, length, length + 24))
    return Sample(piece[first:cut].lstrip(), (Target("", piece[cut:end]),), frame)
