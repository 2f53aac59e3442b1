"""Tools as a call of a model names them, in the form that AbstractCore passes on unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def wire_tools(tools: Iterable[Any]) -> list[Any]:
    """Tools in AbstractCore's form: `name`, `description`, and `parameters` by name.

    OpenAI's form and full JSON schemas are taken apart. AbstractCore takes a parameter without a default for a required
    one, so the optional ones get None as theirs. What is no dict, such as a function, is passed on.

    >>> fields = {"a": {"type": "integer"}, "b": {"type": "string"}}
    >>> schema = {"type": "object", "properties": fields, "required": ["a"]}
    >>> wire_tools([{"type": "function", "function": {"name": "add", "parameters": schema}}])[0]["parameters"]
    {'a': {'type': 'integer'}, 'b': {'type': 'string', 'default': None}}
    """
    return [_wire_tool(tool) if isinstance(tool, Mapping) else tool for tool in tools]


def _wire_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    inner = tool.get("function")
    spec = dict(inner) if isinstance(inner, Mapping) else dict(tool)
    parameters = spec.get("parameters")
    if isinstance(parameters, Mapping) and parameters.get("type") == "object" and "properties" in parameters:
        properties, required = parameters.get("properties"), parameters.get("required")
        spec["parameters"] = {
            name: _optional(schema) if name not in (required or ()) else schema
            for name, schema in (properties if isinstance(properties, Mapping) else {}).items()
        }
    spec.pop("strict", None)
    return spec


def _optional(schema: Any) -> Any:
    return {**schema, "default": schema.get("default")} if isinstance(schema, Mapping) else schema
