"""Input values, from Python and from a command line's words."""

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.agents import Workflow
from unspoken.agents.spec.input_words import read_inputs
from unspoken.agents.spec.inputs import MOST_BYTES, MOST_VALUES, ON_COMMAND_LINE, check_inputs
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


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"x": "The ferry \ud83d leaves."},
            "input 'x' holds half of a surrogate pair (character 11)",
        ),
        ({"x": "a\0b"}, "input 'x' holds a NUL character (character 2)"),
        (
            {"rows": ["a", {"b": ["\udcff"]}]},
            "half of a surrogate pair (rows[1].b[0], character 1)",
        ),
        ({"rows": [{"\udcff": 1}]}, "half of a surrogate pair (a key of rows[0], character 1)"),
        ({"rows": ("ok", "\0")}, "a NUL character (rows[1], character 1)"),
    ],
)
def test_text_that_no_tokenizer_reads_is_refused(given: dict[str, Any], told: str) -> None:
    """Half a character and NUL are found with their place, in lists and in mappings too."""
    declared = spec(x={"default": "x"}, rows={"type": "list", "default": []})
    with pytest.raises(InputError) as caught:
        check_inputs(declared, given)
    assert told in caught.value.found
    str(caught.value).encode("utf-8")


def test_a_default_is_held_to_the_same() -> None:
    """A value from the file is no better than one from elsewhere."""
    with pytest.raises(InputError, match="NUL"):
        check_inputs(spec(x={"default": "a\0"}), {})


def test_json_cannot_bring_half_a_character() -> None:
    """An escape in JSON is found like the character itself."""
    given = read_inputs(spec(rows="list"), ['rows=["\\ud83d"]'])
    with pytest.raises(InputError, match="half of a surrogate pair"):
        check_inputs(spec(rows="list"), given)


def test_inputs_are_bounded() -> None:
    """Values that hold themselves, deep ones and long ones are refused."""
    endless: list[object] = []
    endless.append(endless)
    for rows in (endless, [["x" * 2**20] * 65], [0] * (MOST_VALUES + 1)):
        with pytest.raises(InputError):
            check_inputs(spec(rows="list"), {"rows": rows})


def test_deep_json_is_refused() -> None:
    """Brackets without end are an input error, not a recursion."""
    with pytest.raises(InputError):
        check_inputs(spec(rows="list"), read_inputs(spec(rows="list"), ["rows=" + "[" * 100_000]))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_a_device_without_end_is_refused_at_once(device: str) -> None:
    """The bound holds while it is read, and a chunk is enough."""
    tracemalloc.start()
    with pytest.raises(InputError, match="cannot be read"):
        read_inputs(spec(x="text"), [f"x=@{device}"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_a_file_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    """The error says the bound."""
    file = tmp_path / "long.txt"
    with file.open("wb") as stream:
        for _ in range(MOST_BYTES // 2**20 + 1):
            stream.write(b"x" * 2**20)
    with pytest.raises(InputError, match=f"more than {MOST_BYTES:,} bytes"):
        read_inputs(spec(x="text"), [f"x=@{file}"])


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    """A file saved on Windows is the text that it shows, as text and as JSON."""
    text, rows = tmp_path / "text.txt", tmp_path / "rows.json"
    text.write_bytes(b"\xef\xbb\xbfThe ferry\r\nleaves.\r\n")
    rows.write_bytes(b"\xef\xbb\xbf[1, 2, 3]\n")
    read = read_inputs(spec(x="text", rows="list"), [f"x=@{text}", f"rows=@{rows}"])
    assert read == {"x": "The ferry\nleaves.", "rows": [1, 2, 3]}


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_file_is_read_as_python_reads_it(text: str) -> None:
    """Chunks and line breaks change nothing."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "x"
        file.write_bytes(text.encode("utf-8"))
        whole = file.read_text(encoding="utf-8-sig").removesuffix("\n")
        if "\0" not in text:
            assert read_inputs(spec(x="text"), [f"x=@{file}"]) == {"x": whole}


def test_python_and_the_command_line_are_told_of_their_own_way() -> None:
    """An error in Python names no flag of the command line."""
    for how, word in (({}, "run(name=value)"), ({"how": ON_COMMAND_LINE}, "-i NAME=VALUE")):
        with pytest.raises(InputError) as caught:
            check_inputs(spec(x="text"), {}, **how)
        assert word in caught.value.fix
        assert ("-i" in caught.value.fix) == bool(how)


@pytest.mark.parametrize("received", [{"x": 1}, {"a": "words"}, "words", 5, ["x"]])
def test_inputs_in_the_place_of_messages_are_refused(received: Any) -> None:
    """`run({...})` is told to give inputs by name, before a model is loaded."""
    flow = Workflow.from_spec(spec(x="text"))
    with pytest.raises(InputError) as caught:
        flow.run(received)
    assert "run(" in caught.value.fix
