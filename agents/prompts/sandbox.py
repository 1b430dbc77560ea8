"""Where a template is rendered: here where it is plain, in a child with limits where it is not.

The engine counts steps, and that bounds loops and text. Some things it does not count: values made
of values (a list of a list twice, thirty times), comparisons of long texts, an index into one. So a
template that has loops or makes values is rendered by a process that has little memory and time.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import minijinja

from unspoken.agents.prompts import engine
from unspoken.agents.prompts.lexer import Tag, Token

FUEL = 1_000_000
"""Steps of one rendering: an instruction is one, and 64 characters that are handled are about one.
"""
FUEL_OF_CHILD = 5_000_000
SECONDS = 0.75  # of the processor's time
MEGABYTES = 160
_WAIT = 20  # for a child to start on a machine that is busy
MAX_DEPTH = 64


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILTERS = _words(
    """abs attr batch bool capitalize chain count d default dictsort e escape filesizeformat first
    float forceescape format groupby indent int items join last length lines list lower map max min
    pluralize pprint reject rejectattr replace reverse round safe select selectattr slice sort split
    string striptags sum title tojson trim truncate unique upper urlencode wordcount wordwrap zip"""
)
# These take time in proportion to their text, and make no more of it than they are given.
_PLAIN_FILTERS = _words(
    """abs bool capitalize count d default e escape first float int join last length lower replace
    round safe string title tojson trim truncate upper wordcount"""
)
TESTS = _words(
    """boolean defined divisibleby endingwith eq equalto escaped even false filter float ge
    greaterthan gt in int integer iterable le lessthan lower lt mapping ne none number odd safe
    sameas sequence startingwith string test true undefined upper"""
)
METHODS = _words(
    """capitalize count cycle changed endswith find get isalnum isalpha isascii isdigit islower
    isnumeric isspace isupper items join keys lower lstrip replace rfind rstrip split splitlines
    startswith strip title upper values"""
)
_PLAIN_STATEMENTS = frozenset({"", "if", "elif", "else", "endif"})
_OPERATORS = frozenset({"and", "else", "elif", "if", "in", "is", "not", "or"})
_MAX_PLAIN = 2_000


class TextRef(str):
    """An agent's text that remembers whose it is.

    It is ordinary text to filters, tests and operators; printed whole by `render_parts` it stays a
    `TextRef`.

    Attributes:
        agent: The agent that wrote it.
    """

    __slots__ = ("agent",)
    agent: str

    def __new__(cls, text: str, agent: str) -> "TextRef":
        self = super().__new__(cls, text)
        self.agent = agent
        return self

    def __repr__(self) -> str:
        return f"TextRef({str(self)!r}, agent={self.agent!r})"

    def __reduce__(self) -> tuple[type["TextRef"], tuple[str, str]]:
        return TextRef, (str(self), self.agent)


def plain_data(value: object, depth: int = 0) -> Any:
    """A copy of a value in numbers, text, lists and mappings; anything else as its text.

    The engine calls methods of the objects that it is given. So it is given none of the caller's.

    Raises:
        ValueError: Values inside one another more than 64 deep, or inside themselves.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested more than {MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_data(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item, depth + 1) for item in value]
    return "".join(value) if isinstance(value, str) else str(value)


def respond(request: Mapping[str, Any], plain: bool) -> dict[str, Any]:
    """What the engine answers, of a child where the template is not plain; see `engine.answer`."""
    if plain:
        return engine.answer({**request, "fuel": FUEL})
    return _of_child({**request, "fuel": FUEL_OF_CHILD})


def _of_child(request: Mapping[str, Any]) -> dict[str, Any]:
    folder = str(Path(minijinja.__file__).parents[1])
    start = "import sys, runpy; sys.path.append(sys.argv.pop(1)); script = sys.argv[1]; "
    start += "sys.argv.pop(0); runpy.run_path(script, run_name='__main__')"
    command = [sys.executable, "-I", "-c", start, folder, engine.__file__]
    payload = json.dumps(request).encode()
    megabytes = MEGABYTES + 16 * len(payload) // 2**20
    try:
        done = subprocess.run(
            [*command, str(SECONDS), str(megabytes)],
            input=payload,
            capture_output=True,
            timeout=_WAIT,
            env={},
            check=False,
        )
        if done.returncode == 0:
            reply: dict[str, Any] = json.loads(done.stdout)
            error = reply.get("error", {})
            # An allocation that fails is a panic of the engine, or Python's own error.
            if error.get("kind") != "MemoryError" and "panic" not in error.get("detail", "")[:8]:
                return reply
    except subprocess.TimeoutExpired:
        pass
    detail = f"it takes more than {SECONDS} s or {megabytes} MB"
    return {"error": {"kind": "Limit", "detail": detail, "line": 1}}


def is_plain(tags: tuple[Tag, ...]) -> bool:
    """Whether a template does no more steps than it has words, none of them on values it made.

    Text, names, conditions and simple filters: what most prompts are. Loops, variables, macros and
    products go to a child.
    """
    if sum(len(tag.tokens) for tag in tags) > _MAX_PLAIN:
        return False
    return all(tag.keyword in _PLAIN_STATEMENTS and _tokens_are_plain(tag.tokens) for tag in tags)


def _tokens_are_plain(tokens: tuple[Token, ...]) -> bool:
    before = ""
    for index, token in enumerate(tokens):
        after = tokens[index + 1].text if index + 1 < len(tokens) else ""
        if token.kind == "name" and before == "|":
            if token.text not in _PLAIN_FILTERS:
                return False
        elif token.kind == "name" and after == "(" and token.text not in _OPERATORS:
            if before != "." or token.text not in METHODS:
                return False
        elif token.text == "*":
            return False
        before = token.text
    return True
