"""Makes arguments of the types that a tool asks for, as far as what the model meant is certain.

Models write `"3"` for 3, `"true"` for true and a list as JSON text. What can only be guessed at is refused, with a
text that tells the model what to write instead.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Collection, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, is_typeddict

import msgspec

from .schemas import fields_of, schema_of

_INTEGER = re.compile(r"[+-]?\d{1,400}(\.0{1,30})?", re.ASCII)
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})
_NOTHING = frozenset({"", "null", "none"})
_TEXTS = (str, bytes, bytearray)
#: what stands for a list of another make
_LISTS: dict[Any, Any] = {set: set, frozenset: frozenset, tuple: tuple}


class ArgumentError(ValueError):
    """An argument that a tool cannot take; the text names it and says what was expected."""


def coerced(value: Any, annotation: Any, path: str) -> Any:
    """`value` as the annotation asks for it, or `ArgumentError`; an unknown type takes everything.

    >>> coerced("3", int, "count"), coerced("[1, 2]", list[int], "ids")
    (3, [1, 2])
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Required, NotRequired):
        return coerced(value, args[0], path)
    if origin in (Union, types.UnionType):
        return _one_of(value, args, path)
    if origin is Literal:
        return _chosen(value, {str(option): option for option in args}, list(args), annotation, path)
    for kind, convert in _CONVERTERS.items():
        if annotation is kind:
            return convert(value, path)
    kind = origin or annotation
    if annotation is Any or kind is object or not isinstance(kind, type):
        return value
    if issubclass(kind, Enum):
        named = {member.name: member for member in kind} | {str(member.value): member for member in kind}
        return value if isinstance(value, kind) else _chosen(value, named, list(kind), annotation, path)
    return _built(value, annotation, kind, args, path)


def _built(value: Any, annotation: Any, kind: type, args: tuple[Any, ...], path: str) -> Any:
    """A value of a type with parts, or of a class."""
    if not is_typeddict(kind) and isinstance(value, kind) and not isinstance(value, dict | list | tuple):
        return value
    fields = fields_of(kind)
    if fields is not None:
        return _of_fields(_mapping(value, annotation, path), kind, fields, path)
    validate = getattr(kind, "model_validate", None)
    if callable(validate):  # pydantic
        items = _mapping(value, annotation, path)
        try:
            return validate(items)
        except Exception as error:  # whatever the type's own checks raise
            raise ArgumentError(f"{path}: {error}") from error
    if issubclass(kind, Mapping):
        items = _mapping(value, annotation, path)
        return {key: coerced(item, args[1], f"{path}.{key}") if len(args) == 2 else item for key, item in items.items()}
    if kind is Iterable or (issubclass(kind, Collection) and not issubclass(kind, _TEXTS)):
        return _listed(value, annotation, kind, args, path)
    if issubclass(kind, PurePath):
        return kind(_text(value, path))
    try:
        found = msgspec.convert(value, annotation, strict=False)
        if isinstance(found, Decimal) and not found.is_finite():
            raise _refused(value, annotation, path)
        return found
    except msgspec.ValidationError as error:
        raise _refused(value, annotation, path) from error
    except (TypeError, NameError):  # a type that msgspec does not know either: what it takes is the tool's own affair
        return value


def _one_of(value: Any, args: tuple[Any, ...], path: str) -> Any:
    """As the first type that it is, else as the first that it can be made; text last, since everything can be text."""
    optional = type(None) in args
    if value is None and optional:
        return None
    kinds = [arg for arg in args if arg is not type(None)]
    exact = [kind for kind in kinds if type(value) is (get_origin(kind) or kind)]
    problems = []
    for kind in exact + sorted(kinds, key=lambda kind: kind is str):
        try:
            return coerced(value, kind, path)
        except ArgumentError as error:
            problems.append(error)
    if optional and isinstance(value, str) and value.strip().lower() in _NOTHING:
        return None
    if len(kinds) == 1:
        raise problems[0]
    wanted = " or ".join(dict.fromkeys(expected(kind) for kind in kinds))
    raise ArgumentError(f"{path}: expected {wanted}, found {shown(value)}")


def _chosen(value: Any, named: dict[str, Any], options: list[Any], annotation: Any, path: str) -> Any:
    for option in options:
        plain = option.value if isinstance(option, Enum) else option
        if type(plain) is type(value) and plain == value:
            return option
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if text is not None and text in named:
        return named[text]
    alike = [option for name, option in named.items() if text is not None and name.lower() == text.strip().lower()]
    if alike and all(option is alike[0] for option in alike):
        return alike[0]
    raise _refused(value, annotation, path)


def _of_fields(items: dict[str, Any], kind: type, fields: dict[str, tuple[Any, bool]], path: str) -> Any:
    unknown = [name for name in items if name not in fields]
    missing = [name for name, (_, needed) in fields.items() if needed and name not in items]
    if unknown or missing:
        said = [f"has no field {', '.join(map(repr, unknown))}"] if unknown else []
        said += [f"needs {', '.join(map(repr, missing))}"] if missing else []
        raise ArgumentError(f"{path}: {' and '.join(said)}; its fields are {', '.join(fields) or 'none'}")
    values = {name: coerced(item, fields[name][0], f"{path}.{name}") for name, item in items.items()}
    try:
        return msgspec.convert(values, kind) if issubclass(kind, msgspec.Struct) else kind(**values)
    except Exception as error:  # whatever the type's own checks raise
        raise ArgumentError(f"{path}: {error}") from error


def _listed(value: Any, annotation: Any, kind: type, args: tuple[Any, ...], path: str) -> Any:
    items = _from_json(value, "[")
    if not isinstance(items, list | tuple | set | frozenset):
        if isinstance(items, dict) or items is None or (isinstance(items, str) and items.lstrip().startswith("[")):
            raise _refused(value, annotation, path)
        items = [items]  # a single one where several are allowed
    items = list(items)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(items) != len(args):
            raise _refused(value, annotation, path)
        return tuple(coerced(item, arg, f"{path}[{n}]") for n, (item, arg) in enumerate(zip(items, args, strict=True)))
    if args:
        items = [coerced(item, args[0], f"{path}[{place}]") for place, item in enumerate(items)]
    try:
        return _LISTS.get(kind, list)(items)
    except TypeError as error:  # a set of what cannot be in one
        raise _refused(value, annotation, path) from error


def _mapping(value: Any, annotation: Any, path: str) -> dict[str, Any]:
    found = _from_json(value, "{")
    if not isinstance(found, dict):
        raise _refused(value, annotation, path)
    return found


def _from_json(value: Any, opening: str) -> Any:
    """What JSON text holds, if it is JSON of that kind."""
    if isinstance(value, str) and value.lstrip().startswith(opening):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return value
    return value


def _text(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise _refused(value, str, path)


def _integer(value: Any, path: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    raise _refused(value, int, path)


def _number(value: Any, path: str) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise _refused(value, float, path) from None
        if math.isfinite(number):
            return number
    raise _refused(value, float, path)


def _boolean(value: Any, path: str) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise _refused(value, bool, path)


def _none(value: Any, path: str) -> None:
    if value is not None and not (isinstance(value, str) and value.strip().lower() in _NOTHING):
        raise _refused(value, type(None), path)


_CONVERTERS: dict[Any, Any] = {str: _text, int: _integer, float: _number, bool: _boolean, type(None): _none}
_WORDS = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false",
          "array": "a list", "object": "an object", "null": "null"}  # fmt: skip


def expected(annotation: Any) -> str:
    """A type in words, for an error."""
    schema = schema_of(annotation)
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    word = _WORDS.get(schema.get("type", ""), getattr(annotation, "__name__", str(annotation)))
    items = schema.get("items") if word == "a list" else None
    of = _WORDS.get(items.get("type", "")) if isinstance(items, dict) else None
    return f"{word} of {of}" if of else word


def shown(value: Any) -> str:
    """A value in an error: its kind, and how it begins."""
    text = ascii(value)
    return f"{text[:80]}..." if len(text) > 83 else text


def _refused(value: Any, annotation: Any, path: str) -> ArgumentError:
    return ArgumentError(f"{path}: expected {expected(annotation)}, found {shown(value)}")
