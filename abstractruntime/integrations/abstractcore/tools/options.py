"""What is declared of a tool beside its signature: whether it may run beside others, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

F = TypeVar("F", bound=Callable[..., Any])

#: tools of AbstractCore that only look; declared otherwise, a tool of the same name is what its own options say
READ_ONLY = frozenset(
    {
        "analyze_code", "list_files", "read_file", "search_files", "skim_files", "skim_folders", "skim_url",
        "skim_websearch", "web_search",
    }
)  # fmt: skip

_ATTRIBUTE = "_tool_options"


class ToolOptions(Struct, frozen=True, kw_only=True):
    """What `tool_options` declared; None means not declared."""

    read_only: bool | None = None
    parallel_safe: bool | None = None
    #: seconds; 0 or less: as long as it likes
    timeout_s: float | None = None
    isolated: bool = False
    name: str | None = None
    description: str | None = None

    def runs_beside_others(self, name: str) -> bool:
        """Whether calls of the tool may be in flight together with those beside it in a batch."""
        if self.parallel_safe is not None:
            return self.parallel_safe
        return self.read_only if self.read_only is not None else name in READ_ONLY


def tool_options(
    *,
    read_only: bool | None = None,
    parallel_safe: bool | None = None,
    timeout_s: float | None = None,
    isolated: bool = False,
    name: str | None = None,
    description: str | None = None,
) -> Callable[[F], F]:
    """Declare how a tool may be executed; the function itself stays as it is.

    `read_only` (it changes nothing) and `parallel_safe` (it may run beside others) both let consecutive calls of a
    batch be in flight together. `timeout_s` goes before the executor's; 0 is without end. An `isolated` tool runs in a
    process of its own, which is killed when it takes too long or is cancelled; it must stand in a module that can be
    imported, gets its arguments as JSON, sees no context variables, and costs the start of a Python. `name` and
    `description` are what the model sees, in place of the function's own.

    >>> @tool_options(read_only=True, timeout_s=10)
    ... async def look_up(city: str) -> str:
    ...     "The weather of a city."
    ...     return "dry"
    """
    options = ToolOptions(
        read_only=read_only,
        parallel_safe=parallel_safe,
        timeout_s=timeout_s,
        isolated=isolated,
        name=name,
        description=description,
    )

    def decorate(function: F) -> F:
        setattr(function, _ATTRIBUTE, options)
        return function

    return decorate


def options_of(function: Any) -> ToolOptions:
    """What was declared of a function by `tool_options`, or by attributes of the same names."""
    declared = getattr(function, _ATTRIBUTE, None)
    if isinstance(declared, ToolOptions):
        return declared
    timeout = getattr(function, "timeout_s", None)
    return ToolOptions(
        read_only=_flag(function, "read_only"),
        parallel_safe=_flag(function, "parallel_safe"),
        timeout_s=float(timeout) if isinstance(timeout, int | float) and not isinstance(timeout, bool) else None,
    )


def _flag(function: Any, name: str) -> bool | None:
    value = getattr(function, name, None)
    return value if isinstance(value, bool) else None
