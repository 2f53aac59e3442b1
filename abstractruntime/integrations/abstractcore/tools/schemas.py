"""The JSON schema of an annotation, as models are told what an argument must look like."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import msgspec

from ....core.codec import encode

Schema = dict[str, Any]

#: how deep types may be inside one another before a schema only says "object"
_DEEPEST = 6
_PLAIN: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def schema_of(annotation: Any, depth: int = 0) -> Schema:
    """The schema of a type; of one that we do not know, `{}`, which allows everything.

    >>> schema_of(list[int])
    {'type': 'array', 'items': {'type': 'integer'}}
    >>> schema_of(Literal["low", "high"])
    {'type': 'string', 'enum': ['low', 'high']}
    """
    if annotation in _PLAIN if _hashable(annotation) else False:
        return {"type": _PLAIN[annotation]}
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        said = next((extra for extra in args[1:] if isinstance(extra, str)), None)
        inner = schema_of(args[0], depth)
        return {**inner, "description": said} if said else inner
    if origin in (Required, NotRequired):
        return schema_of(args[0], depth)
    if origin in (Union, types.UnionType):
        return _union(args, depth)
    if origin is Literal:
        return _enum(list(args))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _enum([member.value for member in annotation])
    if depth >= _DEEPEST:
        return {"type": "object"}
    return _container(annotation, origin or annotation, args, depth)


def fields_of(annotation: Any) -> dict[str, tuple[Any, bool]] | None:
    """Type of each field of a dataclass, TypedDict or Struct, and whether it must be given; None for other types."""
    if is_typeddict(annotation):
        required = annotation.__required_keys__
        hints = get_type_hints(annotation, include_extras=True)
        return {name: (kind, name in required) for name, kind in hints.items()}
    if dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation, include_extras=True)
        unset = dataclasses.MISSING
        return {
            field.name: (hints[field.name], field.default is unset and field.default_factory is unset)
            for field in dataclasses.fields(annotation)
            if field.init
        }
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return {field.encode_name: (field.type, field.required) for field in msgspec.structs.fields(annotation)}
    return None


def _container(annotation: Any, kind: Any, args: tuple[Any, ...], depth: int) -> Schema:
    if not isinstance(kind, type):
        return {}
    fields = fields_of(kind)
    if fields is not None:
        schema: Schema = {
            "type": "object",
            "properties": {name: schema_of(type_, depth + 1) for name, (type_, _) in fields.items()},
        }
        required = [name for name, (_, needed) in fields.items() if needed]
        return {**schema, "required": required} if required else schema
    model_schema = getattr(kind, "model_json_schema", None)
    if callable(model_schema):  # pydantic
        found = model_schema()
        return found if isinstance(found, dict) else {"type": "object"}
    if issubclass(kind, Mapping):
        values = schema_of(args[1], depth + 1) if len(args) == 2 else {}
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    if issubclass(kind, tuple) and args and args[-1] is not Ellipsis:
        return {"type": "array", "prefixItems": [schema_of(arg, depth + 1) for arg in args], "items": False}
    if kind is Iterable or (issubclass(kind, Collection) and not issubclass(kind, str | bytes | bytearray)):
        return {"type": "array", "items": schema_of(args[0], depth + 1) if args else {}}
    return _known(annotation)


def _known(annotation: Any) -> Schema:
    """What msgspec says of dates, UUIDs and the like."""
    try:
        found = msgspec.json.schema(annotation)
    except TypeError:
        return {"type": "string"} if hasattr(annotation, "__fspath__") else {}
    return found if "type" in found else {}


def _union(args: tuple[Any, ...], depth: int) -> Schema:
    """One of several: `Optional[int]` is an integer that may be left out, and so has the schema of an integer."""
    schemas: list[Schema] = []
    for arg in args:
        schema = schema_of(arg, depth)
        if arg is not type(None) and schema not in schemas:
            schemas.append(schema)
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas} if all(schemas) else {}


def _enum(values: list[Any]) -> Schema:
    kinds = {_PLAIN.get(type(value)) for value in values}
    listed = [value for value in values if type(value) in _PLAIN]
    if len(kinds) == 1 and None not in kinds:
        return {"type": kinds.pop(), "enum": listed}
    return {"enum": listed} if listed else {}


def jsonable_default(value: Any) -> Any:
    """A default as a schema may show it; None for one that JSON cannot carry."""
    try:
        return msgspec.json.decode(encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
