"""The tools of a workflow's agents: found by name, and called at one place."""

import importlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any, Protocol

import anyio
from blake3 import blake3

from unspoken.agents.tools.functions import Tool, as_tool
from unspoken.agents.tools.ref import ToolRef
from unspoken.agents.tools.servers import McpServer
from unspoken.agents.tools.sessions import STOPPING_S, Answer, McpSession
from unspoken.channels.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a tool in a turn.

    Attributes:
        id: Names the call in its run: agent, turn, item and number.
        agent: Who calls.
        turn: In which turn, from 1.
        item: For which item of ``for_each``, from 0; None without.
        name: The tool's name.
        arguments: What it is given.
    """

    id: str
    agent: str
    turn: int
    item: int | None
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What became of a call.

    Attributes:
        result: What the tool returned, as text; what went wrong, where it failed.
        failed: Whether it failed.
        seconds: How long it took.
        unknown: Whether nobody knows if it took effect: the run was interrupted during it, or its
            server did not answer.
    """

    result: str
    failed: bool
    seconds: float
    unknown: bool = False


class Book(Protocol):
    """Keeps the calls of a run: what became of one it may know already."""

    def begin(self, agent: str, turn: int, item: int | None) -> None:
        """Told before each try of a turn."""

    async def around(self, call: Call, tool: Tool, make: Callable[[], Awaitable[Called]]) -> Called:
        """Stands around every call."""


class Toolbox:
    """The tools of one workflow.

    Args:
        folder: Where modules that files name are looked for first, and where servers' programs
            begin; None for Python's own path, and the folder of the process.
        allowed: Whether tools that are named, and not given as objects, may be imported,
            and servers started.

    Attributes:
        folder: See above.
        allowed: See above.
        book: Keeps the calls, where a run is kept.
    """

    def __init__(self, folder: Path | None = None, *, allowed: bool = True) -> None:
        self.allowed = allowed
        self.book: Book | None = None
        self.folder = folder
        self._found: dict[str, Tool] = {}
        self._modules: dict[str, ModuleType] = {}
        self._listed: dict[str, tuple[Tool, ...]] = {}
        self._sessions: dict[str, McpSession] = {}

    def of_run(self, book: Book) -> "Toolbox":
        """The same tools, for one run that has its calls kept."""
        box = copy(self)
        box.book = book
        return box

    @asynccontextmanager
    async def opened(self, servers: Sequence[McpServer]) -> AsyncIterator["Toolbox"]:
        """The same tools and those of servers, which live as long as this.

        Raises:
            InputError: They may not run, or one of them does not work.
        """
        if not servers:
            yield self
            return
        self.require_allowed(ToolRef(f"mcp:{server.name}") for server in servers)
        sessions, error = [McpSession(server, self.folder) for server in servers], None
        async with anyio.create_task_group() as tasks:
            try:
                for session in sessions:
                    await session.begin(tasks)
                yield self._with(sessions)
            except BaseException as raised:
                if isinstance(raised, anyio.get_cancelled_exc_class()):
                    raise
                error = raised  # as it is, and not in the group of the tasks
            finally:
                for session in sessions:
                    session.stop()
                tasks.cancel_scope.deadline = anyio.current_time() + STOPPING_S
        if error is not None:
            raise error

    def _with(self, sessions: Sequence[McpSession]) -> "Toolbox":
        box = copy(self)
        box._sessions = {session.server.name: session for session in sessions}
        # A tool that is what it was is the same one: who keeps plans for tools knows it by that.
        listed = {session.server.name: session.tools for session in sessions}
        for name, tools in listed.items():
            known = {tool.ref: tool for tool in self._listed.get(name, ())}
            pairs = [(tool, known.get(tool.ref)) for tool in tools]
            same = [
                old if old and (old.schema, old.idempotent) == (new.schema, new.idempotent) else new
                for new, old in pairs
            ]
            self._listed[name] = tuple(same)
        box._listed = dict(self._listed)
        return box

    def require_allowed(self, refs: Iterable[ToolRef]) -> None:
        """Refuse tools that a file names, unless somebody has allowed them.

        Raises:
            InputError: One may not run.
        """
        for ref in refs:
            if ref.tool is None and not self.allowed:
                look = "server" if ref.server else "module"
                raise InputError(
                    f"the workflow has the tool {ref.text!r}, which is a program",
                    expected="a workflow whose tools you know",
                    fix=f"look at the {look}, then use --allow-tools, or allow_tools=True in "
                    "Python",
                )

    def of(self, refs: Sequence[ToolRef]) -> tuple[Tool, ...]:
        """The tools of these names.

        Raises:
            InputError: They may not run, are not there, or have one name.
        """
        if not refs:
            return ()
        self.require_allowed(refs)
        tools = tuple(tool for ref in refs for tool in self._tools(ref))
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            raise InputError(
                f"two tools of one agent are called {max(names, key=names.count)!r}",
                expected="names that differ",
                fix="give one of them @tool(name=...), or name only some of a server: "
                "mcp:SERVER/tool",
            )
        return tools

    def _tools(self, ref: ToolRef) -> tuple[Tool, ...]:
        if not ref.server:
            return (ref.tool or self._named(ref.text),)
        listed = self._listed[ref.server]  # a run has opened it
        tools = tuple(tool for tool in listed if not ref.served or tool.ref == ref.text)
        if not tools:
            names = [tool.ref.partition("/")[2] for tool in listed]
            raise InputError(
                f"the tool {ref.text!r} is not there",
                expected=", ".join(names[:20]) or "a server that has tools",
                fix="check its name",
            )
        return tools

    def _named(self, text: str) -> Tool:
        if text not in self._found:
            self._found[text] = as_tool(self.function(text))
        return self._found[text]

    def function(self, text: str, kind: str = "tool") -> Any:
        """What ``module:function`` names; its module is run.

        Args:
            text: The name.
            kind: What it is wanted as, for errors.

        Raises:
            InputError: Programs may not run, or it is not there.
        """
        if not self.allowed:
            raise InputError(
                f"the workflow has the {kind} {text!r}, which is a program",
                expected=f"a workflow whose {kind}s you know",
                fix="look at the module, then use --allow-tools, or allow_tools=True in Python",
            )
        module, _, name = text.partition(":")
        try:
            return reduce(getattr, name.split("."), self._module(module))
        except (ImportError, AttributeError, OSError) as error:
            raise InputError(
                f"the {kind} {text!r} is not there: {error}",
                expected="a function of a module beside the file, or of an installed one",
                fix="check both names",
            ) from error
        except Exception as error:  # a module is somebody's program
            raise InputError(
                f"the module of the {kind} {text!r} fails: {type(error).__name__}: {error}",
                expected="a module that can be imported",
                fix="import it in Python to see where it fails",
            ) from error

    def _module(self, name: str) -> ModuleType:
        """A module beside the workflow's file, else an installed one."""
        file = None if self.folder is None else self.folder / f"{name.replace('.', '/')}.py"
        if file is None or not file.is_file():
            return importlib.import_module(name)
        if name not in self._modules:  # its functions share what it keeps, so it is run once
            # Folders may have modules of one name.
            folder = blake3(str(file.absolute()).encode()).hexdigest(length=8)
            alias = f"unspoken_tools_{folder}_{name.replace('.', '_')}"
            spec = importlib.util.spec_from_file_location(alias, file)
            assert spec is not None and spec.loader is not None  # it is a Python file
            module = importlib.util.module_from_spec(spec)
            sys.modules[alias] = module  # where dataclasses and pickles look for it
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[alias]
                raise
            self._modules[name] = module
        return self._modules[name]

    def begin(self, agent: str, turn: int, item: int | None) -> None:
        """Note that a turn is tried, for the first time or again."""
        if self.book is not None:
            self.book.begin(agent, turn, item)

    async def call(self, tools: Sequence[Tool], call: Call) -> Called:
        """Make a call; what goes wrong is its result, for the model to read."""
        known = {tool.name: tool for tool in tools}
        if call.name not in known:
            told = f"There is no tool {call.name!r}, only {', '.join(known)}."
            return Called(result=told, failed=True, seconds=0.0)
        tool = known[call.name]

        async def make() -> Called:
            began = perf_counter()
            try:
                said = await self._said(tool, call.arguments)
            except Exception as error:  # a tool is somebody's program
                said = Answer(f"{type(error).__name__}: {error}", failed=True)
            seconds = perf_counter() - began
            return Called(
                result=said.text, failed=said.failed, seconds=seconds, unknown=said.unknown
            )

        return await (make() if self.book is None else self.book.around(call, tool, make))

    async def _said(self, tool: Tool, arguments: Mapping[str, Any]) -> Answer:
        """What a function returned, or a server answered."""
        server, slash, name = tool.ref.removeprefix("mcp:").partition("/")
        if slash:
            return await self._sessions[server].call(name, arguments)
        return Answer(await tool.run(arguments))
