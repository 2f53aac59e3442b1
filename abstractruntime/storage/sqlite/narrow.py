"""A stored run as listings look at it: a narrow reading of its bytes, which passes over what authors keep in vars.

It gives a `RunState`, so that `storage.base` and `storage.listing` say once what a row holds, whoever read the run.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from ...core.codec import REFUSALS, check_sum, decode_run
from ...core.models import Effect, Intent, RunState, RunStatus, WaitState
from ...core.questions import Question, RuleName


class _Control(Struct, gc=False):
    paused: bool = False


class _Runtime(Struct, gc=False):
    control: _Control | None = None


class _Vars(Struct):
    runtime: _Runtime | None = field(default=None, name="_runtime")
    lifecycle: Any = field(default=None, name="_run_lifecycle")


class _Question(Struct, gc=False):
    kind: RuleName = "any"


class _Intent(Struct, gc=False):
    question: _Question | None = None


class _Narrow(Struct):
    """The names are those of `RunState`."""

    run_id: str
    workflow_id: str
    status: RunStatus
    current_node: str
    created_at: str
    updated_at: str
    vars: _Vars | None = None
    waiting: WaitState | None = None
    actor_id: str | None = None
    session_id: str | None = None
    parent_run_id: str | None = None
    intent: _Intent | None = None


_decode = msgspec.json.Decoder(_Narrow).decode
_FIELDS = [name for name in _Narrow.__struct_fields__ if name not in ("vars", "intent")]

#: of an effect that asks nobody needs to know more here
_ASKING = Intent(step_id="", seq=0, node_id="", effect=Effect(""), key="", started_at="")


def narrow_run(data: bytes, run_id: str) -> RunState:
    """The run with nothing in its vars but whether it is paused, and its lifecycle. Raises StoreCorrupt.

    Of its effect it has what kind of answer that waits for.
    """
    try:
        check_sum(data)
        narrow = _decode(data)
    except REFUSALS:  # an author may keep anything under our names, and then it is read whole; or it is damaged
        return decode_run(data, run_id)
    run = RunState(**{name: getattr(narrow, name) for name in _FIELDS})
    vars = narrow.vars or _Vars()
    if vars.runtime and vars.runtime.control and vars.runtime.control.paused:
        run.vars["_runtime"] = {"control": {"paused": True}}
    if vars.lifecycle is not None:
        run.vars["_run_lifecycle"] = vars.lifecycle
    if narrow.intent is not None and narrow.intent.question is not None:
        run.intent = replace(_ASKING, question=Question(kind=narrow.intent.question.kind))
    return run
