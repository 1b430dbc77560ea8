"""Prompt lookup: what is guessed, when it stops, and that the tokens are the same."""

import pytest
import torch
from rows import Row

from unspoken.agents.engines import asks
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.drafts import LONGEST, REST, Drafter
from unspoken.agents.engines.sampling import Sampler
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing import tiny_model


def test_what_followed_the_last_tokens_is_guessed() -> None:
    """The longer run decides, and the later of two."""
    assert Drafter([7, 1, 2, 3, 4, 5, 6, 9, 2, 3]).guess(10) == (4, 5, 6, 9)
    assert Drafter([1, 2, 3, 4, 8, 2, 3, 5, 0, 1, 2, 3]).guess(2) == (4, 8)
    assert Drafter([1, 2, 3, 4, 1, 2, 5, 6, 9, 1, 2]).guess(2) == (5, 6)


def test_new_tokens_have_no_guess() -> None:
    """Nor has a context that is too short."""
    assert Drafter([1, 2, 3, 4]).guess(4) == () and Drafter([1]).guess(4) == ()


def test_guesses_are_short() -> None:
    """They go no further than what is there, than what may be written, and than LONGEST."""
    drafter = Drafter([1, 2, 3, 4, 5, 6, 7, 8, 1, 2])
    assert len(drafter.guess(100)) == LONGEST and drafter.guess(0) == ()


def test_guesses_that_do_not_pay_rest() -> None:
    """After some wrong ones there are none for a while."""
    drafter = Drafter([1, 2, 3, 1, 2])
    while drafter.guess(4):
        drafter.learn(0, 1.0)
    rested = [drafter.guess(4) for _ in range(REST)]
    assert not any(rested[:-1]) and rested[-1] == (3, 1, 2)


def test_guesses_that_take_longer_than_they_bring_rest() -> None:
    """Two tokens in the time of three steps are none too many."""
    drafter = Drafter([1, 2, 3, 1, 2])
    drafter.learn(None, 1.0)
    assert drafter.guess(4)
    drafter.learn(1, 3.0)
    assert not drafter.guess(4)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


def _generated(model: LocalModel, ids: tuple[int, ...], count: int) -> list[int]:
    given = torch.tensor([ids])
    written = model.hf.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=count, do_sample=False
    )
    return [int(token) for token in written[0, len(ids) :]]


def test_the_tokens_are_those_of_generate(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model repeats itself, so that guesses are right and wrong; fewer steps are taken."""
    steps = 0
    compute = model.compute

    def counted(segments: list[asks.Segment]) -> list[torch.Tensor | None]:
        nonlocal steps
        steps += 1
        return compute(segments)

    monkeypatch.setattr(model, "compute", counted)
    monkeypatch.setattr(asks, "perf_counter", lambda: 0.0)  # else a busy machine decides what pays
    for seed in range(2):
        ids = tuple(torch.randint(3, 200, (30,), generator=torch.manual_seed(seed)).tolist())
        sampling = Sampling(max_tokens=60)
        _, computed = drive_turn(model, TurnRequest(ids=ids, sampling=sampling, keep_state=True))
        expected = _generated(model, ids, 60)
        assert list(computed.ids[len(ids) :])[: len(expected)] == expected
        assert computed.state is not None and computed.state.stop == len(computed.ids)
    assert steps < 2 * 60


@pytest.mark.parametrize(("turns", "welcome"), [(2, True), (3, False)])
def test_among_many_that_write_no_drafts_are_welcome(
    model: LocalModel, turns: int, welcome: bool
) -> None:
    """A turn hears of it from its prefill on, so that it looks nothing up in vain."""
    rows = [Row(model, (5, 6, 7)) for _ in range(turns)]
    writing = Sampler(Sampling(max_tokens=4), (5, 6, 7), model.device)
    asked = [
        asks.Compute(model=model, rows=row.rows, ids=row.ids, positions=range(3), sampler=writing)
        for row in rows
    ]
    answers = asks.compute([(ask, 3) for ask in asked])
    assert [getattr(answer, "drafts", None) for answer in answers] == [welcome] * turns


def test_a_turn_that_takes_no_guess_notes_no_runs(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context of thousands of tokens is not looked through for the sake of one token."""
    noted = list[int]()
    monkeypatch.setattr(Drafter, "_note", lambda drafter: noted.append(1))
    for tokens in (1, 2, 8):
        assert not noted
        drive_turn(model, TurnRequest(ids=(5, 6, 7), sampling=Sampling(max_tokens=tokens)))
    assert noted
