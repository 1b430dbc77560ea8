"""Root mean square norms in four operations."""

import torch
from torch import Tensor, nn

_ROUNDING = 1e-5


class Norm:
    """A norm by the root mean square over the last dimension, and its weights.

    It divides by the length of a vector instead of its mean square's root; its weights and the
    least length are scaled so that the quotient is the same.

    Args:
        weight: The norm's weights, (size,).
        least: Its epsilon, added to the mean square.
    """

    def __init__(self, weight: Tensor, least: float) -> None:
        size = weight.shape[-1]
        self.weight: Tensor = weight.detach() * size**0.5
        self.least = torch.full((), (size * least) ** 0.5, dtype=weight.dtype, device=weight.device)

    def __call__(self, values: Tensor) -> Tensor:
        """(…, size) to the same shape."""
        length: Tensor = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        return (values * self.weight).div_(torch.hypot(length, self.least))


@torch.no_grad()
def weight_of(module: nn.Module) -> tuple[Tensor, float] | None:
    """What a norm multiplies with, and its epsilon; None where it is none by the mean square.

    Some families keep the weights as they are, others less one. The module is asked which.
    """
    kept = module._parameters.get("weight")
    least = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    others = [name for name in module._parameters if name != "weight"]
    if kept is None or kept.dim() != 1 or others or not isinstance(least, float):
        return None
    if kept.is_meta:  # there is nothing to ask
        return kept, least
    tried = torch.linspace(-2, 3, len(kept), device=kept.device, dtype=kept.dtype).square()
    expected = module(tried)
    for weight in (kept, 1 + kept):
        error = (Norm(weight, least)(tried) - expected).abs().max()
        if error <= _ROUNDING * expected.abs().max():
            return weight, least
    return None
