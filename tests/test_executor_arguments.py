"""What a model is told of a tool's arguments, and what is made of those it gives; and of what a tool gives back."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import deque, namedtuple
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abstractruntime.core.codec import json_safe
from abstractruntime.integrations.abstractcore.tool_executor import MappingToolExecutor
from abstractruntime.integrations.abstractcore.tools.coercion import ArgumentError, coerced
from abstractruntime.integrations.abstractcore.tools.outputs import failure_in, plain
from abstractruntime.integrations.abstractcore.tools.schemas import schema_of


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Filter(TypedDict):
    name: str
    limit: NotRequired[int]


class Model(msgspec.Struct):
    tags: list[str]
    note: str = ""


def specs(*functions: Callable[..., Any]) -> list[dict[str, Any]]:
    return MappingToolExecutor.from_tools(functions).tool_specs()


def run(function: Callable[..., Any], arguments: Any) -> dict[str, Any]:
    executor = MappingToolExecutor({"tool": function})
    (result,) = executor.execute(tool_calls=[{"name": "tool", "arguments": arguments, "call_id": "c"}])["results"]
    return dict(result)


# -- schemas


def test_a_spec_is_made_of_signature_and_docstring():
    def search(
        query: str,
        limit: Optional[int] = None,  # noqa: UP045 (as users write it)
        kinds: list[Literal["a", "b"]] | None = None,
        options: dict[str, float] = {},  # noqa: B006
        near: Annotated[str, "A city"] = "Paris",
        exact: bool = False,
    ) -> str:
        """Search for things.

        At length.
        """
        return query

    assert specs(search) == [
        {
            "name": "search",
            "description": "Search for things.",
            "parameters": {
                "query": {"type": "string"},
                "limit": {"type": "integer", "default": None},
                "kinds": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "default": None},
                "options": {"type": "object", "additionalProperties": {"type": "number"}, "default": {}},
                "near": {"type": "string", "description": "A city", "default": "Paris"},
                "exact": {"type": "boolean", "default": False},
            },
        }
    ]


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (Literal[1, "a"], {"enum": [1, "a"]}),
        (
            Point,
            {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
                "required": ["x"],
            },
        ),
        (
            Filter,
            {
                "type": "object",
                "properties": {"name": {"type": "string"}, "limit": {"type": "integer"}},
                "required": ["name"],
            },
        ),
        (list, {"type": "array", "items": {}}),
        (dict, {"type": "object"}),
        (Any, {}),
        (object, {}),
        (date, {"type": "string", "format": "date"}),
        (Path, {"type": "string"}),
        (set[int], {"type": "array", "items": {"type": "integer"}}),
        (tuple[int, str], {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}),
    ],
)
def test_types_have_schemas(annotation, schema):
    assert schema_of(annotation) == schema


def test_a_type_that_contains_itself_has_a_schema_that_ends():
    assert json.dumps(schema_of(Node)).count("children") < 10


@dataclasses.dataclass
class Node:
    children: list[Node]


def test_a_spec_survives_json_and_annotations_that_cannot_be_resolved():
    def odd(a: Nowhere, b=Plain, *rest: int, **more: int) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    found = specs(odd)
    assert json.loads(json.dumps(found)) == found
    assert found[0]["parameters"] == {"a": {}, "b": {"default": None}}


# -- arguments


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("3", int, 3),
        (3.0, int, 3),
        (" -7 ", int, -7),
        ("2.5", float, 2.5),
        (2, float, 2.0),
        (2, str, "2"),
        (True, str, "true"),
        ("true", bool, True),
        ("No", bool, False),
        (0, bool, False),
        ("null", int | None, None),
        ("null", str | None, "null"),
        ("3", int | str, "3"),
        ("3", int | None, 3),
        (None, int | None, None),
        ('["a", "b"]', list[str], ["a", "b"]),
        (["1", 2], list[int], [1, 2]),
        ("a", list[str], ["a"]),
        ([1, 1], set[int], {1}),
        (["1", "x"], tuple[int, str], (1, "x")),
        ('{"a": "1"}', dict[str, int], {"a": 1}),
        ("RED", Literal["red", "blue"], "red"),
        ("1", Literal[1, 2], 1),
        ("blue", Colour, Colour.BLUE),
        ("RED", Colour, Colour.RED),
        ({"x": "1"}, Point, Point(1)),
        ('{"x": 1, "y": 2}', Point, Point(1, 2)),
        ({"name": "n", "limit": "3"}, Filter, {"name": "n", "limit": 3}),
        ({"tags": "one"}, Model, Model(["one"])),
        ("2026-01-31", date, date(2026, 1, 31)),
        ("a/b", Path, Path("a/b")),
        ([{"x": 1}], list[Point], [Point(1)]),
        ({"any": [1]}, Any, {"any": [1]}),
    ],
)
def test_arguments_become_what_the_signature_asks_for(value, annotation, expected):
    found = coerced(value, annotation, "a")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "said"),
    [
        ("three", int, "a: expected a whole number, found 'three'"),
        (3.5, int, "a: expected a whole number, found 3.5"),
        (True, int, "a: expected a whole number, found True"),
        ("9" * 500, int, "expected a whole number"),
        ("nan", float, "a: expected a number"),
        (10**400, float, "a: expected a number"),
        ("maybe", bool, "a: expected true or false"),
        (2, bool, "a: expected true or false"),
        (["x"], str, "a: expected text, found ['x']"),
        ({}, str, "a: expected text"),
        ("[1, 2", list[int], "a: expected a list of a whole number, found '[1, 2'"),
        ({"a": 1}, list[int], "expected a list"),
        ([1, "x"], list[int], "a[1]: expected a whole number, found 'x'"),
        ("green", Literal["red", "blue"], "a: expected one of 'red', 'blue', found 'green'"),
        (True, Literal[1, 2], "expected one of 1, 2"),
        ("x", int | bool, "a: expected a whole number or true or false"),
        ({"x": 1, "z": 2}, Point, "a: has no field 'z'; its fields are x, y"),
        ({}, Point, "a: needs 'x'"),
        ({"x": "q"}, Point, "a.x: expected a whole number"),
        ("31.1.2026", date, "a: expected text, found '31.1.2026'"),
        ([{}], set[Any], "expected a list"),
        (None, int, "a: expected a whole number, found None"),
    ],
)
def test_what_can_only_be_guessed_is_refused_in_words(value, annotation, said):
    with pytest.raises(ArgumentError) as caught:
        coerced(value, annotation, "a")
    assert said in str(caught.value)


def read(file_path: str, start_line: int = 1, end_line: int | None = None) -> list[Any]:
    return [file_path, start_line, end_line]


@pytest.mark.parametrize(
    "arguments",
    [
        {"file_path": "a", "start_line": 2},
        '{"file_path": "a", "start_line": "2"}',
        {"arguments": {"filePath": "a", "startLine": 2}},
        {"name": "read", "arguments": '{"path": "a", "start": 2}'},
        {"FILE-PATH": "a", "Start_Line": 2.0, "unknown": 1},
        {"filename": "a", "start_line": 2, "file_path": "a"},
        {"arguments": {"arguments": {"file": "a"}, "start_line": 2}},
    ],
)
def test_names_and_wrappers_are_repaired(arguments):
    assert run(read, arguments)["output"] == ["a", 2, None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "file_path: missing, expected text"),
        (
            {"file_path": "a", "path": "b"},
            "file_path: given twice, as 'file_path' and as 'path', with different values",
        ),
        (
            {"file_path": "a", "start_line": "x", "end_line": []},
            "start_line: expected a whole number, found 'x'; end_line",
        ),
        ("[1]", "arguments: expected a JSON object"),
        ("{", "arguments: expected a JSON object"),
        (7, "arguments: expected a JSON object"),
    ],
)
def test_arguments_that_cannot_be_are_refused_with_all_that_is_wrong(arguments, said):
    error = run(read, arguments)["error"]
    assert error.startswith("Invalid arguments of tool 'tool': ")
    assert said in error


def test_types_that_cannot_be_resolved_or_refuse_what_they_are_given_break_nothing():
    @dataclasses.dataclass
    class Strict:
        n: int

        def __post_init__(self) -> None:
            raise LookupError("never")

    @dataclasses.dataclass
    class Local:
        other: Strict  # written as text, and known only here

    def tool(local: Local, strict: Strict) -> str:
        return "called"

    tool.__annotations__.update(local=Local, strict=Strict)
    assert specs(tool)[0]["parameters"]["local"] == {
        "type": "object",
        "properties": {"other": {}},
        "required": ["other"],
    }
    result = run(tool, {"local": {"other": 1}, "strict": {"n": 1}})
    assert result["error"] == "Invalid arguments of tool 'tool': strict: never"


def test_kinds_of_parameters_are_given_as_python_wants_them():
    def kinds(a: int, b: int = 5, /, c: int = 6, *, d: int = 7, **more: Any) -> list[Any]:
        return [a, b, c, d, more]

    assert run(kinds, {"a": 1, "d": "2", "extra": 3})["output"] == [1, 5, 6, 2, {"extra": 3}]
    assert run(lambda arguments: arguments, {"arguments": {"x": 1}})["output"] == {"x": 1}
    assert run(max, {"a": 1})["success"] is False  # a built-in that takes no names


def test_a_tool_that_abstractcore_decorated_keeps_its_name_and_what_is_said_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    from abstractcore.tools import tool

    def add(a: int, b: int = 1) -> int:
        return a + b

    decorate = tool(name="plus", description="Adds.", when_to_use="For sums.", tags=["math"])
    (spec,) = specs(decorate(add))
    assert spec["parameters"] == {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}}
    assert (spec["name"], spec["description"], spec["when_to_use"], spec["tags"]) == (
        "plus",
        "Adds.",
        "For sums.",
        ["math"],
    )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
ANNOTATIONS = st.sampled_from(
    [
        str, int, float, bool, None | int, int | str, list[int], list[str] | None, dict[str, float], set[str],
        tuple[int, ...], tuple[int, str], Literal["a", 1, True], Colour, Point, Filter, Model, date, Path, Decimal,
        bytes,
    ]
)  # fmt: skip


@example(math.nan, Decimal)
@example("-Infinity", Decimal)
@given(VALUES, ANNOTATIONS)
def test_coercion_gives_a_value_or_an_argument_error_and_settles(value, annotation):
    """Nothing else is raised, and what came out goes in again unchanged."""
    try:
        found = coerced(value, annotation, "a")
    except ArgumentError:
        return
    assert coerced(found, annotation, "a") == found


@given(st.dictionaries(st.text(), VALUES, max_size=5) | VALUES)
def test_whatever_a_model_gives_as_arguments_the_call_has_a_result(arguments):
    result = run(read, arguments)
    assert result["success"] or result["error"].startswith("Invalid arguments of tool")
    json_safe(result, "result")


# -- outputs


class Evil:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


class Plain:
    pass


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        ({"n": math.nan, "i": [math.inf, -math.inf]}, {"n": "NaN", "i": ["Infinity", "-Infinity"]}),
        (b"text", "text"),
        (b"\xff\x00", {"base64": "/wA="}),
        ({3, 1, 2}, [1, 2, 3]),
        ({1: "a", "1": "b", None: "c", (1, 2): "d"}, {"1": "a", "1 (2)": "b", "null": "c", "[1,2]": "d"}),
        (Point(1, 2), {"x": 1, "y": 2}),
        (Model(["a"]), {"tags": ["a"], "note": ""}),
        (Pair(1, math.nan), {"left": 1, "right": "NaN"}),
        (Colour.RED, "red"),
        (date(2026, 1, 31), "2026-01-31"),
        (Decimal("1.50"), "1.50"),
        (Path("/a"), "/a"),
        (deque([1]), [1]),
        (2**70, 2**70),
        ([10**5000, math.nan], [hex(10**5000), "NaN"]),
        ("a\ud800b", "a?b"),
        (KeyError("k"), "'k'"),
        (Point, "<class Point>"),
    ],
)
def test_outputs_become_json_that_says_the_same(value, expected):
    assert plain(value) == expected


def test_objects_show_no_address_and_nothing_is_raised():
    looped: list[Any] = [1]
    looped.append(looped)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    values = [Plain(), Evil().__repr__, Evil(), [Evil()], {"e": Evil()}, looped, deep, iter(()), object(), len]
    for value in values:
        found = plain(value)
        json_safe(found, "output")
        assert "0x" not in json.dumps(found)
    assert plain(looped) == [1, "<contains itself>"]


def random_value(dice: random.Random, depth: int = 0) -> Any:
    makers: list[Callable[[], Any]] = [
        lambda: dice.randint(-(2**80), 2**80),
        lambda: dice.choice([math.nan, math.inf, 0.5, True, None]),
        lambda: "".join(chr(dice.choice([0, 65, 0xD800, 0x1F600])) for _ in range(3)),
        lambda: dice.randbytes(4),
        lambda: dice.choice([Plain(), Evil(), Point(1), Colour.RED, Pair(1, 2), date.today(), Decimal("NaN")]),
        lambda: [random_value(dice, depth + 1) for _ in range(3)],
        lambda: tuple(random_value(dice, depth + 1) for _ in range(2)),
        lambda: {dice.choice([1, "a", None, (1,), 2.5, math.nan]): random_value(dice, depth + 1) for _ in range(3)},
        lambda: {dice.choice([1, "a", 2.5, b"x"]) for _ in range(3)},
    ]
    return dice.choice(makers[:5] if depth > 4 else makers)()


def test_any_output_becomes_json_that_reads_back_the_same(seed):
    dice = random.Random(seed)
    for _ in range(300):
        found = plain(random_value(dice))
        assert json.loads(json.dumps(found)) == found == json_safe(found, "output")
        failure_in(found)


def test_a_huge_output_comes_through():
    text = "x" * 5_000_000
    assert run(lambda: {"text": text}, {})["output"] == {"text": text}
