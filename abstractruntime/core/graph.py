"""The picture of a workflow as Mermaid text, and the edges that can be read from the source of its nodes.

Edges that a workflow declares are drawn solid. Without them the nodes' source is read, never run: a literal
`next_node="..."` of a `StepPlan` is drawn dashed, a plan that ends the run leads to the end. That is a best effort:
names that are computed and source that is not there give no edge.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

#: the end of the run, as the target of an edge
END = None

_PLAN = ("node_id", "effect", "next_node", "complete_output")

Edges = dict[str, list[str | None]]


def mermaid(
    workflow_id: str, entry_node: str, nodes: Mapping[str, Any], edges: Mapping[str, Iterable[str]] | None
) -> str:
    """A flowchart of the nodes from the entry on. The same workflow gives the same text."""
    order = [entry_node, *(node for node in nodes if node != entry_node)]
    names = {node: f"n{number}" for number, node in enumerate(order)}
    drawn = _declared(order, edges) if edges is not None else inferred_edges(nodes)
    arrow = "-->" if edges is not None else "-.->"
    lines = [f"%% {_label(workflow_id)}", "flowchart TD", f'    {names[entry_node]}(["{_label(entry_node)}"])']
    lines += [f'    {names[node]}["{_label(node)}"]' for node in order[1:]]
    targets = [(node, target) for node in order for target in drawn.get(node, ())]
    if any(target is END for _, target in targets):
        lines.append('    finish((("end")))')
    lines += [f"    {names[node]} {arrow} {'finish' if target is END else names[target]}" for node, target in targets]
    return "\n".join(lines) + "\n"


def inferred_edges(nodes: Mapping[str, Any]) -> Edges:
    """The edges that the source of the nodes shows, by node, in the order written; `END` is the end of the run."""
    edges: Edges = {}
    for name, node in nodes.items():
        found = dict.fromkeys(target for plan in _plans(node) for target in _targets(plan))
        edges[name] = [target for target in found if target is END or target in nodes]
    return edges


def _declared(order: list[str], edges: Mapping[str, Iterable[str]]) -> Edges:
    drawn: Edges = {}
    for node in order:
        targets: list[str | None] = [*edges.get(node, ())]
        drawn[node] = targets or [END]
    return drawn


def _plans(node: Callable[..., Any]) -> Iterator[ast.Call]:
    """The calls of StepPlan in the source of a node."""
    for part in ast.walk(_source(node)):
        if isinstance(part, ast.Call):
            name = part.func.attr if isinstance(part.func, ast.Attribute) else getattr(part.func, "id", None)
            if name == "StepPlan":
                yield part


def _source(node: Any) -> ast.AST:
    while isinstance(node, partial):
        node = node.func
    if not inspect.isroutine(node) and not isinstance(node, type):
        node = type(node).__call__
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(node))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return ast.Module([], [])
    if getattr(node, "__name__", "") != "<lambda>":
        return tree
    lambdas = [part for part in ast.walk(tree) if isinstance(part, ast.Lambda)]
    return lambdas[0] if len(lambdas) == 1 else ast.Module([], [])  # which of several it is, the line does not tell


def _targets(plan: ast.Call) -> Iterator[str | None]:
    given: dict[str | None, ast.expr] = dict(zip(_PLAN, plan.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in plan.keywords}
    if None in given or any(isinstance(value, ast.Starred) for value in plan.args):
        return  # **options may hold anything
    if not _is_none(given.get("complete_output")):
        yield END
    elif not _is_none(given.get("next_node")):
        yield from _literals(given["next_node"])
    elif not _is_none(given.get("effect")):
        yield END


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _literals(value: ast.expr) -> Iterator[str | None]:
    if isinstance(value, ast.Constant):
        if value.value is None or isinstance(value.value, str):
            yield value.value or END
    elif isinstance(value, ast.IfExp):
        yield from _literals(value.body)
        yield from _literals(value.orelse)


def _label(text: str) -> str:
    """Text that means nothing to Mermaid: all but letters, digits and plain signs as character references."""
    return "".join(sign if sign.isalnum() or sign in " _-.,:/" else f"#{ord(sign)};" for sign in text)
