"""What people answer to the questions of a run."""

import re
from collections.abc import Mapping
from dataclasses import replace

from unspoken.agents.runs.records import Question, StoredRun
from unspoken.agents.runs.store import RunStore
from unspoken.agents.spec.generate import GenerateSpec
from unspoken.channels.errors import InputError, StoreError

_YES, _NO = ("yes", "y", "true", "approve", "ok"), ("no", "n", "false", "refuse", "reject")


def answer_questions(
    store: RunStore, run: str, answer: str | bool | Mapping[str, str | bool], *, again: bool = False
) -> tuple[Question, ...]:
    """Keep the answer to what a run asks, or answers by question.

    Args:
        store: Where the run is.
        run: Its id.
        answer: An answer, where the run asks one thing; else answers by the questions' ids.
        again: Whether an answer that was given is taken back for this one. What was handed over
            since is taken back with it, and runs again where it reads something else.

    Returns:
        The questions that are left.

    Raises:
        StoreError: There is no such run, or it was cancelled; with `again`, it goes on elsewhere.
        InputError: It asks no such thing, or several where one answer is given, or was answered
            meanwhile.
    """
    if not again:
        return _answered(store, run, answer, again=False)
    lock = store.lock(run)
    lock.acquire()
    try:
        return _answered(store, run, answer, again=True)
    finally:
        lock.release()


def _answered(
    store: RunStore, run: str, answer: str | bool | Mapping[str, str | bool], *, again: bool
) -> tuple[Question, ...]:
    """Check the answers and keep them; to take others back, nobody may go on with the run."""
    stored = store.get(run)
    if stored.status == "cancelled":
        raise StoreError(
            f"run {run} was cancelled",
            kind="over",
            expected="a run that waits",
            fix="go on with it anyway: unspoken runs resume --anyway",
        )
    asked = {one.id: one for one in (stored.questions if again else stored.open)}
    if not isinstance(answer, Mapping):
        if len(asked) != 1:
            raise InputError(
                f"one answer was given, and run {run} {'asked' if again else 'asks'} "
                f"{len(asked)} things",
                expected=f"an answer to each of: {', '.join(asked)}" if asked else "no answer",
                fix="say which with --question ID (in Python, a mapping)" if asked else "resume it",
            )
        answer = dict.fromkeys(asked, answer)
    for name in answer:
        if name not in asked:
            raise InputError(
                f"run {run} {'asked' if again else 'asks'} no question {name!r}",
                expected="one of: " + ", ".join(asked) if asked else "no answer",
                fix=f"see unspoken runs show {run}",
            )
    checked = {
        name: checked_answer(asked[name], said, _settings(stored, asked[name]))
        for name, said in answer.items()
    }
    if not again:
        store.answer(run, checked)
    else:
        answered = [replace(asked[name], answer=said) for name, said in checked.items()]
        store.answer_again(run, answered)
    return tuple(one for one in asked.values() if one.id not in checked and one.answer is None)


def _settings(run: StoredRun, question: Question) -> GenerateSpec | None:
    """How the agent answers that a question is about, which may be in a sub-workflow."""
    *scopes, name = question.agent.split("/")
    agents = run.origin.workflow.get("agents", {})
    for scope in scopes:
        inner = agents.get(scope.split(".")[0], {}).get("workflow") or {}
        agents = inner.get("agents", {})
    settings = agents.get(name, {}).get("generate")
    return GenerateSpec.model_validate(settings) if isinstance(settings, dict) else None


def checked_answer(
    question: Question, answer: str | bool, settings: GenerateSpec | None = None
) -> str:
    """An answer as it is kept: ``yes`` or ``no`` to what wants approval, else the words.

    Args:
        question: What was asked.
        answer: What the person said.
        settings: What an answer of the question's agent must look like; None for any words.

    Raises:
        InputError: Neither yes nor no, where approval is asked for, no words, or words that the
            agent itself could not have written.
    """
    if question.kind != "approve":
        if isinstance(answer, str):
            if settings is not None and not question.receiver:
                _require_shape(question, answer, settings)
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


def _require_shape(question: Question, words: str, settings: GenerateSpec) -> None:
    """Refuse words that would fail the turn each time that the run goes on."""
    found, expected = f"the answer to the question {question.id} is not as its agent's are", ""
    if settings.choices and words not in settings.choices:
        expected = "one of: " + ", ".join(settings.choices)
    if settings.regex is not None:
        try:
            if re.fullmatch(settings.regex, words) is None:
                expected = f"words of the form {settings.regex}"
        except re.error:  # of a dialect that Python does not read
            pass
    if settings.schema_ is not None:
        try:
            settings.schema_.read(words)
        except ValueError as error:
            expected = f"whole JSON of its schema; {str(error)[:200]}"
    if expected:
        raise InputError(found, expected=expected, fix="answer again")
