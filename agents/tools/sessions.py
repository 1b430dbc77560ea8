"""A server of tools while a run needs it: started, asked for its tools, called, stopped."""

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from string import Template
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

import anyio
from anyio.abc import TaskGroup, TaskStatus

from unspoken.agents.tools.functions import Tool, is_name
from unspoken.agents.tools.servers import McpServer
from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as Listed

MOST_TOOLS = 1000
"""Of one server; one that lists more is taken for one that never ends."""

MOST_CHARACTERS = 200_000
"""Of one result; no context has room for more."""

STOPPING_S = 10.0
"""For a server to end by itself, once it is told to."""


class Answer(NamedTuple):
    """What a server said to a call.

    Attributes:
        text: The result, or what went wrong.
        failed: Whether it went wrong.
        unknown: Whether nobody knows if the call took effect.
    """

    text: str
    failed: bool = False
    unknown: bool = False


class McpSession:
    """A connection to one server.

    Args:
        server: The server.
        folder: Where its program begins; None for the folder of this process.

    Attributes:
        tools: What it has, once it has started.
    """

    def __init__(self, server: McpServer, folder: Path | None = None) -> None:
        self.server, self._folder = server, folder
        self.tools: tuple[Tool, ...] = ()
        self._client: Client | None = None
        self._stop, self._tasks = anyio.Event(), list[TaskGroup]()
        self._one = anyio.Lock()
        self._calls = set[anyio.CancelScope]()
        self._ended, self._why = anyio.Event(), ""

    async def begin(self, tasks: TaskGroup) -> None:
        """Connect and list the tools, in a task of their own that lasts until `stop`.

        Raises:
            InputError: It does not start, does not answer, or is no such server.
        """
        self._tasks[:] = [tasks]
        self._ended, self._why = anyio.Event(), ""
        try:
            with anyio.fail_after(self.server.timeout):
                await tasks.start(self._live)
        except TimeoutError as late:
            self._refuse(late)

    async def _live(self, *, task_status: TaskStatus[None]) -> None:
        started = False
        try:
            with TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
                try:
                    async with self._connected(errors) as client:
                        self.tools = await self._listed(client)
                        self._client, started = client, True
                        task_status.started()
                        await self._stop.wait()
                        self._client = None
                finally:
                    self._why = _last_line(errors)
        except Exception as error:
            cause = _first(error)
            if not started:
                self._refuse(cause)
            self._why = f": {_told(cause)}{self._why}"
        finally:
            self._client = None
            self._ended.set()
            for call in self._calls:
                call.cancel()

    def stop(self) -> None:
        """End the connection, and the program behind it."""
        self._stop.set()

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Answer:
        """Call a tool; what goes wrong is an answer too.

        Args:
            name: The tool's name at the server.
            arguments: What it is given.
        """
        server = self.server
        try:
            client = await self._reached()
        except InputError as error:
            return Answer(f"ConnectionError: {error.found}", failed=True)
        if client is None:
            return Answer(f"ConnectionError: the server {server.name!r} has ended{self._why}", True)
        gone = anyio.CancelScope()
        self._calls.add(gone)
        try:
            with gone, anyio.fail_after(server.timeout):
                return _answer(await client.call_tool(name, dict(arguments)))
        except TimeoutError:
            late = f"TimeoutError: no answer within {server.timeout:g} s; it may have taken effect"
            return Answer(late, failed=True, unknown=True)
        except Exception as error:
            cause = _first(error)
            if not _is_closed(cause):
                return Answer(_told(cause), failed=True, unknown=not self._is_refusal(cause))
            if server.url is not None:
                return Answer(_told(cause), failed=True, unknown=True)
            self._client = None
            self.stop()
            await self._ended.wait()
        finally:
            self._calls.discard(gone)
        ended = f"ConnectionError: the server {server.name!r} ended during the call{self._why}"
        return Answer(ended, failed=True, unknown=True)

    async def _reached(self) -> "Client | None":
        """The client; one that lost its connection to an address connects once more.

        Raises:
            InputError: It cannot.
        """
        async with self._one:
            lost = self._client is None and self._ended.is_set()
            if lost and self.server.url is not None and not self._stop.is_set():
                await self.begin(self._tasks[0])
            return self._client

    def _is_refusal(self, error: Exception) -> bool:
        """Whether it is the server's own word; else the call may have taken effect."""
        from mcp import MCPError
        from mcp.types import INTERNAL_ERROR, PARSE_ERROR

        if self.server.url is None:
            return isinstance(error, MCPError)
        # What a gateway says, which does not know what became of the call, has the same codes.
        return isinstance(error, MCPError) and error.code not in (INTERNAL_ERROR, PARSE_ERROR)

    @asynccontextmanager
    async def _connected(self, errors: TextIO) -> AsyncIterator["Client"]:
        """A client that speaks with the server."""
        try:
            from mcp import Client
        except ImportError:
            raise InputError(
                f"the server of tools {self.server.name!r} needs the package mcp",
                expected="mcp 2",
                fix='pip install "unspoken[mcp]"',
            ) from None
        async with AsyncExitStack() as stack:
            way = await self._way(stack, errors)
            client = Client(way, input_required_max_rounds=0, cache=None)
            yield await stack.enter_async_context(client)

    async def _way(self, stack: AsyncExitStack, errors: TextIO) -> Any:
        """The transport, not opened yet."""
        server = self.server
        if server.url is not None:
            from httpx2 import AsyncClient
            from mcp.client.streamable_http import streamable_http_client

            late = server.timeout + STOPPING_S  # a call that is late ends before its connection
            http = AsyncClient(headers=self._filled(server.headers), timeout=late)
            await stack.enter_async_context(http)
            return streamable_http_client(server.url, http_client=http)
        from mcp.client.stdio import StdioServerParameters, stdio_client

        program, *rest = server.command
        asked = StdioServerParameters(
            command=program, args=rest, env=self._filled(server.env), cwd=self._folder
        )
        return stdio_client(asked, errlog=errors)

    def _filled(self, values: Mapping[str, str]) -> dict[str, str]:
        """Values with the user's variables in them."""
        try:
            return {key: Template(value).substitute(os.environ) for key, value in values.items()}
        except (KeyError, ValueError) as error:
            raise InputError(
                f"a value of the server of tools {self.server.name!r} cannot be filled in: {error}",
                expected="$NAME of a variable that is set, $$ for a dollar",
                fix="set the variable",
            ) from None

    async def _listed(self, client: "Client") -> tuple[Tool, ...]:
        """The server's tools, all pages of them."""
        listed, cursor = list["Listed"](), None
        while len(listed) <= MOST_TOOLS:
            page = await client.list_tools(cursor=cursor)
            listed += page.tools
            if not page.tools or page.next_cursor in (None, cursor):
                return tuple(map(self._tool, listed))
            cursor = page.next_cursor
        raise ValueError(f"it lists more than {MOST_TOOLS} tools")

    def _tool(self, listed: "Listed") -> Tool:
        name, asked, hints = re.sub(r"[^\w-]", "_", listed.name), self.server, listed.annotations
        if not is_name(name):
            raise ValueError(f"a tool is called {listed.name[:80]!r}")

        async def run(_: Mapping[str, Any]) -> str:
            raise RuntimeError(f"{listed.name!r} is called in a run, where its server is there")

        idempotent = listed.name in asked.idempotent and asked.idempotent != "hints"
        if asked.idempotent == "hints" and hints is not None:
            idempotent = bool(hints.idempotent_hint or hints.read_only_hint)
        return Tool(
            name=name,
            description=" ".join((listed.description or "").split()),
            parameters={"properties": {}, **listed.input_schema},
            run=run,
            ref=f"mcp:{asked.name}/{listed.name}",
            idempotent=idempotent,
        )

    def _refuse(self, cause: Exception) -> NoReturn:
        if isinstance(cause, InputError):
            raise cause
        server = self.server
        late = f"it took longer than {server.timeout:g} s"
        told = late if isinstance(cause, TimeoutError) else _told(cause)
        where = server.url or server.command[0]
        raise InputError(
            f"the server of tools {server.name!r} does not work: {told}{self._why}",
            expected=f"a server that speaks MCP: {where}",
            fix="see that it runs by itself, or raise its timeout",
        ) from cause


def _answer(result: "CallToolResult") -> Answer:
    """A result as text: its texts, else its data as JSON; what is no text is named."""
    parts = []
    for block in result.content:
        resource = getattr(block, "resource", None)
        text = getattr(block, "text", None) or getattr(resource, "text", None)
        uri = getattr(block, "uri", None)
        parts.append(str(text if text is not None else uri or f"[{block.type}, left out]"))
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    told = "\n".join(parts)
    if len(told) > MOST_CHARACTERS:
        wrote = f"it returned {len(told):,} characters, and at most {MOST_CHARACTERS:,} are read"
        return Answer(f"ValueError: {wrote}", failed=True)
    return Answer(told, failed=bool(result.is_error))


def _last_line(errors: TextIO) -> str:
    """The last line that a program wrote to its standard error."""
    errors.seek(0, os.SEEK_END)
    errors.seek(max(0, errors.tell() - 2000))
    lines = errors.read().strip().splitlines()
    return f"; it wrote {lines[-1][:200]!r}" if lines else ""


def _is_closed(error: Exception) -> bool:
    """Whether a connection broke, and nobody knows what became of the call."""
    from mcp import MCPError
    from mcp.types import CONNECTION_CLOSED

    if isinstance(error, MCPError):
        return bool(error.code == CONNECTION_CLOSED)
    return isinstance(error, OSError | anyio.BrokenResourceError | anyio.ClosedResourceError)


def _told(error: BaseException) -> str:
    words = str(error) or "no answer"
    return f"{type(error).__name__}: {words[:500]}"


def _first(error: Exception) -> Exception:
    """The first error of a group."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
