"""An agent that took no turn, as templates see it."""

from collections.abc import Mapping


class Absent:
    """What a template reads under the name of an agent that was skipped.

    It is false and not defined, and so is what is read of it: it prints nothing, and ``default``
    replaces it. Only its fields are there.

    Args:
        fields: What can be read of it all the same, such as ``skipped``.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: Mapping[str, object] | None = None) -> None:
        self.fields = fields or {}

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return ""

    def __getattr__(self, name: str) -> object:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None
