"""What a node decides: the `StepPlan` that it returns, and the effects in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .kinds import EffectType

_EFFECT_TYPES = {member.value: member for member in EffectType}


class Effect(Struct, frozen=True, gc=False):
    """A request for work that the runtime does for a node.

    `type` is an `EffectType`, or a text of the host's own; `payload` is JSON; the result is written to
    `run.vars` at the dotted path `result_key`.

    >>> Effect("ask_user", {"prompt": "Continue?"}, "answer").type is EffectType.ASK_USER
    True
    """

    type: str
    payload: dict[str, Any] = {}
    result_key: str | None = None

    def __post_init__(self) -> None:
        ours = _EFFECT_TYPES.get(self.type)
        if ours is not None and self.type is not ours:
            msgspec.structs.force_setattr(self, "type", ours)

    def as_record(self) -> dict[str, Any]:
        """The effect as ledger records carry it."""
        return {"type": str(self.type), "payload": self.payload, "result_key": self.result_key}


class StepPlan(Struct, frozen=True, gc=False):
    """What a node decides: an effect, several at once, the next node, or the end of the run.

    `complete_output` (an empty dict counts) ends the run and beats `effect`. An effect without `next_node` ends the
    run with `{"success": True, "result": <its result>}`.

    `effects` are performed in parallel, at most `max_parallel` at a time, and land one by one, so that a crash repeats
    only those that had not landed; none of them may wait. Their results are written in the order of the list, each
    under its own `result_key`, when all have ended. When one fails for good, `on_failure="fail"` cancels the others and
    fails the run; with `"collect"` the run goes on, and `{"ok": False, "error": <text>}` stands for its result. Without
    `next_node` the run ends with `{"success": True, "results": [...]}`.

    >>> prices = [Effect("fetch", {"shop": shop}, f"price.{shop}") for shop in ("north", "south")]
    >>> StepPlan("ask_shops", effects=prices, next_node="compare").max_parallel
    16
    """

    node_id: str
    effect: Effect | None = None
    next_node: str | None = None
    complete_output: dict[str, Any] | None = None
    effects: Sequence[Effect] = ()
    max_parallel: int = 16
    on_failure: Literal["fail", "collect"] = "fail"
