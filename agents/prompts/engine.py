"""The template engine, minijinja, with its limits; run in this process or as a script in a child.

As a script it reads one request as JSON, limits itself before it looks at it, and writes one
answer. So it imports nothing of this package.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

from minijinja import Environment, TemplateError, safe

MAX_OUTPUT = 10_000_000
_MAX_FILTERED = 20_000_000
_MAX_INDENT = 16


class _Budget:
    """Bounds what the filters below handle: the engine's own steps do not count them."""

    def __init__(self) -> None:
        self._left = _MAX_FILTERED

    def spend(self, *values: object) -> None:
        self._left -= sum(len(value) if isinstance(value, str) else 64 for value in values)
        if self._left < 0:
            raise ValueError("the filters handle too much text")

    def filters(self) -> dict[str, Callable[..., object]]:
        """Filters that the engine lacks, or that make more of an argument than its size."""
        return {
            "e": self._escape,
            "escape": self._escape,
            "float": self._float,
            "forceescape": self._escape,
            "int": self._int,
            "safe": self._text,
            "tojson": self._json,
            "truncate": self._truncate,
            "wordcount": self._wordcount,
        }

    def _text(self, value: object) -> str:
        self.spend(value)
        return str(value)

    def _escape(self, value: object) -> str:
        self.spend(value)
        return escape(str(value)).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")

    def _int(self, value: Any, default: object = 0, base: int = 10) -> object:
        self.spend(value)
        try:
            return int(value, base) if isinstance(value, str) else int(value)
        except (OverflowError, TypeError, ValueError):
            try:
                return int(float(value))
            except (OverflowError, TypeError, ValueError):
                return default

    def _float(self, value: Any, default: object = 0.0) -> object:
        self.spend(value)
        try:
            return float(value)
        except (OverflowError, TypeError, ValueError):
            return default

    def _json(self, value: object, indent: int | None = None) -> str:
        if indent is not None and not 0 <= indent <= _MAX_INDENT:
            raise ValueError(f"tojson indents by {_MAX_INDENT} at most")
        text = json.dumps(value, sort_keys=True, indent=indent)
        self.spend(text)
        marks: dict[str, str | int | None] = {
            "<": "\\u003c",
            ">": "\\u003e",
            "&": "\\u0026",
            "'": "\\u0027",
        }
        return text.translate(str.maketrans(marks))

    def _truncate(
        self,
        value: object,
        length: int = 255,
        killwords: bool = False,
        end: str = "...",
        leeway: int = 5,
    ) -> str:
        text = str(value)
        self.spend(text, end)
        if len(text) <= length + leeway:
            return text
        short = text[: max(0, length - len(end))]
        return (short if killwords else short.rsplit(" ", 1)[0]) + end

    def _wordcount(self, value: object) -> int:
        self.spend(value)
        return sum(1 for _ in str(value).split())


def _environment(fuel: int = 1) -> Environment:
    made = Environment(fuel=fuel, undefined_behavior="strict", keep_trailing_newline=True)
    for name in ("debug", "cycler", "joiner"):
        made.remove_global(name)
    for name, filter_ in _Budget().filters().items():
        made.add_filter(name, filter_)
    return made


def free_names(template: str) -> set[str]:
    """The names that a template reads and does not define.

    Raises:
        minijinja.TemplateError: It is no template.
    """
    return _environment().undeclared_variables_in_str(template)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Render a template, or evaluate an expression.

    Args:
        request: ``source``, ``names``, ``fuel`` (steps), and ``expression`` (a flag). ``messages``
            has, by name, what a name's ``text`` is replaced by where it is printed as it is.

    Returns:
        ``value``; or ``error`` with ``kind``, ``detail`` and ``line``.
    """
    names = dict(request["names"])
    environment = _environment(request["fuel"])
    if messages := request.get("messages"):
        stand_ins: dict[str, str] = {}
        for name, stand_in in messages.items():
            text = names[name]["text"]
            # The mark "safe" goes with a value and is lost by whatever makes another of it.
            names[name] = {**names[name], "text": safe(text)}
            stand_ins[text] = stand_in

        def printed(value: object) -> object:
            if isinstance(value, str) and hasattr(value, "__html__"):
                return stand_ins.get(str(value), NotImplemented)
            return NotImplemented

        environment.finalizer = printed
    try:
        if request.get("expression"):
            value = environment.eval_expr(request["source"], **names)
            if value is None:  # undefined too is None here, and an error once it is printed
                environment.render_str("{{ " + request["source"] + "\n}}", "template", **names)
            return {"value": _native(value)}
        text = environment.render_str(request["source"], "template", **names)
        if len(text) > MAX_OUTPUT:
            raise ValueError(f"it writes more than {MAX_OUTPUT:,} characters")
        return {"value": text}
    except TemplateError as error:
        detail = str(error.__cause__ or error.detail or error.message)
        return {"error": {"kind": error.kind, "detail": detail, "line": error.line or 1}}
    except Exception as error:  # a filter's, or text that cannot cross over to the engine
        detail = str(error) or type(error).__name__
        return {"error": {"kind": type(error).__name__, "detail": detail, "line": 1}}


def _native(value: Any) -> Any:
    """A value as plain data: marked text is text again."""
    if isinstance(value, str):
        return str.__str__(value) if type(value) is str else "".join(value)
    if isinstance(value, list | tuple):
        return [_native(item) for item in value]
    if isinstance(value, dict):
        return {_native(key): _native(item) for key, item in value.items()}
    return value


def _limit(seconds: float, megabytes: int) -> None:
    """Bound this process: memory, time of the processor, and no file that it could write."""
    import resource  # not on every system, and only a child limits itself
    import signal

    signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
    for name, limit in (
        (resource.RLIMIT_AS, megabytes * 1024 * 1024),
        (resource.RLIMIT_CPU, math.ceil(seconds)),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(name, (limit, limit))
        except (OSError, ValueError):
            continue  # macOS has no limit of the address space; its time is bounded all the same


def _main() -> None:
    _limit(float(sys.argv[1]), int(sys.argv[2]))
    reply = answer(json.loads(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(json.dumps(reply).encode())


if __name__ == "__main__":
    _main()
