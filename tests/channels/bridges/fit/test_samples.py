"""Samples to train on."""

from itertools import islice

import torch

from unspoken.channels.bridges.fit.samples import draw_samples
from unspoken.channels.data.text import load_corpus


def draws(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_samples_repeat_with_their_seed_and_have_every_kind(source: str) -> None:
    corpus = load_corpus([source])
    first, again = (list(islice(draw_samples(corpus.stream(3), 3), 60)) for _ in range(2))
    assert first == again
    kinds = {target.kind for sample in first for target in sample.targets}
    assert kinds == {"text", "copy", "fact", "cloze", "recall"}


def test_a_copied_stretch_is_in_the_message(source: str) -> None:
    for sample in islice(draw_samples(load_corpus([source]).stream(1), 1), 50):
        for target in sample.targets:
            assert target.kind != "copy" or target.answer in sample.text
