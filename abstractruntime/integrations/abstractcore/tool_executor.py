"""The documented address of the tool executors."""

from .tools import (
    AbstractCoreToolExecutor,
    CompositeToolExecutor,
    DelegatingMcpToolExecutor,
    MappingToolExecutor,
    McpServerError,
    McpToolExecutor,
    PassthroughToolExecutor,
    ToolOptions,
    tool_options,
)
from .tools.protocol import ToolExecutor

__all__ = [
    "AbstractCoreToolExecutor",
    "CompositeToolExecutor",
    "DelegatingMcpToolExecutor",
    "MappingToolExecutor",
    "McpServerError",
    "McpToolExecutor",
    "PassthroughToolExecutor",
    "ToolExecutor",
    "ToolOptions",
    "tool_options",
]
