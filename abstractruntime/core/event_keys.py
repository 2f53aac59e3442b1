"""The addresses of events: the stream and the name that listener and emitter compute alike, and their wait keys."""

from __future__ import annotations

import re

from msgspec.structs import replace

from .clock import iso, parse_instant
from .models import Message, RunState, RunStatus, WaitReason

SCOPES = ("session", "workflow", "run", "global")

#: the name that listens to all events of a stream
ANY = "*"

#: where a wait says in its details what it listens to, when its key could be read otherwise
LISTENS = "_listens"

_KEY = re.compile(rf"evt:((?:{'|'.join(SCOPES)}):[^:]+):(.+)", re.DOTALL)


def event_address(
    *,
    scope: str | None = None,
    name: str,
    session_id: str | None = None,
    workflow_id: str | None = None,
    run_id: str | None = None,
) -> tuple[str, str]:
    """The stream `<scope>:<scope id>` and the name of an event; the scope is `session` unless given.

    Raises `ValueError` for an empty name, an unknown scope, or a scope whose id is missing.
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
    return f"{where}:{scope_id}", text


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
    stream, text = event_address(scope=scope, name=name, session_id=session_id, workflow_id=workflow_id, run_id=run_id)
    return event_key(stream, text)


def event_key(stream: str, name: str) -> str:
    """The wait key of the events of this name on a stream."""
    return f"evt:{stream}:{name}"


def read_event_key(key: str | None) -> tuple[str, str] | None:
    """The stream and the name of a wait key that has the form of one; the scope id ends at its first colon.

    >>> read_event_key("evt:session:s1:order:paid")
    ('session:s1', 'order:paid')
    """
    found = _KEY.fullmatch(key) if key else None
    return (found[1], found[2]) if found else None


def checked_message(message: Message) -> Message:
    """A message as it may be stored, its instant as UTC text. Raises `ValueError` for one that nobody could hear."""
    scope, colon, scope_id = message.stream.partition(":")
    if scope not in SCOPES or not colon or not scope_id:
        raise ValueError(f"A stream is <scope>:<scope id> with one of {', '.join(SCOPES)}, found {message.stream!r}.")
    if not message.name or message.name == ANY or not message.message_id:
        raise ValueError(
            f"A message needs an id and a name other than {ANY!r}; found {message.message_id!r} and {message.name!r}."
        )
    return replace(message, at=iso(parse_instant(message.at)))


def listens_to(run: RunState) -> tuple[str, str] | None:
    """The stream and the name of the events that the run waits for. None if it waits for none, or is paused."""
    wait = run.waiting
    if run.status is not RunStatus.WAITING or wait is None or wait.reason is not WaitReason.EVENT or run.paused:
        return None
    said = (wait.details or {}).get(LISTENS)
    if isinstance(said, list) and len(said) == 2 and event_key(*map(str, said)) == wait.wait_key:
        return str(said[0]), str(said[1])
    return read_event_key(wait.wait_key)
