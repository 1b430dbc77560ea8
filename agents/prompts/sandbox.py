"""The jinja environment: what templates may do, and how messages survive being printed.

Jinja joins what a template prints into text. Its generator of code for native types gives out every
printed value as it is instead, so that a whole message comes out as the object it was. What is
captured (by a macro, a filter or a block that is set) is joined to text as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import ChainableUndefined, Environment, StrictUndefined, pass_context
from jinja2.exceptions import SecurityError
from jinja2.nativetypes import NativeCodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unspoken.agents.prompts.absent import Absent

__all__ = ["MAX_OUTPUT", "TextRef", "environment", "names"]

MAX_OUTPUT = 10_000_000
MAX_RANGE = 100_000
_RANGES = "the ranges of this call"  # no identifier, so no template can name it
# These make long text from short; the sandbox has no measure for that.
_FORBIDDEN_FILTERS = ("batch", "center", "format", "slice")
_FORBIDDEN_METHODS = frozenset(
    {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"}
)


class TextRef(str):
    """An agent's text that remembers whose it is.

    It is ordinary text to filters, tests and operators; printed whole by `render_parts` it stays a
    `TextRef`.

    Attributes:
        agent: The agent that wrote it.
    """

    __slots__ = ("agent",)
    agent: str

    def __new__(cls, text: str, agent: str) -> TextRef:
        self = super().__new__(cls, text)
        self.agent = agent
        return self

    def __repr__(self) -> str:
        return f"TextRef({str(self)!r}, agent={self.agent!r})"

    def __reduce__(self) -> tuple[type[TextRef], tuple[str, str]]:
        return TextRef, (str(self), self.agent)


class _Fields:
    """A mapping whose keys are attributes in templates, and that has no others."""

    __slots__ = ("_fields", "_name")

    def __init__(self, name: str, fields: Mapping[str, object]) -> None:
        self._name, self._fields = name, fields

    def __getitem__(self, key: str) -> object:
        return self._fields[key]

    def __str__(self) -> str:
        raise SecurityError(f"{self._name!r} is not text by itself; write {self._name}.text")


class _Missing(ChainableUndefined):
    """An agent that was skipped: undefined, but nobody's mistake."""

    __slots__ = ("_fields",)

    def __init__(self, absent: Absent) -> None:
        super().__init__()
        self._fields = absent.fields

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(name)
        return self._fields.get(name, self)

    def __getitem__(self, name: str) -> Any:
        return self._fields.get(name, self)


class _Undefined(StrictUndefined):
    """Names what is missing; every use of it raises."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        owner = self._undefined_obj
        if isinstance(owner, _Fields):
            return f"'{owner._name}.{self._undefined_name}' is not defined"
        return super()._undefined_message


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = NativeCodeGenerator
    concat = staticmethod(lambda printed: "".join(map(str, printed)))
    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sizes = (left, right)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text % values is not available; use ~ to join text")
        if operator == "**" and any(isinstance(n, int) and abs(n) > 1_000 for n in sizes):
            raise SecurityError("the power is too large")
        if operator == "*" and any(isinstance(part, str | list | tuple) for part in sizes):
            lengths = [n if isinstance(n, int) else len(n) for n in sizes]
            if lengths[0] * lengths[1] > MAX_OUTPUT:
                raise SecurityError("the repeated text is too long")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _FORBIDDEN_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


@pass_context
def _range(context: Context, *bounds: int) -> range:
    numbers = range(*bounds)
    lengths = context.parent[_RANGES]
    lengths.append(len(numbers))
    if sum(lengths) > MAX_RANGE:
        raise SecurityError(f"ranges of more than {MAX_RANGE} numbers in one template")
    return numbers


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the environment that all templates share; it is never changed."""
    sandbox = _Environment(undefined=_Undefined, keep_trailing_newline=True, autoescape=False)
    sandbox.globals = {"range": _range, "dict": dict}
    for name in _FORBIDDEN_FILTERS:
        del sandbox.filters[name]
    return sandbox


def names(context: Mapping[str, object]) -> dict[str, object]:
    """Return a template's names: mappings become attributes, but for ``item``, the user's own."""
    known: dict[str, object] = {}
    for name, value in context.items():
        if isinstance(value, Absent):
            known[name] = _Missing(value)
        elif isinstance(value, Mapping) and name != "item":
            known[name] = _Fields(name, value)
        else:
            known[name] = value
    return {**known, _RANGES: []}
