"""Input values, from Python and from a command line's words."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.agents.spec.inputs import check_inputs, read_inputs
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import InputError


def spec(**inputs: Any) -> WorkflowSpec:
    return WorkflowSpec.model_validate(
        {
            "name": "w",
            "models": {"m": "r"},
            "inputs": inputs,
            "agents": {"a": {"model": "m", "prompt": "x"}},
        }
    )


def test_defaults_fill_in_what_is_not_given() -> None:
    """A given value wins over its default."""
    declared = spec(a={"type": "integer", "default": 3}, b={"default": "x"})
    assert check_inputs(declared, {"b": "y"}) == {"a": 3, "b": "y"}


def test_everything_wrong_is_named_at_once() -> None:
    """Missing, unknown and mistyped inputs are one error, which lists what there is."""
    with pytest.raises(InputError) as caught:
        check_inputs(spec(document="text", rows="list"), {"documnt": "x", "rows": "x"})
    assert "no input 'documnt'" in caught.value.found and "'document'" in caught.value.found
    assert "'document' is missing" in caught.value.found
    assert "not of type list" in caught.value.found
    assert caught.value.expected == "inputs document (text), rows (list)"
    assert caught.value.exit_code == 2


def test_some_inputs_are_enough_where_asked() -> None:
    """Missing inputs are left out, defaults are not; wrong ones are refused."""
    declared = spec(document="text", rows="list", count={"type": "integer", "default": 3})
    given = {"document": "x"}
    assert check_inputs(declared, given, partial=True) == {"document": "x", "count": 3}
    for wrong in ({"documnt": "x"}, {"rows": "x"}):
        with pytest.raises(InputError) as caught:
            check_inputs(declared, wrong, partial=True)
        assert "missing" not in caught.value.found


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        ("text", "5", "5"),
        ("text", "a=b", "a=b"),
        ("integer", "5", 5),
        ("number", "0.5", 0.5),
        ("boolean", "true", True),
        ("list", '["a", 1]', ["a", 1]),
        ("list", "a\n\nb", ["a", "b"]),
        ("list", '{"q": 1}\n{"q": 2}', [{"q": 1}, {"q": 2}]),
    ],
)
def test_words_become_values_of_the_declared_type(kind: str, word: str, value: object) -> None:
    """What follows the first equals sign is read as the input's type says."""
    assert read_inputs(spec(x=kind), [f"x={word}"]) == {"x": value}


def test_an_at_sign_reads_a_file(tmp_path: Path) -> None:
    """The file's text is the value, less the newline at its end, whatever it starts with."""
    file = tmp_path / "text.txt"
    file.write_text("@@ one\ntwo\n", encoding="utf-8")
    assert read_inputs(spec(x="text"), [f"x=@{file}"]) == {"x": "@@ one\ntwo"}


@given(text=st.text(max_size=20))
def test_two_at_signs_stand_for_one(text: str) -> None:
    """Any text can be given as a word."""
    assert read_inputs(spec(x="text"), [f"x=@@{text}"]) == {"x": f"@{text}"}


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are an input error, not a crash."""
    file = tmp_path / "bytes"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_inputs(spec(x="text"), [f"x=@{file}"])
