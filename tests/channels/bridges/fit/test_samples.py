"""Samples to train on."""

from itertools import islice
from types import SimpleNamespace

import torch
from flows import Pair

from unspoken.channels.bridges.fit.samples import ROOM, SHORT, Lengths, draw_samples, mean_length
from unspoken.channels.bridges.fit.training import newest
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


def words(text: str) -> int:
    return len(text.split())


def test_lengths_are_drawn_log_uniformly_up_to_the_longest(source: str) -> None:
    """As many messages lie below the geometric mean of both ends as above it."""
    corpus, lengths = load_corpus([source]), Lengths(1024, words)
    samples = list(islice(draw_samples(corpus.stream(5), 5, lengths), 120))
    drawn = [words(sample.text) for sample in samples]
    middle = (SHORT * lengths.longest) ** 0.5
    assert 0.3 < sum(tokens > middle for tokens in drawn) / len(drawn) < 0.7
    assert max(drawn) <= 1.1 * lengths.longest and max(drawn) > 0.7 * lengths.longest
    assert 0.7 < sum(drawn) / len(drawn) / mean_length(lengths.longest) < 1.4


def test_a_long_message_holds_what_is_asked_of_it(source: str) -> None:
    """Facts and values lie somewhere in it; a continuation follows its end."""
    corpus, lengths = load_corpus([source]), Lengths(2048, words)
    places = set[str]()
    for sample in islice(draw_samples(corpus.stream(7), 7, lengths), 60):
        for target in sample.targets:
            if target.kind in ("copy", "recall", "cloze"):
                assert target.answer.strip() in sample.text
                at = sample.text.index(target.answer.strip()) / len(sample.text)
                places.add("late" if at > 0.6 else "early" if at < 0.4 else "middle")
    assert places >= {"late", "early"}


def test_models_that_hold_few_tokens_get_messages_as_they_come(pair: Pair) -> None:
    """The longest message leaves room, in either model, for what stands around it."""
    held = min(model.max_positions for model in pair)
    lengths = Lengths.of(100_000, *pair)
    assert lengths is not None and lengths.longest == held - ROOM
    assert lengths.tokens("the key") == max(len(model.words("the key")[0]) for model in pair)
    assert Lengths.of(None, *pair) is None and Lengths.of(SHORT, *pair) is None


def test_a_pool_holds_so_many_tokens() -> None:
    pool = [SimpleNamespace(features=torch.zeros(length, 1)) for length in (50, 30, 20, 10)]
    assert newest(pool, 65) == pool[1:] and newest(pool, 5) == pool[3:]
