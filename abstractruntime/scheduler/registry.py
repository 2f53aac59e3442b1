"""Workflows by their ids: how a runtime finds the graph of a run that it did not get from its caller."""

from __future__ import annotations

from threading import Lock
from typing import Any

from ..core.errors import UnknownWorkflow
from ..core.spec import WorkflowSpec


class WorkflowRegistry:
    """Workflows by `workflow_id`. Thread-safe. A runtime takes anything with such a `get` in its place.

    >>> registry = WorkflowRegistry()
    >>> registry.register(WorkflowSpec("greet", "say", {"say": lambda run, ctx: None}))
    >>> "greet" in registry, len(registry), registry.list_ids()
    (True, 1, ['greet'])
    """

    def __init__(self) -> None:
        self._workflows: dict[str, WorkflowSpec[Any]] = {}
        self._lock = Lock()

    def register(self, workflow: WorkflowSpec[Any]) -> None:
        """Add a workflow. Raises ValueError for an id that is taken: unregister the other one first."""
        if not isinstance(workflow, WorkflowSpec):
            raise TypeError(f"expected a WorkflowSpec, found a {type(workflow).__name__}")
        with self._lock:
            if workflow.workflow_id in self._workflows:
                raise ValueError(
                    f"Workflow {workflow.workflow_id!r} is registered already. Call unregister() first to replace it."
                )
            self._workflows[workflow.workflow_id] = workflow

    def unregister(self, workflow_id: str) -> None:
        """Take a workflow out. Raises `UnknownWorkflow` (a KeyError)."""
        with self._lock:
            if self._workflows.pop(workflow_id, None) is None:
                raise UnknownWorkflow(workflow_id, self._workflows)

    def get(self, workflow_id: str) -> WorkflowSpec[Any] | None:
        """The workflow, or None."""
        return self._workflows.get(workflow_id)

    def get_or_raise(self, workflow_id: str) -> WorkflowSpec[Any]:
        """The workflow. Raises `UnknownWorkflow` (a KeyError)."""
        found = self._workflows.get(workflow_id)
        if found is None:
            raise UnknownWorkflow(workflow_id, self._workflows)
        return found

    def list_ids(self) -> list[str]:
        """The ids, in the order in which they were registered."""
        return list(self._workflows)

    def __len__(self) -> int:
        return len(self._workflows)

    def __contains__(self, workflow_id: object) -> bool:
        return workflow_id in self._workflows
