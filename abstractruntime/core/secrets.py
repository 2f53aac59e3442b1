"""The secrets border: what keeps API keys and tokens out of checkpoints, ledgers, traces, logs and error texts.

Two ways in. A payload names a secret as `{"$secret": "openai"}` and the host's `secrets=` resolves it when the effect
is performed. A raw value under a known key (an exact list: `max_tokens` is none of them) is replaced by
`{"$redacted": key}` in everything that is persisted; the raw value stays in memory for this one performance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .codec import DEEPEST, REFUSALS, decode, encode, is_deeper, json_safe
from .errors import SecretUnavailable

#: what a host gives as `secrets=`: a mapping, or a function from name to value (None: unknown)
Secrets = Mapping[str, str] | Callable[[str], str | None]

#: compared in lower case with `-` read as `_`
SECRET_KEYS = frozenset(
    {
        "api_key", "apikey", "x_api_key", "provider_api_key", "openai_api_key", "anthropic_api_key", "api_token",
        "api_secret", "authorization", "proxy_authorization", "access_token", "refresh_token", "auth_token",
        "bearer_token", "id_token", "session_token", "client_secret", "secret_key", "secret_access_key",
        "aws_secret_access_key", "private_key", "password", "passwd",
    }
)  # fmt: skip


def admit(value: Any, path: str, *, deepest: int = DEEPEST) -> Any:
    """A copy of `value` as it may be persisted: JSON-safe, and with raw secrets redacted. Raises `UnsafeValue`."""
    return admit_both(value, path, deepest=deepest)[1]


def admit_both(value: Any, path: str, *, deepest: int = DEEPEST) -> tuple[Any, Any]:
    """`value` made JSON-safe, with its raw secrets and without: the first for this performance, the second to store.

    >>> admit_both({"api_key": "sk-1", "max_tokens": 5}, "payload")
    ({'api_key': 'sk-1', 'max_tokens': 5}, {'api_key': {'$redacted': 'api_key'}, 'max_tokens': 5})
    """
    try:
        data = encode(value)
        back = decode(data)
        if back == value and not is_deeper(data, deepest):
            return back, _redact(back) if _suspicious(data) else back
    except REFUSALS:
        pass  # json_safe says where and why
    safe = json_safe(value, path, deepest=deepest)
    return safe, _redact(safe)


def reveal(payload: dict[str, Any], raw: dict[str, Any] | None, secrets: Secrets | None) -> tuple[Any, list[str]]:
    """A fresh copy of a persisted payload with its secrets put back, and the texts that must not leak.

    `raw` is the payload before redaction, when this process still has it. Raises `SecretUnavailable` naming the key.
    """
    data = encode(payload)
    if b'"$secret"' not in data and b'"$redacted"' not in data:
        return decode(data), []
    found: list[str] = []
    return _reveal(decode(data), raw, secrets, "payload", found), found


def hidden_in(stored: Any, given: Any) -> list[str]:
    """The texts that must not leak: what `given` has where `stored`, which is the same as persisted, names a secret.

    >>> hidden_in({"key": {"$secret": "openai"}, "n": 1}, {"key": "sk-12345", "n": 1})
    ['sk-12345']
    """
    found: list[str] = []
    if _is_reference(stored):
        _remember(given, found)
    elif isinstance(stored, dict) and isinstance(given, dict):
        for key, item in stored.items():
            found += hidden_in(item, given.get(key))
    elif isinstance(stored, list) and isinstance(given, list):
        for item, other in zip(stored, given, strict=False):
            found += hidden_in(item, other)
    return found


def scrub(value: Any, hidden: list[str]) -> Any:
    """`value` (a JSON value or an error text) without any of the `hidden` texts."""
    if not hidden:
        return value
    if isinstance(value, str):
        for text in sorted(hidden, key=len, reverse=True):  # a longer one may begin with a shorter one
            value = value.replace(text, "[redacted]")
        return value
    if isinstance(value, dict):
        return {scrub(key, hidden): scrub(item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item, hidden) for item in value]
    return value


def _suspicious(data: bytes) -> bool:
    """Whether a known key may be in there: each of them ends in one of these, and searching bytes is cheap."""
    low = data.decode("latin-1").lower()  # a text is searched quicker than bytes
    return 'key"' in low or 'token"' in low or 'secret"' in low or 'authorization"' in low or "passw" in low


def _redact(value: Any) -> Any:
    if isinstance(value, dict):
        changed = {key: _redacted(key, item) for key, item in value.items()}
        return changed if any(changed[key] is not item for key, item in value.items()) else value
    if isinstance(value, list):
        items = [_redact(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _redacted(key: str, item: Any) -> Any:
    if key.lower().replace("-", "_") not in SECRET_KEYS or not item or _is_reference(item):
        return _redact(item)
    return {"$redacted": key}


def _is_reference(item: Any) -> bool:
    return isinstance(item, dict) and len(item) == 1 and ("$secret" in item or "$redacted" in item)


def _reveal(value: Any, raw: Any, secrets: Secrets | None, path: str, found: list[str]) -> Any:
    if _is_reference(value):
        if "$secret" in value:
            return _remember(_lookup(value["$secret"], secrets, path), found)
        if raw is None:
            raise SecretUnavailable(
                f"{path}: the raw value of {value['$redacted']!r} was never stored and this process does not have it. "
                f'Name it in the payload as {{"$secret": "<name>"}} and give the runtime secrets=.'
            )
        return _remember(raw, found)
    if isinstance(value, dict):
        return {
            key: _reveal(item, raw.get(key) if isinstance(raw, dict) else None, secrets, f"{path}.{key}", found)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            _reveal(item, raw[i] if isinstance(raw, list) and i < len(raw) else None, secrets, f"{path}[{i}]", found)
            for i, item in enumerate(value)
        ]
    return value


def _lookup(name: Any, secrets: Secrets | None, path: str) -> str:
    value: str | None = None
    if isinstance(name, str) and secrets is not None:
        value = secrets(name) if callable(secrets) else secrets.get(name)
    if value is None:
        raise SecretUnavailable(f"{path}: no secret named {name!r}. Give the runtime secrets= with that name.")
    return value


def _remember(value: Any, found: list[str]) -> Any:
    """Note every text in a revealed value, so that it can be scrubbed from what comes back."""
    if isinstance(value, str):
        if len(value) >= 4:  # shorter ones would tear ordinary words apart
            found.append(value)
    elif isinstance(value, dict):
        for item in value.values():
            _remember(item, found)
    elif isinstance(value, list):
        for item in value:
            _remember(item, found)
    return value
