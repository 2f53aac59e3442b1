"""The small pure parts of LLM_CALL: shapes of tool calls, schemas, trimming, failures, tools."""

from __future__ import annotations

import doctest
from importlib import import_module
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime.integrations.abstractcore.failures import as_llm_error
from abstractruntime.integrations.abstractcore.json_schema import problems
from abstractruntime.integrations.abstractcore.normalising import (
    plain,
    tool_calls_of,
    usage_of,
    wire_messages,
    without_data_urls,
)
from abstractruntime.integrations.abstractcore.structured import read, schema_of
from abstractruntime.integrations.abstractcore.trimming import trimmed

from .scripted_servers import filled

ADD = {"name": "add", "arguments": {"a": 1}, "call_id": "c1"}


@pytest.mark.parametrize("name", ["json_schema", "normalising", "structured", "trimming", "tool_specs"])
def test_the_examples_in_the_code_run(name):
    result = doctest.testmod(import_module(f"abstractruntime.integrations.abstractcore.{name}"))
    assert result.attempted
    assert result.failed == 0


@pytest.mark.parametrize(
    "call",
    [
        {"name": "add", "arguments": {"a": 1}, "call_id": "c1"},
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c1", "type": "function", "name": " add ", "arguments": '{"a": 1}'},
        SimpleNamespace(name="add", arguments={"a": 1}, call_id="c1"),
    ],
)
def test_every_known_shape_of_a_call_is_read(call):
    assert tool_calls_of([call]) == ([ADD], [])


@pytest.mark.parametrize(
    "call",
    [
        {"name": "add", "arguments": "{"},
        {"name": "add", "arguments": '{"a": NaN}'},
        {"name": "add", "arguments": "[1]"},
        {},
        "add",
        None,
    ],
)
def test_a_call_that_cannot_be_read_is_told_and_not_guessed(call):
    read_calls, malformed = tool_calls_of([call])
    assert read_calls == []
    assert len(malformed) == 1


def test_arguments_that_a_client_took_for_none_are_found_in_what_the_server_said():
    raw = {"choices": [{"message": {"tool_calls": [{"function": {"name": "wipe", "arguments": '{"path'}}]}}]}
    assert tool_calls_of([{"name": "wipe", "arguments": {}}], raw)[0] == []


def test_messages_go_out_with_what_servers_know():
    message: dict[str, object] = {
        "role": "assistant",
        "content": None,
        "timestamp": "t",
        "metadata": {},
        "tool_calls": [ADD],
    }
    (wired,) = wire_messages([message])
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert wired == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ({"prompt_tokens": 3, "completion_tokens": 2}, 5),
        ({"input_tokens": 3, "output_tokens": 2, "total_tokens": 9}, 9),
        ({"input_tokens": "3", "output_tokens": -1}, None),
    ],
)
def test_usage_is_whole_numbers_under_both_names(usage, expected):
    found = usage_of(usage)
    assert (found or {}).get("total_tokens") == expected


def test_values_that_json_has_not_become_plain():
    value = {"x": float("nan"), "y": (1, {2}), "z": object(), 3: True}
    assert plain(value) == {"x": None, "y": [1, [2]], "z": "<object>", "3": True}
    assert len(without_data_urls("data:image/png;base64," + "A" * 9999)) < 60


SCHEMAS = [
    ({"type": "integer"}, 1, [1.5, True, "1", None]),
    ({"type": ["string", "null"]}, None, [1]),
    ({"enum": ["a", 1]}, "a", [True, "b"]),
    ({"const": False}, False, [0]),
    ({"type": "array", "items": {"type": "number"}, "minItems": 1}, [1.5], [[], ["x"]]),
    ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, {"a": 1}, [{"b": 1}]),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None, [3]),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 1.5, [1]),
    ({"not": {"type": "string"}}, 1, ["x"]),
    ({"type": "string", "pattern": "^a", "maxLength": 2}, "ab", ["b", "abc"]),
    ({"type": "number", "minimum": 1, "exclusiveMaximum": 3, "multipleOf": 0.5}, 2.5, [0.5, 3, 1.2]),
    ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, 1, ["x"]),
    ({"type": "array", "uniqueItems": True}, [1, True], [[1, 1]]),
]


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=[str(schema)[:40] for schema, _, _ in SCHEMAS])
def test_a_value_fits_its_schema_or_it_is_said_why_not(schema, good, bad):
    assert problems(good, schema) == []
    for value in bad:
        assert problems(value, schema), value


def test_a_schema_that_refers_to_itself_without_end_is_told_of():
    assert "without end" in problems(1, {"$ref": "#"})[0]
    tree = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    assert problems({"next": {"next": None}}, tree) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), json_values, min_size=1, max_size=4))
def test_what_is_filled_in_from_an_example_fits_the_schema_of_it(example):
    schema = schema_of({"example": example}).schema
    assert problems(filled(schema, schema), schema) == []


@pytest.mark.parametrize(
    ("given_schema", "name"),
    [
        ({"type": "object", "properties": {"n": {"type": "integer"}}, "title": "Count it"}, "Count_it"),
        ({"type": "json_schema", "json_schema": {"name": "N", "schema": {"type": "integer"}}}, "N"),
        ({"name": "M", "schema": {"type": "object", "properties": {}}}, "M"),
        ({"type": "a field called type", "n": 1}, "StructuredOutput"),
    ],
)
def test_a_schema_is_taken_in_every_documented_form(given_schema, name):
    schema = schema_of(given_schema)
    assert schema.name == name
    assert schema.schema["type"] == "object"


@pytest.mark.parametrize("given_schema", [None, 3, "x", [], {}])
def test_what_is_no_schema_is_refused(given_schema):
    with pytest.raises(ValueError, match="response_schema"):
        schema_of(given_schema)


@pytest.mark.parametrize("text", ['{"a": 1}', '```json\n{"a": 1}\n```', 'Sure! {"a": 1} Anything else?'])
def test_a_value_is_found_in_what_a_model_says(text):
    assert read(text) == {"a": 1}


@given(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=12), st.integers(0, 300))
def test_trimming_keeps_the_system_and_the_last_and_never_an_answer_without_its_call(roles, limit):
    messages = [{"role": role, "content": "x" * 40, "n": number} for number, role in enumerate(roles)]
    kept = trimmed(messages, limit)
    numbers = [message["n"] for message in kept]
    assert numbers == sorted(numbers)
    assert messages[-1] in kept
    assert all(message in kept for message in messages if message["role"] == "system")
    for message in kept:
        before = next((m for m in reversed(messages[: message["n"]]) if m["role"] not in ("tool", "system")), None)
        if message["role"] == "tool" and before is not None:
            assert before in kept


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"refused {status}")
        self.status_code = status


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, "invalid_request", False),
        (403, "auth", False),
        (404, "not_found", False),
        (408, "timeout", True),
        (409, "server", True),
        (429, "rate_limit", True),
        (503, "server", True),
    ],
)
def test_a_status_says_whether_to_try_again(status, kind, retryable):
    error = as_llm_error(Refused(status))
    assert (error.kind, error.retryable, error.status) == (kind, retryable, status)
