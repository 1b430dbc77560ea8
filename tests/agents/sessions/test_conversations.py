"""Conversations that go on from run to run: what an agent reads, and what a run leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.agents import Agent, LocalModel, Session, Workflow
from unspoken.agents.runs import RunStore
from unspoken.agents.sessions import Conversation, SessionStore
from unspoken.agents.testing import ScriptedModel, tiny_model
from unspoken.channels import (
    AgentError,
    IdentityMismatch,
    InputError,
    RunWaiting,
    StoreError,
    UnspokenError,
    WorkflowError,
)

FEW = {"max_new_tokens": 8}
ASKED = ("the key of the cache is in the document", "who is the reader?", "what of the cache?")


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.fixture
def script() -> ScriptedModel:
    return ScriptedModel(lambda agent, turn, prompt: f"{agent} hears {len(prompt)}")


def chat(model: Any, **agent: Any) -> Workflow:
    """One agent that goes on with a session's conversation."""
    settings = {"prompt": "{{ inputs.words }}", "generate": FEW, "memory": "session", **agent}
    return Workflow("chat", [Agent("talker", model, **settings)])


def say(flow: Workflow, session: Session, *words: str, **more: Any) -> list[Any]:
    """The report of a run for each of these words, and what was answered."""
    results = [flow.run(words=one, session=session, **more) for one in words]
    return [(one["talker"].text, *one.report.agents["talker"]) for one in results]


def of(session: Session) -> tuple[Conversation, ...]:
    return session.conversations()


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_a_conversation_goes_on_in_another_process_without_being_computed_again(
    family: Any, tmp_path: Path
) -> None:
    """In memory, from disk, and computed again: the same words, and the states say which."""
    flow, answers, reused = chat(tiny_model(family=family)), {}, {}

    def last(name: str, session: Session) -> None:
        ((answers[name], turn),) = say(flow, session, ASKED[2])
        reused[name] = turn.reused_tokens

    with Session() as session:
        say(flow, session, *ASKED[:2])
        last("memory", session)
    for states in (True, False):
        for words in ASKED[:2]:
            with Session(name="anna", store=tmp_path / str(states), states=states) as session:
                say(flow, session, words)
        with Session(name="anna", store=tmp_path / str(states)) as session:
            (before,) = of(session)
            last(f"disk {states}", session)
    assert len(set(answers.values())) == 1
    assert reused["disk True"] == reused["memory"] >= len(before.context.ids) - 1
    assert reused["disk False"] == 0


def test_answers_are_those_of_transformers_on_the_whole_conversation(model: LocalModel) -> None:
    """The ids of the context are the conversation, and each answer follows from all before it."""
    with Session() as session:
        say(chat(model), session, *ASKED)
        (talk,) = of(session)
    assert [role for role, _ in talk.words].count("assistant") == len(ASKED)
    (last,) = talk.context.segments[-1:]
    start = last.position + last.content[0]
    ids = torch.tensor([talk.context.ids[:start]])
    wanted = model.hf.generate(ids, max_new_tokens=len(last.words), do_sample=False)
    assert tuple(wanted[0, start:].tolist()) == last.words


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_said_is_read_in_the_next_run(
    script: ScriptedModel, stored: bool, tmp_path: Path
) -> None:
    """By the same agent of the same workflow alone, and not by agents that forget."""
    where: dict[str, Any] = {"name": "anna", "store": tmp_path} if stored else {}
    with Session(**where) as session:
        say(chat(script), session, "I am Anna.", "Who am I?")
        say(chat(script, memory="run"), session, "Who am I?")
        other = Workflow("other", [Agent("talker", script, prompt="Who?", memory="session")])
        other.run(session=session)
        assert [one.key for one in of(session)] == [("chat", "talker"), ("other", "talker")]
    asked = script.prompts["talker"]
    assert ["Anna" in prompt for prompt in asked] == [True, True, False, False]


def test_a_loop_goes_on_from_the_last_turn_of_the_run_before(script: ScriptedModel) -> None:
    """Within a run the context grows as with memory: run, and all of it stays."""
    agents = [
        Agent("talker", script, prompt="turn {{ turn }}", memory="session", max_turns=2),
        Agent("critic", script, prompt="{{ talker.text }}", memory="session"),
    ]
    flow = Workflow("loop", agents).connect("talker", "critic")
    flow.connect("critic", "talker", loop=True)
    with Session() as session:
        for _ in range(2):
            flow.run(session=session)
        counts = {
            one.agent: [role for role, _ in one.words].count("assistant") for one in of(session)
        }
    assert counts == {"talker": 4, "critic": 4}


def test_a_document_is_read_in_each_run(model: LocalModel) -> None:
    """Messages of other agents come into the conversation as into any context."""
    agents = [
        Agent("reader", model, prompt="{{ inputs.words }}", generate=None),
        Agent("talker", model, prompt="what of it?", generate=FEW, memory="session"),
    ]
    answers: dict[str, list[str]] = {}
    for channel in ("text", "auto"):
        flow = Workflow("read", agents).connect("reader", "talker", channel)
        with Session() as session:
            answers[channel] = [one for one, *_ in say(flow, session, *ASKED)]
            (talk,) = of(session)
        assert all(words in str(talk.words) for words in ASKED)
    assert answers["text"][0] == answers["auto"][0]


@pytest.mark.parametrize("stored", [False, True])
def test_a_run_that_does_not_end_well_leaves_the_conversation(stored: bool, tmp_path: Path) -> None:
    """A turn that fails is as if it had not been; one that is tried again counts once."""
    broken: list[bool] = []

    def answer(agent: str, turn: int, prompt: str) -> str:
        if broken:
            broken.pop()
            raise TimeoutError
        return "fine"

    where: dict[str, Any] = {"name": "anna", "store": tmp_path} if stored else {}
    script = ScriptedModel(answer)
    with Session(**where) as session:
        say(chat(script), session, "one")
        before = of(session)
        broken.append(True)
        with pytest.raises(AgentError):
            say(chat(script), session, "two")
        assert of(session) == before
        broken.append(True)
        flow = chat(script, on_error="skip")
        flow.run(words="three", session=session)
        assert [one.context for one in of(session)] == [one.context for one in before]
        broken.append(True)
        say(chat(script, retry={"attempts": 2, "wait": 0}), session, "four")
        (talk,) = of(session)
    said = [text for role, text in talk.words if role == "user"]
    assert said == ["one", "four"]


def test_a_conversation_that_fills_the_context_is_told_with_its_figures(tmp_path: Path) -> None:
    """And it stays as it was, until somebody begins it anew."""
    script = ScriptedModel({"talker": "word " * 20}, max_positions=128)
    where: dict[str, Any] = {"name": "anna", "store": tmp_path}
    with Session(**where) as session:
        say(chat(script), session, "go " * 30)
        before = of(session)
        found = r"the conversation of 'talker' has \d+ tokens, and \d+ with this turn"
        with pytest.raises(AgentError, match=found):
            say(chat(script), session, "go " * 100)
        assert of(session) == before
    with Session(**where, anew=True) as session:
        assert of(session) == before
        say(chat(script), session, "anew")
        say(chat(script), session, "and on")
        (talk,) = of(session)
    assert [text for role, text in talk.words if role == "user"] == ["anew", "and on"]


def test_another_model_or_system_prompt_is_refused_with_the_difference(
    model: LocalModel, tmp_path: Path
) -> None:
    """Nobody goes on with a conversation of other weights, unless it begins anew."""
    where: dict[str, Any] = {"name": "anna", "store": tmp_path}
    with Session(**where) as session:
        say(chat(model, system="Be brief."), session, "one")
        with pytest.raises(IdentityMismatch, match="of a model with other weights"):
            say(chat(tiny_model(1), system="Be brief."), session, "two")
        with pytest.raises(StoreError, match=r"another system prompt: 'Be brief\.'"):
            say(chat(model, system="Be long."), session, "two")
        assert len(of(session)[0].words) == 3
    with Session(**where, anew=True) as session:
        say(chat(tiny_model(1)), session, "two")


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_state_that_is_gone_is_computed_again(
    model: LocalModel, harm: str, tmp_path: Path
) -> None:
    where: dict[str, Any] = {"name": "anna", "store": tmp_path}
    with Session(**where) as session:
        say(chat(model), session, ASKED[0])
        (packet,) = SessionStore(tmp_path).folder_of("anna").glob("*.packet")
        plain = say(chat(model), session, ASKED[1])
    (packet,) = SessionStore(tmp_path).folder_of("anna").glob("*.packet")
    if harm == "missing":
        packet.unlink()
    else:
        packet.write_bytes(packet.read_bytes()[:-1] + b"!")
    with Session() as memory:
        wanted = say(chat(model), memory, *ASKED)[2][0]
    with Session(**where) as session:
        ((text, turn),) = say(chat(model), session, ASKED[2])
    assert plain[0][1].reused_tokens > 0 == turn.reused_tokens and text == wanted


def test_a_conversation_needs_a_session(script: ScriptedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run has no session"):
        chat(script).run(words="one")
    with Session(store=tmp_path) as session, pytest.raises(InputError, match="and no name"):
        say(chat(script), session, "one")
    with Session() as session, pytest.raises(WorkflowError, match="memory: session and for_each"):
        chat(script, for_each="[inputs.words]").run(words=["one"], session=session)


def test_a_run_that_waits_leaves_the_conversation_until_it_has_ended(
    script: ScriptedModel, tmp_path: Path
) -> None:
    """The person's words are what was said; the run goes on in another session object."""
    where: dict[str, Any] = {"name": "anna", "store": tmp_path}
    flow = chat(script, ask="edit")
    kept: dict[str, Any] = {"store": RunStore(tmp_path)}
    with Session(**where) as session, pytest.raises(RunWaiting):
        flow.run(words="one", session=session, run_id="a", **kept)
    with Session(**where) as session:
        assert of(session) == ()
        flow.resume("a", "my own words", session=session, **kept)
        before = of(session)
        assert before[0].words[-1] == ("assistant", "my own words")
        again = flow.run(run_id="a", session=session, **kept)
        assert again["talker"].text == "my own words" and of(session)[0].words == before[0].words
        with pytest.raises(RunWaiting):
            flow.run(words="two", session=session, run_id="b", **kept)
        flow.run(words="three", session=session, on_question=lambda asked: "yes", **kept)
        with pytest.raises(StoreError, match="conversation of agent talker was"):
            flow.resume("b", "late words", session=session, **kept)
        with pytest.raises(StoreError, match="session was 'anna', and is 'berta'"):
            flow.resume("b", session=session.named("berta"), **kept)


def test_a_run_that_begins_a_conversation_anew_does_so_when_it_goes_on(
    script: ScriptedModel, tmp_path: Path
) -> None:
    """It waits for a person, and nobody says once more that it is to begin anew."""
    where: dict[str, Any] = {"name": "anna", "store": tmp_path}
    flow = chat(script, ask="edit")
    with Session(**where) as session:
        say(chat(script), session, "old")
    with Session(**where, anew=True) as session, pytest.raises(RunWaiting):
        flow.run(words="new", session=session, run_id="a", store=tmp_path)
    with Session(**where) as session:
        flow.resume("a", "my own words", session=session, store=tmp_path)
        (talk,) = of(session)
        assert [text for _, text in talk.words] == ["new", "my own words"]
        again = flow.run(run_id="a", session=session, store=tmp_path)
        assert again["talker"].text == "my own words"


def test_a_run_whose_outputs_fail_leaves_the_conversation(script: ScriptedModel) -> None:
    """Another try does not read what was said in vain."""
    talker = Agent("talker", script, prompt="{{ inputs.words }}", memory="session")
    fails = Workflow("chat", [talker], outputs={"answer": "{{ talker.text + 1 }}"})
    with Session() as session:
        say(chat(script), session, "one")
        before = of(session)
        with pytest.raises(UnspokenError):
            fails.run(words="two", session=session)
        assert of(session) == before


def test_an_answer_that_cannot_be_taken_back_costs_no_outputs(
    script: ScriptedModel, tmp_path: Path
) -> None:
    """The session has moved on since, so the run cannot."""
    flow = chat(script, ask="edit")
    with Session(name="anna", store=tmp_path) as session:
        first = flow.run(
            words="one", session=session, run_id="a", store=tmp_path, on_question=lambda _: "first"
        )
        say(chat(script), session, "two")
        with pytest.raises(StoreError):
            flow.resume("a", "second", again=True, session=session, store=tmp_path)
    assert RunStore(tmp_path).get("a").outputs == first.outputs
