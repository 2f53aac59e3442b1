"""Values and traces as text for people: pure functions of what they are given."""

from .agent_trace import AgentTraceConfig, render_agent_trace_markdown
from .json_text import JsonStringifyMode, stringify_json

__all__ = ["AgentTraceConfig", "JsonStringifyMode", "render_agent_trace_markdown", "stringify_json"]
