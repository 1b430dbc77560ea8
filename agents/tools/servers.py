"""A server of tools that speaks MCP, the Model Context Protocol, and how it is reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class McpServer:
    """A server of tools: a program that a run starts and stops, or an address.

    Among an agent's tools it stands for all that it has, and `tool` for one of them. Values of
    `env` and `headers` may read the environment, as in ``Bearer $TOKEN``; ``$$`` is a dollar.

    Attributes:
        name: Its name in the workflow.
        command: The program and its arguments; it is spoken to by its standard input and output.
        env: Variables for the program, beside a few of the user's own such as ``PATH``.
        url: The address, where it is reached by streamable HTTP.
        headers: Sent to the address with every request.
        timeout: Most seconds that it may take to start, and for each call.
        idempotent: Tools that may be called twice without harm, as after a run was killed;
            ``hints`` believes what the server itself says of them.
    """

    name: str
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0
    idempotent: Sequence[str] | Literal["hints"] = ()

    def tool(self, name: str) -> "McpTool":
        """One of its tools."""
        return McpTool(server=self, name=name)


@dataclass(frozen=True, kw_only=True)
class McpTool:
    """One tool of a server.

    Attributes:
        server: The server.
        name: The tool's name there.
    """

    server: McpServer
    name: str
