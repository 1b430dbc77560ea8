"""Layers that read one input compute together, and never with another's."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from unspoken.agents.models.linears import copies, onednn, packed
from unspoken.agents.models.linears.packed import computing, pack_linears
from unspoken.channels.storage.forks import ForkLock

pytestmark = pytest.mark.skipif(
    onednn.serves(torch.float32) is not None, reason="this torch packs no weights"
)


@pytest.fixture(autouse=True)
def _computes_packed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"SMALLEST": 0, "GAIN": 0.0, "GAIN_ALIKE": 0.0}.items():
        monkeypatch.setattr(packed, name, value)
    with torch.no_grad(), computing(ForkLock()):
        yield


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of outputs of every packed product."""
    widths: list[int] = []
    multiply = copies.multiply

    def counted(input: Tensor, weight: Tensor, *args: object, **settings: bool) -> Tensor:
        output = multiply(input, weight, *args, **settings)  # type: ignore[arg-type]
        widths.append(output.shape[-1])
        return output

    monkeypatch.setattr(copies, "multiply", counted)
    return widths


class Gated(nn.Module):
    """Two layers of one input, and one of what they make."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 12, bias=bias), nn.Linear(8, 12, bias=bias)
        self.down_proj = nn.Linear(12, 8)

    def forward(self, input: Tensor) -> Tensor:
        hidden: Tensor = self.down_proj(self.gate_proj(input).sigmoid() * self.up_proj(input))
        return hidden


@pytest.mark.parametrize("bias", [False, True])
def test_layers_of_one_input_are_one_product(products: list[int], bias: bool) -> None:
    """With their own outputs and biases, as plain layers have them."""
    module, input = Gated(bias), torch.randn(3, 8)
    expected = module(input)
    pack_linears(module)
    products.clear()
    torch.testing.assert_close(module(input), expected)
    assert products == [24, 8]


def test_each_input_has_a_product_of_its_own() -> None:
    """A layer that is called with another input, or with one that changed, computes with that."""
    module, input, other = Gated(), torch.randn(3, 8), torch.randn(3, 8)
    expected = nn.functional.linear(other, module.up_proj.weight)
    pack_linears(module)
    module.gate_proj(input)
    torch.testing.assert_close(module.up_proj(other), expected)
    module.gate_proj(input)
    input.copy_(other)
    torch.testing.assert_close(module.up_proj(input), expected)


def test_changed_weights_of_one_layer_are_computed_with() -> None:
    """Those of the others that it computes with still count."""
    module, input = Gated(), torch.randn(3, 8)
    pack_linears(module)
    module.up_proj.weight.mul_(2)
    for layer in (module.gate_proj, module.up_proj):
        torch.testing.assert_close(layer(input), nn.functional.linear(input, layer.weight))


def test_products_that_are_not_read_go_on(products: list[int]) -> None:
    """Layers that read inputs of their own compute packed: a plain product may round otherwise."""
    module = Gated()
    pack_linears(module)
    products.clear()
    for _ in range(20):
        input = torch.randn(3, 8)
        output = module.gate_proj(input)
        torch.testing.assert_close(output, nn.functional.linear(input, module.gate_proj.weight))
    assert products == [24] * 20


def test_layers_of_several_widths_are_apart() -> None:
    """What reads keys from elsewhere is not taken for self-attention."""
    module = nn.Module()
    module.q_proj, module.k_proj, module.v_proj = (nn.Linear(width, 8) for width in (8, 6, 6))
    groups = copies.partners(module, [module.q_proj, module.k_proj, module.v_proj])
    assert [len(group) for group in groups] == [1, 1, 1]


def test_an_adapters_base_layer_is_found() -> None:
    """It reads what the adapter's layer reads."""
    module, adapted = nn.Module(), nn.Module()
    adapted.base_layer, module.up_proj = nn.Linear(8, 12), nn.Linear(8, 12)
    module.gate_proj = adapted
    groups = copies.partners(module, [adapted.base_layer, module.up_proj])
    assert groups == [(adapted.base_layer, module.up_proj)]


def test_an_inference_tensor_has_the_packed_product_too(products: list[int]) -> None:
    """Bit for bit that of any other input, though nothing counts what changes in it."""
    module, input = Gated(), torch.randn(3, 8)
    pack_linears(module)
    expected = module.gate_proj(input), module.up_proj(input)
    products.clear()
    with torch.inference_mode():
        same = input.clone()
        assert torch.equal(module.gate_proj(same), expected[0])
        assert torch.equal(module.up_proj(same), expected[1])
        assert products == [24]  # the two of them together
        same.mul_(2)
        doubled = module.up_proj(same)
    assert products == [24, 24]
    assert torch.equal(doubled, module.up_proj(input * 2))
