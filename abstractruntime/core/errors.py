"""Every error of the runtime, as one tree.

::

    AbstractRuntimeError
    ├── UnknownRun (KeyError)               no run has this id
    ├── RunIdentityConflict (ValueError)    start(run_id=...) met another run of that id
    ├── RevisionConflict                    the run moved on since it was loaded
    ├── StaleResumeError (ValueError)       nothing waits, or something else does
    │   └── InvalidAnswer                   the wait is right, the answer is not
    ├── RunPaused (ValueError)              resume() on a paused run
    ├── RunNotFailed (ValueError)           retry_run() on a run that ended otherwise
    ├── RunQuarantined (ValueError)         retry_run() on a run that failed again and again
    ├── EffectInFlight (ValueError)         restore() or delete_run() while an effect is performed
    ├── EffectWithdrawn (RuntimeError)      a handler lands a part of an effect that is not its own any more
    ├── RunCompleted (ValueError)           fork() of a run behind its end
    ├── RunNotEnded (ValueError)            delete_run() on a run that goes on
    ├── UnknownSnapshot (KeyError)          no snapshot has this id
    ├── InvalidSnapshot (ValueError)        a snapshot that this run cannot go back to
    ├── RuntimeClosed (RuntimeError)        a runtime was used after close()
    ├── ReentrantTick (RuntimeError)        a run was driven from inside itself
    ├── InvalidId (ValueError)              an id that could not be a safe name
    ├── InvalidCursor (ValueError)          a cursor that this query of this store did not give
    ├── InvalidWorkflow (ValueError)        a graph that cannot run
    │   ├── WorkflowMismatch                the run belongs to another workflow
    │   └── WorkflowChanged                 the graph changed under the run
    ├── UnknownWorkflow (KeyError)          no workflow of this id is registered
    ├── UnknownNode (KeyError)              the graph has no such node
    ├── InvalidPlan (ValueError)            a node returned no usable StepPlan
    ├── InvalidState (ValueError)           vars that do not fit the workflow's state type
    ├── UnsafeValue (ValueError, TypeError) a value that JSON cannot carry
    ├── SecretUnavailable (LookupError)     a secret that this process does not have
    ├── UnknownArtifact (KeyError)          no artifact has this id
    ├── ArtifactConflict (ValueError)       an artifact id that stands for something else
    └── StoreError
        ├── StoreUnclear                    the write may or may not have landed
        ├── StoreBusy                       another process kept the lock for too long
        ├── StoreFull                       no room is left on the disk
        ├── StoreTooLarge                   a value is larger than the store can hold
        ├── StoreReadOnly                   the file or its folder may not be written to
        ├── StoreVanished                   the file was deleted or replaced while it was open
        ├── StoreCorrupt                    what is stored cannot be read
        ├── StoreSchemaTooNew               a newer version wrote this file
        └── StoreClosed                     used after close()

Built-in bases stay where callers of the documented API catch them. The text of an error names the thing, what was
expected, what was found and the next step; attributes carry the same facts for programs.
"""

from __future__ import annotations

from collections.abc import Iterable


class AbstractRuntimeError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:  # KeyError would show the repr of the text
        return str(self.args[0]) if self.args else str(self.__doc__)


class UnknownRun(AbstractRuntimeError, KeyError):
    """No run has this id."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"Unknown run_id: {run_id!r}. Is this the store it was started on?")
        self.run_id = run_id


class RunIdentityConflict(AbstractRuntimeError, ValueError):
    """A run of this id exists and was started with something else."""

    def __init__(self, run_id: str, differs: str) -> None:
        super().__init__(
            f"Run {run_id!r} exists already and was started with another {differs}. "
            "Start under a new run_id, or call start() with exactly what the run was started with."
        )
        self.run_id = run_id
        self.differs = differs


class RevisionConflict(AbstractRuntimeError):
    """The run moved on since it was loaded."""

    def __init__(self, run_id: str, expected: int, found: int | None, why: str = "") -> None:
        state = "is gone" if found is None else f"is at revision {found}"
        super().__init__(
            f"Run {run_id!r} {state}, but this change was computed from revision {expected}"
            f"{why and f' ({why})'}. Load the run, change it and save again"
            ", or save with overwrite=True to replace what is stored."
        )
        self.run_id = run_id
        self.expected = expected
        self.found = found


class StaleResumeError(AbstractRuntimeError, ValueError):
    """The run does not wait for this."""


class InvalidAnswer(StaleResumeError):
    """The answer is not one that the wait allows; the run goes on waiting."""


class RunPaused(AbstractRuntimeError, ValueError):
    """Run is paused"""


class RunNotFailed(AbstractRuntimeError, ValueError):
    """Only a failed run can be retried."""


class RunQuarantined(AbstractRuntimeError, ValueError):
    """The run failed again and again and was set apart."""


class EffectInFlight(AbstractRuntimeError, ValueError):
    """An effect of the run is being performed."""


class EffectWithdrawn(AbstractRuntimeError, RuntimeError):
    """The effect was cancelled, or somebody else performs it."""


class RunCompleted(AbstractRuntimeError, ValueError):
    """The run has completed, and so has no step to go on with."""


class RunNotEnded(AbstractRuntimeError, ValueError):
    """The run has not ended."""


class UnknownSnapshot(AbstractRuntimeError, KeyError):
    """No snapshot has this id."""

    def __init__(self, snapshot_id: str) -> None:
        super().__init__(f"Unknown snapshot_id: {snapshot_id!r}. Is this the store it was saved in?")
        self.snapshot_id = snapshot_id


class InvalidSnapshot(AbstractRuntimeError, ValueError):
    """A snapshot that this run cannot go back to."""


class RuntimeClosed(AbstractRuntimeError, RuntimeError):
    """The runtime was closed."""


class ReentrantTick(AbstractRuntimeError, RuntimeError):
    """A run was driven from inside itself."""


class InvalidId(AbstractRuntimeError, ValueError):
    """An id that could not be a safe name."""


class InvalidCursor(AbstractRuntimeError, ValueError):
    """A cursor that this query of this store did not give."""

    def __init__(self, cursor: object, expected: str) -> None:
        super().__init__(
            f"cursor {cursor!r:.80} is none of {expected}. Pass on the `cursor` of the page before, from the same "
            "query on the same store, or None to begin at the first page."
        )
        self.cursor = cursor


class InvalidWorkflow(AbstractRuntimeError, ValueError):
    """A graph that cannot run."""


class WorkflowMismatch(InvalidWorkflow):
    """The run belongs to another workflow."""


class WorkflowChanged(InvalidWorkflow):
    """The graph changed under the run in a way that it cannot follow; the run is untouched."""


class UnknownWorkflow(AbstractRuntimeError, KeyError):
    """No workflow of this id is registered."""

    def __init__(self, workflow_id: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(map(repr, known))) or "none"
        super().__init__(f"Workflow {workflow_id!r} is not registered; registered are {names}. Call register() first.")
        self.workflow_id = workflow_id


class UnknownNode(AbstractRuntimeError, KeyError):
    """The graph has no such node."""


class InvalidPlan(AbstractRuntimeError, ValueError):
    """A node returned something that is no usable StepPlan."""


class InvalidState(AbstractRuntimeError, ValueError):
    """Vars that do not fit the workflow's state type."""

    def __init__(self, workflow_id: str, path: str, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Vars of workflow {workflow_id!r} must fit its state type; "
            "correct the value, or change the type."
        )
        self.workflow_id = workflow_id
        self.path = path
        self.problem = problem


class UnsafeValue(AbstractRuntimeError, ValueError, TypeError):
    """A value that JSON cannot carry unchanged."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. State, payloads and results must survive JSON unchanged; "
            "convert the value, or keep it in an artifact."
        )
        self.path = path
        self.problem = problem


class SecretUnavailable(AbstractRuntimeError, LookupError):
    """A secret that this process does not have."""


class UnknownArtifact(AbstractRuntimeError, KeyError):
    """No artifact has this id."""

    def __init__(self, artifact_id: str) -> None:
        super().__init__(f"Unknown artifact {artifact_id!r}. Is this the store it was put in, or was it deleted?")
        self.artifact_id = artifact_id


class ArtifactConflict(AbstractRuntimeError, ValueError):
    """An artifact of this id exists and is something else; it was left as it is."""

    def __init__(self, artifact_id: str, differs: str) -> None:
        super().__init__(
            f"Artifact {artifact_id!r} exists already with another {differs}; it was left as it is, because refs to it "
            "may be anywhere. Store under a new artifact_id, or without one, or delete the old one first."
        )
        self.artifact_id = artifact_id
        self.differs = differs


class StoreError(AbstractRuntimeError):
    """A store could not do what it was asked."""


class StoreUnclear(StoreError):
    """The write may or may not have landed."""


class StoreBusy(StoreError):
    """Another process kept the lock for too long; nothing was written."""


class StoreFull(StoreError):
    """No room is left on the disk; nothing was written."""


class StoreTooLarge(StoreError):
    """A value is larger than the store can hold; nothing was written."""


class StoreReadOnly(StoreError):
    """The store may not be written to; nothing was written."""


class StoreVanished(StoreError):
    """The store's file was deleted or replaced while it was open; nothing was written."""


class StoreCorrupt(StoreError):
    """What is stored cannot be read."""


class StoreSchemaTooNew(StoreError):
    """A newer version of the package wrote this store."""


class StoreClosed(StoreError):
    """The store was used after it was closed."""
