"""The table of the memory effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...core.models import EffectType
from ..handlers import Handler
from .compacting import Compacting
from .desk import Desk, LoadRun, guarded
from .notes import Notes
from .queries import Queries
from .summaries import Subrun


def memory_handlers(
    load: LoadRun,
    artifact_store: Callable[[], Any],
    summarizer: Any,
    handlers: Mapping[str, Handler],
    subrun: Subrun,
) -> dict[str, Handler]:
    """The handler of every memory effect.

    They read and write artifacts, so each is promised before it is performed; a tag needs the stores of runs alone.
    `handlers` is the table they become part of: compaction looks for LLM_CALL in it, and has it called by a run that
    `subrun` starts and drives to its end.
    """
    desk = Desk(load, artifact_store)
    notes, queries = Notes(desk), Queries(desk)
    compacting = Compacting(desk, summarizer, handlers, subrun)
    return {
        EffectType.MEMORY_NOTE: Handler(guarded("memory_note", notes.note), ours=True),
        EffectType.MEMORY_TAG: Handler(guarded("memory_tag", notes.tag), inside=True),
        EffectType.MEMORY_QUERY: Handler(guarded("memory_query", queries.query), ours=True),
        EffectType.MEMORY_REHYDRATE: Handler(guarded("memory_rehydrate", queries.rehydrate), ours=True),
        EffectType.MEMORY_COMPACT: Handler(guarded("memory_compact", compacting.compact), ours=True),
    }
