"""What one row gave under one arm, and what it cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Self

from unspoken.channels.errors import AgentError, ContextLengthError, RunTimeout, WorkflowError

OWN_FAILURES = (AgentError, RunTimeout, ContextLengthError, WorkflowError)
"""What fails one row alone; a row that is too long for the memory is a `WorkflowError`."""

_NUMBERS = ("score", "first_token_s", "seconds")
_SIZES = ("carried_bytes", "peak_bytes", "target_tokens", "target_computed")
_COUNTS = ("computed", "reused", "decoded", *_SIZES)
_TEXTS = ("row", "context", "arm", "answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row under one arm.

    Attributes:
        row: The row's name.
        context: Names the context that the row shares with others.
        arm: The arm's name.
        answer: What the target wrote; empty where the run failed.
        data: With a schema, what the answer says as plain data.
        likelihoods: With choices, how likely the target found each.
        gold: What is right; a list holds several right answers.
        score: How good the answer is, 0 to 1; None until a scorer has read it.
        first_token_s: Seconds from the last input's arrival at the target to the first token of its
            last turn.
        seconds: Wall-clock seconds of the run.
        computed: Prompt tokens of all turns that were computed.
        reused: Prompt tokens whose state was taken over.
        decoded: Tokens that were written.
        carried_bytes: Bytes of all messages, states or text.
        peak_bytes: Most memory that states held at a time.
        target_tokens: Prompt tokens of the target's last turn.
        target_computed: How many of them were computed.
        fallbacks: Why a cache that was asked for did not serve, one for each message; they went by
            text, or in a forced arm by another cache.
        all_text: Whether no message went otherwise than by text.
        error: Why the run failed; None where it did not.
    """

    row: str
    context: str
    arm: str
    answer: str = ""
    data: Any = None
    likelihoods: Mapping[str, float] | None = None
    gold: Any = None
    score: float | None = None
    first_token_s: float | None = None
    seconds: float = 0.0
    computed: int = 0
    reused: int = 0
    decoded: int = 0
    carried_bytes: int = 0
    peak_bytes: int = 0
    target_tokens: int = 0
    target_computed: int = 0
    fallbacks: tuple[str, ...] = ()
    all_text: bool = False
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which JSON can hold."""
        return asdict(self) | {
            "likelihoods": None if self.likelihoods is None else dict(self.likelihoods),
            "fallbacks": list(self.fallbacks),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """An outcome from plain data.

        Raises:
            ValueError: A field is missing or unknown, or holds something else.
        """
        known = {field.name for field in fields(cls)}
        _require(set(data) == known, f"fields {sorted(set(data) ^ known)} are unknown or missing")
        for name in _TEXTS:
            _require(isinstance(data[name], str), f"{name} is no text")
        for name in _COUNTS:
            _require(_whole(data[name]), f"{name} is no count")
        for name in _NUMBERS:
            optional = data[name] is None and name != "seconds"
            _require(optional or _number(data[name]), f"{name} is no number")
        weights, fallbacks = data["likelihoods"], data["fallbacks"]
        numbers = isinstance(weights, dict) and all(map(_number, weights.values()))
        _require(weights is None or numbers, "likelihoods are no numbers")
        _require(
            isinstance(fallbacks, list) and all(isinstance(why, str) for why in fallbacks),
            "fallbacks are no texts",
        )
        _require(isinstance(data["all_text"], bool), "all_text is neither true nor false")
        _require(data["error"] is None or isinstance(data["error"], str), "error is no text")
        return cls(**{**data, "fallbacks": tuple(fallbacks)})


def _require(sound: bool, problem: str) -> None:
    if not sound:
        raise ValueError(problem)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
