"""Tools: functions that an agent may call while it answers."""

from unspoken.agents.tools.functions import Tool, tool

__all__ = ["Tool", "tool"]
