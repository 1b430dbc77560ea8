"""JSON with one thing bent, for files that strangers wrote."""

from typing import Any

from hypothesis import strategies as st

SURPRISES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        [-1, 0, 2**31, 2**31 + 1, 2**63, 2**64, 10**400, 1.0, 1e308, "", "\0", "é" * 9]
    ),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)

FEW = 3
"""Items of a list that are bent; the others are like them."""


@st.composite
def bent(draw: st.DrawFn, value: Any) -> Any:
    """The value with one field replaced, removed, doubled or added; `value` itself is changed."""
    *outer, last = draw(st.sampled_from(_places(value)))
    how, surprise = draw(st.sampled_from(("replace", "remove", "double", "add"))), draw(SURPRISES)
    part = value
    for key in outer:
        part = part[key]
    if how == "replace":
        part[last] = surprise
    elif how == "remove":
        del part[last]
    elif isinstance(part, list):
        part.insert(last, part[last] if how == "double" else surprise)
    else:
        part[str(surprise)[:20]] = part[last]
    return value


def _places(value: Any) -> list[tuple[Any, ...]]:
    """Where in a JSON value something can be bent."""
    if isinstance(value, dict):
        parts: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value[:FEW]))
    else:
        return []
    return [path for key, part in parts for path in ((key,), *((key, *p) for p in _places(part)))]
