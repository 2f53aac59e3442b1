"""The node traces of a run as a Markdown report: what was asked of models and tools, and what came back, in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from msgspec import Struct

from ..core.clock import parse_instant
from ..core.vars import get_node_traces
from .markdown import code
from .trace_steps import step_blocks


class AgentTraceConfig(Struct, frozen=True, kw_only=True):
    """How a report looks: its heading, and how many characters of a value are shown (None: all of them)."""

    heading: str = "Agent trace"
    max_value_chars: int | None = 20_000


def render_agent_trace_markdown(scratchpad: Any, *, config: AgentTraceConfig | None = None) -> str:
    """A Markdown report of node traces, oldest step first.

    `scratchpad` is `{"node_traces": ...}`, perhaps with `sub_run_id` and `workflow_id`; what `get_node_traces` gives;
    one trace with its `steps`; or the vars of an old run, which holds its traces itself. Fields that are missing or
    odd are left out or shown as they are; where there is nothing to show, the report says so.

    >>> report = render_agent_trace_markdown({"node_traces": rt.get_node_traces(run_id)})  # doctest: +SKIP
    """
    config = config or AgentTraceConfig()
    blocks = [f"# {' '.join(config.heading.split()) or 'Agent trace'}"]
    about = scratchpad if isinstance(scratchpad, dict) else {}
    facts = [
        f"- {name}: {code(about[key])}"
        for key, name in (("sub_run_id", "Sub-run"), ("workflow_id", "Workflow"))
        if about.get(key)
    ]
    if facts:
        blocks.append("\n".join(facts))
    traces = _traces(scratchpad)
    steps = _in_order(traces)
    if traces is None:
        blocks.append("*There are no node traces here.*")
    elif not steps:
        blocks.append("*No steps were recorded.*")
    else:
        blocks.append("## Timeline")
        for number, (node_id, step) in enumerate(steps, 1):
            blocks += step_blocks(number, node_id, step, config.max_value_chars)
    return "\n\n".join(blocks) + "\n"


def _traces(scratchpad: Any) -> list[tuple[Any, Any]] | None:
    """Node and trace of all traces in what was given; None where nothing looks like one."""
    if not isinstance(scratchpad, dict):
        return None
    own = get_node_traces(scratchpad)
    if own:
        return list(own.items())
    if scratchpad and all(map(_is_trace, scratchpad.values())):
        return list(scratchpad.items())
    if _is_trace(scratchpad):
        return [(None, scratchpad)]
    found = scratchpad.get("node_traces")
    if isinstance(found, list):
        return [(None, trace) for trace in found]
    return list(found.items()) if isinstance(found, dict) else None


def _is_trace(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("steps"), list)


def _in_order(traces: Iterable[tuple[Any, Any]] | None) -> list[tuple[Any, Any]]:
    """Node and step of every step, by time; one without a time stays behind the one before it in its node."""
    timed = [timed for name, trace in traces or () for timed in _timed(name, trace)]
    return [step for _, step in sorted(timed, key=lambda timed: timed[0])]


def _timed(name: Any, trace: Any) -> Iterator[tuple[float, tuple[Any, Any]]]:
    steps = trace.get("steps", []) if isinstance(trace, dict) else None
    if not isinstance(steps, list):
        yield 0.0, (name, trace)  # no trace: shown as it is
        return
    at = 0.0
    for step in steps:
        known = _instant(step)
        at = known.timestamp() if known is not None else at
        yield at, (trace.get("node_id", name), step)


def _instant(step: Any) -> datetime | None:
    try:
        return parse_instant(step["ts"])
    except (ValueError, TypeError, KeyError):
        return None
