"""From what a model wrote as arguments to what a function is called with.

Repaired are JSON text in place of an object, arguments wrapped in another `arguments`, names in another case or with
other separators, and common other names (`path` for `file_path`, `query` for `pattern`). What a function does not take
is left out. Where two names mean the same parameter and differ, nothing is guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, get_type_hints

import msgspec
from msgspec import Struct

from ....core.outcomes import CancelSignal
from .coercion import ArgumentError, coerced, expected, shown
from .schemas import Schema, jsonable_default, schema_of

#: a parameter of this name gets the id that stays the same in every attempt at the call, and is hidden from the model
KEY_PARAMETER = "runtime_call_id"

#: names that models use for one another's, as `normal` has them
SYNONYMS = (
    frozenset({"filepath", "path", "filename", "file", "directorypath", "directory", "dir", "folder", "folderpath"}),
    frozenset({"workingdirectory", "cwd", "workdir", "workingdir"}),
    frozenset({"paths", "files", "filepaths", "folders", "path", "filepath", "filename", "file", "folder"}),
    frozenset({"pattern", "query", "regex", "search", "searchpattern"}),
    frozenset({"startline", "start", "startlineoneindexed", "fromline"}),
    frozenset({"endline", "end", "endlineoneindexedinclusive", "toline"}),
    frozenset({"command", "cmd"}),
    frozenset({"content", "contents", "text"}),
    frozenset({"url", "uri", "link"}),
)

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY,)
_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WRAPPER = frozenset({"name", "arguments", "call_id", "id", "type"})


class Parameter(Struct, frozen=True):
    """One parameter that the model may give."""

    name: str
    annotation: Any
    required: bool
    default: Any
    positional: bool


class Signature(Struct, frozen=True):
    """What a function takes. `signal` is the name of its parameter of type `CancelSignal`, if it has one."""

    parameters: dict[str, Parameter]
    #: whether it takes other names too
    open: bool
    takes_key: bool
    signal: str | None

    def schemas(self) -> dict[str, Schema]:
        """The parameters as a tool spec shows them: those that may be left out have a `default`."""
        found = {}
        for parameter in self.parameters.values():
            schema = schema_of(parameter.annotation)
            if not parameter.required:
                schema = {**schema, "default": jsonable_default(parameter.default)}
            found[parameter.name] = schema
        return found

    def bound(self, arguments: Any, *, runtime_call_id: str, signal: CancelSignal) -> tuple[list[Any], dict[str, Any]]:
        """Positional and named arguments to call the function with. Raises `ArgumentError` naming all that is wrong."""
        given = self._named(unwrapped(arguments, keep=self.parameters))
        problems, values = [], {}
        for name, value in given.items():
            try:
                known = self.parameters.get(name)
                values[name] = coerced(value, known.annotation, name) if known else value
            except ArgumentError as error:
                problems.append(str(error))
            except RecursionError:
                problems.append(f"{name}: nested too deeply")
        for name, parameter in self.parameters.items():
            if parameter.required and name not in given:
                problems.append(f"{name}: missing, expected {expected(parameter.annotation)}")
        if problems:
            raise ArgumentError("; ".join(problems))
        if self.takes_key:
            values[KEY_PARAMETER] = runtime_call_id
        if self.signal is not None:
            values[self.signal] = signal
        return self._placed(values), values

    def _placed(self, values: dict[str, Any]) -> list[Any]:
        """Take out of `values` what can only be given by place."""
        positional = []
        for name, parameter in self.parameters.items():
            if parameter.positional and (name in values or any(later in values for later in self._after(name))):
                positional.append(values.pop(name, parameter.default))
        return positional

    def _after(self, name: str) -> list[str]:
        names = [other for other, parameter in self.parameters.items() if parameter.positional]
        return names[names.index(name) + 1 :]

    def _named(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments under the function's own names, in the order in which it has them."""
        found: dict[str, Any] = {}
        sources: dict[str, str] = {}
        hidden = {KEY_PARAMETER} if self.takes_key else set()
        hidden |= {self.signal} if self.signal else set()
        spelled = sorted(arguments, key=lambda name: name not in self.parameters)  # exact names first
        for name in spelled:
            own = self._own_name(name, arguments)
            if own is None and self.open and name not in hidden:
                own = name
            if own is None:
                continue
            if own in found and found[own] != arguments[name]:
                raise ArgumentError(f"{own}: given twice, as {sources[own]!r} and as {name!r}, with different values")
            found.setdefault(own, arguments[name])
            sources.setdefault(own, name)
        return found

    def _own_name(self, name: str, arguments: Mapping[str, Any]) -> str | None:
        if name in self.parameters:
            return name
        plain = normal(name)
        alike = [own for own in self.parameters if normal(own) == plain]
        if len(alike) == 1:
            return alike[0]
        if self.open:
            return None
        meant = [
            own for own in self.parameters
            if any(plain in group and normal(own) in group for group in SYNONYMS)
        ]  # fmt: skip
        needed = [own for own in meant if self.parameters[own].required and own not in arguments] or meant
        return needed[0] if len(needed) == 1 else None


def signature_of(function: Callable[..., Any]) -> Signature:
    """What a function takes; one that does not say (some built-ins) takes everything."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return Signature({}, True, False, None)
    hints = _hints(function)
    parameters: dict[str, Parameter] = {}
    signal = None
    for name, parameter in found.parameters.items():
        annotation = hints.get(name, parameter.annotation)
        if annotation is CancelSignal or annotation in ("CancelSignal", "CancelSignal | None"):
            signal = name
        elif name != KEY_PARAMETER and parameter.kind not in _OPEN:
            unset = parameter.default is inspect.Parameter.empty
            parameters[name] = Parameter(
                name,
                Any if annotation is inspect.Parameter.empty or isinstance(annotation, str) else annotation,
                unset,
                None if unset else parameter.default,
                parameter.kind in _POSITIONAL,
            )
    is_open = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.parameters.values())
    return Signature(parameters, is_open, KEY_PARAMETER in found.parameters, signal)


def unwrapped(arguments: Any, *, keep: Iterable[str] = ()) -> dict[str, Any]:
    """The object that was meant by JSON text, by nothing, or by an `arguments` inside; `ArgumentError` for none.

    A parameter that is itself called `arguments` is one of `keep` and stays.
    """
    found = _object(arguments)
    while "arguments" not in keep and "arguments" in found:
        inner = found["arguments"]
        if not isinstance(inner, dict | str):
            break
        try:
            inside = _object(inner)
        except ArgumentError:
            break
        rest = {name: value for name, value in found.items() if name not in _WRAPPER}
        found = {**rest, **inside}
    return found


def normal(name: str) -> str:
    """A name without case and separators: `filePath`, `file-path` and `file_path` are one."""
    return "".join(char for char in name.lower() if char not in "_- ")


def _object(arguments: Any) -> dict[str, Any]:
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        with suppress(msgspec.DecodeError, UnicodeEncodeError, RecursionError):  # refused below, as it was written
            arguments = msgspec.json.decode(arguments)
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise ArgumentError(f"arguments: expected a JSON object, found {shown(arguments)}")
    return arguments


def _hints(function: Any) -> dict[str, Any]:
    while isinstance(function, partial):
        function = function.func
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function).__call__  # an object that is called like a function
    try:
        return get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return dict(getattr(function, "__annotations__", {}))
