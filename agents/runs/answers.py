"""What people answer to the questions of a run."""

from collections.abc import Mapping

from unspoken.agents.runs.records import Question
from unspoken.agents.runs.store import RunStore
from unspoken.channels.errors import InputError, StoreError

_YES, _NO = ("yes", "y", "true", "approve", "ok"), ("no", "n", "false", "refuse", "reject")


def answer_questions(
    store: RunStore, run: str, answer: str | bool | Mapping[str, str | bool]
) -> tuple[Question, ...]:
    """Keep the answer to what a run asks, or answers by question.

    Args:
        store: Where the run is.
        run: Its id.
        answer: An answer, where the run asks one thing; else answers by the questions' ids.

    Returns:
        The questions that are left.

    Raises:
        StoreError: There is no such run, or it was cancelled.
        InputError: It asks no such thing, or several where one answer is given, or was answered
            meanwhile.
    """
    stored = store.get(run)
    if stored.status == "cancelled":
        raise StoreError(
            f"run {run} was cancelled",
            kind="over",
            expected="a run that waits",
            fix="go on with it anyway: unspoken runs resume --anyway",
        )
    asked = {one.id: one for one in stored.open}
    if not isinstance(answer, Mapping):
        if len(asked) != 1:
            raise InputError(
                f"one answer was given, and run {run} asks {len(asked)} things",
                expected=f"an answer to each of: {', '.join(asked)}" if asked else "no answer",
                fix="say which with --question ID (in Python, a mapping)" if asked else "resume it",
            )
        answer = dict.fromkeys(asked, answer)
    for name in answer:
        if name not in asked:
            raise InputError(
                f"run {run} asks no question {name!r}",
                expected="one of: " + ", ".join(asked) if asked else "no answer",
                fix=f"see unspoken runs show {run}",
            )
    checked = {name: checked_answer(asked[name], said) for name, said in answer.items()}
    store.answer(run, checked)
    return tuple(question for name, question in asked.items() if name not in checked)


def checked_answer(question: Question, answer: str | bool) -> str:
    """An answer as it is kept: ``yes`` or ``no`` to what wants approval, else the words.

    Raises:
        InputError: Neither yes nor no, where approval is asked for, or no words.
    """
    if question.kind != "approve":
        if isinstance(answer, str):
            return answer
        found = f"{answer!r} answers the question {question.id}, which asks for words"
        raise InputError(found, expected="a text")
    word = str(answer).strip().lower()
    if word in (*_YES, *_NO):
        return "yes" if word in _YES else "no"
    raise InputError(
        f"{str(answer)[:40]!r} answers the question {question.id}, which asks for approval",
        expected="yes or no",
        fix="to change the words, write ask: edit in the workflow",
    )
