"""What a fuser's training starts from: encoders of both models' rows, in closed form."""

from collections.abc import Iterator

import torch
from torch import Tensor

from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fit.fuse_example import FuseInput
from unspoken.channels.bridges.fit.progress import FitProgress, FitReport
from unspoken.channels.bridges.fit.ridge import Gram, Solution
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.fuser import Fuser, FuserConfig
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.model import TextModel

BULK = 1000
"""Tokens that are added to a Gram matrix at a time."""


def new_fuser(config: FuserConfig, sharer: TextModel, receiver: TextModel) -> Fuser:
    """An unfitted fuser between two models, on the receiver's device."""
    return Fuser(config, sharer.geometry, receiver.geometry).to(receiver.device)


@torch.no_grad()
def closed_form_fuser(
    config: FuserConfig,
    sharer: TextModel,
    receiver: TextModel,
    inputs: Iterator[FuseInput],
    settings: FuseSettings,
    report: FitReport,
) -> tuple[Fuser, int]:
    """Encoders of either model's rows, and the tokens seen.

    They are the directions that say most of the receiver's rows, and of its own.
    """
    geometry = receiver.geometry
    fuser = new_fuser(config, sharer, receiver)
    columns = width(geometry, config.own_layers)
    outputs = width(geometry, range(len(geometry.layers)))
    gram = Gram(width(sharer.geometry, config.source_layers), outputs, receiver.device)
    own_gram = Gram(columns, columns, receiver.device)
    while gram.count < settings.gram_tokens:
        # In bulk: each addition goes over the whole matrices.
        rows = _bulk(inputs, min(settings.gram_tokens - gram.count, BULK))
        gram.add(*rows)
        chosen = rows[1].index_select(1, fuser._columns)
        own_gram.add(chosen, chosen)
        report(FitProgress(stage="gram", fraction=min(gram.count / settings.gram_tokens, 1.0)))
    solution = gram.solve()
    fuser.encode.copy_(_encoder(solution, config.rank, settings.seed))
    fuser.mean.copy_(solution.mean)
    fuser.inverse.copy_(solution.scale)
    fuser.deviation.copy_(solution.deviation)
    solution = own_gram.solve()
    fuser.own_encode.copy_(_encoder(solution, config.own_rank, settings.seed))
    fuser.own_mean.copy_(solution.mean)
    fuser.own_inverse.copy_(solution.scale)
    return fuser, gram.count


def _bulk(inputs: Iterator[FuseInput], tokens: int) -> tuple[Tensor, Tensor]:
    """Rows of both models for `tokens` tokens or more, the attention sink left out."""
    sharer_rows, own_rows, count = [], [], 0
    while count < tokens:
        given = next(inputs)
        skip = max(SINK - given.sample.at, 0)
        sharer_rows.append(given.theirs[skip:])
        own_rows.append(given.own[skip:])
        count += len(own_rows[-1])
    return torch.cat(sharer_rows), torch.cat(own_rows)


def _encoder(solution: Solution, rank: int, seed: int) -> Tensor:
    """Directions of the closed form, (features, rank), each of unit variance."""
    encode, _ = solution.cut(rank, seed=seed)
    return encode / solution.spread(encode)
