"""MEMORY_COMPACT: the older part of a conversation becomes a summary and a span that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.models import Change, EffectType, RunStatus
from ...core.outcomes import EffectCall, EffectOutcome
from ...memory.compaction import (
    DEFAULT_RECENT,
    Summary,
    mode_of,
    prompt_for,
    span_of,
    summary_message,
    summary_of,
)
from ...memory.messages import Message, came_back, messages_of, normalised, rewritten, split
from ...memory.recall import number
from ...memory.spans import CONVERSATION, SPANS
from ...storage.user_pair import call as ask
from ..handlers import Handler
from .desk import Desk, Refused, answer, artifact_id, written
from .summaries import Subrun, summarized


class Compacting:
    """The handler, with the host's summarizer, or a way to a run that calls a model where it gave none."""

    def __init__(self, desk: Desk, summarizer: Any, handlers: Mapping[str, Handler], subrun: Subrun) -> None:
        self._desk, self._summarizer, self._handlers, self._subrun = desk, summarizer, handlers, subrun

    async def compact(self, call: EffectCall, payload: dict[str, Any]) -> EffectOutcome:
        """Compact the conversation of a run.

        Payload: `preserve_recent` (6; 0 keeps none), `compression_mode` (light, standard, heavy), `focus`,
        `target_run_id`, `tool_name`, `call_id`. The summary comes from the runtime's `chat_summarizer`, else from a
        run of its own below this one, of one LLM_CALL (`summaries.SUMMARIZE`), whose id is `meta.llm_run_id`. System
        messages stay. Result: an envelope whose `meta` has `span_id`, `summary_message_id`, `key_points` and more; none
        where there is nothing to compact.
        """
        recent = max(0, number(payload, "preserve_recent", DEFAULT_RECENT))
        mode, focus = mode_of(payload), str(payload.get("focus") or "").strip() or None
        store = self._desk.artifacts("memory_compact")
        owner = await self._desk.target(call, payload)
        messages = normalised(messages_of(owner.vars), call.now, f"{call.run.run_id}:{call.key}")
        system, older, kept = split(messages, recent)
        archived = [message for message in older if not came_back(message)]  # those are in an archive already
        if not archived:
            return answer(payload, "There is nothing older to compact.", None, name="compact_memory")
        span_id = artifact_id("span", call)
        content = await self._desk.content(store, span_id)
        if not (isinstance(content, dict) and isinstance(content.get("summary"), dict)):  # not from an earlier attempt
            made = await self._summary(call, archived, focus, mode)
            if isinstance(made, EffectOutcome):
                return made
            summary, llm_run_id = made
            span = span_of(
                span_id,
                archived,
                at=call.now,
                mode=mode,
                focus=focus,
                preserve_recent=recent,
                summary_message_id=artifact_id("msg", call),
                created_by=call.run.actor_id,
            )
            content = {
                "messages": archived,
                "created_at": call.now,
                "summary": _shown(summary),
                "llm_run_id": llm_run_id,
                "span": span,
            }
            tags = {"kind": CONVERSATION, "compression_mode": mode, "preserve_recent": str(recent)}
            tags |= {"focus": focus} if focus else {}
            content = await self._desk.keep(store, span_id, content, owner.run_id, tags)
        summary, span = summary_of(content["summary"]), content["span"]
        message = summary_message(summary, span, mode, content["messages"], content["created_at"])
        changes = (
            rewritten(owner.vars, [*system, message, *kept], messages),
            Change(path=SPANS, op="append_once", match=("artifact_id", span_id), value=span),
        )
        meta = {
            "span_id": span_id,
            "summary_message_id": span["summary_message_id"],
            "preserve_recent": recent,
            "compression_mode": mode,
            "focus": focus,
            "key_points": summary.key_points,
            "confidence": summary.confidence,
            "llm_run_id": content.get("llm_run_id"),
        }
        output = f"Compacted {len(content['messages'])} messages into span {span_id}."
        return answer(payload, output, meta, name="compact_memory", **written(call, owner, *changes))

    async def _summary(
        self, call: EffectCall, older: list[Message], focus: str | None, mode: str
    ) -> tuple[Summary, str | None] | EffectOutcome:
        """The summary and the run that made it, or how the attempt at it failed, which the policy may try again."""
        if self._summarizer is not None:
            summarize = getattr(self._summarizer, "summarize_chat_history", self._summarizer)
            found = await ask(summarize, older, preserve_recent=0, focus=focus, compression_mode=mode)
            return summary_of(found), None
        if EffectType.LLM_CALL not in self._handlers:
            raise Refused("memory_compact needs a chat_summarizer, or a handler of llm_call, to make the summary")
        made = await summarized(self._subrun, call, prompt_for(older, focus, mode))
        if made.status is RunStatus.COMPLETED:
            return summary_of((made.output or {}).get("answer")), made.run_id
        return EffectOutcome.failed(f"memory_compact: the summary could not be made: {made.error}")


def _shown(summary: Summary) -> dict[str, Any]:
    return {"summary": summary.text, "key_points": summary.key_points, "confidence": summary.confidence}
