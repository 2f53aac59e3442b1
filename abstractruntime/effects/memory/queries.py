"""MEMORY_QUERY and MEMORY_REHYDRATE: what is remembered, told or put back into the conversation."""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict

from ...core.outcomes import EffectCall, EffectOutcome
from ...memory.active_context import loader, rehydrated
from ...memory.messages import rewritten
from ...memory.recall import effort_of, level_of, rehydrated_at_most
from ...memory.searching import Query, search
from ...memory.spans import Span, is_number, resolve, spans_of
from ...memory.telling import match_of, told
from ...storage.user_pair import in_thread
from .desk import Desk, Refused, answer, written


class Queries:
    """The two handlers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def query(self, call: EffectCall, payload: dict[str, Any]) -> EffectOutcome:
        """Find what is remembered.

        Payload: `span_ids` (or `span_id`: ids, or numbers from 1, the newest first), or `query`, `since`, `until`,
        `tags` with `tags_mode`, `authors`, `locations`, `limit_spans`, `deep` and its limits, `connected`,
        `neighbor_hops`, `connect_by`; `max_messages`; `scope` (run, session, global, all), `target_run_id`; `return`
        (rendered, meta, both); `recall_level` (urgent, standard, deep). Result: an envelope with text as `output` and
        `meta.matches`.
        """
        mode = str(payload.get("return") or payload.get("return_mode") or "rendered").strip().lower()
        if mode not in ("rendered", "meta", "both"):
            raise Refused(f"return must be rendered, meta or both, found {mode!r:.80}")
        level = level_of(payload)
        effort, warnings = effort_of(payload, level)
        query = Query.of(payload, effort)
        owners = await self._desk.owners(call, payload, many=True)
        if len(owners) > 1 and any(is_number(name) for name in query.names):
            raise Refused("numbers of spans mean nothing in scope all; name their ids")
        store = self._desk.artifacts("memory_query")

        def work() -> tuple[list[Span], str]:
            load = loader(store)
            spans = search(query, [owner.vars for owner in owners], load)
            if mode == "meta":
                return spans, ""
            contents = {span["artifact_id"]: load(span["artifact_id"]) for span in spans}
            return spans, told(spans, contents, effort.max_messages)

        spans, text = await in_thread(work)
        meta: dict[str, Any] = {}
        if mode != "rendered":
            ids = [span["artifact_id"] for span in spans]
            meta = {"matches": [match_of(span) for span in spans], "span_ids": ids}
        if level is not None:
            meta["effort"] = {"recall_level": level, "applied": asdict(effort)}
            meta["warnings"] = warnings
        if warnings and mode != "meta":
            text = "\n".join([*(f"Warning: {warning}" for warning in warnings), "", text])
        return answer(payload, text, meta or None, name="recall_memory")

    async def rehydrate(self, call: EffectCall, payload: dict[str, Any]) -> EffectOutcome:
        """Put archived messages and notes back into the active conversation.

        Payload: `span_ids` (or `span_id`), `placement` (after_summary, after_system, end), `dedup_by` (message_id; any
        other value: none), `max_messages`, `target_run_id`, `recall_level`. Result: `inserted`, `skipped`, `artifacts`
        (what was done with each), `effort`, `warnings`.
        """
        names = payload.get("span_ids", payload.get("span_id"))
        if names is None:
            raise Refused("memory_rehydrate requires payload.span_ids")
        store, level = self._desk.artifacts("memory_rehydrate"), level_of(payload)
        most, warnings = rehydrated_at_most(payload, level)
        owner = await self._desk.target(call, payload)
        ids = resolve(names, spans_of(owner.vars))
        messages, result = await in_thread(
            rehydrated,
            owner.vars,
            ids,
            loader(store),
            placement=str(payload.get("placement") or "after_summary"),
            dedup=str(payload.get("dedup_by") or "message_id") == "message_id",
            most=most,
            at=call.now,
        )
        effort = None if level is None else {"recall_level": level, "applied": {"max_messages": most}}
        full = {**result, "effort": effort, "warnings": warnings}
        if not result["inserted"]:
            return EffectOutcome.completed(full)
        return EffectOutcome.completed(full, **written(call, owner, rewritten(owner.vars, messages)))
