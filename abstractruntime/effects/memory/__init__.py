"""The MEMORY_* effects: notes, queries, tags, compaction, and what comes back into a conversation."""

from .summaries import OWN
from .table import memory_handlers

__all__ = ["OWN", "memory_handlers"]
