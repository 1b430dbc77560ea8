"""Profiles: what is measured is what a channel carries, and what is stored is whole or refused."""

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from architectures import make, tuned
from flows import Pair
from hypothesis import given
from hypothesis import strategies as st
from sample_profiles import point, profile_of

from unspoken.channels.data.rows import QaRow
from unspoken.channels.errors import InputError, ProfileError
from unspoken.channels.finetunes.carry import carry_across
from unspoken.channels.finetunes.passages import (
    Settings,
    Trial,
    arrival_of,
    from_rows,
    from_text,
    prompt_of,
)
from unspoken.channels.finetunes.profile import Profile
from unspoken.channels.finetunes.recompute import LayerRanges, layers_of
from unspoken.channels.finetunes.search import (
    _near,
    assess,
    estimate,
    front_of,
    random_ranges,
    search,
)
from unspoken.channels.finetunes.store import ProfileStore
from unspoken.channels.metrics import distance

SETTINGS = Settings(tokens=16, forced=6, search=2, assess=2, prompts=(7,), sink=2)
TEXT = "the key of the cache is in the document that the reader was for. " * 40
CHOICES: tuple[LayerRanges, ...] = ((), ((0, 2),), ((1, 3),), ((1, 2), (3, 4)), ((0, 4),))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama"), tuned("llama")


@pytest.fixture(scope="module")
def trials(pair: Pair) -> list[Trial]:
    return from_text(TEXT, pair[1], SETTINGS)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_is_measured_is_what_a_channel_carries(name: str) -> None:
    """KL of every choice, at the prefix and behind a prompt, by a carry and plain prefills."""
    sharer, receiver = make(name), tuned(name)
    trial = from_text(TEXT, receiver, SETTINGS)[0]
    scores = assess(sharer, receiver, [trial], CHOICES, SETTINGS)
    for place, prompt in {"prefix": (), "after 7": prompt_of(receiver, 7)}.items():
        for layer_ranges in CHOICES:
            arrival = arrival_of(trial, sharer.read(trial.ids, range(4)), prompt)
            carry = carry_across(arrival, receiver, layer_ranges=layer_ranges, sink=2)
            stop = len(arrival.context) - 1
            carried = [piece.state for piece in carry.pieces]
            cut = [part.slice(part.start, min(part.stop, stop)) for part in carried]
            ids = receiver.tensor((arrival.context[-1], *trial.forced[:-1]))
            full = receiver.prefill(receiver.tensor(arrival.context)).state.slice(0, stop)
            exact, other = (
                receiver.logits(ids, states).float().log_softmax(dim=-1) for states in ([full], cut)
            )
            kl = float(distance(exact, other)[0])
            assert scores[layer_ranges][place][0][0] == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_a_search_finds_that_all_layers_are_exact(pair: Pair, trials: list[Trial]) -> None:
    kl_by_choice = search(*pair, trials[:2])
    assert kl_by_choice[((0, 4),)] == pytest.approx(0, abs=1e-6)
    assert kl_by_choice[()] > 0.001
    front = front_of(kl_by_choice)
    assert front[0] == () and front[-1] == ((0, 4),)
    assert all(kl_by_choice[left] > kl_by_choice[right] for left, right in pairwise(front))


def test_points_of_a_front_that_gain_little_are_left_out() -> None:
    measured = {(): 1.0, ((0, 1),): 0.95, ((1, 2),): 2.0, ((0, 2),): 0.5, ((0, 3),): 0.0}
    assert front_of(measured) == [(), ((0, 1),), ((0, 2),), ((0, 3),)]
    assert front_of(measured, 0.85) == [(), ((0, 2),), ((0, 3),)]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 99))
def test_random_ranges_have_the_same_size(sizes: list[int], spare: int, seed: int) -> None:
    layers = sum(sizes) + spare + len(sizes)
    layer, layer_ranges = 0, []
    for size in sizes:
        layer_ranges.append((layer, layer + size))
        layer += size + 1
    drawn = random_ranges(tuple(layer_ranges), layers, random.Random(seed))
    assert layers_of(drawn) == sum(sizes)
    assert all(0 <= first < last <= layers for first, last in drawn)
    assert all(a[1] < b[0] for a, b in pairwise(drawn))


def test_an_interval_holds_its_mean() -> None:
    estimated = estimate([(0.01 * n, 0.5) for n in range(10)])
    assert estimated.low < estimated.kl < estimated.high and estimated.top1 == 0.5
    assert estimate([(0.3, 1.0)] * 4).high == pytest.approx(0.3)
    assert (
        estimated.high - estimated.kl > 2.2 * 0.0303 / 10**0.5
    )  # of ten, Student's and not the normal's


def test_a_prompt_has_the_tokens_that_are_asked_for(pair: Pair) -> None:
    assert [len(prompt_of(pair[1], n)) for n in (7, 24, 200)] == [7, 24, 200]


def test_rows_become_messages_with_their_question_forced(pair: Pair) -> None:
    rows = [QaRow(f"the key {n} of the cache", "what is it", ("the key",)) for n in range(5)]
    trials = from_rows(rows, pair[1], SETTINGS)
    assert len(trials) == 4 and len({trial.words for trial in trials}) == 4
    assert pair[1].decode(trials[0].forced).endswith("the key")
    with pytest.raises(InputError, match="3 of 3 rows"):
        from_rows(rows[:3], pair[1], SETTINGS)


def test_a_short_text_is_refused(pair: Pair) -> None:
    with pytest.raises(InputError, match="tokens"):
        from_text("the key", pair[1], SETTINGS)


def test_a_stored_profile_is_found_by_its_pair(tmp_path: Path, pair: Pair) -> None:
    store = ProfileStore(tmp_path)
    sharer, receiver = pair
    profile = profile_of(sharer, receiver, point((), 0.5, 4), point(((1, 3),), 0.01, 4))
    assert store.find(sharer.identity, receiver.identity) is None
    folder = store.save(profile, lambda file: file.write_bytes(b"figure"))
    assert store.find(sharer.identity, receiver.identity) == profile
    assert store.find(receiver.identity, sharer.identity) is None
    assert sorted(path.name for path in folder.iterdir()) == ["profile.json", "profile.png"]
    again = store.save(profile_of(sharer, receiver, point((), 0.4, 4)))
    assert again == folder and [path.name for path in folder.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 9}, "format"),
        ({"points": []}, "points"),
        ({"surprise": 1}, "surprise"),
        ({"points": [{"groups": [[0, 99]]}]}, "points"),
    ],
)
def test_a_profile_that_is_none_is_refused(
    tmp_path: Path, pair: Pair, change: dict[str, object], says: str
) -> None:
    store = ProfileStore(tmp_path)
    folder = store.save(profile_of(*pair, point((), 0.5, 4)))
    file = folder / "profile.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ProfileError, match=says) as caught:
        store.find(pair[0].identity, pair[1].identity)
    assert "unspoken profile" in caught.value.fix


def test_another_pairs_profile_is_refused(tmp_path: Path, pair: Pair) -> None:
    store = ProfileStore(tmp_path)
    folder = store.save(profile_of(*pair, point((), 0.5, 4)))
    other = profile_of(pair[1], pair[0], point((), 0.5, 4))
    (folder / "profile.json").write_text(other.to_json())
    with pytest.raises(ProfileError, match="is for the pair"):
        store.find(pair[0].identity, pair[1].identity)


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path, pair: Pair) -> None:
    store = ProfileStore(tmp_path)
    folder = store.save(profile_of(*pair, point((), 0.5, 4)))
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(ProfileError, match=r"diary\.txt"):
        store.save(profile_of(*pair, point((), 0.4, 4)))
    assert (folder / "diary.txt").read_text() == "mine"


def test_the_cheapest_point_within_the_bound_is_chosen(pair: Pair) -> None:
    """By the interval's upper end; text where all layers would be computed or nothing is won."""
    profile = profile_of(
        *pair,
        point((), 0.5, 4),
        point(((0, 1),), 0.0095, 4),
        point(((0, 2),), 0.005, 4, moved=0.1),
        point(((0, 3),), 0.001, 4, moved=0.002),
        point(((0, 4),), 0.0, 4),
    )

    def chosen(bound: float, *, moved: bool = False) -> LayerRanges | None:
        points = profile.within(bound, moved=moved)
        return points[0].layer_ranges if points else None

    assert chosen(1.0) == ()
    assert chosen(0.01) == ((0, 2),)
    assert chosen(0.01, moved=True) == ((0, 3),)
    assert chosen(0.0001) is None
    assert profile_of(*pair, point(((0, 1),), 0.001, 4, speedup=1.0)).points[0].slow


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"share": 0.25}, "share of 0.25"),
        ({"places": {}}, "other places"),
        ({"groups": [[1, 9]]}, "range of layers"),
    ],
)
def test_a_point_that_contradicts_itself_is_refused(
    pair: Pair, change: dict[str, object], says: str
) -> None:
    data = json.loads(profile_of(*pair, point(((1, 3),), 0.5, 4)).to_json())
    data["points"][0] |= change
    with pytest.raises(ProfileError, match=says):
        Profile.from_json(json.dumps(data), "profile.json")


def test_distances_that_are_not_finite_are_said_to_be() -> None:
    with pytest.raises(ProfileError, match="not finite"):
        estimate([(float("nan"), 0.0), (0.1, 1.0)])


def test_every_point_of_a_front_gets_its_turn() -> None:
    """Late rounds try second ranges too, and points with many layers as much as those with few."""
    front: list[LayerRanges] = [((0, 5),), ((3, 12),), ((2, 24),), ((0, 25),)]
    near = _near(front, 30, 1)[:40]
    assert sum(len(layer_ranges) > 1 for layer_ranges in near) >= 10
    for ends in ((1, 24), (2, 23), (0, 24)):
        assert (ends,) in near


def test_distances_are_of_log_probabilities() -> None:
    full = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    other = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    kl, top1 = distance(full, other)
    by_hand = (0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))) / 2
    torch.testing.assert_close(kl, by_hand)
    assert float(top1) == 0.5
