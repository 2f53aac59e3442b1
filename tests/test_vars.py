"""The layout of vars: namespaces, limits, traces, paths."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime.core import vars as layout
from abstractruntime.core.config import RuntimeConfig
from abstractruntime.core.event_keys import build_event_wait_key
from abstractruntime.core.vars import (
    append_path,
    clear_temp,
    ensure_limits,
    ensure_namespaces,
    get_limits,
    get_namespace,
    get_node_trace,
    get_node_traces,
    parse_vars_path,
    resolve_vars_path,
    write_path,
)

NAMES = st.sampled_from(["a", "b", "c", "0", ""])
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
TREES = st.dictionaries(NAMES, JSON, max_size=4)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(".".join).filter(bool)


def naive_write(vars: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """What a result key means, on a deep copy."""
    new = copy.deepcopy(vars)
    inner = new
    *names, last = path.split(".")
    for name in names:
        if not isinstance(inner.get(name), dict):
            inner[name] = {}
        inner = inner[name]
    inner[last] = value
    return new


@given(vars=TREES, path=PATHS, value=JSON)
def test_a_write_gives_what_writing_into_a_deep_copy_gives_and_changes_nothing_given(vars, path, value):
    before = copy.deepcopy(vars)
    assert write_path(vars, path, value) == naive_write(vars, path, value)
    assert vars == before


@given(vars=TREES, path=PATHS, value=JSON)
def test_a_write_shares_all_parts_off_its_path(vars, path, value):
    new = write_path(vars, path, value)
    first = path.split(".")[0]
    assert all(new[name] is part for name, part in vars.items() if name != first)


@given(vars=TREES, path=PATHS, value=JSON)
def test_what_the_result_of_a_write_is_changed_to_on_its_path_does_not_reach_the_original(vars, path, value):
    before = copy.deepcopy(vars)
    new = write_path(vars, path, value)
    inner = new
    for name in path.split(".")[:-1]:
        inner[name]["added"] = 1
        inner = inner[name]
    assert vars == before


@given(vars=TREES, path=PATHS, value=JSON)
def test_an_append_is_a_write_of_the_longer_list_and_changes_nothing_given(vars, path, value):
    before = copy.deepcopy(vars)
    found: Any = vars
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    expected = naive_write(vars, path, [*found, value] if isinstance(found, list) else [value])
    assert append_path(vars, path, value) == expected
    assert vars == before


def test_a_write_replaces_what_is_no_dict_on_its_way():
    assert write_path({"a": [1], "b": 2}, "a.x.y", 3) == {"a": {"x": {"y": 3}}, "b": 2}


def test_a_write_of_none_writes_none_and_a_write_without_a_path_writes_nothing():
    vars = {"a": 1}
    assert write_path(vars, "a", None) == {"a": None}
    assert write_path(vars, "", 5) is vars
    assert write_path(vars, None, 5) is vars


def test_an_append_replaces_what_is_no_list_and_creates_what_is_missing():
    assert append_path({"a": "text"}, "a", 1) == {"a": [1]}
    assert append_path({}, "log.lines", 1) == {"log": {"lines": [1]}}
    assert append_path({"log": {"lines": [1]}}, "log.lines", 2) == {"log": {"lines": [1, 2]}}


@pytest.mark.parametrize(
    ("path", "tokens"),
    [
        ("", []),
        ("  ", []),
        ("/", []),
        ("a", ["a"]),
        ("a.b.0.c", ["a", "b", 0, "c"]),
        ("a[0][12].c", ["a", 0, 12, "c"]),
        ("[1].x", [1, "x"]),
        ("a.007", ["a", "007"]),
        ("a[x]", ["a[x]"]),
        ("/a/0/b.c", ["a", 0, "b.c"]),
        ("/a~1b/~0~01", ["a/b", "~~1"]),
        ("a.²", ["a", "²"]),
    ],
)
def test_a_path_is_split_into_names_and_positions(path, tokens):
    assert parse_vars_path(path) == tokens


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", {"list": [{"x": 1}], "dict": {"0": "zero", "007": "bond", "a/b": "slash", "a.b": "dot"}}),
        ("list.0.x", 1),
        ("list[0].x", 1),
        ("/list/0/x", 1),
        ("dict.0", "zero"),
        ("dict[0]", "zero"),
        ("dict.007", "bond"),
        ("/dict/a~1b", "slash"),
        ("/dict/a.b", "dot"),
        ("list.00", {"x": 1}),
    ],
)
def test_a_number_in_a_path_is_a_position_in_a_list_and_a_name_in_a_dict(path, value):
    root = {"list": [{"x": 1}], "dict": {"0": "zero", "007": "bond", "a/b": "slash", "a.b": "dot"}}
    assert resolve_vars_path(root, parse_vars_path(path)) == value


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("missing", "missing key 'missing' at root; it has 'list', 'text'"),
        ("list.3", "index out of range at list: 3"),
        ("list.name", "expected object at list"),
        ("text.name", "expected object at text, found str"),
        ("text.0", "expected list at text, found str"),
        ("list.0.deep", "missing key 'deep' at list.0; it has no keys"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_that_names_the_place(path, text):
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        resolve_vars_path({"list": [{}], "text": "t"}, parse_vars_path(path))


@given(vars=TREES, path=st.lists(st.sampled_from(["a", "b", "0", "01"]), min_size=1, max_size=4).map(".".join))
def test_what_a_write_put_at_a_path_is_found_at_that_path(vars, path):
    assert resolve_vars_path(write_path(vars, path, "found"), parse_vars_path(path)) == "found"


def test_namespaces_are_made_dicts_and_the_rest_stays():
    vars = {"context": "text", "mine": 1}
    assert ensure_namespaces(vars) is vars
    assert vars == {"context": {}, "scratchpad": {}, "_runtime": {}, "_temp": {}, "mine": 1}


@pytest.mark.parametrize("name", ["context", "scratchpad", "runtime", "temp"])
def test_a_namespace_is_handed_out_live(name):
    vars: dict[str, Any] = {}
    getattr(layout, f"get_{name}")(vars)["x"] = 1
    key = {"runtime": "_runtime", "temp": "_temp"}.get(name, name)
    assert vars == {key: {"x": 1}}
    assert get_namespace(vars, key) is vars[key]


def test_clearing_temp_empties_it():
    vars = {"_temp": {"prev_node_id": "a"}, "x": 1}
    clear_temp(vars)
    assert vars == {"_temp": {}, "x": 1}


def test_limits_are_seeded_key_by_key_and_a_dict_that_was_given_is_left_alone():
    given_limits = {"max_tokens": 10}
    vars: dict[str, Any] = {"_limits": given_limits}
    limits = ensure_limits(vars, RuntimeConfig(max_iterations=7))
    assert (limits["max_tokens"], limits["max_iterations"], limits["current_iteration"]) == (10, 7, 0)
    assert limits is vars["_limits"]
    assert given_limits == {"max_tokens": 10}
    assert ensure_limits(vars, {"max_tokens": 99}) is limits


def test_limits_that_are_no_dict_are_replaced_by_the_defaults():
    assert get_limits({"_limits": "none"})["max_iterations"] == 50
    assert get_limits({}) == RuntimeConfig().to_limits_dict()


def test_limits_are_handed_out_live():
    vars: dict[str, Any] = {}
    get_limits(vars)["current_iteration"] = 3
    assert get_limits(vars)["current_iteration"] == 3


def test_traces_of_an_old_run_are_read_and_none_are_created():
    trace = {"node_id": "a", "steps": [1]}
    vars = {"_runtime": {"node_traces": {"a": trace}}}
    assert get_node_traces(vars) == {"a": trace}
    assert get_node_trace(vars, "a") == trace
    assert get_node_trace(vars, "b") == {"node_id": "b", "steps": []}
    empty: dict[str, Any] = {}
    assert get_node_traces(empty) == {}
    assert get_node_traces({"_runtime": None}) == {}
    assert empty == {}


@pytest.mark.parametrize(
    ("scope", "key"),
    [
        (None, "evt:session:s:paid"),
        (" Session ", "evt:session:s:paid"),
        ("workflow", "evt:workflow:w:paid"),
        ("run", "evt:run:r:paid"),
        ("global", "evt:global:global:paid"),
    ],
)
def test_an_event_key_holds_scope_scope_id_and_name(scope, key):
    assert build_event_wait_key(scope=scope, name=" paid ", session_id="s", workflow_id="w", run_id="r") == key


def test_a_wildcard_is_a_name_like_any_other():
    assert build_event_wait_key(scope="global", name="*") == "evt:global:global:*"


@pytest.mark.parametrize(
    ("scope", "name", "text"),
    [
        ("session", " ", "needs a name"),
        ("galaxy", "paid", "Unknown scope 'galaxy' of event 'paid'; expected one of session, workflow, run, global"),
        ("session", "paid", "needs session_id, found None"),
        ("run", "paid", "needs run_id"),
    ],
)
def test_an_event_key_that_cannot_be_made_is_an_error_that_says_what_is_missing(scope, name, text):
    with pytest.raises(ValueError, match=text):
        build_event_wait_key(scope=scope, name=name)
