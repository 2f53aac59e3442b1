"""The table of built-in effects. All of them are inside: they touch nothing but the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.models import EffectType
from ..core.outcomes import EffectCall, EffectOutcome
from .handlers import Handler
from .messages import answer_user
from .vars_query import LoadRun, VarsQuery
from .waits import ask_user, wait_event, wait_until


def builtin_handlers(load: LoadRun) -> dict[str, Handler]:
    """The handler of every built-in effect type."""
    return {
        EffectType.ASK_USER: _inside(ask_user),
        EffectType.ANSWER_USER: _inside(answer_user),
        EffectType.WAIT_UNTIL: _inside(wait_until),
        EffectType.WAIT_EVENT: _inside(wait_event),
        EffectType.VARS_QUERY: Handler(VarsQuery(load), inside=True),
    }


def _inside(function: Callable[[EffectCall], EffectOutcome]) -> Handler:
    async def run(call: EffectCall) -> Any:
        return function(call)

    return Handler(run, inside=True)
