"""JSON text for people: laid out, to the letter, and whatever the value is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime import RunState, RunStatus
from abstractruntime.rendering import JsonStringifyMode, stringify_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(value=JSON, mode=st.sampled_from(JsonStringifyMode), sort_keys=st.booleans())
def test_a_json_value_is_shown_as_json_that_reads_back_as_itself(value, mode, sort_keys):
    text = stringify_json(value, mode=mode, sort_keys=sort_keys, parse_strings=False)
    if mode == "none" and isinstance(value, str):
        assert text == value
    else:
        assert json.loads(text) == value


@given(value=st.dictionaries(st.text(max_size=3), JSON) | st.lists(JSON), sort_keys=st.booleans())
def test_a_text_that_holds_json_is_shown_like_the_value_in_it(value, sort_keys):
    options: dict[str, Any] = {"mode": "minified", "sort_keys": sort_keys}
    shown = stringify_json(json.dumps(value), **options)
    assert repr(json.loads(shown)) == repr(json.loads(stringify_json(value, **options)))  # names in order


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, '{\n  "b": [\n    1\n  ],\n  "a": "é"\n}'),
        ({"mode": JsonStringifyMode.BEAUTIFY, "beautify_indent": 1}, '{\n "b": [\n  1\n ],\n "a": "é"\n}'),
        ({"mode": "minified", "sort_keys": True}, '{"a":"é","b":[1]}'),
        ({"mode": "none"}, '{"b": [1], "a": "é"}'),
        ({"beautify_indent": 0}, '{"b": [1], "a": "é"}'),
    ],
)
def test_the_mode_says_how_json_is_laid_out(options, text):
    assert stringify_json({"b": [1], "a": "é"}, **options) == text


@pytest.mark.parametrize(
    "text", ["", "plain", "{broken", '{"a": NaN}', "[1] and more", "[" * 5000, " 12 ", "null", '"a"']
)
def test_a_text_that_is_no_json_object_or_list_is_shown_as_it_is(text):
    assert stringify_json(text) == stringify_json(text, mode="minified", sort_keys=True) == text


def test_numbers_and_doubled_names_in_a_text_stay_to_the_letter():
    text = '{"n":1.500,"big":1e999,"id":123456789012345678901234567890,"n":2}'
    assert stringify_json(text, mode="minified") == text
    assert json.loads(stringify_json(text, sort_keys=True))["id"] == 123456789012345678901234567890


def test_a_text_is_left_alone_or_quoted_when_it_is_not_to_be_parsed():
    assert stringify_json('{"a":1}', parse_strings=False) == '"{\\"a\\":1}"'
    assert stringify_json('{"a":1}', mode="none") == '{"a":1}'


def test_what_json_cannot_carry_is_shown_as_text():
    loop: dict[str, Any] = {}
    loop["self"] = loop
    odd = {
        "nan": float("nan"),
        "inf": float("-inf"),
        "tuple": (1, 2),
        "set": {1},
        "date": datetime(2026, 1, 31, tzinfo=UTC),
        "bytes": b"ab",
        "object": Odd(),
        "surrogate": "\ud800",
        1: "one",
        "1": "also one",
        "loop": loop,
        "huge": 10**30,
    }
    assert json.loads(stringify_json(odd)) == {
        "nan": "nan",
        "inf": "-inf",
        "tuple": [1, 2],
        "set": [1],
        "date": "2026-01-31T00:00:00Z",
        "bytes": "YWI=",
        "object": "odd",
        "surrogate": "\\ud800",
        "1": "one",
        "1'": "also one",
        "loop": {"self": "<the value contains itself>"},
        "huge": 10**30,
    }


def test_a_model_is_shown_by_its_fields():
    shown = json.loads(stringify_json({"run": RunState("r", "w", RunStatus.RUNNING, "n")}))
    assert (shown["run"]["run_id"], shown["run"]["status"]) == ("r", "running")


@pytest.mark.parametrize("depth", [300, 5_000])
def test_a_value_of_any_depth_is_shown(depth):
    value: Any = float("nan")
    for _ in range(depth):
        value = [value]
    assert "<nested too deeply>" in stringify_json(value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mode": "pretty"}, "mode must be one of beautify, minified, none; found 'pretty'"),
        ({"beautify_indent": -1}, "beautify_indent must be a number from 0 to 32, found -1"),
        ({"beautify_indent": True}, "beautify_indent must be a number"),
        ({"beautify_indent": "2"}, "beautify_indent must be a number"),
    ],
)
def test_an_option_that_makes_no_sense_is_an_error_that_says_what_does(options, text):
    with pytest.raises(ValueError, match=text):
        stringify_json({}, **options)


class Odd:
    def __str__(self) -> str:
        return "odd"
