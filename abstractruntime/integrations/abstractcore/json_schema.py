"""Whether a JSON value fits a JSON schema: the keywords that schemas for models use, and what is wrong, in words.

Not a validator of schemas: a keyword that is not known asks for nothing. `$ref` reaches definitions of the same schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

#: how deep a schema may refer to itself before it is taken for one that never ends
_DEEPEST = 100

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
}


def problems(value: Any, schema: Any) -> list[str]:
    """What keeps `value` from fitting `schema`; empty when it fits.

    >>> problems({"n": "1"}, {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n", "m"]})
    ["$: 'm' is missing", "$.n: expected integer, found '1'"]
    """
    return list(_problems(value, schema, schema, "$", 0))


def _problems(value: Any, schema: Any, root: Any, path: str, depth: int) -> Iterator[str]:
    if schema is False:
        yield f"{path}: nothing is allowed here"
    if not isinstance(schema, Mapping):
        return
    if depth > _DEEPEST:
        yield f"{path}: the schema refers to itself without end"
        return
    if isinstance(schema.get("$ref"), str):
        yield from _problems(value, _target(schema["$ref"], root), root, path, depth + 1)
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if names and not any(_TYPES.get(name, lambda _: True)(value) for name in names):
        yield f"{path}: expected {' or '.join(map(str, names))}, found {value!r:.80}"
        return
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{path}: expected {schema['const']!r:.80}, found {value!r:.80}"
    if isinstance(schema.get("enum"), list) and not any(_same(value, item) for item in schema["enum"]):
        yield f"{path}: expected one of {schema['enum']!r:.200}, found {value!r:.80}"
    yield from _combined(value, schema, root, path, depth)
    if isinstance(value, dict):
        yield from _object(value, schema, root, path, depth)
    elif isinstance(value, list):
        yield from _array(value, schema, root, path, depth)
    elif isinstance(value, str):
        yield from _text(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, schema, path)


def _combined(value: Any, schema: Mapping[str, Any], root: Any, path: str, depth: int) -> Iterator[str]:
    for part in schema.get("allOf") or ():
        yield from _problems(value, part, root, path, depth + 1)
    for name, most in (("anyOf", math.inf), ("oneOf", 1)):
        if isinstance(schema.get(name), list):
            found = [list(_problems(value, part, root, path, depth + 1)) for part in schema[name]]
            fitting = sum(not each for each in found)
            if fitting == 0:
                yield f"{path}: fits none of {len(found)} alternatives ({min(found, key=len, default=['none'])[0]})"
            elif fitting > most:
                yield f"{path}: fits {fitting} of the alternatives, and only one is allowed"
    if "not" in schema and not list(_problems(value, schema["not"], root, path, depth + 1)):
        yield f"{path}: fits what it must not fit"


def _object(value: dict[str, Any], schema: Mapping[str, Any], root: Any, path: str, depth: int) -> Iterator[str]:
    for name in schema.get("required") or ():
        if name not in value:
            yield f"{path}: {name!r} is missing"
    known = schema.get("properties") or {}
    for name, item in value.items():
        if name in known:
            yield from _problems(item, known[name], root, f"{path}.{name}", depth + 1)
        elif schema.get("additionalProperties") is False:
            yield f"{path}: {name!r} is not among {list(known)!r:.200}"
        else:
            yield from _problems(item, schema.get("additionalProperties"), root, f"{path}.{name}", depth + 1)


def _array(value: list[Any], schema: Mapping[str, Any], root: Any, path: str, depth: int) -> Iterator[str]:
    yield from _bounds(len(value), schema, "minItems", "maxItems", f"{path}: the number of items")
    first = schema.get("prefixItems") or []
    for index, item in enumerate(value):
        yield from _problems(
            item, first[index] if index < len(first) else schema.get("items"), root, f"{path}[{index}]", depth + 1
        )
    if schema.get("uniqueItems") and any(_same(a, b) for i, a in enumerate(value) for b in value[:i]):
        yield f"{path}: the items are not unique"


def _text(value: str, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _bounds(len(value), schema, "minLength", "maxLength", f"{path}: the length")
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and re.search(pattern, value) is None:
        yield f"{path}: {value!r:.80} does not match {pattern!r}"


def _number(value: float, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _bounds(value, schema, "minimum", "maximum", f"{path}: the number")
    least, most, step = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"), schema.get("multipleOf")
    if isinstance(least, int | float) and not isinstance(least, bool) and value <= least:
        yield f"{path}: {value} is not above {least}"
    if isinstance(most, int | float) and not isinstance(most, bool) and value >= most:
        yield f"{path}: {value} is not below {most}"
    if isinstance(step, int | float) and step and not _is_multiple(value, step):
        yield f"{path}: {value} is no multiple of {step}"


def _is_multiple(value: float, step: float) -> bool:
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    try:
        return math.isclose(value / step, round(value / step), abs_tol=1e-9)
    except (OverflowError, ValueError):  # so large that a double cannot tell
        return False


def _bounds(value: float, schema: Mapping[str, Any], least: str, most: str, what: str) -> Iterator[str]:
    low, high = schema.get(least), schema.get(most)
    if isinstance(low, int | float) and value < low:
        yield f"{what} is {value}, and {least} is {low}"
    if isinstance(high, int | float) and value > high:
        yield f"{what} is {value}, and {most} is {high}"


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _target(reference: str, root: Any) -> Any:
    found = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
