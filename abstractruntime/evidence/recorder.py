"""Recording evidence: after a tool has run, what it brought back goes to artifacts, and the run lists it.

Artifacts are stored before the commit that lists them. When that never lands they are left over, and go with the run's
other artifacts.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..core.changes import changed
from ..core.clock import SYSTEM_CLOCK, Clock, iso
from ..core.models import Change, RunState
from ..core.secrets import admit, hidden_in, scrub
from ..storage.artifacts import artifact_ref
from .reading import SPANS
from .tools import OTHER, RULES, WHOLE, ToolCall, call_of, facts_of, paired

log = logging.getLogger("abstractruntime")

DEFAULT_TOOL_NAMES = ("web_search", "fetch_url", "execute_command")

#: where a run is told which evidence could not be kept
WARNINGS = "_runtime.evidence_warnings"

_MAX_SHOWN = 300


class EvidenceCaptureStats(Struct, frozen=True):
    """How many results were recorded, and the changes to vars that list them in the run."""

    recorded: int = 0
    changes: tuple[Change, ...] = ()


class EvidenceRecorder:
    """Keeps what tools brought back as evidence.

    Args:
        artifact_store: an ArtifactStore with blocking methods, or our async twin of one.
        tool_names: whose results are evidence. Of tools that we do not know, the whole output is copied.
        inline_chars: texts of up to so many characters stay in the result too, beside the reference to their artifact.
        clock: time; give your own in tests.

    A handler gets a copy of its run, so it returns the `changes` with its outcome, and they land in the commit of the
    result. It blocks while it stores; an async handler calls it in a thread:

    >>> stats = await asyncio.to_thread(  # doctest: +SKIP
    ...     recorder.record_tool_calls,
    ...     run=call.run, node_id=call.node_id, tool_calls=call.payload["tool_calls"], tool_results=result,
    ... )
    >>> return EffectOutcome.completed(result, changes=stats.changes)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        artifact_store: Any,
        tool_names: Iterable[str] = DEFAULT_TOOL_NAMES,
        inline_chars: int = 1000,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        store = getattr(artifact_store, "sync", artifact_store)
        if not callable(getattr(store, "store_json", None)) or inspect.iscoroutinefunction(store.store_json):
            raise TypeError(f"artifact_store must be an ArtifactStore with blocking methods, found {artifact_store!r}.")
        if isinstance(tool_names, str):
            raise TypeError(f"tool_names must be a list of names, found the text {tool_names!r:.80}.")
        self._store: Any = store
        self._tool_names = frozenset(tool_names)
        self._inline_chars, self._clock = inline_chars, clock

    def record_tool_calls(
        self, *, run: RunState, node_id: str, tool_calls: Any, tool_results: Any
    ) -> EvidenceCaptureStats:
        """Record each result of the tools in `tool_names`; `tool_results` is that of TOOL_CALLS, or the list in it.

        Per result: long texts go to artifacts, and references take their place in the result; an artifact with the
        evidence is stored, without the secrets of the effect in flight and with raw ones redacted; its id becomes
        `result["meta"]["evidence_id"]`, and an entry in the run's `_runtime.memory_spans` names it. The results are
        changed in place, and `run.vars` is replaced by a dict with the entries. A result that has an evidence id is
        not recorded again.

        Never raises for what a result holds or a store does: that result stays as it is, and why is told in the log
        and the run's `_runtime.evidence_warnings`.
        """
        changes = []
        recorded = 0
        hidden = _hidden(run, tool_calls)
        for pair in paired(tool_calls, tool_results):
            if pair.name not in self._tool_names or _is_recorded(pair.result):
                continue
            now = iso(self._clock.now())
            try:
                changes.append(self._record(run, node_id, pair, now, hidden))
                recorded += 1
            except Exception as error:  # a boundary: the tool has run, and its result must land whatever a store does
                why = scrub(f"{type(error).__name__}: {error}", hidden)
                log.warning("No evidence of %s in run %r could be kept: %s", pair.name, run.run_id, why)
                changes.append(Change(path=WARNINGS, op="append", value=_warning(node_id, pair, now, why)))
        run.vars = changed(run.vars, changes)
        return EvidenceCaptureStats(recorded, tuple(changes))

    def _record(self, run: RunState, node_id: str, pair: ToolCall, now: str, hidden: list[str]) -> Change:
        """Store everything, and only then change the result."""
        result = pair.result
        pair = replace(pair, result=scrub(result, hidden), arguments=scrub(pair.arguments, hidden))
        before = pair.result.get("output")
        output, artifacts = self._archived(run, pair)
        rule = RULES.get(pair.name, OTHER)
        facts = facts_of(rule, before, pair.arguments)
        evidence = admit(facts | _evidence(run, node_id, pair, now, artifacts), "evidence")
        evidence_id = self._keep_json(run, pair, "evidence", evidence)
        span = _span(pair, now, evidence_id)
        if rule.subject in facts:
            span[rule.shown_as] = _shown(facts[rule.subject])
        if artifacts:
            span["artifacts"] = artifacts  # they are kept while a run names them
        meta = result.get("meta")
        if output is not before:
            result["output"] = output
        result["meta"] = {**(meta if isinstance(meta, dict) else {}), "evidence_id": evidence_id}
        return Change(path=SPANS, op="append_once", match=("artifact_id", evidence_id), value=span)

    def _archived(self, run: RunState, pair: ToolCall) -> tuple[Any, dict[str, dict[str, str]]]:
        """The output as the result shall have it, and the references to what was archived of it, by name."""
        output = pair.result.get("output")
        artifacts: dict[str, dict[str, str]] = {}
        texts = RULES.get(pair.name, OTHER).texts
        if not texts or not isinstance(output, dict):
            if output is not None:
                whole = self._keep_json(run, pair, "evidence_output", admit(output, "output"))
                artifacts[WHOLE] = artifact_ref(whole)
            return output, artifacts
        short = dict(output)
        for name, reference in texts:
            text = output.get(name)
            if not isinstance(text, str) or not text:
                continue
            kept = self._store.store_text(text, run_id=run.run_id, tags=_tags("evidence_text", pair, name))
            short[reference] = artifacts[reference] = artifact_ref(kept.artifact_id)
            if len(text) > self._inline_chars:
                del short[name]
        return short, artifacts

    def _keep_json(self, run: RunState, pair: ToolCall, kind: str, value: Any) -> str:
        return str(self._store.store_json(value, run_id=run.run_id, tags=_tags(kind, pair)).artifact_id)


def _evidence(
    run: RunState, node_id: str, pair: ToolCall, now: str, artifacts: dict[str, dict[str, str]]
) -> dict[str, Any]:
    return {
        "tool_name": pair.name,
        "call_id": pair.call_id,
        "success": pair.success,
        "error": pair.result.get("error"),
        "created_at": now,
        "run_id": run.run_id,
        "workflow_id": run.workflow_id,
        "node_id": node_id,
        "arguments": pair.arguments,
        "actor_id": run.actor_id,
        "session_id": run.session_id,
        "artifacts": artifacts,
    }


def _span(pair: ToolCall, now: str, evidence_id: str) -> dict[str, Any]:
    return {
        "kind": "evidence",
        "artifact_id": evidence_id,
        "created_at": now,
        "from_timestamp": now,
        "to_timestamp": now,
        "message_count": 0,
        "tool_name": pair.name,
        "call_id": pair.call_id,
        "success": pair.success,
    }


def _hidden(run: RunState, tool_calls: Any) -> list[str]:
    """The secrets that were put into the calls: the effect in flight names them where the calls hold them."""
    hidden: list[str] = []
    for intent in () if run.intent is None else run.intent.parts or (run.intent,):
        stored = intent.effect.payload.get("tool_calls")
        for index, call in enumerate(stored if isinstance(stored, list) else ()):
            if isinstance(call, dict):
                hidden += hidden_in(call, call_of(call, index, tool_calls))
    return hidden


def _tags(kind: str, pair: ToolCall, part: str | None = None) -> dict[str, str]:
    return {"kind": kind, "tool_name": pair.name} | ({} if part is None else {"part": part})


def _is_recorded(result: dict[str, Any]) -> bool:
    meta = result.get("meta")
    return isinstance(meta, dict) and bool(meta.get("evidence_id"))


def _warning(node_id: str, pair: ToolCall, now: str, why: str) -> dict[str, Any]:
    text = why.encode("utf-8", "backslashreplace").decode()[:_MAX_SHOWN]
    return {"created_at": now, "node_id": node_id, "tool_name": pair.name, "call_id": pair.call_id, "error": text}


def _shown(subject: Any) -> str:
    text = str(subject)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
