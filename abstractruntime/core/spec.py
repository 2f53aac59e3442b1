"""What a workflow is: named nodes with an entry, checked when it is built, and whether a run may go on with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, Literal, Protocol, TypeAlias
from unicodedata import category

from .clock import SYSTEM_CLOCK, Clock, iso
from .codec import canonical
from .errors import InvalidWorkflow, UnknownNode, WorkflowChanged, WorkflowMismatch
from .graph import mermaid
from .models import TERMINAL, RunState, StepPlan
from .typed import S, TypedRun, check_state_type

#: a node: `node(run, ctx) -> StepPlan`, sync or async; `ctx` is the runtime's `context`
Node: TypeAlias = Callable[[TypedRun[S], Any], StepPlan | Awaitable[StepPlan]]

_MAX_ID = 200


class RunContext(Protocol):
    """What a node gets beside the run. Give a runtime your own `context` for more."""

    def now_iso(self) -> str:
        """The present instant as UTC text."""


class DefaultRunContext:
    """The context of a runtime that was given none."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock

    def now_iso(self) -> str:
        return iso(self._clock.now())


@dataclass(frozen=True)
class WorkflowSpec(Generic[S]):
    """A graph of named nodes.

    `edges` says where each node may go: `{"ask": ["done"]}`; a node without an entry ends the run. `version` is a
    text that you change when waiting runs must not go on with the new graph. `state` is a type (a Struct, dataclass,
    TypedDict or dict type) that the vars are checked against, and that nodes see as `run.state`. With
    `on_change="refuse"` no run goes on with a graph other than the one it was started with.

    Raises `InvalidWorkflow` when the graph could not run. The mappings given are copied.
    """

    workflow_id: str
    entry_node: str
    nodes: Mapping[str, Node[S]]
    _: KW_ONLY
    edges: Mapping[str, Iterable[str]] | None = None
    version: str | None = None
    state: type[S] | None = None
    on_change: Literal["follow", "refuse"] = "follow"

    def __post_init__(self) -> None:
        _check_text(self.workflow_id, "A workflow_id")
        where = f"Workflow {self.workflow_id!r}"
        object.__setattr__(self, "nodes", _checked_nodes(self.workflow_id, self.nodes))
        if self.entry_node not in self.nodes:
            raise InvalidWorkflow(
                f"{where} starts at {self.entry_node!r}, which is no node of it. It has: {_names(self.nodes)}."
            )
        if self.edges is not None:
            object.__setattr__(self, "edges", _checked_edges(where, self.edges, self.nodes))
        if self.version is not None:
            _check_text(self.version, f"The version of workflow {self.workflow_id!r}")
        if self.on_change not in ("follow", "refuse"):
            raise InvalidWorkflow(f"{where} has on_change={self.on_change!r}; expected 'follow' or 'refuse'.")
        if self.state is not None:
            try:
                check_state_type(self.state)
            except ValueError as error:
                raise InvalidWorkflow(f"{where} cannot have the state type {self.state!r}: {error}.") from error

    def get_node(self, node_id: str) -> Node[S]:
        """The node of this id. Raises `UnknownNode` (a KeyError) naming node and workflow."""
        try:
            return self.nodes[node_id]
        except KeyError:
            raise UnknownNode(
                f"Unknown node {node_id!r} in workflow {self.workflow_id!r}. It has: {_names(self.nodes)}."
            ) from None

    def is_terminal(self, node_id: str) -> bool:
        """Whether the declared edges say that the run ends at this node; without declared edges nothing is known."""
        return self.edges is not None and node_id in self.nodes and not self.edges.get(node_id)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex characters that change with ids, entry, edges, version and the name of the state type.

        The code of the nodes does not count: a fix in a node is no change of the graph.
        """
        edges = None if self.edges is None else {node: sorted(targets) for node, targets in self.edges.items()}
        described = {
            "workflow_id": self.workflow_id,
            "entry_node": self.entry_node,
            "nodes": sorted(self.nodes),
            "edges": edges,
            "version": self.version,
            "state": None if self.state is None else getattr(self.state, "__qualname__", str(self.state)),
        }
        return sha256(canonical(described)).hexdigest()[:16]

    def to_mermaid(self) -> str:
        """The graph as the text of a Mermaid flowchart.

        Declared edges are drawn solid. Without them the edges are read, as far as that goes, from the source of the
        nodes (a literal `next_node="..."`, or the end of the run) and drawn dashed. Nothing is executed.
        """
        return mermaid(self.workflow_id, self.entry_node, self.nodes, self.edges)


def follow(workflow: WorkflowSpec[Any], run: RunState) -> tuple[str, str] | None:
    """Whether the run goes on with this graph: None if it is the run's own, else the old and the new fingerprint.

    Raises `WorkflowMismatch` for a run of another workflow. Raises `WorkflowChanged` when the graph changed and either
    refuses that, or has another version, or lost the node where the run stands or goes next. An ended run goes
    nowhere, so only its workflow_id counts.
    """
    if run.workflow_id != workflow.workflow_id:
        raise WorkflowMismatch(
            f"Run {run.run_id!r} belongs to workflow {run.workflow_id!r}, and was given {workflow.workflow_id!r}. "
            "Pass the workflow it was started with."
        )
    if run.status in TERMINAL or run.fingerprint is None or run.fingerprint == workflow.fingerprint:
        return None
    problem = _obstacle(workflow, run)
    if problem is not None:
        raise WorkflowChanged(
            f"Run {run.run_id!r} of workflow {run.workflow_id!r} cannot go on with this graph (fingerprint "
            f"{workflow.fingerprint}, the run's is {run.fingerprint}): {problem} The run is untouched."
        )
    return run.fingerprint, workflow.fingerprint


def _obstacle(workflow: WorkflowSpec[Any], run: RunState) -> str | None:
    if workflow.on_change == "refuse":
        return "the workflow says on_change='refuse'. Pass the graph it was started with, or allow 'follow'."
    if run.workflow_version != workflow.version:
        return (
            f"its version is {workflow.version!r}, the run's is {run.workflow_version!r}. "
            "Pass the workflow in that version, or cancel the run."
        )
    needed = {"stands at": run.current_node}
    if run.waiting is not None and run.waiting.resume_to_node is not None:
        needed["resumes to"] = run.waiting.resume_to_node
    if run.intent is not None and run.intent.next_node is not None:
        needed["goes next to"] = run.intent.next_node
    for where, node in needed.items():
        if node not in workflow.nodes:
            return (
                f"the run {where} {node!r}, which is gone. Put the node back, or cancel the run. "
                f"There are: {_names(workflow.nodes)}."
            )
    return None


def _checked_nodes(workflow_id: str, nodes: Any) -> dict[str, Any]:
    if not isinstance(nodes, Mapping) or not nodes:
        raise InvalidWorkflow(
            f"Workflow {workflow_id!r} needs nodes: a dict of ids to functions, at least one; found {nodes!r:.80}."
        )
    for node_id, node in nodes.items():
        _check_text(node_id, f"A node id of workflow {workflow_id!r}")
        if not callable(node):
            raise InvalidWorkflow(
                f"Node {node_id!r} of workflow {workflow_id!r} is a {type(node).__qualname__}; "
                "expected a function node(run, ctx) that returns a StepPlan."
            )
    return dict(nodes)


def _checked_edges(where: str, edges: Any, nodes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    if not isinstance(edges, Mapping):
        raise InvalidWorkflow(f"{where} has edges={edges!r:.80}; expected a dict of node ids to lists of node ids.")
    checked: dict[str, tuple[str, ...]] = {}
    for source, targets in edges.items():
        if isinstance(targets, str) or not isinstance(targets, Iterable):
            raise InvalidWorkflow(f"{where}: the edges of {source!r} are {targets!r:.80}; expected a list of node ids.")
        targets = tuple(targets)
        for node in (source, *targets):
            if not isinstance(node, str) or node not in nodes:
                raise InvalidWorkflow(
                    f"{where} has an edge from {source!r} that names {node!r}, which is no node of it. "
                    f"It has: {_names(nodes)}."
                )
        checked[source] = tuple(dict.fromkeys(targets))
    return checked


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str) or not 0 < len(text) <= _MAX_ID:
        raise InvalidWorkflow(f"{what} must be a text of 1 to {_MAX_ID} characters, found {text!r:.80}.")
    if not text.isprintable() and any(category(sign) in ("Cc", "Cs") for sign in text):
        raise InvalidWorkflow(f"{what} must hold no control characters and no lone surrogates, found {text!r}.")


def _names(nodes: Iterable[str]) -> str:
    names = [repr(name) for name in nodes]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
