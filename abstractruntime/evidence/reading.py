"""Finding evidence again: the entries in a run's vars, and the artifacts that they name."""

from __future__ import annotations

from typing import Any

from ..core.vars import Vars, list_at
from ..storage.user_pair import call

#: where a run lists what was archived of it
SPANS = "_runtime.memory_spans"


def evidence_spans(vars: Vars) -> list[dict[str, Any]]:
    """The entries of vars that name evidence, oldest first, live."""
    return [span for span in list_at(vars, SPANS) if isinstance(span, dict) and span.get("kind") == "evidence"]


async def load_evidence(artifact_store: Any, evidence_id: str) -> dict[str, Any] | None:
    """The evidence in an artifact of any store, sync or async; None when there is none or it is something else.

    Raises `InvalidId`, and StoreCorrupt when it is damaged.
    """
    artifact = await call(artifact_store.load, evidence_id)
    if artifact is None or artifact.content_type != "application/json":
        return None
    found = artifact.as_json()
    return found if isinstance(found, dict) else None
