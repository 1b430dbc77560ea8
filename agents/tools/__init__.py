"""Tools: functions, and servers of them, that an agent may call while it answers."""

from unspoken.agents.tools.functions import Tool, tool
from unspoken.agents.tools.servers import McpServer, McpTool

__all__ = ["McpServer", "McpTool", "Tool", "tool"]
