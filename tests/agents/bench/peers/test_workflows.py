"""The turns that other sides are given are those of our own workflows."""

from typing import Any

import pytest

from unspoken.agents.bench.peers import compared
from unspoken.agents.bench.peers.peer_workers import batched, ours
from unspoken.agents.bench.peers.peer_workers.serving import Case, Job, Outcome
from unspoken.agents.bench.peers.peer_workers.turns import answers, waves
from unspoken.agents.bench.peers.workflows import FAN_IN, WARM_UP, WORKFLOWS, turns_of
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing import tiny_model

DOCUMENT, NEW = "the key of the value is one of the keys", 3


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.fixture(scope="module")
def job(model: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What a worker is told of the tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    model.hf.save_pretrained(folder)
    return {
        "folder": str(folder),
        "dtype": "float32",
        "pad": model.tokenizer.pad_token_id or 0,
        "stop_ids": sorted(model.stop_ids),
        "threads": 1,
        "ref": "tiny",
        "cached": True,
    }


def case_of(model: LocalModel, name: str) -> Case:
    turns = turns_of(WORKFLOWS[name](model, NEW), model, DOCUMENT, NEW)
    data = [turn.as_data() for turn in turns]
    return {"name": name, "document": DOCUMENT, "tokens": NEW, "turns": data}


def texts(model: LocalModel, outcome: Outcome) -> dict[str, str]:
    return {
        name: (words if isinstance(words, str) else model.text.decode(words)).strip()
        for name, words in outcome.written.items()
    }


@pytest.mark.parametrize("name", WORKFLOWS)
def test_ours_and_generate_read_and_write_the_same(
    model: LocalModel, job: Job, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt is as long as ours, and what follows it is what our agents write."""
    monkeypatch.setattr(ours.LocalModel, "load", lambda ref: model)
    case = case_of(model, name)
    own, theirs = ours.load(job).run(case), batched.load(job).run(case)
    assert texts(model, own) == texts(model, theirs)
    assert set(theirs.first) == set(own.first) == set(theirs.written)
    turns = turns_of(WORKFLOWS[name](model, NEW), model, DOCUMENT, NEW)
    assert own.prompt_tokens == {turn.name: turn.length() for turn in turns}
    assert own.computed < theirs.computed or len(theirs.written) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_graph_s_nodes_write_the_same(model: LocalModel, job: Job, cached: bool) -> None:
    """With caches of its own, LangGraph's program computes less and writes the same."""
    pytest.importorskip("langgraph", reason="the extra `peers` is not installed")
    from unspoken.agents.bench.peers.peer_workers import graph

    case = case_of(model, FAN_IN)
    told = {**job, "cached": cached, "warm_up": case_of(model, WARM_UP)}
    theirs, plain = graph.load(told).run(case), batched.load(job).run(case)
    assert theirs.written == plain.written
    turns = turns_of(WORKFLOWS[FAN_IN](model, NEW), model, DOCUMENT, NEW)
    full = sum(turn.length() + turn.tokens - 1 for turn in turns if turn.tokens)
    assert theirs.computed < full if cached else theirs.computed == full


def test_a_wave_waits_for_earlier_ones_alone(model: LocalModel) -> None:
    """The writers of a panel can run together; its judge answers."""
    case = case_of(model, FAN_IN)
    names = [[turn["name"] for turn in wave] for wave in waves(case)]
    assert names == [["reader"], [f"writer_{number}" for number in range(4)], ["judge"]]
    assert answers(case) == ["judge"]


def test_other_prompts_are_refused(model: LocalModel) -> None:
    """Figures of prompts of another length would compare nothing."""
    turns = turns_of(WORKFLOWS[WARM_UP](model, NEW), model, DOCUMENT, NEW)
    run: Any = type("Run", (), {"prompt_tokens": {"reader": 1}})()
    with pytest.raises(RuntimeError, match="reader of warm_up reads 1 tokens in unspoken"):
        compared.require_same_prompts({WARM_UP: turns}, {(WARM_UP, "unspoken"): [run]})
