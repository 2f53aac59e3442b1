"""The table of built-in effects. All of them are inside: they touch nothing but the store."""

from __future__ import annotations

from ..core.models import EffectType
from .handlers import Handler
from .messages import answer_user
from .vars_query import LoadRun, VarsQuery
from .waits import ask_user, wait_event, wait_until


def builtin_handlers(load: LoadRun) -> dict[str, Handler]:
    """The handler of every built-in effect type."""
    return {
        EffectType.ASK_USER: Handler(ask_user, inside=True, direct=True),
        EffectType.ANSWER_USER: Handler(answer_user, inside=True, direct=True),
        EffectType.WAIT_UNTIL: Handler(wait_until, inside=True, direct=True),
        EffectType.WAIT_EVENT: Handler(wait_event, inside=True, direct=True),
        EffectType.VARS_QUERY: Handler(VarsQuery(load), inside=True),
    }
