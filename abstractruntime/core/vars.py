"""The layout of `run.vars`: namespaces, limits, old node traces, and dotted paths to read and write.

Readers and the helpers for node authors work on the author's own dict in place. `write_path` and `append_path` are
pure: they copy the dicts on the way to the path, share everything else, and never change what they were given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias

CONTEXT = "context"
SCRATCHPAD = "scratchpad"
RUNTIME = "_runtime"
TEMP = "_temp"
LIMITS = "_limits"
#: those that `ensure_namespaces` makes
NAMESPACES = (CONTEXT, SCRATCHPAD, RUNTIME, TEMP)

DEFAULT_MAX_ITERATIONS = 50
DEFAULT_MAX_TOKENS = 32768

Vars: TypeAlias = dict[str, Any]
Token: TypeAlias = str | int

_INDEXED = re.compile(r"([^\[\]]*)((?:\[[0-9]+\])+)")
_NUMBER = re.compile(r"[0-9]+")
#: of a position; no list is longer, and Python reads only so many digits
_MAX_DIGITS = 18


class HasLimits(Protocol):
    """What can seed `_limits`: a `RuntimeConfig`."""

    def to_limits_dict(self) -> dict[str, Any]:
        """Every key of `_limits` with its first value."""


def default_limits() -> dict[str, Any]:
    """The keys of `_limits` as a runtime without a config seeds them."""
    return {
        "max_iterations": DEFAULT_MAX_ITERATIONS,
        "current_iteration": 0,
        "max_tokens": DEFAULT_MAX_TOKENS,
        "max_output_tokens": None,
        "max_input_tokens": None,
        "estimated_tokens_used": 0,
        "max_history_messages": -1,
        "warn_iterations_pct": 80,
        "warn_tokens_pct": 80,
    }


def get_namespace(vars: Vars, key: str) -> Vars:
    """The dict at `vars[key]`, live; what is missing or no dict is replaced by an empty one."""
    namespace = vars.get(key)
    if not isinstance(namespace, dict):
        namespace = vars[key] = {}
    return namespace


def ensure_namespaces(vars: Vars) -> Vars:
    """Make `context`, `scratchpad`, `_runtime` and `_temp` dicts of `vars`, in place; returns `vars`."""
    for key in NAMESPACES:
        get_namespace(vars, key)
    return vars


def get_context(vars: Vars) -> Vars:
    """The author's context (task, messages, attachments), live."""
    return get_namespace(vars, CONTEXT)


def get_scratchpad(vars: Vars) -> Vars:
    """The author's working notes, live."""
    return get_namespace(vars, SCRATCHPAD)


def get_runtime(vars: Vars) -> Vars:
    """The engine's namespace, live."""
    return get_namespace(vars, RUNTIME)


def get_temp(vars: Vars) -> Vars:
    """What one step leaves for the next, live."""
    return get_namespace(vars, TEMP)


def clear_temp(vars: Vars) -> None:
    """Empty the `_temp` namespace, in place."""
    get_temp(vars).clear()


def ensure_limits(vars: Vars, defaults: Mapping[str, Any] | HasLimits | None = None) -> Vars:
    """Seed each missing key of `vars["_limits"]` from a dict or a config, and return what is there then.

    Keys that are there keep their values; a `_limits` that is no dict is replaced. Seeding puts a new dict in place,
    so a dict that the caller shares with somebody is not changed under them.

    >>> ensure_limits({"_limits": {"max_tokens": 10}}, {"max_tokens": 99, "max_iterations": 3})
    {'max_tokens': 10, 'max_iterations': 3}
    """
    if defaults is None:
        seeds: Mapping[str, Any] = default_limits()
    else:
        seeds = defaults if isinstance(defaults, Mapping) else defaults.to_limits_dict()
    limits = vars.get(LIMITS)
    if not isinstance(limits, dict):
        limits = vars[LIMITS] = dict(seeds)
    elif not seeds.keys() <= limits.keys():
        limits = vars[LIMITS] = {**seeds, **limits}
    return limits


def get_limits(vars: Vars) -> Vars:
    """The run's limits, live, with every missing key at its default."""
    return ensure_limits(vars)


def effect_seq(vars: Vars) -> int:
    """How many effects the run has issued so far, `_runtime.effect_seq`; 0 where that is no such number."""
    try:
        seq = vars["_runtime"]["effect_seq"]
    except (LookupError, TypeError):  # an author may have put anything there
        return 0
    return seq if type(seq) is int and seq >= 0 else 0


def get_node_traces(vars: Vars) -> dict[str, Any]:
    """The node traces that an old run holds in its vars, by node; `{}` if none. Nothing is created."""
    runtime = vars.get(RUNTIME)
    traces = runtime.get("node_traces") if isinstance(runtime, dict) else None
    return traces if isinstance(traces, dict) else {}


def get_node_trace(vars: Vars, node_id: str) -> dict[str, Any]:
    """One of `get_node_traces`, or `{"node_id": node_id, "steps": []}`."""
    trace = get_node_traces(vars).get(node_id)
    return trace if isinstance(trace, dict) else {"node_id": node_id, "steps": []}


def parse_vars_path(path: str) -> list[Token]:
    """Split a path into the tokens that `resolve_vars_path` follows; the empty path is the root.

    Dotted, with list positions as `items.0` or `items[0]`; or a JSON pointer (`/a~1b/0`) for names that hold dots,
    brackets or blanks at their ends. `/` alone is the root too.

    >>> parse_vars_path("scratchpad.items[0].name")
    ['scratchpad', 'items', 0, 'name']
    """
    text = path if path.startswith("/") else path.strip()
    if text in ("", "/"):
        return []
    if text.startswith("/"):
        return [_token(part.replace("~1", "/").replace("~0", "~")) for part in text[1:].split("/")]
    tokens: list[Token] = []
    for part in text.split("."):
        indexed = _INDEXED.fullmatch(part)
        if indexed is None:
            tokens.append(_token(part))
            continue
        name, positions = indexed.groups()
        tokens += [_token(name)] if name else []
        tokens += [_token(position) for position in positions[1:-1].split("][")]
    return tokens


def resolve_vars_path(root: Any, tokens: Iterable[Token]) -> Any:
    """The value that the tokens lead to. A number is a position in a list and a name in a dict.

    Raises `ValueError` naming the place, as a path: expected list or object there, index out of range, missing key.

    >>> resolve_vars_path({"items": {"2": "two"}}, parse_vars_path("items.2"))
    'two'
    """
    value = root
    passed: list[Token] = []
    for token in tokens:
        if isinstance(value, dict):
            key = token if token in value else str(token)
            if key not in value:
                raise ValueError(f"missing key {str(token)!r:.80} at {_place(passed)}; it has {_some(value)}")
            value = value[key]
        elif isinstance(value, list):
            value = value[_position(value, token, passed)]
        else:
            wanted = "list" if isinstance(token, int) else "object"
            raise ValueError(f"expected {wanted} at {_place(passed)}, found {type(value).__name__}")
        passed.append(token)
    return value


def write_path(vars: Vars, path: str | None, value: Any) -> Vars:
    """A new dict with `value` at the dotted `path`: what is no dict on the way is replaced by one.

    Neither `vars` nor anything in it is changed; all parts off the path are shared. There is no list indexing and no
    escaping. Without a path `vars` itself is returned.

    >>> write_path({"a": 1, "b": 2}, "a.x", 0)
    {'a': {'x': 0}, 'b': 2}
    """
    if not path:
        return vars
    new = vars.copy()
    put_path(new, path, value)
    return new


def put_path(vars: Vars, path: str, value: Any) -> None:
    """The same in a copy of vars that the caller has made: of each level below that changes, a new dict."""
    if "." not in path:
        vars[path] = value
        return
    *names, last = path.split(".")
    for name in names:
        below = vars.get(name)
        vars[name] = below = below.copy() if isinstance(below, dict) else {}
        vars = below
    vars[last] = value


def list_at(vars: Vars, path: str) -> list[Any]:
    """The list at the dotted path; empty where there is none."""
    found: Any = vars
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, list) else []


def append_path(vars: Vars, path: str, value: Any) -> Vars:
    """`write_path` of the list at `path` with `value` behind it; what is missing or no list counts as empty."""
    return write_path(vars, path, [*list_at(vars, path), value])


def _token(text: str) -> Token:
    # a number with leading zeros can only be a name: as an int it would not find that name again
    plain = _NUMBER.fullmatch(text) and (text == "0" or text[0] != "0") and len(text) <= _MAX_DIGITS
    return int(text) if plain else text


def _position(items: list[Any], token: Token, passed: list[Token]) -> int:
    given = str(token)
    if isinstance(token, str):
        if not _NUMBER.fullmatch(token):
            raise ValueError(
                f"expected object at {_place(passed)}, found a list; give a position instead of {token!r:.80}"
            )
        digits = token.lstrip("0") or "0"
        token = int(digits) if len(digits) <= _MAX_DIGITS else len(items)
    if not 0 <= token < len(items):
        raise ValueError(f"index out of range at {_place(passed)}: {given:.80}, the list has {len(items)} items")
    return token


def _place(passed: list[Token]) -> str:
    """A path to where the tokens led: dotted, or a JSON pointer where a name would not be read back from that."""
    names = [str(token) for token in passed]
    dotted = ".".join(names)
    if not names:
        return "root"
    if dotted != "root" and [str(token) for token in parse_vars_path(dotted)] == names:
        return dotted
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def _some(value: dict[Any, Any]) -> str:
    names = [f"{name!r:.40}" for name in list(value)[:10]]
    return ", ".join(names) + (", ..." if len(value) > len(names) else "") if names else "no keys"
