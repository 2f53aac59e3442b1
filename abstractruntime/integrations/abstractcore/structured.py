"""Answers as data: the schema that a call asks for, what the model said as a value, and the one repair."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ...core.codec import REFUSALS, decode, encode
from .json_schema import problems

DEFAULT_NAME = "StructuredOutput"

_KEYWORDS = {"type", "properties", "$ref", "$defs", "anyOf", "oneOf", "allOf", "enum", "const", "items"}
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_TYPE_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


class Schema(Struct, frozen=True):
    """A JSON schema of an object. What asks for another kind of value gets an object with that as its `value`."""

    name: str
    schema: dict[str, Any]


def schema_of(given: Any, name: Any = None) -> Schema:
    """The schema that a payload gives: a JSON schema, OpenAI's wrapper of one, or an example of each field.

    Raises ValueError for anything else.

    >>> schema_of({"city": "Paris", "people": 3}).schema["required"]
    ['city', 'people']
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"response_schema must be a JSON schema (an object), found {given!r:.80}")
    called = name if isinstance(name, str) and name.strip() else None
    inner: Any = given
    if given.get("type") == "json_schema" and isinstance(given.get("json_schema"), Mapping):
        inner = given["json_schema"]
    if isinstance(inner.get("schema"), Mapping):
        called = called or inner.get("name")
        inner = inner["schema"]
    schema = dict(inner) if _KEYWORDS & inner.keys() and _is_schema(inner) else _of_example(dict(inner))
    if schema.get("type", "object") != "object":
        definitions = {key: schema.pop(key) for key in ("$defs", "definitions") if key in schema}
        schema = {"type": "object", "properties": {"value": schema}, "required": ["value"], **definitions}
    title = re.sub(r"\W+", "_", str(called or schema.get("title") or DEFAULT_NAME))[:64]
    return Schema(title, schema)


def _is_schema(value: Mapping[str, Any]) -> bool:
    kind = value.get("type")
    known = {"object", "array", "string", "number", "integer", "boolean", "null"}
    if isinstance(kind, str):
        return kind in known
    if isinstance(kind, list):
        return set(map(str, kind)) <= known
    return isinstance(value.get("properties"), Mapping) or bool(_KEYWORDS - {"type", "properties"} & value.keys())


def _of_example(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        fields = {str(key): _of_example(item) for key, item in value.items()}
        return {"type": "object", "properties": fields, "required": list(fields)}
    if isinstance(value, list):
        return {"type": "array", "items": _of_example(value[0])} if value else {"type": "array"}
    return {"type": _TYPE_NAMES.get(type(value), "string")}


def answer_model(schema: Mapping[str, Any], name: Any = None) -> type:
    """What AbstractCore asks for the schema and its name: the two things that it asks of a pydantic model."""
    return type(str(name or DEFAULT_NAME), (), {"model_json_schema": staticmethod(lambda *_, **__: dict(schema))})


def schema_instruction(schema: Mapping[str, Any]) -> str:
    """What a model is told whose server cannot hold it to a schema."""
    text = json.dumps(schema, ensure_ascii=False)
    return f"Answer with one JSON object that fits this JSON schema, and with nothing else:\n{text}"


def read(content: Any) -> Any:
    """The value in a text of a model: all of it, a fenced block, or the first object in it. Raises ValueError."""
    text = content.strip() if isinstance(content, str) else ""
    fenced = _FENCE.search(text)
    for candidate in (text, fenced[1] if fenced else ""):
        try:
            return decode(candidate)
        except REFUSALS:
            continue
    start = text.find("{")
    if start >= 0:
        try:
            return json.JSONDecoder().raw_decode(text[start:])[0]  # which stops where the object ends
        except (ValueError, RecursionError):
            pass
    raise ValueError(f"the answer is no JSON: {text!r:.120}")


def judged(answer: Mapping[str, Any], schema: Schema) -> tuple[Any, list[str]]:
    """The data of an answer, and what keeps it from fitting the schema."""
    data = answer.get("data")
    if data is None:
        try:
            data = read(answer.get("content"))
        except ValueError as error:
            return None, [str(error)]
    try:
        if decode(encode(data)) != data:
            return None, ["the answer holds numbers that JSON has not"]
    except REFUSALS as error:
        return None, [f"the answer holds what JSON has not: {error}"]
    return data, problems(data, schema.schema)


def repair_request(problems_found: list[str]) -> str:
    """What the model is told about an answer that does not fit."""
    listed = "\n".join(f"- {problem}" for problem in problems_found[:20])
    again = "Answer again with the whole JSON object and nothing else."
    return f"Your answer does not fit the JSON schema:\n{listed}\n{again}"
