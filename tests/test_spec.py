"""Workflows: what is checked, what a changed graph does to a run, the picture, typed state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from abstractruntime.core.errors import InvalidState, InvalidWorkflow, UnknownNode, WorkflowChanged, WorkflowMismatch
from abstractruntime.core.graph import END, inferred_edges
from abstractruntime.core.models import Effect, Intent, RunState, RunStatus, StepPlan, WaitReason, WaitState
from abstractruntime.core.spec import DefaultRunContext, RunContext, WorkflowSpec, follow
from abstractruntime.core.typed import TypedRun, check_vars, typed_view, untyped


def ask(run, ctx):
    return StepPlan(node_id="ask", effect=Effect("ask_user", {"prompt": "Go on?"}, "answer"), next_node="done")


def done(run: RunState, ctx: RunContext) -> StepPlan:
    return StepPlan("done", complete_output={"answer": run.vars.get("answer")})


NODES: dict[str, Callable[..., Any]] = {"ask": ask, "done": done}
DEMO = WorkflowSpec("demo", "ask", NODES)


def spec(**changes: Any) -> WorkflowSpec[Any]:
    return WorkflowSpec(**{"workflow_id": "demo", "entry_node": "ask", "nodes": NODES, **changes})


# -- what is checked


def test_a_workflow_is_positional_frozen_and_keeps_its_own_nodes():
    nodes = dict(NODES)
    workflow = WorkflowSpec("demo", "ask", nodes)
    nodes.clear()
    assert workflow.get_node("ask") is ask
    assert workflow == DEMO
    with pytest.raises(FrozenInstanceError):
        workflow.entry_node = "done"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"entry_node": "start"}, r"Workflow 'demo' starts at 'start', which is no node of it\. It has: 'ask', 'done'"),
        ({"workflow_id": ""}, "A workflow_id must be a text of 1 to 200 characters, found ''"),
        ({"workflow_id": 7}, "A workflow_id must be a text"),
        ({"workflow_id": "x" * 201}, "1 to 200 characters"),
        ({"workflow_id": "a\nb"}, r"no control characters and no lone surrogates, found 'a\\nb'"),
        ({"workflow_id": "a\ud800"}, "no lone surrogates"),
        ({"nodes": {}}, "Workflow 'demo' needs nodes"),
        ({"nodes": [ask]}, "Workflow 'demo' needs nodes"),
        ({"nodes": {"ask": "ask"}}, "Node 'ask' of workflow 'demo' is a str; expected a function"),
        ({"nodes": {"ask": ask, "": done}}, "A node id of workflow 'demo' must be a text"),
        ({"nodes": {"ask": ask, "a\x00": done}}, "A node id of workflow 'demo' must hold no control characters"),
        ({"edges": {"ask": ["gone"]}}, "an edge from 'ask' that names 'gone', which is no node of it"),
        ({"edges": {"gone": ["ask"]}}, "an edge from 'gone' that names 'gone'"),
        ({"edges": {"ask": "done"}}, "the edges of 'ask' are 'done'; expected a list of node ids"),
        ({"edges": {"ask": [["done"]]}}, r"names \['done'\]"),
        ({"edges": {"ask": 3}}, "the edges of 'ask' are 3"),
        ({"edges": ["ask"]}, "expected a dict of node ids to lists"),
        ({"version": 2}, "The version of workflow 'demo' must be a text"),
        ({"on_change": "guess"}, "has on_change='guess'; expected 'follow' or 'refuse'"),
        ({"state": int}, "cannot have the state type <class 'int'>: expected a Struct"),
    ],
)
def test_a_graph_that_could_not_run_is_refused_with_what_was_expected_and_found(changes, text):
    with pytest.raises(InvalidWorkflow, match=text):
        spec(**changes)


@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200))
def test_any_printable_text_can_name_a_workflow_and_its_nodes(text):
    workflow = WorkflowSpec(text, text, {text: ask})
    assert workflow.get_node(text) is ask
    assert len(workflow.fingerprint) == 16


def test_an_unknown_node_is_a_key_error_that_names_node_and_workflow():
    with pytest.raises(KeyError) as caught:
        DEMO.get_node("gone")
    assert isinstance(caught.value, UnknownNode)
    assert str(caught.value) == "Unknown node 'gone' in workflow 'demo'. It has: 'ask', 'done'."


def test_nothing_is_terminal_until_edges_say_so():
    assert not DEMO.is_terminal("done")
    declared = spec(edges={"ask": ["done", "done"], "done": []})
    assert [declared.is_terminal(node) for node in ("ask", "done", "gone")] == [False, True, False]
    assert declared.edges == {"ask": ("done",), "done": ()}


def test_the_default_context_tells_the_time_of_its_clock():
    class Stopped:
        def now(self) -> datetime:
            return datetime(2026, 1, 31, 9, tzinfo=UTC)

        def monotonic(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None:
            raise AssertionError("a stopped clock does not sleep")

    assert DefaultRunContext(Stopped()).now_iso() == "2026-01-31T09:00:00.000000+00:00"
    assert DefaultRunContext().now_iso().endswith("+00:00")


# -- fingerprints, and runs that meet another graph


@dataclass
class Answer:
    answer: dict[str, str] | None = None


def test_the_fingerprint_is_the_graphs_and_not_the_order_it_was_written_in():
    assert spec().fingerprint == spec(nodes={"done": ask, "ask": done}).fingerprint
    assert (
        spec(edges={"ask": ["done", "ask"], "done": []}).fingerprint
        == spec(edges={"done": [], "ask": ["ask", "done"]}).fingerprint
    )


def test_the_fingerprint_changes_with_each_part_of_the_graph():
    graphs = [
        spec(),
        spec(workflow_id="other"),
        spec(entry_node="done"),
        spec(nodes={**NODES, "more": done}),
        spec(edges={}),
        spec(edges={"ask": ["done"]}),
        spec(version="2"),
        spec(state=Answer),
    ]
    assert len({graph.fingerprint for graph in graphs}) == len(graphs)


def run_of(workflow: WorkflowSpec[Any], **changes: Any) -> RunState:
    run = RunState.new(workflow_id=workflow.workflow_id, entry_node=workflow.entry_node, run_id="r")
    run.fingerprint, run.workflow_version = workflow.fingerprint, workflow.version
    return replace(run, **changes)


MORE = spec(nodes={**NODES, "more": done})
ONLY_DONE = spec(nodes={"done": done, "new": ask}, entry_node="done")
INTENT = Intent(step_id="r:0.1", seq=0, node_id="x", effect=Effect("x"), key="k", started_at="t", next_node="ask")


def test_a_run_goes_on_with_its_own_graph_and_one_without_a_fingerprint_with_any():
    assert follow(DEMO, run_of(DEMO)) is None
    assert follow(MORE, run_of(DEMO, fingerprint=None)) is None


def test_a_run_follows_a_changed_graph_that_still_has_the_nodes_it_needs():
    assert follow(MORE, run_of(DEMO)) == (DEMO.fingerprint, MORE.fingerprint)
    waiting = WaitState(WaitReason.USER, resume_to_node="done")
    assert follow(ONLY_DONE, run_of(DEMO, current_node="done", waiting=waiting)) is not None


def test_a_run_of_another_workflow_is_refused_even_when_it_has_ended():
    other = spec(workflow_id="other")
    for status in (RunStatus.RUNNING, RunStatus.COMPLETED):
        with pytest.raises(WorkflowMismatch, match="Run 'r' belongs to workflow 'demo', and was given 'other'"):
            follow(other, run_of(DEMO, status=status))


@pytest.mark.parametrize(
    ("graph", "run", "text"),
    [
        (spec(version="2", on_change="refuse"), run_of(DEMO), "on_change='refuse'"),
        (spec(version="2"), run_of(spec(version="1")), "its version is '2', the run's is '1'"),
        (spec(version="2"), run_of(DEMO), "its version is '2', the run's is None"),
        (ONLY_DONE, run_of(DEMO), "the run stands at 'ask', which is gone.*There are: 'done', 'new'"),
        (
            ONLY_DONE,
            run_of(DEMO, current_node="done", waiting=WaitState(WaitReason.USER, resume_to_node="ask")),
            "the run resumes to 'ask', which is gone",
        ),
        (ONLY_DONE, run_of(DEMO, current_node="done", intent=INTENT), "the run goes next to 'ask', which is gone"),
    ],
)
def test_a_change_that_a_run_cannot_follow_is_refused_with_both_fingerprints(graph, run, text):
    with pytest.raises(WorkflowChanged, match=text) as caught:
        follow(graph, run)
    assert graph.fingerprint in str(caught.value)
    assert run.fingerprint in str(caught.value)


def test_an_ended_run_is_not_troubled_by_a_changed_graph():
    for status in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED):
        assert follow(spec(version="2", on_change="refuse"), run_of(DEMO, status=status)) is None


# -- the picture


def test_declared_edges_are_drawn_solid_from_the_entry_on():
    workflow = WorkflowSpec("demo", "ask", {"done": done, "ask": ask}, edges={"ask": ["done", "ask"]})
    assert workflow.to_mermaid() == (
        "%% demo\n"
        "flowchart TD\n"
        '    n0(["ask"])\n'
        '    n1["done"]\n'
        '    finish((("end")))\n'
        "    n0 --> n1\n"
        "    n0 --> n0\n"
        "    n1 --> finish\n"
    )


def test_without_declared_edges_those_in_the_source_are_drawn_dashed():
    assert DEMO.to_mermaid().splitlines()[-2:] == ["    n0 -.-> n1", "    n1 -.-> finish"]


@pytest.mark.parametrize("text", ['a"b', "end", "<script>", "a#quot;b", "`code`", "a\\nb", "a]b", "%%{init}%%", "é ü"])
def test_an_id_is_never_mermaid_syntax(text):
    drawn = WorkflowSpec(text, text, {text: ask}).to_mermaid()
    comment, kind, node, *rest = drawn.splitlines()
    assert kind == "flowchart TD"
    assert comment.startswith("%% ")
    assert not comment.startswith("%%{")
    assert rest == []
    label = node.removeprefix('    n0(["').removesuffix('"])')
    assert node == f'    n0(["{label}"])'
    assert not set(label) & set('"<>`\\[](){}%')


def branching(run: RunState, ctx: Any) -> StepPlan:
    if run.vars.get("stop"):
        return StepPlan(node_id="branching", complete_output={})
    if run.vars.get("elsewhere"):
        return StepPlan("branching", None, "ask")
    return StepPlan("branching", next_node="done" if run.vars.get("enough") else "branching")


def computed(run: RunState, ctx: Any) -> StepPlan:
    where = {"next_node": "ask"}
    if run.vars:
        return StepPlan("computed", next_node=run.vars["next"])
    return StepPlan("computed", **where)  # type: ignore[arg-type]


def foreign(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("foreign", next_node="nowhere")


async def last(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("last", effect=Effect("x"))


class Callable_:
    def __call__(self, run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("object", next_node="ask")

    def method(self, run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("method", next_node="done")


def logged(node: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(node)
    def inner(run: RunState, ctx: Any) -> Any:
        return node(run, ctx)

    return inner


LAMBDA = lambda run, ctx: StepPlan("lambda", next_node="done")  # noqa: E731  (a node may be one)
TWO = (lambda run, ctx: StepPlan("a", next_node="ask")), (lambda run, ctx: StepPlan("b", next_node="done"))


@pytest.mark.parametrize(
    ("node", "targets"),
    [
        (branching, [END, "ask", "done", "branching"]),
        (computed, []),
        (foreign, []),
        (last, [END]),
        (Callable_(), ["ask"]),
        (Callable_().method, ["done"]),
        (logged(ask), ["done"]),
        (functools.partial(ask, ctx=None), ["done"]),
        (LAMBDA, ["done"]),
        (TWO[0], []),
        (max, []),
        (eval("lambda run, ctx: None"), []),  # noqa: S307  (a node without source)
    ],
)
def test_edges_are_read_from_the_source_of_a_node_as_far_as_they_are_literal(node, targets):
    nodes = {"branching": branching, "ask": ask, "done": done, "node": node}
    assert sorted(inferred_edges(nodes)["node"], key=str) == sorted(targets, key=str)


# -- typed state


class Line(msgspec.Struct):
    price: float
    when: datetime | None = None


class Order(msgspec.Struct):
    count: int = 0
    lines: list[Line] = []
    note: str | None = msgspec.field(default=None, name="remark")


class Slim(msgspec.Struct, omit_defaults=True):
    count: int = 0


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    count: int = 0


class Total(TypedDict, total=False):
    count: int


@dataclass
class Count:
    count: int = 0


def take(run: TypedRun[Order], ctx: RunContext) -> StepPlan:
    run.state.count += 1
    return StepPlan("take", complete_output={})


ORDERS = WorkflowSpec("orders", "take", {"take": take}, state=Order)


def view_of(vars: dict[str, Any], workflow: WorkflowSpec[Any] = ORDERS) -> TypedRun[Any]:
    return typed_view(workflow, RunState.new(workflow_id=workflow.workflow_id, entry_node="take", vars=vars))


def test_a_node_sees_its_vars_as_state_and_what_it_changed_is_written_back():
    vars = {
        "count": 1,
        "lines": [{"price": 2, "when": "2026-01-31T09:00:00Z"}],
        "_runtime": {"effect_seq": 3},
        "own": [1],
    }
    view = view_of(vars)
    assert view.state == Order(1, [Line(2.0, datetime(2026, 1, 31, 9, tzinfo=UTC))])
    take(view, DefaultRunContext())
    view.state.note = "soon"
    view.vars["more"] = True
    assert untyped(ORDERS, view) == {
        "_runtime": {"effect_seq": 3},
        "own": [1],
        "more": True,
        "count": 2,
        "lines": [{"price": 2.0, "when": "2026-01-31T09:00:00Z"}],
        "remark": "soon",
    }


def test_the_view_is_the_run_with_its_unsaved_attributes():
    run = RunState.new(workflow_id="orders", entry_node="take", vars={"count": 1}, actor_id="me")
    run.__dict__["_runtime_run_id"] = "r"
    view = typed_view(ORDERS, run)
    assert all(getattr(view, name) is getattr(run, name) for name in RunState.__struct_fields__)
    assert view.__dict__ == {"_runtime_run_id": "r"}


def test_reading_and_writing_back_changes_nothing_that_was_given():
    vars = {"count": 1, "own": 1}
    view = view_of(vars)
    view.state.count = 5
    assert untyped(ORDERS, view)["count"] == 5
    assert vars == {"count": 1, "own": 1}


@pytest.mark.parametrize(
    ("vars", "path"),
    [
        ({"count": "x"}, "vars.count"),
        ({"lines": [{"price": 1}, {"price": "x"}]}, "vars.lines[1].price"),
        ({"lines": [{}]}, "vars.lines[0]"),
        ({"remark": 3}, "vars.remark"),
    ],
)
def test_vars_that_do_not_fit_are_an_error_that_names_the_path(vars, path):
    with pytest.raises(InvalidState) as caught:
        view_of(vars)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(ValueError, match="orders"):
        check_vars(ORDERS, vars)


def test_vars_of_an_untyped_workflow_are_not_checked_and_have_no_view():
    check_vars(DEMO, {"count": object()})
    with pytest.raises(InvalidWorkflow, match="Workflow 'demo' has no state type"):
        view_of({}, DEMO)


@pytest.mark.parametrize(
    ("value", "problem"), [("x", "Expected `int`, got `str`"), (object(), "Encoding objects of type object")]
)
def test_a_state_that_a_node_left_wrong_is_an_error_that_names_the_field(value, problem):
    view = view_of({})
    view.state.count = value
    with pytest.raises(InvalidState, match=r"^vars\.count: " + problem):
        untyped(ORDERS, view)


@pytest.mark.parametrize(("state", "found"), [(None, "NoneType"), ([1], "list"), (object(), "Encoding")])
def test_a_state_replaced_by_something_else_is_an_error(state, found):
    view = view_of({})
    view.state = state
    with pytest.raises(InvalidState, match=found):
        untyped(ORDERS, view)


def test_a_field_comes_from_the_state_alone_also_when_it_is_left_out_at_its_default():
    slim = WorkflowSpec("slim", "take", {"take": done}, state=Slim)
    view = view_of({"count": 4, "own": 1}, slim)
    view.state.count = 0
    view.vars["count"] = 9
    assert untyped(slim, view) == {"own": 1}


def test_names_that_a_strict_state_forbids_are_refused_at_once():
    strict = WorkflowSpec("strict", "take", {"take": done}, state=Strict)
    view = view_of({"count": 1, "_runtime": {}}, strict)
    view.vars["own"] = 1
    with pytest.raises(InvalidState, match="own"):
        untyped(strict, view)


@pytest.mark.parametrize("state", [Order, Slim, Count, Total, dict[str, int], dict[str, Any]])
def test_structs_dataclasses_typed_dicts_and_dicts_can_be_state(state):
    workflow: WorkflowSpec[Any] = WorkflowSpec("any", "take", {"take": done}, state=state)
    vars = {"count": 2, "_runtime": {"effect_seq": 1}}
    after = untyped(workflow, view_of(vars, workflow))
    assert (after["count"], after["_runtime"]) == (2, {"effect_seq": 1})


def test_a_dict_state_holds_all_names_but_the_engines():
    workflow: WorkflowSpec[Any] = WorkflowSpec("any", "take", {"take": done}, state=dict[str, int])
    view = view_of({"a": 1, "b": 2, "_temp": {}}, workflow)
    del view.state["a"]
    view.state["c"] = 3
    assert untyped(workflow, view) == {"b": 2, "c": 3, "_temp": {}}
    view.state["c"] = object()
    with pytest.raises(InvalidState, match=r"^vars\.c: "):
        untyped(workflow, view)


def test_a_state_type_that_cannot_be_vars_is_refused_with_the_reason():
    class Row(msgspec.Struct, array_like=True):
        count: int = 0

    class Ours(msgspec.Struct):
        _runtime: int = 0

    class Mixed(msgspec.Struct):
        value: Order | Slim

    for state, reason in ((Row, "expected a Struct"), (Ours, "'_runtime'"), (Mixed, "multiple Struct types")):
        with pytest.raises(InvalidWorkflow, match=reason):
            spec(state=state)


numbers = st.integers(-(2**53), 2**53)
LINES = st.lists(st.builds(Line, price=st.floats(allow_nan=False, allow_infinity=False)), max_size=3)


@given(order=st.builds(Order, count=numbers, lines=LINES, note=st.none() | st.text(max_size=5)), other=numbers)
def test_a_state_survives_the_way_into_vars_and_back(order, other):
    view = view_of({"other": other})
    view.state = order
    vars = untyped(ORDERS, view)
    assert view_of(msgspec.json.decode(msgspec.json.encode(vars))).state == order
    assert vars["other"] == other
