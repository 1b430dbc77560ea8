"""What a workflow file may say of a server of tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unspoken.agents.spec.field_types import NonEmpty, Seconds, Text, wrong
from unspoken.agents.spec.generate import Part
from unspoken.agents.spec.spellings import LIST, NONE_WORD
from unspoken.agents.tools.servers import McpServer


class McpServerSpec(Part):
    """A server of tools that speaks MCP; it runs only where --allow-tools says so."""

    command: Annotated[tuple[NonEmpty, ...], LIST] = Field(
        (),
        description="The program that a run starts and stops, and its arguments; it begins in the "
        "file's folder.",
    )
    env: dict[NonEmpty, Text] = Field(
        {},
        description="Variables for the program, beside a few of the user's own such as PATH; "
        "$NAME reads one of the user's.",
    )
    url: Annotated[NonEmpty | None, NONE_WORD] = Field(
        None, description="The address, in place of a program: streamable HTTP."
    )
    headers: dict[NonEmpty, Text] = Field(
        {},
        description="Sent to the address with every request; $NAME reads a variable of the user's.",
    )
    timeout: Seconds = Field(
        60.0, description="Most seconds that it may take to start, and for each call."
    )
    idempotent: Annotated[Literal["hints"] | tuple[NonEmpty, ...], LIST] = Field(
        (),
        description="Tools that may be called twice without harm, as after a run was killed; hints "
        "believes what the server says of them.",
    )

    @model_validator(mode="after")
    def _is_one_of_two(self) -> McpServerSpec:
        if bool(self.command) == (self.url is not None):
            found = "a server has a command and a url" if self.command else "a server has neither"
            wrong(found, "either command or url", "a program has a command, an address a url")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            wrong(f"{self.url[:60]!r} is no address", "a url of http or https", "")
        if (self.headers and self.url is None) or (self.env and not self.command):
            stands = "headers stand beside command" if self.headers else "env stands beside url"
            wrong(stands, "env beside command, headers beside url", "remove them")
        return self

    def named(self, name: str) -> McpServer:
        """The server, under its name in the workflow."""
        return McpServer(name=name, **{key: getattr(self, key) for key in type(self).model_fields})


def settings_of(server: McpServer) -> dict[str, Any]:
    """What a workflow file says of a server."""
    settings = {key: getattr(server, key) for key in McpServerSpec.model_fields}
    lists = ("command", "idempotent")  # of any sequence; a string is none
    return {
        key: list(value) if key in lists and not isinstance(value, str) else value
        for key, value in settings.items()
    }
