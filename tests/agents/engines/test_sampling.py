"""Settings of generation against transformers' `generate`, token for token."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from architectures import make
from transformers import GenerationConfig
from turns import Turn, take

from unspoken.agents import Agent, Workflow
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.runtime.reply import sampling_of
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.channels import WorkflowError
from unspoken.channels.message import Segment

NEW = 24
SEED = 11


@pytest.fixture
def model() -> Iterator[LocalModel]:
    """A random Llama whose checkpoint asks for nothing, as it is before each test."""
    made = make("llama")
    before = made.hf.generation_config
    made.hf.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=2)
    yield made
    made.hf.generation_config = before


def prompt(model: LocalModel) -> tuple[int, ...]:
    """Ids that repeat, so that penalties have something to look at."""
    generator = torch.Generator().manual_seed(5)
    ids: list[int] = torch.randint(3, len(model.tokenizer), (12,), generator=generator).tolist()
    return tuple(ids * 2)


def ours(model: LocalModel, **settings: Any) -> list[int]:
    """What a turn samples after the prompt."""
    ids = prompt(model)
    context = Context().extended(
        Segment(role="user", ids=ids, content=(0, len(ids)), text="", position=0)
    )
    _, taken = take(model, Turn(context, generate=GenerateSpec(max_new_tokens=NEW, **settings)))
    return list(taken.context.segments[-1].words)


def theirs(model: LocalModel, **settings: Any) -> list[int]:
    """What transformers samples after the same ids."""
    ids = torch.tensor([[*prompt(model), *model.context_builder.ask()]])
    torch.manual_seed(SEED)
    with torch.no_grad():
        written = model.hf.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            eos_token_id=sorted(model.stop_ids),
            **settings,
        )
    words: list[int] = written[0, ids.shape[1] :].tolist()
    ends = [at for at, token in enumerate(words) if token in model.stop_ids]
    return words[: ends[0]] if ends else words


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.8},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 20},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 5},
    ],
    ids=str,
)
def test_penalties_give_the_tokens_of_generate(model: LocalModel, settings: dict[str, Any]) -> None:
    """Greedy decoding with a penalty is that of transformers, and not the one without."""
    assert ours(model, **settings) == theirs(model, do_sample=False, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"typical_p": 0.4},
        {"top_h": 0.5},
        {"epsilon_cutoff": 0.01},
        {"eta_cutoff": 0.02},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_sampling_draws_what_generate_draws(model: LocalModel, settings: dict[str, Any]) -> None:
    """With one seed, every setting narrows the choice as transformers narrows it."""
    asked = {"temperature": 1.0, **settings}
    drawn = ours(model, seed=SEED, **asked)
    assert drawn == theirs(model, do_sample=True, **{"top_k": 0, **asked})
    assert drawn != ours(model, seed=SEED, temperature=asked["temperature"])


def test_a_penalty_changes_greedy_words(model: LocalModel) -> None:
    """The tests above would see a penalty that is not applied."""
    assert ours(model, repetition_penalty=1.8) != ours(model)


def test_bad_words_are_never_written(model: LocalModel) -> None:
    """A word that greedy decoding writes is not written once it is a bad one."""
    first = ours(model)[0]
    word = model.text.decode([first])
    assert model.text.encode_words(word) == (first,)
    assert first not in ours(model, bad_words=word)


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.8},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.7, "top_k": 9},
        {"do_sample": True},
        {"temperature": 0.5},
        {"suppress_tokens": [5, 6, 7], "bad_words_ids": [[8]], "min_new_tokens": 12},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_defaults_of_the_checkpoint_are_what_generate_does(
    model: LocalModel, asked: dict[str, Any]
) -> None:
    """With defaults: checkpoint, a turn samples what the model's own `generate` samples."""
    model.hf.generation_config.update(**asked)
    assert ours(model, seed=SEED, defaults="checkpoint") == theirs(model)


def test_a_checkpoint_s_defaults_wait_to_be_asked_for(model: LocalModel) -> None:
    """Without the key nothing of the checkpoint is applied; a key of one's own wins over it."""
    plain = ours(model)
    model.hf.generation_config.repetition_penalty = 1.8
    assert ours(model) == plain
    assert ours(model, defaults="checkpoint", repetition_penalty=1.0) == plain
    assert model.generation == {"repetition_penalty": 1.8}


def test_turns_and_items_draw_from_a_seed_of_their_own(model: LocalModel) -> None:
    """The first has the seed itself; the others differ, and are the same each time."""
    settings = GenerateSpec(temperature=1.0, seed=7)
    places = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    seeds = [sampling_of(settings, model, turn=turn, item=item).seed for turn, item in places]
    assert seeds[0] == 7 and len(set(seeds)) == 5
    assert seeds[4] == sampling_of(settings, model, turn=2, item=1).seed


def test_items_with_a_seed_are_independent_and_repeatable(model: LocalModel) -> None:
    """One question asked four times gives four samples, and the same four in the next run."""
    generate = {"max_new_tokens": 12, "temperature": 1.0, "seed": 7}
    voter = Agent("voter", model, prompt="a name", for_each="inputs.tries", generate=generate)
    flow = Workflow("votes", [voter])
    first, again = [flow.run(tries=[1, 2, 3, 4])["voter"].items for _ in range(2)]
    assert len(set(first)) == 4
    assert first == again


@pytest.mark.parametrize(
    "settings",
    [
        {"min_p": 1.5},
        {"typical_p": 0.0},
        {"epsilon_cutoff": 1.0},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram_size": -1},
        {"defaults": "model"},
        {"max_new_tokens": 4, "min_new_tokens": 5},
        {"bad_words": [""]},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(model: LocalModel, settings: dict[str, Any]) -> None:
    """Before anything runs."""
    with pytest.raises(WorkflowError):
        Agent("a", model, prompt="x", generate=settings)
