"""Decoding against transformers' `generate`."""

import pytest
import torch
from architectures import ARCHITECTURES, make
from turns import Taken, Turn, take

from unspoken.agents.engines.base import Sampling
from unspoken.agents.engines.sampling import Sampler
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.channels.message import Segment

PROMPT = 30
NEW = 24


def decode(model: LocalModel, ids: list[int], settings: GenerateSpec) -> tuple[Taken, list[str]]:
    """Run a turn over bare ids; its outcome and the pieces of text it gave out."""
    segment = Segment(role="user", ids=tuple(ids), content=(0, len(ids)), text="", position=0)
    turn = Turn(Context().extended(segment), generate=settings, keep_state=True)
    told, taken = take(model, turn)
    return taken, [piece for piece in told if isinstance(piece, str)]


def _prompts(model: LocalModel, count: int, length: int = PROMPT) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, len(model.tokenizer), (count, length), generator=generator).tolist()


def _generated(model: LocalModel, ids: list[int], new: int) -> list[int]:
    tensor = torch.tensor([[*ids, *model.context_builder.ask()]])
    with torch.no_grad():
        written = model.hf.generate(
            input_ids=tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=2,
        )[0, tensor.shape[1] :].tolist()
    return written[: next((at for at, one in enumerate(written) if one in model.stop_ids), None)]


def _words(outcome: Taken) -> list[int]:
    return list(outcome.context.segments[-1].words)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_equal_generate(name: str) -> None:
    """Greedy decoding gives generate's tokens, with windows shorter than the prompt too."""
    model = make(name)
    for ids in _prompts(model, 2):
        outcome, _ = decode(model, ids, GenerateSpec(max_new_tokens=NEW))
        assert _words(outcome) == _generated(model, ids, NEW)


@pytest.mark.model
def test_greedy_tokens_equal_generate_on_a_real_model(smollm2: LocalModel) -> None:
    """SmolLM2 writes generate's tokens after real prompts."""
    for question in ("What is the capital of France?", "Name three primes."):
        ids = list(smollm2.text.encode(f"<|im_start|>user\n{question}<|im_end|>\n"))
        outcome, _ = decode(smollm2, ids, GenerateSpec(max_new_tokens=NEW))
        assert _words(outcome) == _generated(smollm2, ids, NEW)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_state_of_a_closed_turn_is_that_of_its_tokens(name: str) -> None:
    """After decoding, the state is what a prefill of the closed context gives."""
    model = make(name)
    outcome, _ = decode(model, _prompts(model, 1)[0], GenerateSpec(max_new_tokens=9))
    fresh = model.prefill(model.tensor(outcome.context.ids)).state
    assert outcome.state is not None
    assert outcome.state.stop == len(outcome.context.ids)
    for ours, theirs in zip(outcome.state.layers, fresh.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.values, theirs.values, atol=2e-5, rtol=1e-4)


def test_the_streamed_text_is_the_text() -> None:
    """The pieces given out on the way are the words at the end."""
    model = make("llama")
    for prompt in _prompts(model, 2):
        outcome, pieces = decode(model, prompt, GenerateSpec(max_new_tokens=NEW))
        assert "".join(pieces) == outcome.text == model.text.decode(_words(outcome))


def test_a_seed_makes_sampling_repeatable() -> None:
    """Two turns with one seed write the same; another seed writes something else."""
    model = make("llama")
    prompt = _prompts(model, 1)[0]

    def write(seed: int) -> str:
        settings = GenerateSpec(
            max_new_tokens=NEW, temperature=1.5, top_p=0.95, top_k=50, seed=seed
        )
        return decode(model, prompt, settings)[0].text

    assert write(1) == write(1)
    assert len({write(seed) for seed in range(5)}) > 1


def test_sampling_takes_only_what_top_k_leaves() -> None:
    """With top_k 2, only the two likeliest tokens are ever drawn."""
    logits = torch.tensor([0.0, 5.0, 4.9, 4.8])
    settings = Sampling(max_tokens=1, temperature=1.0, top_k=2, seed=0)
    sampler = Sampler(settings, (), torch.device("cpu"))
    assert {int(sampler(logits)) for _ in range(60)} == {1, 2}
