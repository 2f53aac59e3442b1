"""What runs remember: spans of conversation and notes, kept as artifacts and listed in the vars of a run. Pure."""

from .active_context import ActiveContextPolicy, TimeRange

__all__ = ["ActiveContextPolicy", "TimeRange"]
