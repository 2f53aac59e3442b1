"""Several executors as one: each call goes to the one that has its tool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ....core import portal
from ....core.outcomes import CancelSignal
from .calls import OnResult, Result, executed, tool_call
from .delegates import ask, results_of

_PREFIX = "mcp::"


class CompositeToolExecutor:
    """Routes every call: `mcp::<server>::<tool>` to the executor of that server, any other name to the first executor
    that knows it. An executor of your own without `knows(name)` gets what nobody else knows; put at most one there.

    Calls stay in order: consecutive ones of the same executor are one batch of it, and the next begins behind them.
    An executor inside that hands calls on instead of performing them is allowed when it gets the whole batch.
    """

    def __init__(self, executors: Sequence[Any]) -> None:
        if not executors:
            raise ValueError("CompositeToolExecutor needs at least one executor")
        open_ones = [executor for executor in executors if not callable(getattr(executor, "knows", None))]
        if len(open_ones) > 1:
            raise ValueError(
                f"Only one executor may be without knows(name), found {len(open_ones)}: {open_ones!r:.200}"
            )
        self._executors = list(executors)
        self._rest = open_ones[0] if open_ones else None
        self._servers: dict[str, Any] = {}
        for executor in executors:
            server = getattr(executor, "server_id", None)
            if isinstance(server, str) and server in self._servers:
                raise ValueError(f"Two executors are for the MCP server {server!r}")
            if isinstance(server, str):
                self._servers[server] = executor

    def knows(self, name: str) -> bool:
        """Whether one of the executors has a tool of this name."""
        return self._executor_of(name) is not None

    def tool_specs(self) -> list[dict[str, Any]]:
        """The tools of all executors that can tell; one that an earlier executor also has is left out."""
        found: dict[str, dict[str, Any]] = {}
        for executor in self._executors:
            for spec in executor.tool_specs() if hasattr(executor, "tool_specs") else ():
                found.setdefault(spec["name"], spec)
        return list(found.values())

    def set_timeout_s(self, timeout_s: float | None) -> None:
        """Set the time limit of every executor that has one."""
        for executor in self._executors:
            if hasattr(executor, "set_timeout_s"):
                executor.set_timeout_s(timeout_s)

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Perform the calls and block until all have a result."""
        return portal.call(self.aexecute, tool_calls=tool_calls)

    async def aexecute(
        self,
        *,
        tool_calls: list[dict[str, Any]],
        on_result: OnResult | None = None,
        cancelled: CancelSignal | None = None,
    ) -> dict[str, Any]:
        """Perform the calls: as `MappingToolExecutor.aexecute`."""
        whole = _Batch(tool_calls, on_result)
        for executor, places in self._groups(tool_calls):
            if cancelled is not None and cancelled.is_set():
                break
            elsewhere = await whole.hand_on(executor, places, cancelled)
            if elsewhere is not None:
                return elsewhere
        return whole.envelope()

    async def aclose(self) -> None:
        """Close every executor that can be closed."""
        for executor in self._executors:
            if hasattr(executor, "aclose"):
                await executor.aclose()

    def close(self) -> None:
        """The same, blocking."""
        portal.call(self.aclose)

    def _groups(self, tool_calls: list[dict[str, Any]]) -> Iterator[tuple[Any, list[int]]]:
        group: list[int] = []
        current: Any = None
        for place, given in enumerate(tool_calls):
            executor = self._executor_of(tool_call(given).name)
            if group and executor is not current:
                yield current, group
                group = []
            current = executor
            group.append(place)
        if group:
            yield current, group

    def _executor_of(self, name: str) -> Any:
        if name.startswith(_PREFIX):
            server = name.removeprefix(_PREFIX).partition("::")[0]
            if server in self._servers:
                return self._servers[server]
        for executor in self._executors:
            if executor is not self._rest and executor.knows(name):
                return executor
        return self._rest


class _Batch:
    """A batch that is handed on in parts, and the results so far."""

    def __init__(self, tool_calls: list[dict[str, Any]], on_result: OnResult | None) -> None:
        self._calls, self._on_result = tool_calls, on_result
        self._results: dict[int, Result] = {}

    async def hand_on(self, executor: Any, places: list[int], cancelled: CancelSignal | None) -> dict[str, Any] | None:
        """Let the executor perform the calls at these places; its answer, if it leaves the whole batch to others."""

        async def tell(index: int, result: Result) -> None:
            await self._tell(places[index], result)

        if executor is None:
            await self._fail(places, "not found")
            return None
        calls = [self._calls[place] for place in places]
        answer = await ask(executor, calls, on_result=tell, cancelled=cancelled)
        mode = answer.get("mode", "executed")
        if mode == "executed":
            self._results |= zip(places, results_of(answer, calls), strict=True)
        elif len(places) == len(self._calls):
            return answer
        else:
            await self._fail(places, f"is performed elsewhere (mode {mode}), so it must be called alone")
        return None

    def envelope(self) -> dict[str, Any]:
        """All results, in order."""
        calls = map(tool_call, self._calls)
        return executed([self._results.get(place) or call.not_started() for place, call in enumerate(calls)])

    async def _fail(self, places: list[int], why: str) -> None:
        for place in places:
            call = tool_call(self._calls[place])
            await self._tell(place, call.failed(call.problem or f"Tool '{call.name}' {why}"))

    async def _tell(self, place: int, result: Result) -> None:
        self._results[place] = result
        if self._on_result is not None:
            await self._on_result(place, result)
