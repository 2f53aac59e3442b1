"""How the ends of several children become the end of the effect that started them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from ..models import Child
from ..outcomes import EffectOutcome
from .orders import Order
from .outputs import envelope, tool_failure, tool_result


class End(Struct, frozen=True, gc=False):
    """How a child ended. `error` is set where it did not complete, `result` where it did not fail."""

    child: Child
    error: str | None = None
    result: dict[str, Any] | None = None


#: of the children in declared order; None for one that has not ended
Ends: TypeAlias = Sequence[End | None]


def joined(order: Order, ends: Ends) -> EffectOutcome | None:
    """The outcome, or None where it is not decided yet."""
    return _JOINS[order.join](order, ends)


def _all(order: Order, ends: Ends) -> EffectOutcome | None:
    failed = next(((place, end) for place, end in enumerate(ends) if end is not None and end.result is None), None)
    if failed is None and None in ends:
        return None
    if order.tool:
        return EffectOutcome.completed(envelope(_as_tool(order, ends)))
    if failed is None:
        results = [end.result for end in ends if end is not None]
        return EffectOutcome.completed({"results": results} if order.many else results[0])
    place, end = failed
    text = end.error or ""
    return EffectOutcome.failed(f"Child {place + 1} of {len(ends)}: {text}" if order.many else text, retryable=False)


def _collect(order: Order, ends: Ends) -> EffectOutcome | None:
    if None in ends:
        return None
    if order.tool:
        return EffectOutcome.completed(envelope(_as_tool(order, ends)))
    return EffectOutcome.completed({"results": [_collected(end) for end in ends if end is not None]})


def _collected(end: End) -> dict[str, Any]:
    if end.error is None:
        assert end.result is not None
        return end.result
    entry = {"ok": False, "error": end.error, "sub_run_id": end.child.run_id}
    return entry if end.result is None else {**entry, "cancelled": True}


def _any(order: Order, ends: Ends) -> EffectOutcome | None:
    winner = next((place for place, end in enumerate(ends) if end is not None and end.error is None), None)
    if winner is not None:
        return _won(order, ends, winner)
    if None in ends:
        return None
    errors = [f"child {place + 1}: {end.error}" for place, end in enumerate(ends) if end is not None]
    return _lost(order, f"None of {len(ends)} subworkflows completed. {'; '.join(errors[:3])}")


def _first(order: Order, ends: Ends) -> EffectOutcome | None:
    ended = next((place for place, end in enumerate(ends) if end is not None), None)
    if ended is None:
        return None
    end = ends[ended]
    if end is not None and end.result is None:
        return _lost(order, f"Child {ended + 1} of {len(ends)}: {end.error}")
    return _won(order, ends, ended)


_JOINS = {"all": _all, "collect": _collect, "any": _any, "first": _first}


def _won(order: Order, ends: Ends, place: int) -> EffectOutcome:
    end = ends[place]
    assert end is not None
    assert end.result is not None
    if order.tool:
        return EffectOutcome.completed(envelope([tool_result(order.children[place], end.result)]))
    return EffectOutcome.completed({**end.result, "index": place})


def _lost(order: Order, error: str) -> EffectOutcome:
    if order.tool:
        return EffectOutcome.completed(envelope([tool_failure(order.children[0], error)]))
    return EffectOutcome.failed(error, retryable=False)


def _as_tool(order: Order, ends: Ends) -> list[dict[str, Any]]:
    results = []
    for wanted, end in zip(order.children, ends, strict=True):
        if end is None:
            results.append(tool_failure(wanted, "Not waited for: another subworkflow failed"))
        elif end.result is None:
            results.append(tool_failure(wanted, end.error or ""))
        else:
            results.append(tool_result(wanted, end.result))
    return results
