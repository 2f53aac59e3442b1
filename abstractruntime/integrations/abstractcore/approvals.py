"""Which tools need a person's approval, and the executor that asks for it.

The policy fails toward asking: a tool that nobody listed, a call without a name and an override that cannot be read all
ask. What is asked, and what an answer must look like, is in `tool_calls` and `abstractruntime.core.questions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

from abstractruntime.core.models import RunState
from abstractruntime.core.outcomes import CancelSignal

from .executing import OnResult, execute, executor_for

#: look at what is there, in places that the workspace or a search engine sets
AUTO_APPROVED = frozenset(
    {
        "analyze_code", "list_files", "read_file", "search_files", "skim_files", "skim_folders", "skim_websearch",
        "web_search",
    }
)  # fmt: skip

#: change something, run something, send something, or open an address that a model has chosen
NEED_APPROVAL = frozenset(
    {
        "browser_probe", "edit_file", "execute_command", "fetch_url", "send_email", "send_telegram_artifact",
        "send_telegram_message", "send_whatsapp_message", "skim_url", "write_file",
    }
)  # fmt: skip


class ToolApprovalPolicy:
    """Says which calls need an approval: those in `require_approval_tools`, and all that are not in the other list.

    None stands for the defaults, an empty set for itself. Names are compared as they are.

    >>> ToolApprovalPolicy().requires_approval([{"name": "read_file"}])
    False
    >>> ToolApprovalPolicy().requires_approval([{"name": "read_file"}, {"name": "never_heard_of"}])
    True
    """

    def __init__(
        self,
        *,
        auto_approve_tools: Iterable[str] | None = None,
        require_approval_tools: Iterable[str] | None = None,
    ) -> None:
        self.auto_approve_tools = _named(auto_approve_tools, AUTO_APPROVED, "auto_approve_tools")
        self.require_approval_tools = _named(require_approval_tools, NEED_APPROVAL, "require_approval_tools")
        self._approved: frozenset[str] = frozenset()

    def needs_approval(self, call: Any) -> bool:
        """Whether this call would need an approval if it stood alone."""
        name = call.get("name") if isinstance(call, dict) else None
        name = name.strip() if isinstance(name, str) else ""
        if not name:
            return True
        if name in self._approved:
            return False
        return name in self.require_approval_tools or name not in self.auto_approve_tools

    def requires_approval(self, tool_calls: Iterable[Any]) -> bool:
        """Whether a batch needs an approval: one call that does is enough. An empty one does not."""
        return any(self.needs_approval(call) for call in tool_calls)

    def for_run(self, override: Any) -> ToolApprovalPolicy:
        """The policy of a run with this `vars["_runtime"]["tool_policy"]`; None is none.

        `auto_approve_tools` and `require_approval_tools` in it each replace the list of that name;
        `approved_tools` are those that a person has approved for the whole run. One that cannot be read makes
        everything ask.
        """
        if override is None:
            return self
        if not is_readable(override):
            return ToolApprovalPolicy(auto_approve_tools=(), require_approval_tools=())
        auto, require = override.get("auto_approve_tools"), override.get("require_approval_tools")
        policy = ToolApprovalPolicy(
            auto_approve_tools=self.auto_approve_tools if auto is None else auto,
            require_approval_tools=self.require_approval_tools if require is None else require,
        )
        policy._approved = frozenset(entry["tool"] for entry in override.get("approved_tools") or ())
        return policy

    def describe(self) -> dict[str, list[str]]:
        """The two lists, sorted."""
        return {
            "auto_approve_tools": sorted(self.auto_approve_tools),
            "require_approval_tools": sorted(self.require_approval_tools),
        }


def is_readable(override: Any) -> bool:
    """Whether a run's override of the policy is one that can be followed."""
    if not isinstance(override, dict):
        return False
    lists = [override.get(name) or [] for name in ("auto_approve_tools", "require_approval_tools")]
    approved = override.get("approved_tools") or []
    return (
        all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)
        and isinstance(approved, list)
        and all(isinstance(entry, dict) and isinstance(entry.get("tool"), str) for entry in approved)
    )


class ApprovalToolExecutor:
    """A tool executor that performs what its policy lets pass, and asks for the rest.

    One call that needs an approval lets the whole batch wait. Under the handler of TOOL_CALLS the run waits for a
    decision, and what is approved is performed then by `execute_approved`, as part of the same effect.

    Args:
        delegate: the executor that performs the calls.
        policy: which calls ask; `ToolApprovalPolicy()` by default. A run may override it in its vars.
        wait_key_factory: makes the key of a wait, `factory() -> str`; by default it is
            `tool_approval:<run>:<node>:<id>`.
        expires_after_s: seconds after which what nobody decided counts as denied, with the reason "expired".
        allow_host_results: whether a host may give results instead of a decision.
        allow_edits: whether a decision may change arguments.
    """

    def __init__(
        self,
        *,
        delegate: Any,
        policy: ToolApprovalPolicy | None = None,
        wait_key_factory: Callable[[], str] | None = None,
        expires_after_s: float | None = None,
        allow_host_results: bool = True,
        allow_edits: bool = True,
    ) -> None:
        if expires_after_s is not None and not (math.isfinite(expires_after_s) and expires_after_s > 0):
            raise ValueError(f"expires_after_s must be a positive number of seconds, found {expires_after_s!r:.80}")
        self.delegate, self._policy = delegate, policy or ToolApprovalPolicy()
        self._wait_key_factory = wait_key_factory
        self.expires_after_s = expires_after_s
        self.allow_host_results, self.allow_edits = allow_host_results, allow_edits

    @property
    def policy(self) -> ToolApprovalPolicy:
        """The policy."""
        return self._policy

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> Any:
        """The delegate's results, or `{"mode": "approval_required", ...}` when a call needs an approval."""
        return self.asks(tool_calls) or self.delegate.execute(tool_calls=tool_calls)

    async def aexecute(
        self,
        *,
        tool_calls: list[dict[str, Any]],
        on_result: OnResult | None = None,
        cancelled: CancelSignal | None = None,
    ) -> Any:
        """The same, awaited; `on_result` is told each result as it comes, as far as the delegate can."""
        asked = self.asks(tool_calls)
        return asked or await execute(self.delegate, tool_calls, on_result=on_result, cancelled=cancelled)

    def execute_approved(self, *, tool_calls: list[dict[str, Any]]) -> Any:
        """The delegate's results, past the policy."""
        return self.delegate.execute(tool_calls=tool_calls)

    async def aexecute_approved(
        self,
        *,
        tool_calls: list[dict[str, Any]],
        on_result: OnResult | None = None,
        cancelled: CancelSignal | None = None,
    ) -> Any:
        """The delegate's results, past the policy."""
        return await execute(self.delegate, tool_calls, approved=True, on_result=on_result, cancelled=cancelled)

    def for_run(self, run: RunState) -> ApprovalToolExecutor:
        """This executor under the policy of the run, on the delegate for it."""
        runtime = run.vars.get("_runtime")
        made = copy(self)
        made.delegate = executor_for(self.delegate, run)
        made._policy = self._policy.for_run(runtime.get("tool_policy") if isinstance(runtime, dict) else None)
        return made

    def asks(self, tool_calls: list[dict[str, Any]]) -> dict[str, Any] | None:
        """What is asked about these calls; None when they may be performed."""
        policy = self._policy
        if not policy.requires_approval(tool_calls):
            return None
        asked: dict[str, Any] = {
            "mode": "approval_required",
            "wait_reason": "user",
            "tool_calls": tool_calls,
            "details": {"kind": "tool_approval", "policy": policy.describe()},
        }
        if self._wait_key_factory is not None:
            asked["wait_key"] = self._wait_key_factory()
        return asked

    def set_timeout_s(self, timeout_s: float | None) -> None:
        """Pass the time-out of a tool on to the delegate, if it has one."""
        setter = getattr(self.delegate, "set_timeout_s", None)
        if setter is not None:
            setter(timeout_s)


def _named(names: Iterable[str] | None, default: frozenset[str], what: str) -> frozenset[str]:
    if names is None:
        return default
    found = frozenset(names) if not isinstance(names, str) else None
    if found is None or not all(isinstance(name, str) for name in found):
        raise TypeError(f"{what} must be a list of tool names, found {names!r:.80}")
    return frozenset(name.strip() for name in found)
