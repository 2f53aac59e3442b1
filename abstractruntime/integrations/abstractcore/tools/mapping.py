"""Tools that are plain functions."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from ....core.outcomes import CancelSignal
from .arguments import Signature, signature_of
from .batches import BatchExecutor, limit_of
from .calls import Result, ToolCall
from .coercion import ArgumentError
from .isolated import address_of, perform_isolated
from .options import ToolOptions, options_of
from .outputs import failure_in, plain
from .running import is_async, run_async, run_sync


class Tool(Struct, frozen=True):
    """A function ready to be called, and what a model is told about it."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    options: ToolOptions
    is_async: bool
    #: AbstractCore's, where there is one
    definition: Any = None

    @property
    def spec(self) -> dict[str, Any]:
        """The tool in the form that LLM_CALL takes: `name`, `description`, `parameters`, and what else is said."""
        definition = self.definition
        text = self.options.description or getattr(definition, "description", None) or _first_line(self.function)
        spec = {"name": self.name, "description": text, "parameters": self.signature.schemas()}
        for extra in ("when_to_use", "examples", "tags"):
            if said := getattr(definition, extra, None):
                spec[extra] = said
        return spec

    async def perform(self, call: ToolCall, limit: float | None, threads: asyncio.Semaphore) -> Result:
        """Call the function with the call's arguments; whatever it does becomes the call's result."""
        if self.options.timeout_s is not None:
            limit = limit_of(self.options.timeout_s)
        if self.options.isolated:
            async with threads:
                return await perform_isolated(address_of(self.function), call, limit)
        signal = CancelSignal()
        try:
            args, named = self.signature.bound(call.arguments, runtime_call_id=call.runtime_call_id, signal=signal)
        except ArgumentError as error:
            return call.failed(f"Invalid arguments of tool '{self.name}': {error}")
        if self.is_async:
            ended = await run_async(lambda: self.function(*args, **named), limit, signal)
        else:
            async with threads:
                ended = await run_sync(lambda: self.function(*args, **named), limit, signal)
        if ended.error is not None:
            return call.failed(ended.error, outcome=ended.outcome)
        return judged(call, ended.value)


def judged(call: ToolCall, value: Any) -> Result:
    """The result of a call from what its tool gave; a text that says it failed is told as the error alone."""
    output = plain(value)
    error = failure_in(output)
    if error is None:
        return call.done(output)
    return call.failed(error, output=None if isinstance(output, str) else output)


def tool_of(function: Any, name: str | None = None, definition: Any = None) -> Tool:
    """A tool from a function, also one with a `_tool_definition`. Raises ValueError when it has no name."""
    if not callable(function):
        raise ValueError(f"A tool must be callable, found {function!r:.80}")
    options = options_of(function)
    definition = definition or getattr(function, "_tool_definition", None)
    name = name or options.name or getattr(definition, "name", None) or getattr(function, "__name__", None)
    if not isinstance(name, str) or not name.strip() or name == "<lambda>":
        raise ValueError(f"A tool must have a name, {function!r:.80} has none: give it one by tool_options(name=...)")
    if options.isolated:
        address_of(function)
    return Tool(name.strip(), function, signature_of(function), options, is_async(function), definition)


class MappingToolExecutor(BatchExecutor):
    """Executes tools that are functions, sync or async, by name.

    What the model is told comes from their signatures: `tool_specs()` is what LLM_CALL takes as `tools`. Arguments
    are repaired and made of the types that the signature asks for; a call whose arguments cannot be is refused with a
    text that says what was expected. A parameter `runtime_call_id` gets the id of the call, the same after a crash,
    for use as an idempotency key; one annotated `CancelSignal` a signal that is set when the call is given up. Neither
    is shown to the model. See `tool_options` for time limits and what may run in parallel.

    >>> def add(a: int, b: int = 1) -> int:
    ...     "Add two numbers."
    ...     return a + b
    >>> tools = MappingToolExecutor.from_tools([add])
    >>> tools.execute(tool_calls=[{"name": "add", "arguments": {"a": "2"}, "call_id": "c1"}])["results"][0]["output"]
    3
    """

    def __init__(self, tool_map: Mapping[str, Callable[..., Any]], *, timeout_s: float | None = None) -> None:
        """Tools by the names that the model uses. Raises ValueError for what cannot be called and for a name twice."""
        super().__init__(timeout_s=timeout_s)
        self._tools: dict[str, Tool] = {}
        for name, function in tool_map.items():
            tool = tool_of(function, name)
            if tool.name in self._tools:
                raise ValueError(f"Two tools are named {tool.name!r}")
            self._tools[tool.name] = tool

    @classmethod
    def from_tools(cls, tools: Iterable[Callable[..., Any]], *, timeout_s: float | None = None) -> MappingToolExecutor:
        """Tools under their own names. Raises ValueError for one without a name, or two of one name."""
        found: dict[str, Callable[..., Any]] = {}
        for function in tools:
            tool = tool_of(function)
            if tool.name in found:
                raise ValueError(f"Two tools are named {tool.name!r}; give one another name by tool_options(name=...)")
            found[tool.name] = function
        return cls(found, timeout_s=timeout_s)

    def knows(self, name: str) -> bool:
        """Whether a tool of this name is here."""
        return name in self._tools

    def tool_specs(self) -> list[dict[str, Any]]:
        """Every tool as LLM_CALL takes it in `tools`."""
        return [tool.spec for tool in self._tools.values()]

    def _runs_beside_others(self, name: str) -> bool:
        tool = self._tools.get(name)
        return tool is None or tool.options.runs_beside_others(name)

    async def _perform(self, call: ToolCall, threads: asyncio.Semaphore) -> Result:
        tool = self._tools.get(call.name)
        if tool is None:
            return call.failed(f"Tool '{call.name}' not found")
        return await tool.perform(call, self._timeout_s, threads)


def _first_line(function: Any) -> str:
    text = inspect.getdoc(function) or ""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first or "No description provided"
