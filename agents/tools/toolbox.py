"""The tools of a workflow's agents: found by name, and called at one place."""

import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from blake3 import blake3

from unspoken.agents.tools.functions import Tool, as_tool
from unspoken.agents.tools.ref import ToolRef
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
        unknown: Whether nobody knows if it took effect: the run was interrupted during it.
    """

    result: str
    failed: bool
    seconds: float
    unknown: bool = False


Around = Callable[[Call, Tool, Callable[[], Awaitable[Called]]], Awaitable[Called]]
"""Stands around every call: it may keep what became of it, or know it already."""


async def directly(call: Call, tool: Tool, make: Callable[[], Awaitable[Called]]) -> Called:
    """The `Around` of a run that keeps nothing."""
    return await make()


class Toolbox:
    """The tools of one workflow.

    Args:
        folder: Where modules that files name are looked for first; None for Python's own path.
        allowed: Whether tools that are named, and not given as objects, may be imported.

    Attributes:
        around: Stands around every call.
    """

    def __init__(self, folder: Path | None = None, *, allowed: bool = True) -> None:
        self.allowed = allowed
        self.around: Around = directly
        self._folder = folder
        self._found: dict[str, Tool] = {}
        self._modules: dict[str, ModuleType] = {}

    def of_run(self, around: Around) -> "Toolbox":
        """The same tools, for one run that has its calls kept."""
        box = copy(self)
        box.around = around
        return box

    def of(self, refs: Sequence[ToolRef]) -> tuple[Tool, ...]:
        """The tools of these names.

        Raises:
            InputError: They may not run, are not there, or have one name.
        """
        tools = tuple(ref.tool or self._named(ref.text) for ref in refs)
        names = [tool.name for tool in tools]
        if len(set(names)) < len(names):
            raise InputError(
                f"two tools of one agent are called {max(names, key=names.count)!r}",
                expected="names that differ",
                fix="give one of them @tool(name=...)",
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
        file = None if self._folder is None else self._folder / f"{name.replace('.', '/')}.py"
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
                result, failed = await tool.run(call.arguments), False
            except Exception as error:  # a tool is somebody's program
                result, failed = f"{type(error).__name__}: {error}", True
            return Called(result=result, failed=failed, seconds=perf_counter() - began)

        return await self.around(call, tool, make)
