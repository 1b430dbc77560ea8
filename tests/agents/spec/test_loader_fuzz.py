"""Whatever the bytes, the loader returns a workflow or raises `WorkflowError`."""

from typing import Any

from bad_workflows import GOOD
from hypothesis import example, given
from hypothesis import strategies as st

from unspoken.agents.spec.loader import dumps, loads
from unspoken.channels.errors import WorkflowError

LINES = GOOD.splitlines()
WORDS = sorted({word.strip("{},:\"'-") for word in GOOD.split()} - {""})
YAML_PIECES = [
    "&a",
    "*a",
    "!!int",
    "!!python/name:os",
    "<<",
    "null",
    "~",
    "{{",
    "}}",
    "{%",
    "---",
    "...",
]
SNIPPETS = st.sampled_from(
    [*WORDS, *YAML_PIECES, *"\t\"'|>?:-[]{}", "%YAML 1.1\n---", "\\U00110000"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | SNIPPETS
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SNIPPETS, inner, max_size=3),
    max_leaves=8,
)
ROOTS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("name", "models", "inputs", "agents", "edges", "outputs", "timeout", "extra"), VALUES
    ),
)


def check(text: str) -> None:
    """Load; anything but success or a well-formed `WorkflowError` fails the test."""
    try:
        spec = loads(text).spec
    except WorkflowError as error:
        assert error.problems
        last = len(text.splitlines()) + 2
        assert all(0 < problem.line <= last and problem.column > 0 for problem in error.problems)
        assert all(problem.message for problem in error.problems)
    else:
        assert loads(dumps(spec)).spec == spec


@given(st.text())
@example("\ud800")
@example('a: "\\UFFFFFFFF"')
@example("? ? ? ? ?")
@example("[" * 5000)
@example("- " * 5000)
@example("a: 1" + "0" * 5000)
def test_any_text(text: str) -> None:
    """Text of any kind loads or is refused."""
    check(text)


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    """Bytes of any kind, read as Latin-1, load or are refused."""
    check(data.decode("latin-1"))


@given(st.lists(st.tuples(SNIPPETS, st.sampled_from([" ", "\n", "\n  ", ": ", ", "])), max_size=20))
def test_any_tokens(tokens: list[tuple[str, str]]) -> None:
    """Pieces of YAML, templates and workflows in any order load or are refused."""
    check("".join(word + space for word, space in tokens))


@given(ROOTS)
def test_any_structure(root: dict[str, Any]) -> None:
    """Any values under the keys of a workflow load or are refused."""
    check(repr(root).replace("None", "null").replace("True", "true").replace("False", "false"))


@given(st.data())
def test_any_mutation(data: st.DataObject) -> None:
    """A good workflow with lines dropped, doubled, swapped or changed loads or is refused."""
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        n = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "double", "swap", "indent", "value", "word"])):
            case "drop" if len(lines) > 1:
                del lines[n]
            case "double":
                lines.insert(n, lines[n])
            case "swap":
                other = data.draw(st.integers(0, len(lines) - 1))
                lines[n], lines[other] = lines[other], lines[n]
            case "indent":
                lines[n] = " " * data.draw(st.integers(0, 6)) + lines[n].lstrip()
            case "value":
                lines[n] = lines[n].partition(":")[0] + f": {data.draw(SNIPPETS)}"
            case "word":
                old, new = (
                    data.draw(st.sampled_from(WORDS)),
                    data.draw(SNIPPETS | st.text(max_size=4)),
                )
                lines[n] = lines[n].replace(old, new)
    check("\n".join(lines) + "\n")


@given(st.sampled_from(["prompt", "when", "for_each", "system", "output"]), st.text(), SNIPPETS)
@example("prompt", "\x08\n", "")
@example("prompt", "\x85a\u2028\ufeff\r\n b \n", "")
@example("when", "(" * 500, "")
@example("prompt", "{{" + "(" * 3000 + "}}", "")
@example("prompt", "{% for a in inputs %}" * 60, "")
@example("prompt", "{{ 9**9**9**9 }}{{ 'a' * 10**12 }}", "")
def test_any_template(place: str, text: str, snippet: str) -> None:
    """Any text as a template or condition loads or is refused."""
    quoted = '"' + "".join(f"\\U{ord(character):08x}" for character in text + snippet) + '"'
    old = {
        "prompt": '"Question: {{ reader.text }}"',
        "when": "\"'no' in critic.text\"",
        "for_each": "max_turns: 2",
        "system": "max_turns: 2",
        "output": '"{{ solver.text }}"',
    }[place]
    new = f"max_turns: 2\n    {place}: {quoted}" if old == "max_turns: 2" else quoted
    check(GOOD.replace(old, new))
