"""Int8 weights: nearly the same model, and never taken for it."""

import copy
from pathlib import Path

import pytest
import torch
from flows import own_cache
from sample_adapters import save_adapter
from tiny import tiny_llama
from torch import nn

from unspoken.agents import Workflow
from unspoken.agents.models.linears import int8
from unspoken.agents.models.linears.int8 import FEW, Int8Linear, quantize_linears
from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.pretrained import find_dtype
from unspoken.agents.models.proofs.passes import refuses_fills, refuses_states
from unspoken.agents.testing.tiny import tiny_model
from unspoken.channels.errors import IdentityMismatch, ModelSupportError

IDS = torch.arange(3, 40)


def layer(out: int, width: int) -> tuple[nn.Linear, Int8Linear]:
    """A layer, and the same with int8 weights."""
    torch.manual_seed(0)
    plain = nn.Linear(width, out).requires_grad_(False)
    small = nn.Sequential(copy.deepcopy(plain))
    quantize_linears(small)
    assert isinstance(small[0], Int8Linear)
    return plain, small[0]


@torch.no_grad()
@pytest.mark.parametrize("width", [64, 33])
@pytest.mark.parametrize("rows", [1, 5, FEW, FEW + 1])
def test_products_are_nearly_those_of_float_weights(rows: int, width: int) -> None:
    """For few rows and many, and for widths that the operator cannot take."""
    plain, small = layer(48, width)
    inputs = torch.randn(2, rows, width)[:1]
    error = (small(inputs) - plain(inputs)).abs().max()
    assert 0 < error < 0.03 * plain(inputs).abs().max()


@torch.no_grad()
def test_a_cast_leaves_int8_weights_as_they_are() -> None:
    """In another float type the layers have the same weights, small ones too."""
    model = tiny_model().cast(torch.int8)
    head = model.hf.get_output_embeddings()
    assert isinstance(head, Int8Linear) and head.weight.dtype == torch.int8
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        cast = model.cast(dtype)
        again = cast.hf.get_output_embeddings()
        assert isinstance(again, Int8Linear) and torch.equal(again.widened(), head.widened())
        assert cast.dtype == dtype and cast.linears.kind == "int8"
        assert cast.logits(IDS).isfinite().all()


@torch.no_grad()
def test_without_the_operator_all_rows_are_computed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is private and may go."""
    plain, small = layer(48, 64)
    monkeypatch.setattr(int8, "_operator_serves", lambda: False)
    inputs = torch.randn(3, 64)
    expected = nn.functional.linear(inputs, small.widened(), plain.bias)
    torch.testing.assert_close(small(inputs), expected)


def test_gradients_flow_through_int8_weights() -> None:
    """As they do through frozen weights, to the inputs."""
    _, small = layer(48, 64)
    inputs = torch.randn(3, 64, requires_grad=True)
    small(inputs).sum().backward()
    expected = small.widened().sum(0).expand(3, -1)
    torch.testing.assert_close(inputs.grad, expected)


def test_an_int8_model_is_another_model(tmp_path: Path) -> None:
    """By a load and by a cast alike; no state passes between it and the float one."""
    with own_cache(tmp_path / "cache"):
        folder = str(tiny_llama(tmp_path / "llama", tie_word_embeddings=True))
        whole, small = LocalModel.load(folder), LocalModel.load(folder, dtype="int8")
        again = LocalModel.load(folder, dtype="int8")
    assert small.linears.kind == "int8" and small.dtype == torch.float32
    assert small.identity.differing(whole.identity) == "weights"
    assert small.identity == again.identity == whole.cast(torch.int8).identity
    assert small.asked["dtype"] == "int8"
    for maker, reader in ((whole, small), (small, whole)):
        with pytest.raises(IdentityMismatch):
            reader.prefill(IDS[:1], [maker.read(IDS.tolist())])


def test_an_int8_model_computes_nearly_the_same() -> None:
    """Its embeddings are those of the float model, and its logits close to it."""
    whole = tiny_model()
    small = whole.cast(torch.int8)
    assert torch.equal(small.embed(IDS), whole.embed(IDS))
    error = (small.logits(IDS) - whole.logits(IDS)).abs().max()
    assert 0 < error < 0.1 * whole.logits(IDS).abs().max()


def test_adapters_on_int8_weights_are_refused(tmp_path: Path) -> None:
    """The error says which base to load."""
    base = tiny_llama(tmp_path / "base")
    save_adapter(base, tmp_path / "adapter", 1)
    with own_cache(tmp_path / "cache"):
        small = LocalModel.load(str(base), dtype="int8")
    with pytest.raises(ModelSupportError, match="adapters need floats"):
        small.with_adapter(str(tmp_path / "adapter"))


def test_int8_weights_on_an_accelerator_are_refused() -> None:
    """The error says what is there instead."""
    with pytest.raises(ModelSupportError, match="int8 on cuda") as caught:
        find_dtype("int8", torch.device("cuda"))
    assert "bfloat16" in (caught.value.fix or "")


@pytest.mark.model
def test_an_embedded_model_stays_close(smollm2: LocalModel) -> None:
    """The mean KL divergence from float32 over a passage is some thousandths of a nat."""
    passage = (
        "The station at the end of the line was built in 1887, when the valley had two mills and a "
        "school. Its clock was made in the town below, and for sixty years one family wound it."
    )
    ids = smollm2.tensor(smollm2.text.encode(passage))
    small = smollm2.cast(torch.int8)
    wide = smollm2.logits(ids).log_softmax(-1)
    narrow = torch.cat([small.logits(ids[:FEW]), small.logits(ids)[FEW:]]).log_softmax(-1)
    assert (wide.exp() * (wide - narrow)).sum(-1).mean() < 0.03


def test_a_workflow_asks_for_int8_weights(tmp_path: Path) -> None:
    """By `dtype` of a model; the run's report says that they were used."""
    folder = tiny_llama(tmp_path / "llama")
    file = tmp_path / "flow.yaml"
    file.write_text(
        f"name: w\nmodels: {{m: {{ref: {folder}, dtype: int8}}}}\n"
        "agents: {a: {model: m, prompt: the old station, generate: {max_new_tokens: 2}}}\n"
    )
    with own_cache(tmp_path / "cache"):
        assert Workflow.from_yaml(file).run().report.linears == {"a": "int8"}


@pytest.mark.model
def test_rounding_of_int8_weights_refuses_no_model(smollm2: LocalModel) -> None:
    """Few tokens are multiplied otherwise than many, so a continuation is the text but nearly."""
    backbone = smollm2.cast(torch.int8).backbone
    assert (refuses_states(backbone), refuses_fills(backbone)) == (None, None)
