"""Several continuations of one context in one pass, against plain transformers."""

import pytest
import torch
from architectures import make

CONTEXT = "the reader was in the document with the key of it, and the key was for who asked"
BRANCHES = (" the key", " question of the reader: who?", " er")


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt-neox, partial rotary"])
def test_each_branch_is_as_if_it_alone_followed_the_context(name: str) -> None:
    """In short windows too, and whatever stands in the other branches."""
    model = make(name, 1)
    context, *branches = (list(model.words(text)[0]) for text in (CONTEXT, *BRANCHES))
    last = [1, len(branches[1]), 1]
    state = model.read(context)
    found = model.branch_logits([model.tensor(ids) for ids in branches], last, [state])
    for ids, count, logits in zip(branches, last, found, strict=True):
        plain = model.hf(torch.tensor([[*context, *ids]])).logits[0, -count:]
        assert torch.allclose(logits, plain, atol=2e-4), name


def test_gradients_reach_the_context_as_from_each_branch_alone() -> None:
    model = make("gemma3", 1)
    context, *branches = (model.tensor(model.words(text)[0]) for text in (CONTEXT, *BRANCHES))
    grads = []
    for together in (True, False):
        state = model.read(context.tolist())
        keys = [layer.keys.requires_grad_() for layer in state.layers]
        if together:
            said = model.branch_logits(branches, [1, 1, 1], [state], grad=True)
        else:
            said = [model.logits(ids, [state], last=1, grad=True) for ids in branches]
        torch.cat(said).log_softmax(dim=-1)[:, 5].sum().backward()
        grads.append([key.grad for key in keys])
    for one, other in zip(*grads, strict=True):
        assert one is not None and other is not None
        assert one.abs().sum() > 0 and torch.allclose(one, other, atol=1e-4)
