"""Workflow files: YAML to a valid specification and back.

Everything wrong with a file is reported at once, each problem with file, line and column.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from unspoken.agents.spec.problems import KEY, describe, schema_problems
from unspoken.agents.spec.spec import WorkflowSpec, dump
from unspoken.agents.spec.yaml_reader import Document, Path, Position, failure, parse
from unspoken.agents.spec.yaml_scalars import resolve
from unspoken.channels.errors import InputError, Problem, WorkflowError

MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LoadedWorkflow:
    """A valid workflow and where its parts stand in its file.

    Attributes:
        spec: The workflow.
        file: The file's name as given.
        positions: Where each value stands, by path; a collection stands where its key does.
        text: The file's text.
        nested: The files of its agents that are workflows, by agent.
    """

    spec: WorkflowSpec
    file: str
    positions: Mapping[Path, Position]
    text: str = ""
    nested: Mapping[str, LoadedWorkflow] = field(default_factory=dict)

    def locate(self, where: str) -> Position:
        """Return the position of a path such as ``edges[2].from``, or of the nearest part above."""
        return _locate(_path(where), self.positions)

    def placed(self, problem: Problem) -> Problem:
        """Return a problem that was found later, with its place in the file where it has one."""
        if _path(problem.where)[:2] not in self.positions:
            return problem
        position = _inside(problem, self.locate(problem.where), self.text)
        return replace(problem, file=self.file, line=position.line, column=position.column)

    @contextmanager
    def placing(self, where: str) -> Iterator[None]:
        """Let an error of what stands at a path such as ``models.small`` name its place."""
        try:
            yield
        except InputError as error:
            error.found = str(self.placed(Problem(error.found, where)))
            raise


def load_workflow(source: str | FilePath, within: tuple[FilePath, ...] = ()) -> LoadedWorkflow:
    """Read a workflow file, and the files of its agents that are workflows.

    Args:
        source: The file.
        within: The files that it is read for, which it cannot be one of.

    Raises:
        WorkflowError: The file cannot be read, is not YAML, or is not a valid workflow. All
            problems of the first kind that has any are listed.
    """
    file = str(source)
    try:
        path = FilePath(source)
        if not path.is_file():
            raise _unreadable(path, file)
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise failure(f"cannot read {file}: {reason}", file, None, "a workflow file") from error
    return loads(_decode(content, file), file, (*within, path.resolve()))


def _unreadable(path: FilePath, file: str) -> WorkflowError:
    if path.is_dir():
        return failure(f"{file} is a folder", file, None, "a workflow file", "name a file in it")
    if path.exists():
        return failure(f"{file} is not a regular file", file, None, "a workflow file")
    folder = path.parent
    near = sorted(item.name for item in folder.glob("*.y*ml"))[:8] if folder.is_dir() else []
    fix = f"files in {folder}: {', '.join(near)}" if near else "check the path"
    return failure(f"there is no file {file}", file, None, "a workflow file", fix)


def _decode(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(content) > MAX_BYTES:
            return content.decode("utf-8-sig", "replace")
        before = content[: error.start].decode("utf-8", "replace")
        position = Position(before.count("\n") + 1, len(before) - before.rfind("\n"))
        found = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise failure(found, file, position, "text in UTF-8", "save the file as UTF-8") from None


def loads(text: str, file: str = "<string>", within: tuple[FilePath, ...] = ()) -> LoadedWorkflow:
    """Read a workflow from text; ``file`` names it in errors.

    Args:
        text: The text.
        file: Its file.
        within: This file and those that it is read for; the files of its agents are looked for
            beside the last one, and without any in the current folder.

    Raises:
        WorkflowError: Not YAML, or not a valid workflow. Problems of the values come first; how
            they fit together is checked once each is right by itself.
    """
    text = text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        found = f"the workflow is larger than {MAX_BYTES // 1024} KiB"
        fix = "give long texts as inputs, which a run reads from files"
        raise failure(found, file, Position(1, 1), "a shorter file", fix)
    document = parse(text, file)
    root = document.values.get((), Position(1, 1))
    if document.data is None and not document.problems:
        found, fix = "the file is empty", "start with 'name:', 'models:' and 'agents:'"
        raise failure(found, file, root, "a workflow", fix)
    if not isinstance(document.data, dict) and not document.problems:
        found = f"the file holds {describe(document.data)}"
        raise failure(found, file, root, "a mapping with name, models and agents")
    nested = _nested(document, file, within)
    spec = _validated(document, file, text)
    return LoadedWorkflow(spec, file, document.values, text, nested)


def _nested(
    document: Document, file: str, within: tuple[FilePath, ...]
) -> dict[str, LoadedWorkflow]:
    """Read the files of agents that are workflows, and put what they say in their place."""
    data = document.data
    agents = data.get("agents") if isinstance(data, dict) else None
    found: dict[str, LoadedWorkflow] = {}
    for name, agent in agents.items() if isinstance(agents, dict) else ():
        named = agent.get("workflow") if isinstance(agent, dict) else None
        if not isinstance(named, str) or named == "none":
            continue
        path = (within[-1].parent if within else FilePath()) / named
        position = _locate(("agents", name, "workflow"), document.values)
        if not path.is_file():
            fix = f"it is looked for beside {file}"
            raise failure(f"there is no file {path}", file, position, "a workflow file", fix)
        if path.resolve() in within:
            raise failure(
                f"{named} runs itself: it is a workflow of agent '{name}' inside of itself",
                file,
                position,
                "another file",
                "a loop edge runs an agent again",
            )
        found[name] = load_workflow(path, within)
        agent["workflow"] = found[name].spec
    return found


def _own(data: object, path: Path = ()) -> object:
    """A file's data less the keys that begin with ``x-``, which hold what is the user's own.

    The parts of a file may have such keys; names in it, a schema, and data under ``inputs``, are
    no parts.
    """
    if path[:1] == ("agents",) and path[2:] == ("workflow",):
        return _own(data)
    if isinstance(data, list):
        return [_own(item, (*path, "")) for item in data]
    if not isinstance(data, dict) or (path[:1] == ("inputs",) and len(path) > 2):
        return data
    if path[-2:] == ("generate", "schema"):
        return data
    part = len(path) != 1
    return {
        key: _own(value, (*path, key))
        for key, value in data.items()
        if not (part and key.startswith("x-"))
    }


def _validated(document: Document, file: str, text: str) -> WorkflowSpec:
    from unspoken.agents.spec.graph import validate  # networkx is only needed from here on

    try:
        spec = WorkflowSpec.model_validate(_own(document.data), by_alias=True, by_name=False)
    except ValidationError as error:
        placed = [
            _placed(problem, path, document, file) for path, problem in schema_problems(error)
        ]
        raise WorkflowError(_merged(document.problems, placed)) from None
    if document.problems:
        raise WorkflowError(_merged(document.problems, []))
    loaded = LoadedWorkflow(spec, file, document.values, text)
    placed = [
        loaded.placed(item) if item.inner_line else _placed(item, _path(item.where), document, file)
        for item in validate(spec)
    ]
    if placed:
        raise WorkflowError(_merged([], placed))
    return spec


def _inside(problem: Problem, position: Position, text: str) -> Position:
    """The place of a line inside a block of lines (after ``|``), where the file has one."""
    lines = text.splitlines()
    number = position.line + problem.inner_line
    if not problem.inner_line or number > len(lines):
        return position
    if not lines[position.line - 1].startswith("|", position.column - 1):
        return position
    line = lines[number - 1]
    return Position(number, len(line) - len(line.lstrip()) + 1)


def _merged(yaml: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    """Return all problems in the order of the file, without what follows from those of YAML."""
    known = {problem.where for problem in yaml} | {_order(problem) for problem in yaml}
    own = [other for other in others if not (other.where and known & {other.where, _order(other)})]
    return sorted([*yaml, *own], key=_order)


def _order(problem: Problem) -> tuple[int, int]:
    return problem.line, problem.column


def _placed(problem: Problem, path: Path, document: Document, file: str) -> Problem:
    about_key = bool(path) and path[-1] == KEY
    if about_key:
        path = path[:-1]
    elif problem.message.startswith("unknown key"):
        about_key = True
    position = document.keys.get(path) if about_key else None
    position = position or _locate(path, document.values)
    return replace(problem, file=file, line=position.line, column=position.column)


def _locate(path: Path, values: Mapping[Path, Position]) -> Position:
    while path not in values and path:
        path = path[:-1]
    return values.get(path, Position(1, 1))


def _path(where: str) -> Path:
    steps = re.findall(r"\[(\d+)\]|([^.\[\]]+)", where)
    return tuple(int(index) if index else name for index, name in steps)


def dumps(spec: WorkflowSpec) -> str:
    """Write a workflow as YAML; `loads` reads an equal one."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.allow_unicode = True
    stream = io.StringIO()
    yaml.dump(_styled(dump(spec)), stream)
    return stream.getvalue()


def _styled(value: Any) -> Any:
    if isinstance(value, dict):
        return {_styled(key): _styled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_styled(item) for item in value]
    if not isinstance(value, str):
        return value
    if _is_block(value):
        return LiteralScalarString(value)
    if resolve(value)[0] != "str" or not value.isprintable():
        return DoubleQuotedScalarString(value)
    return value


def _is_block(text: str) -> bool:
    """Tell whether text comes back from a block of lines exactly as it was."""
    lines = text.removesuffix("\n").split("\n")
    return (
        "\n" in text
        and all(line.isprintable() and not line.endswith(" ") for line in lines)
        and lines[0][:1].strip() != ""
        and lines[-1] != ""
    )
