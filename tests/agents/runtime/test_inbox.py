"""Messages that an agent published elsewhere."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from flows import Pair
from pairs import load

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import Worker
from unspoken.agents.runtime.states import StateStore
from unspoken.channels import read_packet, write_packet
from unspoken.channels.errors import IdentityMismatch, InputError, StateError
from unspoken.channels.message import Message

TEXT = "the key of the document is with the reader, and its value is that of the thing"
KEY = b"a key of sixteen bytes"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load(tmp_path_factory.mktemp("received"))


def build(model: LocalModel, share: str | None = None) -> Workflow:
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", model, prompt="Who?", generate={"max_new_tokens": 4})
    flow = Workflow("two", [reader, solver])
    return flow.connect(reader, solver, "same_model_cache", share=share)


def test_a_message_out_of_a_packet_answers_like_the_agent_itself(models: Pair) -> None:
    model, _ = models
    stream = io.BytesIO()
    write_packet(model.message(TEXT), stream, key=KEY)
    stream.seek(0)
    flow = build(model)
    here = flow.run(document=TEXT)
    there = flow.run({"reader": read_packet(stream, model, key=KEY)}, document="")
    assert there.outputs == here.outputs
    assert there["reader"].text == TEXT
    assert there.report.agents["reader"] == ()
    (mine,), (theirs,) = here.report.agents["solver"], there.report.agents["solver"]
    assert (theirs.reused_tokens, theirs.prompt_tokens) == (mine.reused_tokens, mine.prompt_tokens)
    assert mine.reused_tokens > len(TEXT.split())
    assert [edge.exact for edge in there.report.edges] == [True]


def test_a_message_without_a_state_goes_by_text(models: Pair) -> None:
    model, _ = models
    message = replace(model.message(TEXT), state=None)
    flow = build(model)
    result = flow.run({"reader": message}, document="")
    assert result.outputs == flow.run(document=TEXT).outputs
    assert result.report.edges[0].channel == "text"
    assert result.report.fallbacks


def test_a_message_for_nobody_is_refused(models: Pair) -> None:
    model, _ = models
    with pytest.raises(InputError, match="'raeder'") as caught:
        build(model).run({"raeder": model.message(TEXT)}, document="")
    assert "reader" in caught.value.fix


def test_another_agents_message_is_refused(models: Pair) -> None:
    """A packet of the critic does not pass for one of the reader; the error names both."""
    model, _ = models
    with pytest.raises(InputError, match="received for 'reader' says that 'critic'") as caught:
        build(model).run({"reader": model.message(TEXT, sharer="critic")}, document="")
    assert "sharer='reader'" in caught.value.fix


def test_another_models_message_is_refused(models: Pair) -> None:
    model, other = models
    with pytest.raises(IdentityMismatch, match="received for 'reader'"):
        build(model).run({"reader": other.message(TEXT)}, document="")


def test_words_do_not_stand_in_for_a_context(models: Pair) -> None:
    model, _ = models
    with pytest.raises(InputError, match="shares context") as caught:
        build(model, "context").run({"reader": model.message(TEXT)}, document="")
    assert "share: prompt" in caught.value.fix


def test_a_lossy_packet_is_reused_and_reported_inexact(tmp_path: Path, models: Pair) -> None:
    """What int8 rounds is never called exact."""
    model, _ = models
    file = tmp_path / "message.packet"
    write_packet(model.message(TEXT), file, key=KEY, codec="int8")
    result = build(model).run({"reader": read_packet(file, model, key=KEY)}, document="")
    (edge,) = result.report.edges
    assert not edge.exact
    assert result.report.agents["solver"][0].reused_tokens > len(TEXT.split())


def test_the_engine_takes_a_received_state_in(
    models: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may compute elsewhere than where the message was read, and it checks what it takes."""
    model, _ = models
    taken: list[Message] = []
    admit = LocalEngine.admit

    async def watched(engine: LocalEngine, source: Any, key: bytes | None = None) -> Any:
        taken.append(source)
        return await admit(engine, source, key)

    monkeypatch.setattr(LocalEngine, "admit", watched)
    message = model.message(TEXT)
    result = build(model).run({"reader": message}, document="")
    assert taken == [message] and result.report.edges[0].exact
    engine = LocalEngine(model, StateStore(), Worker("received"))
    with pytest.raises(StateError, match="brings no state"):
        anyio.run(admit, engine, replace(message, state=None))
    stranger = replace(message, identity=replace(model.identity, weights="other"))
    with pytest.raises(IdentityMismatch):
        anyio.run(admit, engine, stranger)
