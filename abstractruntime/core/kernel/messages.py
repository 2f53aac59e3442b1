"""A message reaches a run: the commit that takes it in."""

from __future__ import annotations

from typing import Any

from ..event_keys import ANY, listens_to
from ..models import Commit, RunState
from ..streams import Unread, read_on
from .state import Stamp
from .waits import conclude


def deliver(run: RunState, found: Unread, stamp: Stamp) -> Commit:
    """The run takes the message in: it is written at the wait's `result_key`, and is read from then on."""
    wait, address = run.waiting, listens_to(run)
    assert wait is not None
    assert address is not None
    stream, name = address
    payload: dict[str, Any] = dict(found.message.data)
    if found.missed:
        payload["missed"] = found.missed
    read = {**run.read, stream: read_on(run.read.get(stream, {}), found, wildcard=name == ANY)}
    made = conclude(run, wait, payload, stamp, {"resumed": True, "by": "event"})
    made.run.read = read
    return made
