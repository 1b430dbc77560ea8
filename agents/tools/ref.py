"""How a workflow names a tool, and the tool itself where Python gave it."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from unspoken.agents.tools.functions import Tool, as_tool
from unspoken.channels.errors import InputError

_PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"


class ToolRef:
    """``module:function``; equal by its text.

    No dataclass, which pydantic would take apart where it writes a workflow out.

    Attributes:
        text: The name.
        tool: The tool, where Python gave it; None where a file names it.
    """

    __slots__ = ("text", "tool")

    def __init__(self, text: str, tool: Tool | None = None) -> None:
        self.text, self.tool = text, tool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToolRef) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"ToolRef({self.text!r})"

    @classmethod
    def of(cls, value: object) -> ToolRef:
        """The reference that a value is: a name, a function or a tool."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            if not re.fullmatch(_PATTERN, value):
                context = {
                    "found": f"{value[:40]!r} is no tool",
                    "expected": "module:function",
                    "fix": "name the module and the function",
                }
                raise PydanticCustomError("unspoken", "{found}", context)
            return cls(value)
        try:
            given = as_tool(value)
        except InputError as error:
            context = {"found": error.found, "expected": error.expected, "fix": error.fix}
            raise PydanticCustomError("unspoken", "{found}", context) from None
        return cls(given.ref, given)

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
        return {"type": "string", "pattern": _PATTERN}
