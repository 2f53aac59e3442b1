"""The MEMORY_* effects: notes, queries, tags, compaction, and what comes back into a conversation."""

from .table import memory_handlers

__all__ = ["memory_handlers"]
