"""Templates that would take a machine's memory or time, each by another way.

Run as a script, it checks and renders each, under a bound of its own for the processor's time, and
prints how long that took, how slow the processor was, and how much memory.
"""

import json
import resource
import sys

_GROW = "{{% set ns = namespace(x={start}) %}}{{% for i in range({times}) %}}{{% set ns.x = {step} %}}{{% endfor %}}{show}"  # noqa: E501


def _grow(start: str, step: str, show: str = "{{ ns.x }}", times: int = 64) -> str:
    return _GROW.format(start=start, step=step, show=show, times=times)


def _loop(body: str) -> str:
    return "{% for i in range(99999) %}" + body + "{% endfor %}"


def _nested(opening: str, closing: str, depth: int = 10_000) -> str:
    return "{{ " + opening * depth + "1" + closing * depth + " }}"


HOSTILE = {
    "loops in loops": _loop(_loop("")),
    "a long text, many times": _loop(_loop("x" * 100_000)),
    "text times a number": "{{ 'a' * 10 ** 10 }}",
    "text times a number, many times": _loop("{{ 'a' * 1000000 }}"),
    "a list times a number": "{{ [1] * 10 ** 9 }}",
    "lists of lists times a number": "{{ [[[1] * 9999] * 9999] * 9999 }}",
    "powers": "{{ 9 ** 9 ** 9 }}",
    "text twice": _grow("'a'", "ns.x ~ ns.x"),
    "a sum twice": _grow("'a'", "ns.x + ns.x"),
    "a list twice": _grow("[1]", "ns.x + ns.x"),
    "a list of a list twice": _grow("[1]", "[ns.x, ns.x]"),
    "its length as text": _grow("[1]", "[ns.x, ns.x]", "{{ ns.x | string | length }}"),
    "its JSON": _grow("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson | length }}"),
    "compared": _grow("[1]", "[ns.x, ns.x]", "{{ ns.x == [ns.x] }}"),
    "mappings of mappings": _grow("{}", "dict(a=ns.x, b=ns.x)"),
    "sets alone": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 40 + "{{ x }}",
    "zips": "{% set x = [1] %}" + "{% set x = x | zip(x) %}" * 40 + "{{ x | list }}",
    "a deep list": _grow("[1]", "[ns.x]", "{{ ns.x | string | length }}", 99_999),
    "a name inside itself": "{% set ns = namespace(x=1) %}{% set ns.x = [ns] %}{{ ns }}",
    "slices of slices": _grow("[1, 2]", "ns.x[:]", "{{ ns.x | list }}", 99_999),
    "joined with itself": _grow("'a'", "[ns.x, ns.x] | join(ns.x)"),
    "replaced by itself": _grow("'aaaaaaaa'", "ns.x | replace('a', ns.x)"),
    "JSON of JSON": _grow("'\"'", "ns.x | tojson"),
    "indented": "{{ 'a\nb' | indent(10 ** 9) }}",
    "JSON indented": "{{ [1] | tojson(indent=10 ** 9) }}",
    "formatted": "{{ '%1000000000d' | format(1) }}",
    "formatted by a method": "{{ '{:>1000000000}'.format(1) }}",
    "appended": _loop("{{ inputs.rows.append(inputs.rows) }}"),
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursion, twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}x"
    "{% endmacro %}{{ m(60) }}",
    "recursion with a list": "{% macro m(x, n) %}{% if n %}{{ m([x, x], n - 1) }}{% else %}"
    "{{ x }}{% endif %}{% endmacro %}{{ m([1], 60) }}",
    "a recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a block in itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "sets of sets": "{% set x %}abc{% endset %}"
    + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40
    + "{{ x }}",
    "parentheses": _nested("(", ")"),
    "brackets": _nested("[", "]"),
    "braces": _nested("{1:", "}"),
    "negations": _nested("not ", ""),
    "conditions": _nested("1 if 0 else ", ""),
    "a long sum": _nested("1+", "", 100_000),
    "a long product": _nested("2**", "", 100_000),
    "many filters": "{{ 1" + "|int" * 100_000 + " }}",
    "many attributes": "{{ inputs" + ".a" * 100_000 + " }}",
    "many calls": "{{ inputs" + "()" * 100_000 + " }}",
    "many tests": "{{ 1" + " is defined" * 100_000 + " }}",
    "ifs in ifs": "{% if 1 %}" * 10_000 + "{% endif %}" * 10_000,
    "many branches": "{% if 0 %}" + "{% elif 0 %}" * 100_000 + "{% endif %}",
    "loops opened": "{% for a in [1] %}" * 10_000,
    "lists of ranges": _grow("[]", "[range(99999) | list, ns.x]", times=9_999),
    "rows printed": _loop("{{ inputs.rows }}"),
    "texts compared": _loop("{% if inputs.text == inputs.other %}{% endif %}"),
    "indices into a text": _loop("{% if inputs.text[-1] %}{% endif %}"),
    "rows without doubles": _loop("{{ inputs.rows | unique | list | length }}"),
    "words counted": _loop("{{ inputs.text | wordcount }}"),
    "escaped": _grow("'&'", "(ns.x ~ ns.x) | e"),
    "wrapped": _loop("{{ inputs.text | wordwrap(width=1) | length }}"),
    "items of the inputs": _loop("{% for k in inputs.items() %}{% endfor %}"),
    "the text of the inputs": _loop("{% if inputs ~ '' %}{% endif %}"),
}


BOUND_S = 0.2
"""Seconds of the processor that a child may take here: what runs into a bound takes all of it."""

USUAL_S = 0.008
"""Seconds that `_slowness` takes on a processor of usual speed."""


def _slowness() -> float:
    """How many times slower than usual this processor runs a loop now, at least 1."""
    began = _cpu()
    sum(number * number for number in range(100_000))
    return max(1.0, (_cpu() - began) / USUAL_S)


def _measure(name: str) -> None:
    from unspoken.agents.prompts import sandbox
    from unspoken.agents.prompts.jinja import references, render
    from unspoken.channels.errors import TemplateError

    text = "the quick brown fox " * 50_000
    rows = [{"a": number, "b": "x" * 20} for number in range(5_000)]
    context = {"inputs": {"text": text, "other": text + "x", "rows": rows}}
    sandbox.SECONDS = BOUND_S
    before, slowness = _peak(), _slowness()
    start = _cpu()
    try:
        references(HOSTILE[name])
        render(HOSTILE[name], context)
    except TemplateError:
        pass
    used = _cpu() - start
    slowness = max(slowness, _slowness())
    row = {"name": name, "seconds": used, "slowness": slowness, "megabytes": _peak() - before}
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def _cpu() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(one) for one in who]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak() -> int:
    """The most memory that this process, or one of its children, held so far, in MB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    scale = 1024 * 1024 if sys.platform == "darwin" else 1024
    return sum(resource.getrusage(one).ru_maxrss for one in who) // scale


if __name__ == "__main__":
    for hostile in HOSTILE:
        _measure(hostile)
