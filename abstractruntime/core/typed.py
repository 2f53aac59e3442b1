"""Typed state: the author's part of `run.vars` as a value of the author's own type while a node looks at it.

What is stored stays the plain dict. Before a node the vars are converted to the workflow's state type; after it the
state is written back over them and checked again, so that what the next node gets is always of that type. Names that
start with `_` belong to the engine and are no part of the state.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast

import msgspec
from msgspec.inspect import DataclassType, DictType, StructType, TypedDictType, type_info

from .errors import InvalidState, InvalidWorkflow
from .models import RunState

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)
else:  # before Python 3.13 a default is for type checkers only
    from typing import TypeVar

    S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

_RUN_FIELDS = RunState.__struct_fields__


class TypedRun(RunState, Generic[S], kw_only=True):
    """A run as a node of a typed workflow sees it: `state` is what counts, other vars are in `vars` as ever.

    >>> class Counter(msgspec.Struct):
    ...     count: int = 0
    >>> def step(run: TypedRun[Counter], ctx: object) -> None:
    ...     run.state.count += 1
    """

    state: S


class TypedWorkflow(Protocol[S_co]):
    """What typed state needs of a workflow: a `WorkflowSpec`."""

    @property
    def workflow_id(self) -> str:
        """Its id, for errors."""

    @property
    def state(self) -> type[S_co] | None:
        """The type of its state; None means plain vars."""


def typed_view(workflow: TypedWorkflow[S], run: RunState) -> TypedRun[S]:
    """The run with its vars as `state`. The view shares `run.vars` and carries its unsaved attributes.

    Raises `InvalidState` naming the path that does not fit, and `InvalidWorkflow` when the workflow has no state type.
    """
    fields = {name: getattr(run, name) for name in _RUN_FIELDS}
    view = TypedRun(**fields, state=_converted(workflow, run.vars))
    view.__dict__.update(run.__dict__)
    return view


def untyped(workflow: TypedWorkflow[S], view: TypedRun[S]) -> dict[str, Any]:
    """The vars after a node: its state over whatever else it left in `view.vars`.

    A name that is a field of the state comes from `view.state` alone. Nothing given is changed. Raises `InvalidState`
    naming the path when the node left a state that is not of the workflow's type.
    """
    built = _built(workflow, view.state)
    state: Any = _state_type(workflow)
    kept = _state_fields(state)
    rest = {
        name: value for name, value in view.vars.items() if _is_engine(name) or (kept is not None and name not in kept)
    }
    vars = {**rest, **built}
    _converted(workflow, vars)
    return vars


def check_vars(workflow: TypedWorkflow[Any], vars: Mapping[str, Any]) -> None:
    """Raise `InvalidState` naming the path when the vars do not fit the workflow's state type, if it has one."""
    if workflow.state is not None:
        _converted(workflow, vars)


def check_state_type(state: Any) -> None:
    """Raise `ValueError` saying why a type cannot be the state of a workflow."""
    try:
        fields = _state_fields(state)
        msgspec.json.Decoder(state)
    except TypeError as error:
        raise ValueError(str(error).rstrip(".")) from error
    ours = sorted(name for name in fields or () if _is_engine(name))
    if ours:
        raise ValueError(f"names that start with '_' belong to the engine, found {', '.join(map(repr, ours))}")


@cache
def _state_fields(state: Hashable) -> frozenset[str] | None:
    """The names in vars that make up the state; None means all that are not the engine's."""
    info = type_info(state)
    if isinstance(info, DictType):
        return None
    if isinstance(info, StructType) and not info.array_like:
        tag = set() if info.tag_field is None else {info.tag_field}
        return frozenset(tag | {field.encode_name for field in info.fields})
    if isinstance(info, DataclassType | TypedDictType):
        return frozenset(field.encode_name for field in info.fields)
    raise TypeError(f"expected a Struct, a dataclass, a TypedDict or a dict type, found {state!r}")


def _converted(workflow: TypedWorkflow[S], vars: Mapping[str, Any]) -> S:
    own = {name: value for name, value in vars.items() if not _is_engine(name)}
    try:
        state: S = msgspec.convert(own, _state_type(workflow), str_keys=True)
        return state
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        raise InvalidState(workflow.workflow_id, f"vars{path.rstrip('`')}", problem) from error


def _built(workflow: TypedWorkflow[S], state: S) -> dict[str, Any]:
    try:
        built = msgspec.to_builtins(state, str_keys=True)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidState(workflow.workflow_id, f"vars{_culprit(state)}", str(error)) from error
    if not isinstance(built, dict):
        wanted = getattr(workflow.state, "__qualname__", str(workflow.state))
        raise InvalidState(workflow.workflow_id, "vars", f"Expected `{wanted}`, got `{type(state).__qualname__}`")
    return cast(dict[str, Any], built)


def _culprit(state: Any) -> str:
    """The path of the first field that has no JSON form."""
    if isinstance(state, dict):
        fields = dict(state)
    else:
        names = getattr(state, "__struct_fields__", getattr(state, "__dataclass_fields__", ()))
        fields = {name: getattr(state, name, None) for name in names}
    for name, value in fields.items():
        try:
            msgspec.to_builtins(value, str_keys=True)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return f".{name}"
    return ""


def _state_type(workflow: TypedWorkflow[S]) -> type[S]:
    if workflow.state is None:
        raise InvalidWorkflow(f"Workflow {workflow.workflow_id!r} has no state type; give WorkflowSpec a state=.")
    return workflow.state


def _is_engine(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("_")
