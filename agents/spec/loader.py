"""Workflow files: YAML to a valid specification and back.

Everything wrong with a file is reported at once, each problem with file, line and column.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from unspoken.agents.spec.problems import KEY, closest, describe, schema_problems
from unspoken.agents.spec.salvage import salvage
from unspoken.agents.spec.spec import WorkflowSpec, dump
from unspoken.agents.spec.yaml_reader import Document, Path, Position, failure, parse
from unspoken.agents.spec.yaml_scalars import styled
from unspoken.channels.errors import InputError, Problem, UnspokenError, WorkflowError

MAX_BYTES = 1024 * 1024

RequireRef = Callable[[str], None]
"""Raises an `UnspokenError` for a model reference that leads nowhere."""


MOST_FILES = 100
"""Files that one workflow is read from: a chain that names the next one twice would never end."""


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

    @property
    def files(self) -> int:
        """How many files it was read from; one that several agents name counts for each."""
        return 1 + sum(one.files for one in self.nested.values())

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


def load_workflow(
    source: str | FilePath,
    within: tuple[FilePath, ...] = (),
    *,
    require_ref: RequireRef | None = None,
) -> LoadedWorkflow:
    """Read a workflow file, and the files of its agents that are workflows.

    Args:
        source: The file.
        require_ref: Asked of each model's reference; without it nothing is said of them.

    Raises:
        WorkflowError: The file cannot be read, is not YAML, or is not a valid workflow. All
            problems of a file that is YAML are listed.
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
    return loads(_decode(content, file), file, (*within, path.resolve()), require_ref=require_ref)


def _unreadable(path: FilePath, file: str) -> WorkflowError:
    if path.is_dir():
        return failure(f"{file} is a folder", file, None, "a workflow file", "name a file in it")
    if path.exists():
        return failure(f"{file} is not a regular file", file, None, "a workflow file")
    folder = path.parent
    near = sorted(item.name for item in folder.glob("*.y*ml")) if folder.is_dir() else []
    close = closest(path.name, near)
    if close:
        fix = f"did you mean {folder / close}?"
    else:
        fix = f"files in {folder}: {', '.join(near[:8])}" if near else "check the path"
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


def loads(
    text: str,
    file: str = "<string>",
    within: tuple[FilePath, ...] = (),
    *,
    require_ref: RequireRef | None = None,
) -> LoadedWorkflow:
    """Read a workflow from text; ``file`` names it in errors.

    Args:
        text: The text.
        file: Its file.
        within: This file and those that it is read for; the files of its agents are looked for
            beside the last one, and without any in the current folder.
        require_ref: As `load_workflow` has it.

    Raises:
        WorkflowError: Not YAML, or not a valid workflow. All problems of a file that is YAML are
            listed: of its values, and of how they fit together.
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
    nested = _nested(document, file, within, require_ref)
    spec = _validated(document, file, text, require_ref)
    return LoadedWorkflow(spec, file, document.values, text, nested)


def _nested(
    document: Document, file: str, within: tuple[FilePath, ...], require_ref: RequireRef | None
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
            itself = f"{named} runs itself: it is a workflow of agent '{name}' inside of itself"
            fix = "a loop edge runs an agent again"
            raise failure(itself, file, position, "another file", fix)
        found[name] = load_workflow(path, within, require_ref=require_ref)
        if sum(one.files for one in found.values()) > MOST_FILES:
            many, fix = f"its agents are read from more than {MOST_FILES} files", "use for_each"
            raise failure(many, file, position, "fewer workflows inside of workflows", fix)
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


def _validated(
    document: Document, file: str, text: str, require_ref: RequireRef | None
) -> WorkflowSpec:
    data = _own(document.data)
    try:
        spec = WorkflowSpec.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        wrong = schema_problems(error)
        placed = [_placed(problem, path, document, file) for path, problem in wrong]
        if not document.problems:
            unfitting = _beside(data, [path for path, _ in wrong], require_ref)
            placed += _in_file(unfitting, document, file, text)
        raise WorkflowError(_merged(document.problems, placed)) from None
    if document.problems:
        raise WorkflowError(_merged(document.problems, []))
    unfitting = _unfitting(spec, require_ref)
    if unfitting:
        raise WorkflowError(_merged([], _in_file(unfitting, document, file, text)))
    return spec


def _beside(data: object, wrong: Sequence[Path], require_ref: RequireRef | None) -> list[Problem]:
    """What is wrong with how the parts fit together, besides values that are wrong themselves."""
    remains = salvage(data) if isinstance(data, Mapping) else None
    if remains is None:
        return []
    # A part as a whole is wrong where keys do not go together; its keys can still be checked.
    told = {path for path in wrong if len(path) != 2 or not _is_mapping(data, path)}
    told |= {path[:2] for path in wrong if path[2:3] == ("workflow",)}  # nothing is known of it
    unfitting = _unfitting(remains.spec, require_ref, whole_edges=remains.whole_edges)
    return [
        problem
        for problem in unfitting
        if not any(_path(problem.where)[: len(path)] == path for path in told)
    ]


def _is_mapping(data: Any, path: Path) -> bool:
    for step in path:
        data = data[step]
    return isinstance(data, Mapping)


def _unfitting(
    spec: WorkflowSpec, require_ref: RequireRef | None, *, whole_edges: bool = True
) -> list[Problem]:
    """What is wrong with how the parts of a workflow fit together, and with what they name."""
    from unspoken.agents.spec.graph import validate  # networkx is only needed from here on

    problems = validate(spec, whole_edges=whole_edges)
    for name, model in spec.models.items():
        try:
            if require_ref is not None:
                require_ref(model.ref)
        except UnspokenError as error:
            where = f"models.{name}.ref"
            problems.append(Problem(error.found, where, error.expected, error.fix))
    return problems


def _in_file(
    problems: Sequence[Problem], document: Document, file: str, text: str
) -> list[Problem]:
    """Problems with their places in the file."""
    placed = []
    for problem in problems:
        position = _locate(_path(problem.where), document.values)
        position = _inside(problem, position, text)
        placed.append(replace(problem, file=file, line=position.line, column=position.column))
    return placed


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
    yaml.dump(styled(dump(spec)), stream)
    return stream.getvalue()
