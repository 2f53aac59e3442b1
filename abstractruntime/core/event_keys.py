"""The wait keys of events: one text that the listener and the emitter compute alike."""

from __future__ import annotations

SCOPES = ("session", "workflow", "run", "global")


def build_event_wait_key(
    *,
    scope: str | None = None,
    name: str,
    session_id: str | None = None,
    workflow_id: str | None = None,
    run_id: str | None = None,
) -> str:
    """`evt:<scope>:<scope id>:<name>`; the scope is `session` unless given, the name `*` listens to all.

    Raises `ValueError` for an empty name, an unknown scope, or a scope whose id is missing.

    >>> build_event_wait_key(scope="session", session_id="s1", name="paid")
    'evt:session:s1:paid'
    """
    text = str(name or "").strip()
    if not text:
        raise ValueError(f"An event needs a name that is no empty text, found {name!r}.")
    where = str(scope or "session").strip().lower() or "session"
    ids = {"session": session_id, "workflow": workflow_id, "run": run_id, "global": "global"}
    if where not in ids:
        raise ValueError(f"Unknown scope {scope!r} of event {text!r}; expected one of {', '.join(SCOPES)}.")
    scope_id = str(ids[where] or "").strip()
    if not scope_id:
        raise ValueError(f"Event {text!r} has scope {where!r}, which needs {where}_id, found {ids[where]!r}.")
    return f"evt:{where}:{scope_id}:{text}"
