"""The baselines are transformers itself, as its own documentation has it."""

import pytest
import torch
from architectures import make

from unspoken.agents.bench.engine.baselines import Plain, copied
from unspoken.agents.models.model import LocalModel

PROMPTS = [tuple(range(5, 5 + length)) for length in (9, 12)]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest) -> LocalModel:
    return make(request.param)


def test_plain_has_modules_of_its_own(model: LocalModel) -> None:
    """What an engine does to the model in hand leaves the baseline alone."""
    plain = Plain.of(model)
    ids = torch.tensor([PROMPTS[0]])
    assert torch.equal(plain.hf(ids).logits, model.hf(ids).logits)
    assert not set(plain.hf.modules()) & set(model.hf.modules())


def test_a_batch_writes_what_each_prompt_gets_alone(model: LocalModel) -> None:
    """Padding on the left changes no token; nothing ends the rows before the last token."""
    plain = Plain.of(model)
    together = plain.generate(PROMPTS, 6, exactly=True)
    assert together == [plain.generate([prompt], 6, exactly=True)[0] for prompt in PROMPTS]
    assert [len(ids) for ids in together] == [6, 6]


def test_a_copied_prefix_writes_the_same_and_stays_as_it_was(model: LocalModel) -> None:
    """Each agent may take a copy of the shared document's cache."""
    plain = Plain.of(model)
    document, prompt = PROMPTS[1][:8], PROMPTS[1]
    cache = plain.prefill(document)
    for _ in range(2):
        written = plain.generate([prompt], 6, exactly=True, cache=copied(cache))
        assert written == plain.generate([prompt], 6, exactly=True)
    assert cache.get_seq_length() == len(document)
