"""The documented address of names that live elsewhere; a shim."""

from ..sync import Runtime
from .outcomes import EffectHandler, EffectOutcome
from .spec import DefaultRunContext

__all__ = ["DefaultRunContext", "EffectHandler", "EffectOutcome", "Runtime"]
