"""The table of built-in effects that are inside: they touch nothing but the store. `effects.memory` has the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.models import EffectType
from .events import EmitEvent, Listen
from .handlers import Handler
from .messages import answer_user
from .vars_query import LoadRun, VarsQuery
from .waits import ask_user, wait_event, wait_until


def builtin_handlers(load: LoadRun, listening: Listen | None, registry: Callable[[], Any]) -> dict[str, Handler]:
    """The handler of every built-in effect type, with what they need of the host."""
    return {
        EffectType.ASK_USER: Handler(ask_user, inside=True, direct=True),
        EffectType.ANSWER_USER: Handler(answer_user, inside=True, direct=True),
        EffectType.WAIT_UNTIL: Handler(wait_until, inside=True, direct=True),
        EffectType.WAIT_EVENT: Handler(wait_event, inside=True, direct=True),
        EffectType.EMIT_EVENT: Handler(EmitEvent(listening, registry), inside=True),
        EffectType.VARS_QUERY: Handler(VarsQuery(load), inside=True),
    }
