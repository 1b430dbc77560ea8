"""An outcome is written down and read back as it was, and nothing else is taken for one."""

import json

import pytest

from unspoken.agents.evaluation.outcome import Outcome
from unspoken.channels.storage.strict_json import parse_json

OUTCOME = Outcome(
    row="7",
    context="station",
    arm="plan",
    answer="1911",
    data={"year": 1911},
    likelihoods={"yes": 0.75, "no": 0.25},
    gold=["1911", "in 1911"],
    first_token_s=0.5,
    seconds=1.25,
    computed=12,
    reused=900,
    decoded=4,
    carried_bytes=1 << 20,
    peak_bytes=1 << 24,
    fallbacks=("no bridge",),
)


def test_an_outcome_goes_through_json() -> None:
    """What was written is what is read."""
    written = json.dumps(OUTCOME.to_dict(), allow_nan=False)
    assert Outcome.from_dict(parse_json(written)) == OUTCOME


@pytest.mark.parametrize(
    "change",
    [
        {"row": 7},
        {"computed": -1},
        {"computed": True},
        {"score": float("nan")},
        {"seconds": None},
        {"likelihoods": {"yes": "much"}},
        {"fallbacks": "no bridge"},
        {"all_text": 1},
        {"error": 3},
        {"surprise": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_outcome_is_refused(change: dict) -> None:
    """A field of another type, or one too many, is an error that names it."""
    with pytest.raises(ValueError, match=next(iter(change))):
        Outcome.from_dict({**OUTCOME.to_dict(), **change})


def test_an_outcome_without_a_field_is_refused() -> None:
    """A field that is missing is named."""
    data = OUTCOME.to_dict()
    del data["arm"]
    with pytest.raises(ValueError, match="arm"):
        Outcome.from_dict(data)
