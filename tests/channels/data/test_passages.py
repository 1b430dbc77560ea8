"""Synthetic passages, recall records and questions about real paragraphs."""

import json
import random
import re
from itertools import islice, pairwise

import pytest

from unspoken.channels.data.passages import (
    cloze,
    fact_passage,
    fact_passages,
    recall_question,
    recall_records,
    render_recall,
)
from unspoken.channels.data.values import value_names
from unspoken.channels.data.wording import Kind, kinds

PASSAGES = list(islice(fact_passages(7), 300))
PARAGRAPH = (
    "The lighthouse at Skarholm was built in 1887 by the engineer Henrik Lund. Its lamp burned oil "
    "until the "
    "harbor board put in an electric one, which is still in use. On 12 March 1921 a storm took the "
    "roof, and the "
    "keeper lived in the cellar for nine weeks before help arrived from the mainland."
)


def _holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_every_template_fits_its_slots(kind: Kind) -> None:
    """Slots have makers; an asked slot is in every sentence and in none of its questions."""
    slots = {**kind.shared, **kind.each}
    assert set(slots.values()) <= set(value_names())
    for fact in (*kind.opening, *kind.facts):
        for slot, questions in fact.asks.items():
            assert all(f"{{{slot}}}" in said for said in fact.says), fact
            assert all(f"{{{slot}}}" not in question for question in questions), fact
            assert all(question.endswith("?") for question in questions), fact
        used = {name for text in fact.says for name in re.findall(r"{(\w+)}", text)}
        assert used <= set(slots)
    for aside in kind.asides:
        assert set(re.findall(r"{(\w+)}", aside)) <= set(value_names())


def test_there_are_many_kinds() -> None:
    """At least twelve, all of them drawn, each with its own name."""
    assert len({kind.name for kind in kinds()}) == len(kinds()) >= 12
    assert {passage.kind for passage in PASSAGES} == {kind.name for kind in kinds()}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_passages_are_as_promised(kind: Kind) -> None:
    """Length, number of facts, answers verbatim in the text, no loose braces."""
    rng = random.Random(kind.name)
    for _ in range(40):
        passage = fact_passage(rng, kind)
        assert 60 <= len(passage.text.split()) <= 250
        assert 4 <= len(passage.questions) <= 12
        assert not set("{}|") & set(passage.text)
        for asked in passage.questions:
            assert asked.answer in passage.text
            assert asked.answer.lower() not in asked.question.lower()


def test_equal_seeds_give_equal_passages() -> None:
    """And other seeds others."""
    assert list(islice(fact_passages(7), 20)) == PASSAGES[:20]
    assert next(fact_passages(8)) != PASSAGES[0]


def test_passages_vary() -> None:
    """No two texts are equal, and at least 95 % of the questions are asked once."""
    assert len({passage.text for passage in PASSAGES}) == len(PASSAGES)
    questions = [asked.question for passage in PASSAGES for asked in passage.questions]
    assert len(set(questions)) >= 0.95 * len(questions)


def test_one_question_has_one_answer_in_its_passage() -> None:
    """Within a passage the same words never ask for two things."""
    for passage in PASSAGES:
        questions = [asked.question for asked in passage.questions]
        assert len(questions) == len(set(questions))


def test_another_passage_does_not_hold_the_answer() -> None:
    """Less than 1 % of answers are in the passage of the same kind that comes next."""
    asked = held = 0
    for kind in kinds():
        rng = random.Random(kind.name)
        passages = [fact_passage(rng, kind) for _ in range(60)]
        for passage, other in pairwise(passages):
            asked += len(passage.questions)
            held += sum(_holds(other.text, question.answer) for question in passage.questions)
    assert held < 0.01 * asked


def test_recall_records_render_as_json() -> None:
    """Keys are distinct, the value belongs to the key, and the object reads back."""
    rng = random.Random(0)
    for _ in range(60):
        records, key, value = recall_records(rng)
        assert len({name for name, _ in records}) == len(records) == 8
        assert [key, value] in records
        rendered = render_recall(records)
        assert json.loads(rendered.removeprefix("JSON data:\n")) == dict(records)
        assert f'"{key}": "{value}"' in rendered
        assert key in recall_question(key, rng)


def test_recall_records_of_a_kind() -> None:
    """UUIDs on request; the paper's question by default; equal seeds, equal records."""
    records, key, _ = recall_records(random.Random(1), 5, keys="uuid", values="uuid")
    assert len(records) == 5
    assert all(
        re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", word)
        for pair in records
        for word in pair
    )
    assert recall_question(key) == f'Key: "{key}"\nCorresponding value:'
    assert recall_records(random.Random(2)) == recall_records(random.Random(2))


def test_cloze_answers_stand_in_the_paragraph() -> None:
    """Blanks and continuations, of which there are many, all word for word in the text."""
    questions = [q for q in (cloze(PARAGRAPH, random.Random(seed)) for seed in range(200)) if q]
    assert len(questions) == 200
    assert all(asked.answer in PARAGRAPH for asked in questions)
    assert len({asked.question for asked in questions}) > 60
    blanks = [asked for asked in questions if "____" in asked.question]
    assert {"1887", "Henrik Lund", "12 March 1921"} <= {blank.answer for blank in blanks}
    assert all(blank.answer not in blank.question for blank in blanks)


def test_cloze_restores_the_sentence() -> None:
    """The answer set into the blank gives the sentence back."""
    for seed in range(100):
        asked = cloze(PARAGRAPH, random.Random(seed))
        assert asked is not None
        if "____" in asked.question:
            gap = next(line for line in re.split(r"(?<=[:?]) ", asked.question) if "____" in line)
            assert gap.replace("____", asked.answer) in PARAGRAPH
        else:
            cue = asked.question.split("“")[1].split("”")[0]
            assert f"{cue} {asked.answer}" in PARAGRAPH


@pytest.mark.parametrize(
    "piece", ["", "Too short.", " = Heading = \n", "a b c d e f g h i <unk> j k l m."]
)
def test_cloze_gives_up(piece: str) -> None:
    """Nothing to ask for, nothing asked."""
    assert cloze(piece, random.Random(0)) is None
