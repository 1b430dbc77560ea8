"""Write the parts of the documentation that the code knows best, between their markers.

``python docs/_generate.py`` rewrites the pages; a test checks that it would change nothing.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import typer

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
EXAMPLE = ROOT / "examples" / "draft_critique_revise" / "workflow.yaml"

_MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> Mapping[Path, str]:
    """Every page with generated parts, as it should be."""
    filled = {}
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if _MARKED.search(text):
            filled[page] = _MARKED.sub(_filled, text)
    return filled


def _filled(marked: re.Match[str]) -> str:
    return f"{marked[1]}\n{SECTIONS[marked[2]]().strip()}\n\n{marked[3]}"


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


# The keys of the workflow file

_PARTS = {
    "WorkflowSpec": ("The file", "The keys at the top."),
    "ModelSpec": ("A model", "One entry of `models`. A bare string is its `ref`."),
    "DeviceMap": ("A device map", "A model's `device` where it takes several."),
    "InputSpec": ("An input", "One entry of `inputs`. A bare string is its `type`."),
    "McpServerSpec": ("A server of tools", "One entry of `mcp_servers`."),
    "AgentSpec": ("An agent", "One entry of `agents`."),
    "GenerateSpec": ("Generation", "An agent's `generate`; `none` writes nothing."),
    "FirstSpec": ("A join", "An agent's `join` where its first messages start it."),
    "RetrySpec": ("Retries", "An agent's `retry`. A bare number is its `attempts`."),
    "EdgeSpec": ("An edge", "One item of `edges`."),
    "Repair": ("Repair", "An edge's `repair`; `none` recomputes nothing."),
}


def workflow_keys() -> str:
    """A table for each part of a workflow file, from its JSON schema."""
    from unspoken.agents.spec.spec import json_schema

    schema = json_schema()
    parts = {"WorkflowSpec": schema, **schema["$defs"]}
    if set(parts) != set(_PARTS):
        raise SystemExit(f"docs/_generate.py: name the parts {set(parts) ^ set(_PARTS)}")
    columns = ("key", "values", "default", "what")
    return "\n\n".join(
        f"### {title}\n\n{words}\n\n{_table(columns, _keys(parts[name]))}"
        for name, (title, words) in _PARTS.items()
    )


def _keys(part: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, value in part["properties"].items():
        usual = part.get("then", {})  # an agent has a model and a prompt, or a workflow
        required = key in part.get("required", usual.get("required", ()))
        default = "required" if required else _default(value.get("default"), value)
        yield _code(key), _values(value), default, value["description"]


def _default(value: object, schema: Mapping[str, Any]) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return _code(str(value).lower())
        case dict() | list() if not value:
            return "empty"
        case dict():
            given = {key: one for key, one in value.items() if one not in (None, [])}
            return _code("{" + ", ".join(f"{key}: {one:g}" for key, one in given.items()) + "}")
        case "":
            return "empty"
        case list() | tuple():
            return ", ".join(_code(str(one)) for one in value)
        case int() | float():
            return _code(f"{value:g}")
    return _code(str(value))


_NAMES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true` or `false`",
}
_BOUNDS = {
    "minimum": "{:g} or more",
    "exclusiveMinimum": "more than {:g}",
    "maximum": "{:g} or less",
}


def _values(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        if schema["$ref"] == "#":
            return "[a workflow](#the-file)"
        name = schema["$ref"].rsplit("/", 1)[-1]
        title = _PARTS[name][0]
        return f"[{title.lower()}](#{title.lower().replace(' ', '-')})"
    if "then" in schema:
        mapping, other = _values(schema["then"]), _values(schema["else"])
        return f"{mapping} or {other}" if other == "`none`" else f"{other} or {mapping}"
    if "enum" in schema:
        return ", ".join(_code(value) for value in schema["enum"] if value is not None)
    if "const" in schema:
        return _code(schema["const"])
    if "anyOf" in schema:
        choices = [_values(choice) for choice in schema["anyOf"] if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(choices))
    match schema.get("type"):
        case "object" if "additionalProperties" not in schema:
            return "a JSON schema"
        case "object" if schema["additionalProperties"] is True:
            return "names, each with any value"
        case "object":
            return f"names, each with {_values(schema['additionalProperties'])}"
        case "array" if "prefixItems" in schema:
            return "[" + ", ".join(map(_values, schema["prefixItems"])) + "]"
        case "array":
            return f"list of {_values(schema['items'])}"
        case None:
            return "any value of the type"
    bounds = [words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema]
    return _NAMES[schema["type"]] + (f" ({', '.join(bounds)})" if bounds else "")


# The commands


def commands() -> str:
    """Every command with its arguments and options."""
    from unspoken.agents.cli.main import app

    return "\n\n".join(_command("unspoken", typer.main.get_command(app)))


def _command(path: str, command: Any, depth: int = 2) -> Iterator[str]:
    words = [re.sub(r"\s*\n(?!\n)", " ", part) for part in (command.help or "").split("\n\n")]
    yield f"{'#' * depth} `{path}`\n\n" + "\n\n".join(word.strip() for word in words)
    rows = [_option(option) for option in command.params if not getattr(option, "hidden", False)]
    rows = [row for row in rows if row]
    if rows:
        yield _table(("argument or option", "value", "what"), iter(rows))
    if path == "unspoken bench":
        yield _table(("benchmark", "what it measures", "`--rows`", "`--only`"), iter(_benches()))
    for name, inner in sorted(getattr(command, "commands", {}).items(), key=_order(command)):
        yield from _command(f"{path} {name}", inner, depth + 1)


def _benches() -> Iterator[tuple[str, ...]]:
    from unspoken.agents.bench import BENCHES
    from unspoken.agents.bench.scale import SCALES

    for name, what in BENCHES.items():
        scale = SCALES.get(name)
        if scale is None:
            yield _code(name), what, "", ""
        else:
            yield _code(name), what, scale.said(scale.rows), ", ".join(map(_code, scale.parts))


def _order(group: Any) -> Any:
    names = list(getattr(group, "commands", {}))
    return lambda item: names.index(item[0])


def _option(option: Any) -> tuple[str, ...]:
    help_text = " ".join((option.help or "").split())
    if not option.opts[0].startswith("-"):
        return _code(option.metavar or option.name.upper()), "", help_text
    return ", ".join(map(_code, option.opts)), _value(option), help_text


def _value(option: Any) -> str:
    kind = option.type_descriptor.annotation
    if option.is_flag:
        return ""
    if option.metavar:
        return _code(option.metavar)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(_code(str(member.value)) for member in kind)
    return {int: "whole number", float: "number", Path: "path"}.get(kind, "text")


def graph() -> str:
    """What ``unspoken graph`` prints for an example."""
    from unspoken.agents.spec.graph import to_mermaid
    from unspoken.agents.spec.loader import load_workflow

    return f"```text\n{to_mermaid(load_workflow(EXAMPLE).spec)}```"


# The errors


def bad_workflows() -> str:
    """Workflows that are refused, with the message each gets."""
    from bad_workflows import BAD_WORKFLOWS

    from unspoken.agents.spec.loader import loads
    from unspoken.channels.errors import WorkflowError

    def rows() -> Iterator[tuple[str, ...]]:
        for bad in BAD_WORKFLOWS:
            try:
                loads(bad.text, "flow.yaml")
            except WorkflowError as error:
                lines = [str(one) for one in error.problems if bad.message in str(one)]
                yield bad.name, _message(lines[0])

    return _table(("mistake", "what it says"), rows())


def bad_inputs() -> str:
    """Other mistakes, with the message each gets."""
    from bad_inputs import BAD_INPUTS, furnish

    from unspoken.channels.errors import UnspokenError

    rows = []
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        furnish(folder)
        os.chdir(folder)
        try:
            for bad in BAD_INPUTS:
                try:
                    bad.do()
                except UnspokenError as error:
                    text = str(error).replace(str(folder), "…")
                    text = re.sub(r"\b[0-9a-f]{16}\b", "…", text)
                    rows.append((bad.name, _code(type(error).__name__), _message(text)))
        finally:
            os.chdir(before)
    return _table(("mistake", "error", "what it says"), iter(rows))


def bad_packets() -> str:
    """Packets that are refused, with the message each gets."""
    from bad_packets import bad_packets as cases

    from unspoken.channels.errors import UnspokenError

    rows = []
    for bad in cases():
        try:
            bad.read()
        except UnspokenError as error:
            text = re.sub(r"\b[0-9a-f]{16}\b", "…", str(error))
            kind = _code(bad.kind) if bad.kind else ""
            rows.append((bad.name, _code(type(error).__name__), kind, _message(text)))
    return _table(("packet", "error", "kind", "what it says"), iter(rows))


def _message(text: str) -> str:
    return "<br>".join(_code(line.strip()) for line in text.splitlines() if line.strip())


def error_tree() -> str:
    """The tree of errors, as its module draws it."""
    from unspoken.channels import errors

    drawn = (errors.__doc__ or "").split("::\n", 1)[1]
    lines = [line.removeprefix("    ") for line in drawn.strip("\n").splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```"


# The architectures


def architectures() -> str:
    """A row for each architecture that works, and why the others do not, as the sweep found it."""
    kept = json.loads((DOCS / "architectures.json").read_text(encoding="utf-8"))
    every = kept["architectures"]
    working = [one for one in every if one["row"] and not one["broken"] and not one["crashed"]]
    refused = [one for one in every if one["refused"]]
    unmade = [one["kind"] for one in every if one["unmade"]]
    reasons: dict[str, int] = {}
    for one in working:
        for why in filter(None, one["row"].values()):
            reasons.setdefault(why, len(reasons) + 1)

    def rows() -> Iterator[tuple[str, ...]]:
        for one in working:
            cells = (
                "yes" if why is None else f"no ({reasons[why]})" for why in one["row"].values()
            )
            yield _code(one["kind"]), *cells

    causal = sum(one in working for one in every[: kept["causal"]])
    parts = [
        f"Of the {kept['causal']} names that transformers {kept['transformers']} has for causal "
        f"language models, {causal} work. Of {len(every) - kept['causal']} more, which read "
        f"pictures or sound too, {len(working) - causal} work by their text part. "
        f"{len(refused)} are refused when they are loaded, and of {len(unmade)} the sweep makes "
        "no tiny model.",
        _table(("architecture", *working[0]["row"]), rows()),
        "\n".join(f"{number}. {why}" for why, number in reasons.items()),
        "## Refused",
        _table(
            ("architecture", "reason"),
            ((_code(one["kind"]), _code(one["refused"])) for one in refused),
        ),
        "## Not tried",
        "The sweep makes no tiny model of these, which says nothing of whether they work: "
        + ", ".join(map(_code, unmade))
        + ".",
    ]
    return "\n\n".join(parts)


SECTIONS = {
    "architectures": architectures,
    "workflow-keys": workflow_keys,
    "commands": commands,
    "graph": graph,
    "bad-workflows": bad_workflows,
    "bad-inputs": bad_inputs,
    "bad-packets": bad_packets,
    "error-tree": error_tree,
}


if __name__ == "__main__":
    sys.path[:0] = [
        str(ROOT / ".src"),
        *(str(ROOT / "tests" / name) for name in ("support", "samples")),
    ]
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
