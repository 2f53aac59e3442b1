"""What a remote call sends: the server's root, headers and body, made of the arguments of `generate`.

Nothing else of `params` leaves the process than what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ...core.codec import encode, json_safe
from ...core.errors import UnsafeValue
from ...core.secrets import admit
from .normalising import wire_messages
from .protocols import LLMError
from .structured import DEFAULT_NAME, schema_instruction
from .tool_specs import wire_tools

#: seconds that a call may take when nobody says otherwise
DEFAULT_TIMEOUT_S = 7200.0

#: parameters that the server takes under their own names
_PASSED = (
    "temperature", "top_p", "frequency_penalty", "presence_penalty", "thinking", "reasoning_effort", "speculation",
    "prompt_cache_key", "prompt_cache_binding", "prompt_cache_retention", "unload_after", "base_url",
)  # fmt: skip
#: names of the output budget, the first that is given counts
_BUDGETS = ("max_output_tokens", "max_tokens", "max_out_tokens")
_ID_HEADERS = {
    "actor_id": "X-AbstractCore-Actor-Id",
    "session_id": "X-AbstractCore-Session-Id",
    "run_id": "X-AbstractCore-Run-Id",
    "parent_run_id": "X-AbstractCore-Parent-Run-Id",
}
PROVIDER_KEY_HEADER = "X-AbstractCore-Provider-API-Key"


def server_root(url: str) -> str:
    """The root of a server's address, with or without `/v1` at its end. Raises ValueError for what is none.

    >>> server_root("http://127.0.0.1:8000/v1/")
    'http://127.0.0.1:8000'
    """
    root = str(url).strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(root)
        usable = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and not parts.query
            and not parts.fragment
        )
        named = parts.username is not None or parts.password is not None
    except ValueError as error:
        raise ValueError(f"server_base_url is no address: {error}") from error
    if named:
        raise ValueError("server_base_url must not hold a user or password: give them as headers=.")
    if not usable:
        raise ValueError(f"server_base_url must be like http://127.0.0.1:8000, found {url!r:.200}.")
    return root


def model_of(default: str, params: Mapping[str, Any]) -> str:
    """The model to ask for: the client's, or what `_provider` and `_model` say instead.

    >>> model_of("ollama/qwen3:4b", {"_provider": "lmstudio", "_model": "phi-4"})
    'lmstudio/phi-4'
    """
    provider, model = _text(params, "_provider"), _text(params, "_model")
    if provider is None:
        return model or default
    name = model or default.partition("/")[2] or default
    return name if name.startswith(f"{provider}/") else f"{provider}/{name}"


def timeout_of(own: float | None, params: Mapping[str, Any]) -> float | None:
    """Seconds that the call may take: the call's, the client's, or two hours; None for ever, asked for as 0 or less."""
    given = params.get("timeout_s")
    seconds = own if given is None else given
    if seconds is None:
        return DEFAULT_TIMEOUT_S
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds != seconds:
        raise LLMError(
            f"timeout_s must be seconds as a number, found {seconds!r:.80}.", kind="invalid_request", retryable=False
        )
    return float(seconds) if 0 < seconds < float("inf") else None


def headers_of(own: Mapping[str, str], params: Mapping[str, Any]) -> dict[str, str]:
    """The client's headers, and those that name the run and carry the provider's key."""
    headers = {"Accept": "application/json", **own}
    trace = params.get("trace_metadata")
    if isinstance(trace, Mapping) and trace:
        safe = admit(dict(trace), "params.trace_metadata")
        headers["X-AbstractCore-Trace-Metadata"] = _ascii(encode(safe).decode())
        for key, header in _ID_HEADERS.items():
            value = safe.get(key)
            if isinstance(value, str) and value and value.isascii() and value.isprintable():
                headers[header] = value  # any other id is in the metadata, where every text can be
    if (secret := provider_key(params)) is not None:
        headers[PROVIDER_KEY_HEADER] = secret
    for name, value in headers.items():
        if not (isinstance(value, str) and value.isascii() and value.isprintable()):
            raise LLMError(
                f"The value of the header {name!r} cannot be sent: it must be printable ASCII.",
                kind="configuration",
                retryable=False,
            )
    return headers


def provider_key(params: Mapping[str, Any]) -> str | None:
    """The key for the provider behind the server, if the call brings one. It is sent as a header, never in the body."""
    return _text(params, "provider_api_key") or _text(params, "api_key")


def chat_body(
    *,
    model: str,
    messages: list[dict[str, Any]],
    tools: Sequence[Any] | None,
    params: Mapping[str, Any],
    timeout_s: float | None,
    stream: bool,
) -> dict[str, Any]:
    """The body of `POST /v1/chat/completions`.

    `agent_format` is `passthrough`: otherwise the server writes tool calls into the text as well, and fails on an
    answer that has no text beside them.
    """
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": stream, "agent_format": "passthrough"}
    body["timeout_s"] = timeout_s or 0
    body |= {name: params[name] for name in _PASSED if params.get(name) is not None}
    budget = next((params[name] for name in _BUDGETS if params.get(name) is not None), None)
    if budget is not None:
        body["max_tokens"] = budget
    stop = params.get("stop")
    if stop:
        body["stop"] = [stop] if isinstance(stop, str) else stop
    seed = params.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0:  # below 0 means: any
        body["seed"] = seed
    if tools:
        body["tools"] = wire_tools(tools)
        if params.get("tool_choice") is not None:
            body["tool_choice"] = params["tool_choice"]
    elif (schema := schema_of(params)) is not None:
        name = _text(params, "response_schema_name") or DEFAULT_NAME
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
    elif params.get("response_format") is not None:
        body["response_format"] = params["response_format"]
    return checked(body)


def chat_messages(
    *,
    prompt: str,
    messages: Sequence[Mapping[str, Any]] | None,
    system_prompt: str | None,
    media: Sequence[dict[str, Any]],
    schema: Any,
) -> list[dict[str, Any]]:
    """The conversation as the server takes it: system prompt, messages, prompt. `media` go to the last of the user's.

    With a schema its text stands in the system prompt too, because servers before 2.25 do not read `response_format`.
    """
    system = [system_prompt] if system_prompt else []
    if schema is not None:
        system.append(schema_instruction(schema))
    sent = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    sent += wire_messages(messages or ())
    if prompt:
        sent.append({"role": "user", "content": prompt})
    if media:
        _attach(sent, list(media))
    return sent


def schema_of(params: Mapping[str, Any]) -> Any:
    """The JSON schema that the answer must fit, or None."""
    schema = params.get("response_schema")
    if schema is None and hasattr(params.get("response_model"), "model_json_schema"):
        schema = params["response_model"].model_json_schema()
    return schema


def checked(body: dict[str, Any]) -> dict[str, Any]:
    """`body` as JSON carries it. Raises `LLMError` naming what it cannot carry."""
    try:
        safe: dict[str, Any] = json_safe(body, "request")
    except UnsafeValue as error:
        text = f"The request cannot be written as JSON: {error}"
        raise LLMError(text, kind="invalid_request", retryable=False) from error
    return safe


def _attach(sent: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    for message in reversed(sent):
        if message.get("role") == "user":
            content = message["content"]
            message["content"] = (content if isinstance(content, list) else _text_parts(content)) + parts
            return
    sent.append({"role": "user", "content": parts})


def _text_parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if content else []


def _text(params: Mapping[str, Any], name: str) -> str | None:
    value = params.get(name)
    return value.strip() or None if isinstance(value, str) else None


def _ascii(text: str) -> str:
    """JSON text with what is not ASCII escaped, and nothing that a header cannot hold."""
    if text.isascii() and "\x7f" not in text:
        return text
    units = (text[i] for i in range(len(text)))
    return "".join(unit if " " <= unit <= "~" else _escaped(unit) for unit in units)


def _escaped(character: str) -> str:
    data = character.encode("utf-16-be")
    return "".join(f"\\u{data[i]:02x}{data[i + 1]:02x}" for i in range(0, len(data), 2))
