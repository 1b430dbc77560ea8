"""How far one way of handing a message over is from another, by what the receiver says of forced
tokens.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unspoken.agents.bench.scene import Scene
from unspoken.agents.engines.turn import assemble
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn
from unspoken.channels.base import Channel
from unspoken.channels.message import Message
from unspoken.channels.metrics import distance as tensors_distance

__all__ = ["asked", "carried", "distance", "forced_logs", "recomputed", "without"]


def asked(model: LocalModel, scene: Scene) -> tuple[int, ...]:
    """The receiver's context, and what asks for its words."""
    return scene.context.ids + model.context_builder.ask(scene.context)


@torch.no_grad()
def forced_logs(model: LocalModel, state: Any, last: int, forced: tuple[int, ...]) -> Tensor:
    """Log-probabilities after the context's last token and all but the last forced one, (forced,
    vocabulary).
    """
    before = state.slice(0, state.stop - 1)
    ids = model.tensor((last, *forced[:-1]))
    return model.logits(ids, [before]).float().log_softmax(dim=-1)


def carried(
    model: LocalModel,
    scene: Scene,
    channel: Channel,
    forced: tuple[int, ...],
    sent: Message | None = None,
) -> Tensor:
    """The forced distributions over a context whose message came by `channel`, as a turn assembles
    it.

    Args:
        model: The model of both ends.
        scene: The message in its receiver's context.
        channel: The channel.
        forced: Ids that are forced after it.
        sent: What is sent in the message's place, of as many tokens; None for the message itself.
    """
    ids = asked(model, scene)
    delivery = scene.delivery(channel)
    if sent is not None:
        delivery = replace(delivery, arrival=replace(delivery.arrival, message=sent))
    parts = assemble(model, ids, [delivery], scene.history)
    new = model.tensor([ids[position] for position in parts.missing])
    state = model.prefill(new, parts.states, model.tensor(parts.missing)).state
    return forced_logs(model, state, ids[-1], forced)


def recomputed(model: LocalModel, ids: tuple[int, ...], forced: tuple[int, ...]) -> Tensor:
    """The forced distributions over a context that the receiver computes itself."""
    return forced_logs(model, model.read(ids), ids[-1], forced)


def without(model: LocalModel, prompt: str, system: str | None, forced: tuple[int, ...]) -> Tensor:
    """The forced distributions where no message came."""
    empty = model.context_builder.compose([ChatTurn("user", (prompt,))], system=system)
    return recomputed(model, empty.ids + model.context_builder.ask(empty), forced)


def distance(full: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean KL(full || other) in nats, and the share of positions with the same likeliest token."""
    kl, same = tensors_distance(full, other)
    return float(kl), float(same)
