"""TOOL_CALLS: performs a batch of tool calls, each of which lands by itself, or waits for whoever decides about them.

Payload: that of `tool_batch`, with `wait_key` and `resume_to_node` for when it waits. Result:
`{"mode": "executed", "results": [{"call_id", "runtime_call_id", "name", "success", "output", "error"}, ...]}`, one per
call, in order; calls that are refused, denied or lost are among them, with an `error` that says so.

An executor that answers with another mode than `executed` lets the run wait. With `approval_required` a decision is
asked for (`core.questions.approval_answer` says what one looks like), and what it approves is performed then, as part
of this effect, by whoever moves the run. With any other mode somebody else performs the calls: the run waits for
`{"results": [...]}` that name exactly these calls, once each. The wait's `details` hold `mode`, `tool_calls`,
`executor`, `digest`, `asked_at`, and `blocked_by_index` with `original_call_count` where something else stands for
some of the calls.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from hashlib import sha256
from typing import Any

from abstractruntime.core.clock import iso, parse_instant
from abstractruntime.core.errors import EffectWithdrawn, StoreError, UnsafeValue
from abstractruntime.core.models import Change, WaitReason, WaitState
from abstractruntime.core.outcomes import EffectCall, EffectOutcome
from abstractruntime.core.questions import Decision, Question
from abstractruntime.evidence import EvidenceRecorder

from .approvals import ToolApprovalPolicy, is_readable
from .executing import execute, executor_for, in_thread
from .tool_batch import Batch, Call, Result, as_result, asked_of, batch_of, paired, result_for

log = logging.getLogger("abstractruntime")

_WAITS_FOR = {reason.value: reason for reason in (WaitReason.USER, WaitReason.JOB, WaitReason.EVENT)}

#: the part of an effect that says what a decision approved for the whole run, when it must outlive another wait
_ALWAYS = "always"
_POLICY = "_runtime.tool_policy"


def make_tool_calls_handler(
    *,
    tools: Any = None,
    artifact_store: Any = None,
    run_store: Any = None,
    evidence: EvidenceRecorder | bool | None = None,
) -> ToolCallsHandler:
    """The handler of `EffectType.TOOL_CALLS` on this tool executor; on `tools.for_run(run)` if it has that.

    `evidence=True` keeps what tools that look outside brought back in `artifact_store`; or give a recorder of your own.
    It then puts references into results in place of long texts. `run_store` is not needed and taken for programs that
    give it.
    """
    if evidence is True:
        evidence = EvidenceRecorder(artifact_store=artifact_store)
    return ToolCallsHandler(tools, evidence or None)


class ToolCallsHandler:
    """See the module."""

    def __init__(self, tools: Any, evidence: EvidenceRecorder | None = None) -> None:
        self._tools, self._evidence = tools, evidence
        self._for_resume: Any = None

    def set_executor_for_resume(self, executor: Any) -> None:
        """Let this executor perform what is approved, in place of the one that asked."""
        self._for_resume = executor

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        """Perform one attempt at the batch."""
        try:
            batch = batch_of(call)
        except ValueError as error:
            return EffectOutcome.failed(str(error), retryable=False)
        if self._tools is None and call.answer is None:
            return EffectOutcome.failed("tool_calls requires a tool executor: give its handler tools=", retryable=False)
        tools, for_resume = (executor_for(one, call.run) for one in (self._tools, self._for_resume or self._tools))
        return await _Attempt(tools, for_resume, self._evidence, call, batch).perform()


class _Attempt:
    """One attempt at one batch. `done` are the results so far, by `runtime_call_id`."""

    def __init__(
        self, tools: Any, for_resume: Any, evidence: EvidenceRecorder | None, call: EffectCall, batch: Batch
    ) -> None:
        self._tools, self._for_resume, self._evidence = tools, for_resume, evidence
        self._call, self._batch = call, batch
        self._done: dict[str, Result] = {name: result for name, result in call.landed.items() if name in batch.ids}
        self._always: list[dict[str, Any]] = call.landed.get(_ALWAYS) or []
        #: of calls whose arguments were changed, by `runtime_call_id`: what is performed, and what is said of it
        self._edited: dict[str, Call] = {}
        self._meta: dict[str, dict[str, Any]] = {}

    async def perform(self) -> EffectOutcome:
        answer = self._call.answer
        asked: EffectOutcome | None = None
        if answer is not None:
            asked = await self._decided(answer)
        elif places := self._batch.todo(self._done):
            asked = await self._executed(self._tools, [dict(self._batch.calls[place]) for place in places], places)
        return asked or await self._outcome()

    # -- what a decision means

    async def _decided(self, answer: Decision) -> EffectOutcome | None:
        places = self._batch.todo(self._done)
        payload = answer.payload if isinstance(answer.payload, dict) else {}
        if answer.expired:
            self._refuse(places, "expired", answer)
            return None
        if "results" in payload:
            for place in places:
                call = self._batch.calls[place]
                given = payload["results"].get(call["runtime_call_id"])
                if given is not None:
                    self._done[call["runtime_call_id"]] = as_result(call, given, executed_by="host", by=answer.by)
            return None
        decisions = payload.get("calls") or {}
        named = [place for place, name in enumerate(self._batch.ids) if name in decisions]
        if answer.digest is not None and answer.digest != self._batch.digest(self._call.key, named):
            self._refuse(places, "The calls are not those that were decided about", answer)
            return None
        said = {"by": answer.by, "at": answer.at}
        self._always = [{"tool": name, **said} for name in payload.get("always") or []] or self._always
        approved, calls = [], []
        for place in places:
            call = self._batch.calls[place]
            decision = decisions.get(call["runtime_call_id"]) or {}
            if decision.get("approved") is not True:
                self._refuse([place], decision.get("reason") or "Denied by user", answer)
                continue
            if "arguments" in decision:
                call = {**call, "arguments": decision["arguments"]}
                self._edited[call["runtime_call_id"]] = call
                self._meta[call["runtime_call_id"]] = {"arguments_edited": True, **said}
            approved.append(place)
            calls.append(dict(call))
        return await self._executed(self._for_resume, calls, approved, approved=True) if calls else None

    def _refuse(self, places: list[int], why: str, answer: Decision) -> None:
        for place in places:
            call = self._batch.calls[place]
            refused = result_for(call, error=why, denied=True, by=answer.by)
            self._done[call["runtime_call_id"]] = refused

    # -- performing

    async def _executed(
        self, executor: Any, calls: list[Call], places: list[int], *, approved: bool = False
    ) -> EffectOutcome | None:
        """Let the executor perform the calls; what it asks, if it does not."""

        async def on_result(index: int, given: Any) -> None:
            await self._land(calls[index], given)

        try:
            if executor is None:
                raise RuntimeError("ToolExecutor is not configured for approval resumes")
            given = await execute(
                executor, calls, approved=approved, on_result=on_result, cancelled=self._call.cancelled
            )
            if approved and (not isinstance(given, dict) or given.get("mode") == "approval_required"):
                raise RuntimeError("the executor did not perform what was approved")
        except (StoreError, EffectWithdrawn):
            raise
        except Exception as error:  # a boundary: what an approved tool raises is told to whoever asked for it
            if not approved:
                raise
            log.warning("Tools of run %s: %s", self._call.run.run_id, error, exc_info=error)
            why = f"{error}" if executor is None else f"Tool execution failed: {error}"
            given = {"mode": "executed", "results": [{"success": False, "error": why} for _ in calls]}
        if not isinstance(given, dict):
            raise TypeError(f"A tool executor gives a dict, found a {type(given).__name__}")
        if given.get("mode", "executed") != "executed":
            return await self._asks(given, calls, places)
        for index, result in paired(calls, given.get("results")):
            if calls[index]["runtime_call_id"] not in self._done:
                self._done[calls[index]["runtime_call_id"]] = self._result(calls[index], result)
        return None

    async def _land(self, call: Call, given: Any) -> None:
        """A call has a result: land it. What the store cannot take now lands with the whole batch."""
        result = self._result(call, given)
        try:
            await self._call.land(call["runtime_call_id"], result)
        except UnsafeValue as error:
            result = result_for(call, error=f"The tool ran, but its result cannot be stored: {error}")
        except StoreError as error:
            log.warning("Run %s: a tool's result could not be landed by itself: %s", self._call.run.run_id, error)
        self._done[call["runtime_call_id"]] = result

    def _result(self, call: Call, given: Any) -> Result:
        return as_result(call, given, **self._meta.get(call["runtime_call_id"], {}))

    # -- asking

    async def _asks(self, given: dict[str, Any], calls: list[Call], places: list[int]) -> EffectOutcome:
        """The run waits. What is decided already must outlive that, so it lands first."""
        await self._keep()
        mode = str(given["mode"])
        approval = mode == "approval_required"
        policy = getattr(self._tools, "policy", None)
        known = policy if isinstance(policy, ToolApprovalPolicy) else None
        shown = []
        for call, place in zip(calls, places, strict=True):
            safe = call if call["arguments"] != self._batch.calls[place]["arguments"] else self._batch.shown[place]
            needed = known is None or known.needs_approval(call)
            shown.append({**safe, "needs_approval": needed} if approval else safe)
        question = Question(
            kind="approval" if approval else "results",
            digest=self._batch.digest(self._call.key, places) if approval else None,
            calls=asked_of(shown),
            edits=bool(getattr(self._tools, "allow_edits", True)),
            host_results=bool(getattr(self._tools, "allow_host_results", True)),
        )
        return EffectOutcome.asking(self._wait(given, mode, shown, question), question)

    async def _keep(self) -> None:
        for name, result in self._done.items():
            if name not in self._call.landed:
                await self._call.land(name, result)
        if self._always and _ALWAYS not in self._call.landed:
            await self._call.land(_ALWAYS, self._always)

    def _wait(self, given: dict[str, Any], mode: str, shown: list[Call], question: Question) -> WaitState:
        call, approval = self._call, question.kind == "approval"
        identity = sha256(f"{call.key}:{call.attempt}".encode()).hexdigest()[:32]
        key = call.payload.get("wait_key") or given.get("wait_key")
        reason = WaitReason.USER if approval else _WAITS_FOR.get(str(given.get("wait_reason")))
        details: dict[str, Any] = {"mode": mode, "tool_calls": shown, "asked_at": call.now}
        if isinstance(given.get("details"), dict):
            details["executor"] = given["details"]
        if approval:
            details |= {"digest": question.digest, "edits": question.edits, "host_results": question.host_results}
        apart = {str(place): result for place, result in self._in_place() if result is not None}
        if apart:
            details |= {"original_call_count": len(self._batch.calls), "blocked_by_index": apart}
        lasts = getattr(self._tools, "expires_after_s", None) if approval else None
        names = ", ".join(sorted({one["name"] or "a tool without a name" for one in shown}))
        return WaitState(
            reason=reason or (WaitReason.JOB if mode == "delegated" else WaitReason.EVENT),
            wait_key=str(key) if key else f"tool_approval:{call.run.run_id}:{call.node_id}:{identity}",
            until=None if lasts is None else iso(parse_instant(call.now) + timedelta(seconds=lasts)),
            resume_to_node=call.payload.get("resume_to_node") or None,
            prompt=f"Approve {names}?" if approval else None,
            details=details,
        )

    # -- the end

    def _in_place(self) -> list[tuple[int, Result | None]]:
        """Of each call what is known of its end."""
        found = {place: self._done.get(name) for place, name in enumerate(self._batch.ids)}
        return [(place, self._batch.blocked.get(place) or result) for place, result in found.items()]

    async def _outcome(self) -> EffectOutcome:
        results = [
            result or result_for(self._batch.calls[place], error="Missing tool result")
            for place, result in self._in_place()
        ]
        result = {"mode": "executed", "results": results}
        changes = [Change(path="_flow_warnings", op="append", value=text) for text in self._batch.warnings]
        changes += self._sticky()
        if self._evidence is not None:
            stats = await in_thread(
                self._evidence.record_tool_calls,
                run=self._call.run,
                node_id=self._call.node_id,
                tool_calls=[self._edited.get(call["runtime_call_id"], call) for call in self._batch.calls],
                tool_results=result,
            )
            changes += stats.changes
        return EffectOutcome.completed(result, changes=tuple(changes))

    def _sticky(self) -> list[Change]:
        """What was approved for the whole run; not where its override cannot be read, which makes everything ask."""
        runtime = self._call.run.vars.get("_runtime")
        override = runtime.get("tool_policy") if isinstance(runtime, dict) else None
        if not self._always or not (override is None or is_readable(override)):
            return []
        path = f"{_POLICY}.approved_tools"
        return [
            Change(path=path, op="append_once", match=("tool", entry["tool"]), value=entry) for entry in self._always
        ]
