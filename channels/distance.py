"""How far one way of reaching a context is from another, by what a model says of the tokens after it."""

from torch import Tensor

__all__ = ["distance"]


def distance(full: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean KL(full || other) in nats a token, and the share of tokens with the same likeliest one.

    Args:
        full: Log-probabilities, (tokens, vocabulary).
        other: Likewise, of the same tokens.
    """
    kl = (full.exp() * (full - other)).sum(dim=-1)
    return kl.mean(), (full.argmax(dim=-1) == other.argmax(dim=-1)).float().mean()
