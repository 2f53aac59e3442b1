"""One shape for every effect handler, decided once at registration, and one border for what handlers return."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..core.clock import iso, parse_instant
from ..core.codec import DEEPEST_GIVEN
from ..core.errors import InvalidId, UnsafeValue
from ..core.event_keys import LISTENS, checked_message, read_event_key
from ..core.ids import check_id, check_run_id
from ..core.models import Elsewhere, Message, Request, WaitReason, WaitState
from ..core.outcomes import Change, EffectCall, EffectOutcome
from ..core.questions import Question
from ..core.secrets import admit, scrub
from ..core.threads import WorkerThreads

T = TypeVar("T", bound=Struct)

#: what an effect may wait for that asks: somebody who answers
_ASKS = (WaitReason.USER, WaitReason.JOB, WaitReason.EVENT)
_STATUSES = ("completed", "waiting", "failed", "cancelled")


class Handler(Struct, frozen=True):
    """A handler ready to be called. `inside` ones touch nothing outside the store and need no promise.

    What `run` returns is awaited, unless the handler is `direct`. For one of `ours`, as for an inside one, an error of
    the store is no failure of the effect: it is the runtime's own, and the effect is performed again.
    """

    run: Callable[[EffectCall], Any]
    inside: bool = False
    direct: bool = False
    ours: bool = False
    #: what the host gave
    function: Callable[..., Any] | None = None


def adapt(function: Callable[..., Any], threads: WorkerThreads) -> Handler:
    """Make a user's handler awaitable: see `core.outcomes` for the four forms. Raises TypeError for none of them."""
    arguments = _arguments_of(function)
    if _is_async(function):

        async def call_async(call: EffectCall) -> Any:
            return await function(*arguments(call))

        return Handler(call_async, function=function)

    async def call_sync(call: EffectCall) -> Any:
        result = await threads.run(function, *arguments(call))
        return await result if inspect.isawaitable(result) else result

    return Handler(call_sync, function=function)


def checked_outcome(value: Any, nodes: Collection[str], hidden: list[str]) -> EffectOutcome:
    """What a handler returned as an outcome that may be persisted; what is none becomes a clear failure."""
    status = getattr(value, "status", None)
    if status not in _STATUSES:
        found = f"status {status!r}" if status is not None else f"a {type(value).__name__}"
        return _refused(f"expected an EffectOutcome with one of the statuses {', '.join(_STATUSES)}; found {found}")
    try:
        plain = type(value) is EffectOutcome and not (
            value.changes or value.requests or value.elsewhere or value.messages
        )
        if plain and status == "completed" and not hidden:
            return EffectOutcome(status, admit(value.result, "result", deepest=DEEPEST_GIVEN))
        return EffectOutcome(
            status=status,
            result=admit(scrub(getattr(value, "result", None), hidden), "result", deepest=DEEPEST_GIVEN),
            wait=_checked_wait(getattr(value, "wait", None), nodes, hidden) if status == "waiting" else None,
            question=_checked_question(value, hidden) if status == "waiting" else None,
            error=scrub(_text(getattr(value, "error", None)), hidden),
            retryable=getattr(value, "retryable", True) is not False,
            retry_after=_seconds(getattr(value, "retry_after", None)),
            changes=_checked(getattr(value, "changes", ()), Change, "changes", hidden),
            requests=tuple(
                replace(request, run_id=check_run_id(request.run_id))
                for request in _checked(getattr(value, "requests", ()), Request, "requests", hidden)
            ),
            elsewhere=_checked_elsewhere(getattr(value, "elsewhere", ()), hidden),
            messages=tuple(
                checked_message(message)
                for message in _checked(getattr(value, "messages", ()), Message, "messages", hidden)
            ),
        )
    except (UnsafeValue, InvalidId, ValueError) as error:
        return _refused(scrub(str(error), hidden))


def _checked(values: Any, kind: type[T], name: str, hidden: list[str]) -> tuple[T, ...]:
    """Values of ours as a handler gave them, checked field by field."""
    if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{name} must be a tuple of {kind.__name__}")
    plain = [{field: getattr(value, field) for field in kind.__struct_fields__} for value in values]
    clean = admit(scrub(plain, hidden), name, deepest=DEEPEST_GIVEN)
    return tuple(msgspec.convert(value, kind) for value in clean)


def _checked_elsewhere(values: Any, hidden: list[str]) -> tuple[Elsewhere, ...]:
    if not isinstance(values, tuple | list) or not all(isinstance(value, Elsewhere) for value in values):
        raise ValueError("elsewhere must be a tuple of Elsewhere")
    checked: dict[str, Elsewhere] = {}
    for value in values:
        run_id, made = check_id(value.run_id, "elsewhere.run_id"), value.create
        changes = _checked(value.changes, Change, f"elsewhere {run_id!r} changes", hidden)
        if made is not None:
            if made.run_id != run_id:
                raise ValueError(f"elsewhere creates run {made.run_id!r} and names run {run_id!r}")
            made = replace(made, vars=admit(scrub(made.vars, hidden), "vars"), output=admit(made.output, "output"))
        before = checked.get(run_id, Elsewhere(run_id=run_id))
        checked[run_id] = Elsewhere(run_id=run_id, create=before.create or made, changes=before.changes + changes)
    return tuple(checked.values())


def _refused(why: str) -> EffectOutcome:
    return EffectOutcome.failed(f"The effect handler's outcome was refused: {why}", retryable=False)


def _text(error: Any) -> str | None:
    return None if error is None else str(error).encode("utf-8", "backslashreplace").decode()


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"retry_after must be a number of seconds, found {value!r:.80}")
    return max(0.0, float(value))


def _checked_wait(wait: Any, nodes: Collection[str], hidden: list[str]) -> WaitState:
    if not isinstance(wait, WaitState):
        raise ValueError(f"a waiting outcome needs a WaitState in .wait; found {type(wait).__name__}")
    if wait.resume_to_node is not None and wait.resume_to_node not in nodes:
        raise ValueError(f"resume_to_node {wait.resume_to_node!r} is no node of the workflow")
    fields = {name: getattr(wait, name) for name in WaitState.__struct_fields__}
    plain = admit(scrub(fields, hidden), "wait")
    plain["until"] = None if wait.until is None else iso(parse_instant(wait.until))
    return msgspec.convert(plain, WaitState)


def _checked_question(outcome: Any, hidden: list[str]) -> Question | None:
    """What an effect asks, of a wait that an answer can end."""
    question, wait = getattr(outcome, "question", None), outcome.wait
    if question is None:
        return None
    if not isinstance(question, Question):
        raise ValueError(f"question must be a Question, found a {type(question).__name__}")
    listens = read_event_key(wait.wait_key) is not None or LISTENS in (wait.details or {})
    if WaitReason(wait.reason) not in _ASKS or (listens and WaitReason(wait.reason) is WaitReason.EVENT):
        raise ValueError(f"an effect cannot ask with a wait for {wait.reason} under the key {wait.wait_key!r}")
    return msgspec.convert(admit(scrub(msgspec.to_builtins(question), hidden), "question"), Question)


def _is_async(function: Callable[..., Any]) -> bool:
    call = type(function).__call__  # of an object that is called like a function
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _arguments_of(function: Callable[..., Any]) -> Callable[[EffectCall], tuple[Any, ...]]:
    kinds = inspect.Parameter
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    ]
    required = [parameter for parameter in parameters if parameter.default is kinds.empty]
    wants_call = any("EffectCall" in str(parameter.annotation) or parameter.name == "call" for parameter in required)
    if any(parameter.kind is kinds.VAR_POSITIONAL for parameter in parameters) or len(parameters) >= 3:
        return lambda call: (call.run, call.effect, call.next_node)
    if len(parameters) == 1 or (wants_call and len(required) == 1):
        return lambda call: (call,)
    if len(parameters) == 2 and not wants_call:
        return lambda call: (call.run, call.effect)
    raise TypeError(
        f"{function!r} is no effect handler: expected (call), (run, effect) or (run, effect, default_next_node)"
    )
