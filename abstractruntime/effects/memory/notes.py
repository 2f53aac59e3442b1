"""MEMORY_NOTE and MEMORY_TAG: something to remember, and how it is found again."""

from __future__ import annotations

from typing import Any

from ...core.models import Change
from ...core.outcomes import EffectCall, EffectOutcome
from ...memory.messages import messages_of, put_back, rewritten
from ...memory.recall import boolish
from ...memory.spans import NOTE, SPANS, Span, clean_tags, newest_first, preview, resolve, spans_of
from ...memory.telling import note_message
from ...storage.user_pair import in_thread
from .desk import Desk, Owner, Refused, answer, artifact_id, written


class Notes:
    """The two handlers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def note(self, call: EffectCall, payload: dict[str, Any]) -> EffectOutcome:
        """Keep a note.

        Payload: `note` (required), `tags`, `sources` (`run_id`, `span_ids`, `message_ids`), `location`, `scope` (run,
        session, global), `target_run_id`, `keep_in_context`, `tool_name`, `call_id`. Result: an envelope whose `meta`
        has `span_id`, `created_at`, `note_preview`. Made again after a crash it is the same note.
        """
        text = payload.get("note")
        if not isinstance(text, str) or not text.strip():
            raise Refused("memory_note requires payload.note")
        store = self._desk.artifacts("memory_note")
        (owner,) = await self._desk.owners(call, payload)
        tags, span_id = clean_tags(payload.get("tags")), artifact_id("note", call)
        content = await self._desk.content(store, span_id)  # an earlier attempt may have kept it
        if not isinstance(content, dict):
            content = _content(call, payload, text.strip())
            await in_thread(
                store.store_json, content, run_id=owner.run_id, tags={**tags, "kind": NOTE}, artifact_id=span_id
            )
        span = _span(span_id, content, tags)
        meta = {"span_id": span_id, "created_at": content["created_at"], "note_preview": span["note_preview"]}
        changes = [Change(path=SPANS, op="append_once", match=("artifact_id", span_id), value=span)]
        writes = written(call, owner, *changes)
        if boolish(payload.get("keep_in_context", payload.get("keepInContext"))):
            message = note_message(span_id, content["note"], content["created_at"])
            active, inserted, skipped = put_back(
                messages_of(call.run.vars), [message], placement="after_summary", dedup=True
            )
            meta["kept_in_context"] = {"inserted": inserted, "skipped": skipped}
            writes["changes"] = (*writes.get("changes", ()), rewritten(call.run.vars, active))
        told = f" with tags {', '.join(f'{key}={value}' for key, value in sorted(tags.items()))}" if tags else ""
        return answer(payload, f"Noted as span {span_id}{told}.", meta, name="remember_note", **writes)

    async def tag(self, call: EffectCall, payload: dict[str, Any]) -> EffectOutcome:
        """Tag a span.

        Payload: `span_id` (its id, or its number from 1, the newest first), `tags` (required), `merge` (True: the other
        tags stay), `scope` (run, session, global, all), `target_run_id`, `tool_name`, `call_id`. `meta.applied` says
        what each run's span has now.
        """
        tags = clean_tags(payload.get("tags"))
        if not tags:
            raise Refused("memory_tag requires payload.tags with at least one pair of texts")
        if payload.get("span_id") is None:
            raise Refused("memory_tag requires payload.span_id")
        merge = boolish(payload.get("merge"), True)
        applied: list[dict[str, Any]] = []
        writes: dict[str, Any] = {"changes": (), "elsewhere": ()}
        for owner, span in await self._tagged(call, payload):
            value = {"tags": tags, "tagged_at": call.now}
            if call.run.actor_id:
                value["tagged_by"] = call.run.actor_id
            values = [value] if merge else [{"tags": None}, value]
            changes = [
                Change(path=SPANS, op="merge", match=("artifact_id", span["artifact_id"]), value=one) for one in values
            ]
            for name, some in written(call, owner, *changes).items():
                writes[name] += some
            own = {**clean_tags(span.get("tags")), **tags} if merge else tags
            applied.append({"run_id": owner.run_id, "artifact_id": span["artifact_id"], "tags": own})
        told = ", ".join(f"{key}={value}" for key, value in sorted(tags.items()))
        output = f"Tagged span {applied[0]['artifact_id']} with {told}."
        return answer(payload, output, {"applied": applied}, name="remember", **writes)

    async def _tagged(self, call: EffectCall, payload: dict[str, Any]) -> list[tuple[Owner, Span]]:
        owners = await self._desk.owners(call, payload, many=True)
        listed = newest_first(span for owner in owners for span in spans_of(owner.vars))
        try:
            (span_id,) = resolve([payload["span_id"]], listed)
        except ValueError as error:
            raise Refused(f"memory_tag: {error}") from error
        found = [(owner, span) for owner in owners for span in spans_of(owner.vars) if span["artifact_id"] == span_id]
        if not found:
            raise Refused(
                f"memory_tag: unknown span {payload['span_id']!r:.80} in scope {payload.get('scope') or 'run'}"
            )
        return found


def _content(call: EffectCall, payload: dict[str, Any], note: str) -> dict[str, Any]:
    given = payload.get("sources") if isinstance(payload.get("sources"), dict) else {}
    assert isinstance(given, dict)
    sources = {
        "run_id": str(given.get("run_id") or call.run.run_id),
        "span_ids": _ids(given.get("span_ids")),
        "message_ids": _ids(given.get("message_ids")),
    }
    content: dict[str, Any] = {"note": note, "sources": sources, "created_at": call.now}
    location = payload.get("location")
    if isinstance(location, str) and location.strip():
        content["location"] = location.strip()
    for name in ("actor_id", "session_id"):
        if getattr(call.run, name):
            content[name] = getattr(call.run, name)
    return content


def _span(span_id: str, content: dict[str, Any], tags: dict[str, str]) -> Span:
    at = content["created_at"]
    span: Span = {
        "kind": NOTE,
        "artifact_id": span_id,
        "created_at": at,
        "from_timestamp": at,
        "to_timestamp": at,
        "message_count": 0,
        "note_preview": preview(content["note"]),
    }
    if content.get("location"):
        span["location"] = content["location"]
    if tags:
        span["tags"] = tags
    if content["sources"]["span_ids"] or content["sources"]["message_ids"]:
        span["sources"] = content["sources"]
    if content.get("actor_id"):
        span["created_by"] = content["actor_id"]
    return span


def _ids(given: Any) -> list[str]:
    values = given if isinstance(given, list | tuple) else ()
    texts = (str(value) for value in values if isinstance(value, str | int) and not isinstance(value, bool))
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))
