"""Workflows by their ids."""

from .registry import WorkflowRegistry

__all__ = ["WorkflowRegistry"]
