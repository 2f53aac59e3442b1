"""Executors of tool calls, and what they are made of."""

from .composite import CompositeToolExecutor
from .mapping import MappingToolExecutor
from .mcp import McpToolExecutor
from .mcp_client import McpServerError
from .options import ToolOptions, tool_options
from .passing import DelegatingMcpToolExecutor, PassthroughToolExecutor
from .registered import AbstractCoreToolExecutor
from .workspace import confined, in_workspace

__all__ = [
    "AbstractCoreToolExecutor",
    "CompositeToolExecutor",
    "DelegatingMcpToolExecutor",
    "MappingToolExecutor",
    "McpServerError",
    "McpToolExecutor",
    "PassthroughToolExecutor",
    "ToolOptions",
    "confined",
    "in_workspace",
    "tool_options",
]
