"""A cache in fewer bytes: what is held and reported, and how near it stays."""

from typing import Any

import pytest
import torch
from architectures import make
from flows import DOCUMENT, QUESTION, Pair, reader_solver, sound

from unspoken.agents import LocalModel, Workflow
from unspoken.agents.engines.local import LocalEngine
from unspoken.channels.errors import WorkflowError
from unspoken.channels.kv.compressed import compress, compressed_bytes_per_token


def flow(model: LocalModel, **edge: Any) -> Workflow:
    return reader_solver(model, model, "same_model_cache", **edge)


@pytest.mark.parametrize(("codec", "most"), [("int8", 0.4), ("int4", 0.3)])
def test_a_kept_cache_takes_fewer_bytes_and_is_not_called_exact(
    models: Pair, codec: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    turn = LocalEngine.turn

    async def spy(engine: LocalEngine, *args: Any) -> Any:
        held.append(engine.states.bytes_held)  # type: ignore[attr-defined]
        return await turn(engine, *args)

    monkeypatch.setattr(LocalEngine, "turn", spy)
    raw = flow(models[0]).run(document=DOCUMENT, question=QUESTION).report
    small = sound(flow(models[0], codec=codec).run(document=DOCUMENT, question=QUESTION).report)
    _, raw_held, _, small_held = held  # when the solver starts
    assert 0 < small_held < most * raw_held
    assert small.edges[0].bytes < most * raw.edges[0].bytes
    assert raw.edges[0].exact and not small.edges[0].exact
    assert small.agents["solver"][0].reused_tokens == raw.agents["solver"][0].reused_tokens


def test_the_plan_says_so_with_its_bytes(models: Pair) -> None:
    (raw,) = flow(models[0]).plan().edges
    (small,) = flow(models[0], codec="int8").plan().edges
    assert 0 < small.bytes_per_token < raw.bytes_per_token
    geometry, dtype = models[0].geometry, models[0].dtype
    assert raw.bytes_per_token == geometry.bytes_per_token(4)
    assert small.bytes_per_token == compressed_bytes_per_token("int8", geometry, dtype)


def test_text_edges_have_nothing_to_keep(models: Pair) -> None:
    made = reader_solver(models[0], models[0], "text", codec="int8")
    report = made.run(document=DOCUMENT, question=QUESTION).report
    assert report.edges[0].exact


def test_layers_computed_anew_begin_from_exact_hidden_states(models: Pair) -> None:
    """The codec rounds only keys and values of a fine-tune's message; all layers again are text."""
    made = reader_solver(*models, "same_model_cache", codec="int8", recompute=[[0, 2]])
    text = reader_solver(*models, "text").run(document=DOCUMENT, question=QUESTION)
    found = made.run(document=DOCUMENT, question=QUESTION)
    assert found.outputs == text.outputs
    assert found.report.edges[0].recomputed_layers == 2


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(("codec", "near"), [("int8", 0.02), ("int4", 0.2)])
def test_what_is_unpacked_is_near_what_was_packed(name: str, codec: Any, near: float) -> None:
    state = make(name).read(tuple(range(3, 75)), capture=(2,))
    back = compress(state, codec).decompress()
    assert (back.start, back.stop, back.approximate_from) == (0, 72, 0)
    assert torch.equal(back.hidden[2], state.hidden[2])
    for left, right in zip(state.layers, back.layers, strict=True):
        for one, other in ((left.keys, right.keys), (left.values, right.values)):
            assert one.dtype == other.dtype
            assert float((one - other).norm() / one.norm()) < near


def test_a_packed_slice_does_not_keep_the_whole(models: Pair) -> None:
    state = models[0].read(tuple(range(3, 75)), capture=(1,))
    compressed = compress(state.slice(0, 8), "int8")
    assert compressed.hidden[1].untyped_storage().nbytes() == compressed.hidden[1].nbytes


def test_a_codec_that_there_is_not_is_refused(models: Pair) -> None:
    with pytest.raises(WorkflowError, match="codec"):
        flow(models[0], codec="int2")
