"""How a workflow names a tool, and the tool itself where Python gave it."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from unspoken.agents.tools.functions import Tool, as_tool
from unspoken.agents.tools.servers import McpServer, McpTool
from unspoken.channels.errors import InputError

_FUNCTION = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_SERVED = r"mcp:([A-Za-z_]\w*)(?:/([\w./-]+))?"


class ToolRef:
    """``module:function``, ``mcp:SERVER`` or ``mcp:SERVER/tool``; equal by its text.

    No dataclass, which pydantic would take apart where it writes a workflow out.

    Attributes:
        text: The name.
        tool: The function as a tool, where Python gave it; None where a file names it.
        given: The server, where Python gave it.
    """

    __slots__ = ("given", "text", "tool")

    def __init__(self, text: str, tool: Tool | None = None, given: McpServer | None = None) -> None:
        self.text, self.tool, self.given = text, tool, given

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToolRef) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"ToolRef({self.text!r})"

    @property
    def server(self) -> str:
        """The server's name; empty for a function."""
        served = None if self.tool is not None else re.fullmatch(_SERVED, self.text)
        return served[1] if served else ""

    @property
    def served(self) -> str:
        """The tool's name at its server; empty for all that it has."""
        served = re.fullmatch(_SERVED, self.text)
        return (served[2] or "") if served else ""

    @classmethod
    def of(cls, value: object) -> ToolRef:
        """The reference that a value is: a name, a function, a tool, or a server."""
        match value:
            case ToolRef():
                return value
            case McpServer():
                return cls._named(f"mcp:{value.name}", value)
            case McpTool():
                return cls._named(f"mcp:{value.server.name}/{value.name}", value.server)
            case str():
                return cls._named(value)
        try:
            function = as_tool(value)
        except InputError as error:
            context = {"found": error.found, "expected": error.expected, "fix": error.fix}
            raise PydanticCustomError("unspoken", "{found}", context) from None
        return cls(function.ref, function)

    @classmethod
    def _named(cls, text: str, given: McpServer | None = None) -> ToolRef:
        if not re.fullmatch(_SERVED if text.startswith("mcp:") else _FUNCTION, text):
            context = {
                "found": f"{text[:40]!r} is no tool",
                "expected": "module:function, mcp:SERVER or mcp:SERVER/tool",
                "fix": "name the module and the function, or the server",
            }
            raise PydanticCustomError("unspoken", "{found}", context)
        return cls(text, given=given)

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.of,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.text, when_used="json-unless-none"
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^(?:{_SERVED}|{_FUNCTION})$"}
