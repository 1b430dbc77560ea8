"""Weights that are changed in memory are another model's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make
from flows import QUESTION, own_cache
from sample_adapters import save_adapter
from tiny import tiny_llama
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.models.watch import SAMPLED, Watch
from unspoken.channels.errors import IdentityMismatch

WORDS = "the key of the cache is in the document"


@torch.no_grad()
def trained_in_place(model: LocalModel) -> None:
    model.hf.model.layers[1].self_attn.k_proj.weight.mul_(-1)


def trained_by_an_optimizer(model: LocalModel) -> None:
    model.hf.requires_grad_(True).train()
    optimizer = torch.optim.SGD(model.hf.parameters(), lr=1.0)
    model.hf(torch.arange(3, 9)[None], labels=torch.arange(3, 9)[None]).loss.backward()
    optimizer.step()


def written_through_data(model: LocalModel) -> None:
    model.hf.lm_head.weight.data.add_(0.5)


def loaded_over(model: LocalModel) -> None:
    model.hf.load_state_dict(make("llama", seed=5).hf.state_dict())


@torch.no_grad()
def another_parameter(model: LocalModel) -> None:
    attention = model.hf.model.layers[0].self_attn
    attention.v_proj.weight = nn.Parameter(attention.v_proj.weight + 1)


def another_module(model: LocalModel) -> None:
    model.hf.model.layers[0].mlp.up_proj = nn.Linear(32, 48, bias=False)


def cast_in_place(model: LocalModel) -> None:
    model.hf.to(torch.bfloat16).to(torch.float32)


def configured_otherwise(model: LocalModel) -> None:
    model.hf.config.rms_norm_eps = 0.5


CHANGES: list[Callable[[LocalModel], None]] = [
    trained_in_place,
    trained_by_an_optimizer,
    written_through_data,
    loaded_over,
    another_parameter,
    another_module,
    cast_in_place,
    configured_otherwise,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_another_and_refuses_what_was_made_before(
    change: Callable[[LocalModel], None],
) -> None:
    """The message of before goes into no context of the weights of now."""
    model = make("llama")
    before, message = model.identity, model.message(WORDS)
    change(model)
    assert model.identity != before
    assert model.identity == LocalModel(model.hf, model.tokenizer).identity
    assert message.state is not None
    with pytest.raises(IdentityMismatch):
        model.prefill(model.tensor([5]), [message.state])
    assert model.message(WORDS).identity == model.identity
    assert not model.hf.training


def test_an_edge_does_not_carry_a_message_of_before(tmp_path: Path) -> None:
    """Handed into a run, it is refused by name."""
    model = make("llama")
    message = model.message(WORDS)
    trained_in_place(model)
    reader = Agent("reader", model, prompt="(elsewhere)", generate=None)
    solver = Agent("solver", model, prompt=QUESTION, generate={"max_new_tokens": 2})
    flow = Workflow("w", [reader, solver]).connect(reader, solver, "same_model_cache")
    with pytest.raises(IdentityMismatch):
        flow.run({"reader": message})


def test_weights_that_are_put_back_are_the_model_of_before() -> None:
    """An identity is of values: what was made before is good again."""
    model = make("llama")
    before, state = model.identity, model.message(WORDS).state
    assert state is not None
    kept = {name: value.clone() for name, value in model.hf.state_dict().items()}
    written_through_data(model)
    assert model.identity != before
    model.hf.load_state_dict(kept)
    assert model.identity == before
    model.prefill(model.tensor([5]), [state])


def test_a_change_of_the_base_changes_its_adapters_models(tmp_path: Path) -> None:
    """They compute on the same weights; each stays told apart from the base."""
    with own_cache(tmp_path / "cache"):
        base = LocalModel.load(str(tiny_llama(tmp_path / "base")))
        save_adapter(tmp_path / "base", tmp_path / "adapter", 1)
        adapted = base.with_adapter(str(tmp_path / "adapter"))
    names = {base.identity, adapted.identity}
    assert len(names) == 2
    plain = base.identity
    trained_in_place(base)
    names |= {base.identity, adapted.identity}
    assert len(names) == 4
    trained_in_place(base)
    assert base.identity == plain


def test_nothing_is_taken_for_a_change(tmp_path: Path) -> None:
    """Runs, adapters that come and are switched, gradients and casts of copies change nothing."""
    with own_cache(tmp_path / "cache"):
        base = LocalModel.load(str(tiny_llama(tmp_path / "base")))
        for number in (1, 2):
            save_adapter(tmp_path / "base", tmp_path / f"adapter{number}", number)
        models = [base, *(base.with_adapter(str(tmp_path / f"adapter{n}")) for n in (1, 2))]
        for model in models * 2:
            model.message(WORDS)
            model.cast(torch.bfloat16).message(WORDS)
            model.logits(model.tensor([3, 4, 5]), grad=True).sum()
    assert [model.backbone.generation(wait=True) for model in models] == [0, 0, 0]


def test_a_rounded_copy_is_another_model() -> None:
    """Widened again it has the same values, and so it is the same model still."""
    model = make("llama")
    half = model.cast(torch.bfloat16)
    assert half.identity != model.identity
    back = half.cast(torch.float32)
    assert back.identity == half.identity
    assert back.identity == LocalModel(back.hf, back.tokenizer).identity
    assert back.cast(torch.bfloat16).identity == half.identity
    assert half.cast(torch.float16).identity != half.identity


def test_a_cast_of_an_adapted_model_keeps_its_adapter(tmp_path: Path) -> None:
    """The copy computes with the adapter that its identity names, the base's copy without."""
    with own_cache(tmp_path / "cache"):
        base = LocalModel.load(str(tiny_llama(tmp_path / "base")))
        save_adapter(tmp_path / "base", tmp_path / "adapter", 1)
        adapted = base.with_adapter(str(tmp_path / "adapter"))
    ids = base.tensor(range(3, 20))
    for model in (adapted, base):
        copy = model.cast(torch.float64)
        expected = model.prefill(ids).logits.double()
        torch.testing.assert_close(copy.prefill(ids).logits, expected, atol=1e-4, rtol=1e-4)
        assert copy.identity == model.identity


class Computed(TorchDispatchMode):
    """Counts the values that computations take; a view takes none."""

    values = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), named: Any = None
    ) -> Any:
        if not operation.is_view:
            taken = [one for one in tree_leaves((args, named)) if isinstance(one, torch.Tensor)]
            self.values += sum(tensor.numel() for tensor in taken)
        return operation(*args, **named or {})


def test_looking_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the tensors are, a few values of each are read, with one copy to the host."""
    model, copies = make("llama").hf, list[torch.Size]()
    watch, cpu = Watch(model), torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        copies.append(tensor.shape)
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    with Computed() as computed:
        assert watch.check() == 0
    assert 0 < computed.values <= SAMPLED * len(list(model.parameters()))
    assert len(copies) == 1


def test_one_operation_looks_at_the_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn's step asks for the identity many times; between two steps it is looked at anew."""
    model, looks = make("llama"), list[int]()
    check = Watch.check

    def counted(watch: Watch) -> int:
        looks.append(1)
        return check(watch)

    monkeypatch.setattr(Watch, "check", counted)
    for _ in range(2):
        with model.weights.lock, model.weights.one_operation():
            assert len({model.identity for _ in range(5)}) == 1
    assert len(looks) == 2
    before = model.identity
    trained_in_place(model)
    assert model.identity != before
