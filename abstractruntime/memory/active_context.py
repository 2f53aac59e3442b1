"""What of a run's conversation is active: which messages a model gets, and how archived spans come back.

The documented class works on blocking stores, and on a run alone where its name ends in `_from_run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from ..core.changes import changed
from ..core.clock import utc_now_iso
from ..core.codec import copy_of
from ..core.errors import UnknownRun
from ..core.models import RunState
from .messages import Message, messages_of, newest, put_back, rewritten
from .recall import Effort
from .searching import Query, search, summaries_of
from .spans import MEMORIES, Span, memories, newest_first, resolve, spans_of
from .telling import archived_messages

#: a filter that looks for words looks into the messages of so many spans
_DEEP = Effort(deep=True, deep_limit_spans=1000, deep_limit_messages_per_span=10_000)


class TimeRange(Struct, frozen=True):
    """From when to when, both included, as ISO texts; None is open."""

    start: str | None = None
    end: str | None = None


class ActiveContextPolicy:
    """What of the conversations of runs is active. Blocking; give the plain stores.

    >>> policy = ActiveContextPolicy(run_store=runs, artifact_store=artifacts)  # doctest: +SKIP
    >>> policy.rehydrate_into_context(run_id, span_ids=[1])["inserted"]  # doctest: +SKIP
    12
    """

    def __init__(self, *, run_store: Any, artifact_store: Any) -> None:
        self._run_store, self._artifact_store = run_store, getattr(artifact_store, "sync", artifact_store)

    def list_memory_spans(self, run_id: str) -> list[Span]:
        """The spans of a run, the newest first. Raises `UnknownRun`."""
        return self.list_memory_spans_from_run(self._run(run_id))

    @staticmethod
    def list_memory_spans_from_run(run: RunState) -> list[Span]:
        """The same of a run at hand."""
        found: list[Span] = copy_of(newest_first(memories(spans_of(run.vars))))
        return found

    def filter_spans(self, run_id: str, **filters: Any) -> list[Span]:
        """The spans of a run that match: see `filter_spans_from_run`. Raises `UnknownRun`."""
        return self.filter_spans_from_run(self._run(run_id), artifact_store=self._artifact_store, **filters)

    @staticmethod
    def filter_spans_from_run(
        run: RunState,
        *,
        artifact_store: Any,
        time_range: TimeRange | None = None,
        tags: dict[str, Any] | None = None,
        tags_mode: str = "all",
        authors: Sequence[str] | None = None,
        locations: Sequence[str] | None = None,
        query: str | None = None,
        limit: int = 1000,
    ) -> list[Span]:
        """The newest spans that match every filter, at most `limit`; `query` is looked for in what they hold too."""
        payload: dict[str, Any] = {
            "since": time_range.start if time_range else None,
            "until": time_range.end if time_range else None,
            "tags": tags,
            "tags_mode": tags_mode,
            "authors": list(authors or ()),
            "locations": list(locations or ()),
            "query": query,
        }
        wanted = Query.of(payload, _limited(limit))
        found: list[Span] = copy_of(search(wanted, [run.vars], loader(artifact_store)))
        return found

    @staticmethod
    def resolve_span_ids_from_spans(span_ids: Any, spans: Iterable[Span]) -> list[str]:
        """The artifact ids that ids and numbers name; number 1 is the newest. Raises ValueError."""
        return resolve(span_ids, spans)

    def rehydrate_into_context(
        self,
        run_id: str,
        *,
        span_ids: Any,
        placement: str = "after_summary",
        dedup_by: str = "message_id",
        max_messages: int | None = None,
    ) -> dict[str, Any]:
        """Put archived messages back into a run's conversation and save the run; what was done with each span.

        Raises `UnknownRun`, `RevisionConflict` when the run moved on meanwhile, ValueError.
        """
        run = self._run(run_id)
        result = self.rehydrate_into_context_from_run(
            run,
            artifact_store=self._artifact_store,
            span_ids=span_ids,
            placement=placement,
            dedup_by=dedup_by,
            max_messages=max_messages,
        )
        if result["inserted"]:
            self._run_store.save(run)
        return result

    @staticmethod
    def rehydrate_into_context_from_run(
        run: RunState,
        *,
        artifact_store: Any,
        span_ids: Any,
        placement: str = "after_summary",
        dedup_by: str = "message_id",
        max_messages: int | None = None,
    ) -> dict[str, Any]:
        """The same with a run at hand, whose vars are replaced and which is not saved."""
        ids = resolve(span_ids, spans_of(run.vars))
        messages, result = rehydrated(
            run.vars,
            ids,
            loader(artifact_store),
            placement=placement,
            dedup=dedup_by == "message_id",
            most=max_messages,
            at=utc_now_iso(),
        )
        run.vars = changed(run.vars, [rewritten(run.vars, messages)])
        return result

    def select_active_messages_for_llm(self, run_id: str, *, max_history_messages: int | None = None) -> list[Message]:
        """The messages that a model gets. Raises `UnknownRun`."""
        return self.select_active_messages_for_llm_from_run(
            self._run(run_id), max_history_messages=max_history_messages
        )

    @staticmethod
    def select_active_messages_for_llm_from_run(
        run: RunState, *, max_history_messages: int | None = None
    ) -> list[Message]:
        """The same of a run at hand; without a number, the run's limit `max_history_messages` (below 0: all)."""
        limits = run.vars.get("_limits")
        limit = max_history_messages
        if limit is None and isinstance(limits, dict) and type(limits.get("max_history_messages")) is int:
            limit = limits["max_history_messages"]
        return ActiveContextPolicy.select_messages_view(messages_of(run.vars), max_history_messages=limit)

    @staticmethod
    def select_messages_view(messages: Sequence[Message], *, max_history_messages: int | None) -> list[Message]:
        """All system messages and the newest so many others, in their order; copies."""
        found: list[Message] = copy_of(newest(messages, max_history_messages))
        return found

    @staticmethod
    def summary_text_by_artifact_id_from_run(run: RunState) -> dict[str, str]:
        """The texts of the summaries in the run's conversation, by the artifact that they stand for."""
        return summaries_of(run.vars)

    def _run(self, run_id: str) -> RunState:
        run: RunState | None = self._run_store.load(run_id)
        if run is None:
            raise UnknownRun(run_id)
        return run


def loader(artifact_store: Any) -> Any:
    """A function that gives what an artifact holds, or None. StoreCorrupt of a damaged one is raised."""

    def load(artifact_id: str) -> Any:
        try:
            return artifact_store.load_json(artifact_id)
        except ValueError:  # an id that can be none, or no JSON
            return None

    return load


def rehydrated(
    vars: dict[str, Any],
    span_ids: Sequence[str],
    load: Any,
    *,
    placement: str,
    dedup: bool,
    most: int | None,
    at: str,
) -> tuple[list[Message], dict[str, Any]]:
    """The active messages with those of these spans among them, and the documented result. Raises ValueError."""
    active = list(messages_of(vars))
    listed = {span["artifact_id"]: span for span in spans_of(vars)}
    artifacts: list[dict[str, Any]] = []
    inserted = skipped = 0
    most = None if most is None or most < 0 else most
    for span_id in span_ids:
        kind = listed.get(span_id, {}).get("kind")
        entry: dict[str, Any] = {"span_id": span_id, "inserted": 0, "skipped": 0, "error": None, "kind": kind}
        entry["preview"] = listed.get(span_id, {}).get("note_preview")
        artifacts.append(entry)
        if kind is not None and kind not in MEMORIES:
            entry["error"] = f"a span of kind {kind!r} holds no messages"
            continue
        if most is not None and inserted >= most:
            entry["error"] = "max_messages"
            continue
        try:
            archived = archived_messages(span_id, load(span_id), at)
        except ValueError as error:
            entry["error"] = str(error)
            continue
        room = None if most is None else most - inserted
        put = put_back(active, archived, placement=placement, dedup=dedup, most=room)
        active, entry["inserted"], entry["skipped"] = put
        if entry["inserted"] + entry["skipped"] < len(archived):
            entry["error"] = "max_messages"
        inserted, skipped = inserted + entry["inserted"], skipped + entry["skipped"]
    if placement not in ("after_summary", "after_system", "end"):
        put_back([], [], placement=placement, dedup=dedup)
    return active, {"inserted": inserted, "skipped": skipped, "artifacts": artifacts}


def _limited(limit: int) -> Effort:
    return Effort(
        limit_spans=max(0, limit),
        deep=True,
        deep_limit_spans=_DEEP.deep_limit_spans,
        deep_limit_messages_per_span=_DEEP.deep_limit_messages_per_span,
    )
