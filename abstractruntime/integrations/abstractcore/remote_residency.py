"""Models in memory of an AbstractCore Server: `/acore/models/...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from ...core.codec import REFUSALS, decode
from .remote_failures import failure_of, parsed, reason_in
from .remote_request import checked
from .remote_transport import Transport

#: what of a request goes along: never a key, which is a header
_FIELDS = {
    "list": ("task", "provider", "model"),
    "load": ("task", "provider", "model", "base_url", "timeout_s", "options", "pin", "lock", "ttl_s"),
    "unload": ("task", "runtime_id", "provider", "model", "base_url", "options", "force"),
    "lock": ("runtime_id", "provider", "model", "base_url"),
    "unlock": ("runtime_id", "provider", "model", "base_url"),
}
#: failures that no other attempt and no other layer can help: they are answers
_ANSWERS = (400, 403, 404, 409, 422, 501)


async def residency(
    transport: Transport, operation: str, request: Mapping[str, Any], headers: dict[str, str], timeout_s: float | None
) -> dict[str, Any]:
    """The server's answer to `list`, `load`, `unload`, `lock` or `unlock`.

    Where the server refuses (no such model, locked, not resident), that is an answer too: `ok` is False and `error`
    says why, with the HTTP `status`. Raises `LLMError` where there is no answer, and for a server that fails.
    """
    sent = {name: request[name] for name in _FIELDS[operation] if request.get(name) is not None}
    if operation == "list":
        path, method, body = f"/acore/models/loaded{'?' if sent else ''}{urlencode(sent)}", "GET", None
    else:
        path, method, body = f"/acore/models/{operation}", "POST", checked(sent)
    answer = await transport.send(method, path, headers=headers, body=body, timeout_s=timeout_s)
    if 200 <= answer.status < 300:
        return parsed(answer.content)
    if answer.status in _ANSWERS:
        return _refusal(answer.status, answer.content)
    raise failure_of(answer.status, answer.headers, answer.content)


def _refusal(status: int, content: bytes) -> dict[str, Any]:
    try:
        body = decode(content)
    except REFUSALS:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        return {**body, "ok": False, "status": status}
    return {"ok": False, "error": reason_in(content), "status": status}
