"""AbstractCore's own tools for files, the web and the system, as functions and as what a model is told.

They are imported when they are asked for. A light install of AbstractCore lacks what some of them need; ImportError
then names what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .extra import needed
from .tools import MappingToolExecutor

#: the sets, by name: which functions of `abstractcore.tools.common_tools` each holds
TOOLSETS: dict[str, tuple[str, ...]] = {
    "files": (
        "list_files", "skim_folders", "search_files", "analyze_code", "skim_files", "read_file", "write_file",
        "edit_file",
    ),
    "web": ("skim_websearch", "skim_url", "web_search", "fetch_url"),
    "system": ("execute_command",),
}  # fmt: skip


def get_default_tools(toolsets: Iterable[str] | None = None) -> list[Callable[..., Any]]:
    """The functions of the sets, or of all. Raises ValueError for an unknown set and ImportError for a missing part."""
    names = [name for toolset in _checked(toolsets) for name in TOOLSETS[toolset]]
    try:
        module = needed("abstractcore.tools.common_tools", "multimodal")
    except ImportError as error:
        raise ImportError(
            f"AbstractCore's default tools need {error.name}, which this install lacks: "
            'pip install "abstractruntime[multimodal]", or give functions of your own to MappingToolExecutor',
            name=error.name,
        ) from error
    return [getattr(module, name) for name in names if hasattr(module, name)]


def build_default_tool_map(toolsets: Iterable[str] | None = None) -> dict[str, Callable[..., Any]]:
    """The same by name, for `MappingToolExecutor`."""
    return {function.__name__: function for function in get_default_tools(toolsets)}


def list_default_tool_specs(toolsets: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """What a model is told of them: for LLM_CALL's `tools`."""
    return MappingToolExecutor(build_default_tool_map(toolsets)).tool_specs()


def _checked(toolsets: Iterable[str] | None) -> list[str]:
    wanted = list(TOOLSETS) if toolsets is None else [toolsets] if isinstance(toolsets, str) else list(toolsets)
    unknown = [name for name in wanted if name not in TOOLSETS]
    if unknown:
        raise ValueError(f"Unknown toolsets {', '.join(map(repr, unknown))}; there are {', '.join(TOOLSETS)}")
    return wanted
