"""VARS_QUERY: every part of a run's vars is found by its path, and no query fails a run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime import (
    CancelSignal,
    Effect,
    EffectCall,
    EffectType,
    InMemoryLedgerStore,
    RunState,
    RunStatus,
    Runtime,
    StepPlan,
)
from abstractruntime.core.vars import parse_vars_path, resolve_vars_path
from abstractruntime.effects.vars_query import VarsQuery
from abstractruntime.storage.base import RunStore

from . import worlds
from .worlds import flow, one

world = worlds.world

NAMES = st.sampled_from(
    ["a", "root", "0", "1", "007", "", " ", " a", "b ", "b.c", "/", "~", "~1", "x[0]", "[1]", "é", "-1", "9" * 30]
) | st.text(st.characters(codec="utf-8"), max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
VARS = st.dictionaries(NAMES, JSON, max_size=4)
Step = str | int


def places(value: Any, steps: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Any]]:
    """Every value inside a value, with the names and positions that lead to it."""
    yield steps, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*steps, name))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from places(item, (*steps, position))


def pointer(steps: tuple[Step, ...]) -> str:
    """RFC 6901."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def dotted(steps: tuple[Step, ...], brackets: bool) -> str | None:
    """The dotted path, or None where a name could not be written in it."""
    if any(isinstance(step, str) and re.search(r"[.\[\]]", step) for step in steps):
        return None
    if brackets and any(name == "" and isinstance(at, int) for name, at in pairwise(steps)):
        return None
    path = ""
    for step in steps:
        path += f"[{step}]" if brackets and isinstance(step, int) else f".{step}"
    path = path[1:] if path.startswith(".") else path
    return path if path and path == path.strip() and not path.startswith("/") else None


@given(vars=VARS)
def test_every_value_is_found_by_its_json_pointer(vars):
    for steps, value in places(vars):
        if steps != ("",):  # "/" alone is the root
            assert resolve_vars_path(vars, parse_vars_path(pointer(steps))) is value


@given(vars=VARS)
def test_every_value_whose_names_can_be_written_so_is_found_by_its_dotted_path(vars):
    for steps, value in places(vars):
        for path in {dotted(steps, True), dotted(steps, False)} - {None}:
            assert path is not None
            assert resolve_vars_path(vars, parse_vars_path(path)) is value


def refusal(vars: dict[str, Any], path: str) -> str:
    """Why a path leads nowhere; an empty text when it does lead somewhere."""
    try:
        resolve_vars_path(vars, parse_vars_path(path))
    except ValueError as error:
        return str(error)
    return ""


@given(vars=VARS, path=st.lists(NAMES, min_size=1, max_size=4).map(tuple).map(pointer) | st.text(max_size=8))
def test_a_path_leads_to_a_value_or_the_error_names_a_place_that_does(vars, path):
    error = refusal(vars, path)
    if not error or " at /, " in error or " at /; " in error or " at /: " in error:
        return  # "/" is the place of the name "" at the root, which has no path
    found = re.search(r" at (.*?)(; it has .*|, found .*|: [^ ]+, the list has [0-9]+ items)$", error, re.S)
    assert found, error
    place = [] if found[1] == "root" else parse_vars_path(found[1])
    stopped = resolve_vars_path(vars, place)
    assert resolve_vars_path(vars, parse_vars_path(path)[: len(place)]) is stopped
    if isinstance(stopped, dict):
        assert error.startswith("missing key")
    else:
        told = r"index out of range|expected object" if isinstance(stopped, list) else r"expected (list|object)"
        assert re.match(told, error)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("root.x", "missing key 'x' at /root; it has 'a'"),
        ("/b.c/x", "missing key 'x' at /b.c; it has no keys"),
        ("list.01", "index out of range at list: 01, the list has 1 items"),
        (f"list[{'9' * 5000}]", f"index out of range at list: {'9' * 80}, the list has 1 items"),
        (f"root.{'9' * 5000}", f"missing key '{'9' * 79} at /root; it has 'a'"),
        ("list.-1", "expected object at list, found a list; give a position instead of '-1'"),
    ],
)
def test_an_error_says_what_was_expected_where(path, text):
    vars = {"root": {"a": 1}, "b.c": {}, "list": [0]}
    with pytest.raises(ValueError, match="^" + re.escape(text) + "$"):
        resolve_vars_path(vars, parse_vars_path(path))


async def queried(world: worlds.World, payload: dict[str, Any], vars: dict[str, Any]) -> dict[str, Any]:
    """The one result of a query, from a run that completed."""
    state = await world.runtime().run(one(EffectType.VARS_QUERY, payload), vars=vars)
    assert state.status is RunStatus.COMPLETED, state.error
    envelope = state.vars["result"]
    assert envelope.keys() == {"mode", "results"}
    assert envelope["mode"] == "executed"
    (result,) = envelope["results"]
    assert result.keys() == {"call_id", "name", "success", "output", "error"}
    assert result["success"] is (result["error"] is None)
    return dict(result)


VARS_OF_A_RUN: dict[str, Any] = {
    "scratchpad": {"ü": [1], "a": None},
    "a": {"0": "zero", "x/y": {"~": "tilde"}},
    "items": [{"b": 1}],
    "context": "a text",
}


async def test_the_output_is_pretty_json_text_of_path_type_and_value(world):
    result = await queried(world, {}, VARS_OF_A_RUN)
    value = {"path": "scratchpad", "type": "dict", "value": {"ü": [1], "a": None}}
    assert result["output"] == json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    assert (result["call_id"], result["name"]) == ("vars", "inspect_vars")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"path": "a.0"}, {"path": "a.0", "type": "str", "value": "zero"}),
        ({"path": "/a/0"}, {"path": "/a/0", "type": "str", "value": "zero"}),
        ({"path": "/a/x~1y/~0"}, {"path": "/a/x~1y/~0", "type": "str", "value": "tilde"}),
        ({"var_path": "items[0]"}, {"path": "items[0]", "type": "dict", "value": {"b": 1}}),
        ({"path": None, "var_path": "items.0.b"}, {"path": "items.0.b", "type": "int", "value": 1}),
        ({"path": "scratchpad.a"}, {"path": "scratchpad.a", "type": "NoneType", "value": None}),
        ({"path": "a", "keys_only": True}, {"path": "a", "type": "dict", "keys": ["0", "x/y"]}),
        ({"path": "items", "keys_only": 1}, {"path": "items", "type": "list", "length": 1}),
        ({"path": "a.0", "keys_only": True}, {"path": "a.0", "type": "str", "value": "zero"}),
        ({"path": "context"}, {"path": "context", "type": "str", "value": "a text"}),
        ({"path": "_temp"}, {"path": "_temp", "type": "dict", "value": {}}),
    ],
)
async def test_a_query_shows_what_is_at_its_path(payload, expected, tmp_path):
    world = worlds.World("async", "memory", tmp_path)
    result = await queried(world, {**payload, "call_id": "c1", "tool_name": "look"}, VARS_OF_A_RUN)
    assert json.loads(result["output"]) == expected
    assert (result["call_id"], result["name"]) == ("c1", "look")
    await world.close()


async def test_the_empty_path_shows_all_vars_with_the_namespaces_that_are_missing_and_stores_none(world):
    rt = world.runtime()
    state = await rt.run(one(EffectType.VARS_QUERY, {"path": "", "keys_only": True}), vars={"mine": 1})
    keys = json.loads(state.vars["result"]["results"][0]["output"])["keys"]
    assert {"_runtime", "_temp", "context", "mine", "scratchpad"} <= set(keys)
    assert not {"scratchpad", "context"} & (await rt.get_state(state.run_id)).vars.keys()


async def test_another_run_is_read_as_it_is_stored(world):
    rt = world.runtime()
    other = await rt.start(workflow=flow("end"), vars={"secret_number": 7})
    before = await rt.get_state(other)
    for payload in ({"path": "secret_number", "target_run_id": other}, {"path": "x", "target_run_id": ""}):
        result = await queried(world, payload, {"x": 7})
        assert json.loads(result["output"])["value"] == 7
    assert await rt.get_state(other) == before


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"path": "a.missing"}, "missing key 'missing' at a; it has '0', 'x/y'"),
        ({"path": "items.5"}, "index out of range at items: 5, the list has 1 items"),
        ({"path": f"items[{'9' * 5000}]"}, "index out of range at items"),
        ({"path": "context.x"}, "expected object at context, found str"),
        ({"path": ["a"]}, "path must be a text like"),
        ({"path": 0}, "path must be a text like"),
        ({"keys_only": "false"}, "keys_only must be true or false, found 'false'"),
        ({"target_run_id": "nobody"}, "Unknown target_run_id: 'nobody'"),
        ({"target_run_id": "../../etc/passwd"}, "target_run_id must be printable and no path"),
        ({"target_run_id": {"id": 1}}, "target_run_id must be a text"),
        ({"target_run_id": "a\0b"}, "target_run_id must be printable"),
    ],
)
async def test_a_bad_query_is_a_result_that_says_so_and_the_run_goes_on(world, payload, error):
    result = await queried(world, payload, VARS_OF_A_RUN)
    assert result["output"] is None
    assert error in result["error"]


async def test_a_value_too_deep_to_be_laid_out_is_a_result_that_says_so():
    """Some interpreters read deeper values than they can lay out."""
    deep: Any = 1
    for _ in range(50_000):
        deep = [deep]

    async def load(run_id: str) -> RunState | None:
        return None

    call = EffectCall(
        run=RunState("r", "w", RunStatus.RUNNING, "n", {"deep": deep}),
        effect=Effect(EffectType.VARS_QUERY, {"path": "deep"}),
        node_id="n",
        next_node=None,
        step_id="r:0.1",
        key="k",
        attempt=1,
        now="2026-01-31T09:00:00.000000+00:00",
        cancelled=CancelSignal(),
    )
    (result,) = (await VarsQuery(load)(call)).result["results"]
    assert result["error"] == "the value at 'deep' is nested too deeply to be shown; ask for a part of it"


class StubbornRuns(RunStore):
    """A store of a host's own, whose other runs cannot be read."""

    def __init__(self) -> None:
        self.runs: dict[str, RunState] = {}

    def save(self, run: RunState) -> None:
        self.runs[run.run_id] = run

    def load(self, run_id: str) -> RunState | None:
        if run_id == "other":
            raise ConnectionResetError("gone away")
        return self.runs.get(run_id)


def test_what_a_store_of_the_host_raises_for_another_run_is_a_result_too():
    query = one(EffectType.VARS_QUERY, {"target_run_id": "other"})
    with Runtime(run_store=StubbornRuns(), ledger_store=InMemoryLedgerStore()) as rt:
        state = rt.run(query)
    assert state.status is RunStatus.COMPLETED
    (result,) = state.vars["result"]["results"]
    assert result["error"] == "target_run_id 'other' could not be loaded: gone away"


async def test_a_query_without_a_payload_asks_for_the_scratchpad_and_changes_nothing(world):
    def ask(run: RunState, ctx: Any) -> StepPlan:
        run.vars["scratchpad"] = {"seen": True}
        return StepPlan("ask", Effect(EffectType.VARS_QUERY, {}, "result"), "end")

    state = await world.runtime().run(flow("ask", ask=ask))
    assert json.loads(state.vars["result"]["results"][0]["output"])["value"] == {"seen": True}
    assert state.vars["scratchpad"] == {"seen": True}
