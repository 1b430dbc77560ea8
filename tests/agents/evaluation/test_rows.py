"""Rows of an evaluation: columns, contexts, and who stands in for whom."""

from typing import Any

import pytest

from unspoken.agents.evaluation.controls import neighbours, strangers
from unspoken.agents.evaluation.rows import (
    Columns,
    EvalRow,
    digests_of,
    drawn,
    make_rows,
    read_mapping,
)
from unspoken.agents.evaluation.words import cut_to, nearest
from unspoken.agents.spec.loader import loads
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels import InputError

SPEC = """
name: ask
models: {m: some/model}
inputs: {document: text, question: text, tone: {type: text, default: plain}}
agents:
  solver: {model: m, prompt: "{{ inputs.document }} {{ inputs.question }} {{ inputs.tone }}"}
"""


def spec() -> WorkflowSpec:
    return loads(SPEC, "ask.yaml").spec


def raw(number: int, **more: Any) -> dict[str, Any]:
    return {"document": f"text {number}", "question": "who?", "gold": "me", **more}


def row(number: int, context: str, text: str = "", topic: str = "") -> EvalRow:
    return EvalRow(
        id=str(number), context=context, inputs={"document": text}, gold="x", topic=topic
    )


def test_columns_become_inputs() -> None:
    """By the mapping, by their own name, fixed for all rows, or by the input's default."""
    rows = [{"q": "who?", "passage": {"text": "It is me."}, "answers": {"text": ["me", "I"]}}]
    columns = Columns(
        inputs=read_mapping(["q=inputs.question", "passage.text=document"]), gold="answers.text"
    )
    (made,) = make_rows(spec(), rows, columns)
    assert made.inputs == {"document": "It is me.", "question": "who?", "tone": "plain"}
    assert (made.id, made.context, made.gold) == ("1", "1", ["me", "I"])
    (made,) = make_rows(spec(), rows, columns, {"tone": "grave"})
    assert made.inputs["tone"] == "grave"


def test_rows_of_one_context_say_so() -> None:
    """By the column `context` where all rows have it; a long one is known by its digest."""
    rows = [raw(n, context="c" * 100 if n < 2 else "short") for n in range(3)]
    contexts = [one.context for one in make_rows(spec(), rows, Columns())]
    assert contexts[0] == contexts[1] != contexts[2] == "short" and len(contexts[0]) < 40


def test_rows_with_one_document_are_of_one_context() -> None:
    """Where no column says so: by what the agents before the scored one read."""
    rows = [raw(1), raw(2), raw(1, question="where?")]
    contexts = [one.context for one in make_rows(spec(), rows, Columns(), shared=["document"])]
    assert contexts == ["1", "2", "1"]


def test_an_input_that_some_rows_have_is_read_from_them() -> None:
    """The first row may lack it, and is then refused rather than the others left at a default."""
    with pytest.raises(InputError, match="row 1 has no column 'tone'"):
        make_rows(spec(), [raw(1), raw(2, tone="grave")], Columns())


@pytest.mark.parametrize(
    ("rows", "columns", "found"),
    [
        ([{"gold": "x"}], Columns(), "input 'document' has no column"),
        ([raw(1)], Columns(inputs={"question": "inputs.qestion"}), "input 'qestion'"),
        ([raw(1)], Columns(gold="answer"), "row 1 has no column 'answer'"),
        ([raw(1, tone="me")], Columns(gold="tone"), "the column of what is right"),
        ([raw(1, question=7)], Columns(), "row 1: input 'question'"),
        ([raw(1, id="a"), raw(2, id="a")], Columns(), "two rows are called 'a'"),
        ([], Columns(), "no rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: Any, columns: Columns, found: str) -> None:
    """Before anything runs, with the row and the column."""
    with pytest.raises(InputError, match=found):
        make_rows(spec(), rows, columns)


def test_a_smaller_limit_is_the_beginning_of_a_larger_one() -> None:
    """And the seed draws the order."""
    rows = make_rows(spec(), [raw(n) for n in range(30)], Columns())
    few, many = drawn(rows, 5, 0), drawn(rows, 20, 0)
    assert few == many[:5] and few != rows[:5] and few != drawn(rows, 5, 1)
    assert len(drawn(rows, None, 0)) == 30


def test_a_digest_is_of_all_that_a_row_holds() -> None:
    """Another gold answer is another row."""
    one, other = (make_rows(spec(), [raw(1, gold=gold)], Columns()) for gold in "ab")
    assert digests_of(one) != digests_of(other) and digests_of(one).keys() == {"1"}


def test_a_stranger_is_of_another_context() -> None:
    """For every row, the same one for one seed."""
    rows = [row(n, str(n // 3)) for n in range(9)]
    chosen = strangers(rows, 0)
    assert all(chosen[one.id].context != one.context for one in rows)
    assert chosen == strangers(rows, 0) != strangers(rows, 1)
    with pytest.raises(InputError, match="one context"):
        strangers(rows[:3], 0)


def test_a_neighbour_is_of_the_same_topic_or_the_nearest() -> None:
    """By topic where the rows have one, else by rare words."""
    rows = [
        row(1, "a", "the lighthouse keeper lit the lamp"),
        row(2, "b", "the lamp of the lighthouse is lit at dusk"),
        row(3, "c", "the cook baked the bread"),
    ]
    by_words = neighbours(rows, 0, lambda one: str(one.inputs["document"]))
    assert (by_words["1"].id, by_words["2"].id) == ("2", "1")
    topics = [row(1, "a", "same", "x"), row(2, "b", "same", "y"), row(3, "c", "other", "x")]
    assert neighbours(topics, 0, lambda one: str(one.inputs["document"]))["1"].id == "3"


def test_rows_of_one_context_are_no_neighbours() -> None:
    """However alike they are."""
    assert nearest(["a b c", "a b c", "c d e"], ["x", "x", "y"]) == [2, 2, 0]


def words(text: str) -> int:
    return len(text.split())


def test_a_cut_keeps_what_is_asked_about() -> None:
    """The sentences with the question's words, in the order of the text, within the budget."""
    text = "The sky is blue. The station was built in 1887. Bread is baked. Its keeper was Ann."
    assert cut_to({0: text}, "When was the station built?", 6, words) == {
        0: "The station was built in 1887."
    }
    assert cut_to({0: text}, "Who was keeper of the station?", 10, words) == {
        0: "The station was built in 1887. Its keeper was Ann."
    }
    assert cut_to({0: text, 1: "More."}, "any", 100, words) == {0: text, 1: "More."}
    assert cut_to({0: text}, "When was the station built?", 3, words) == {0: "The station was"}
    assert cut_to({0: text, 1: "More."}, "sky", 0, words) == {0: "", 1: ""}
