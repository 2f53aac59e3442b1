"""The providers of AbstractCore that a client has made, one per provider, model, address and key, ready to be shared.

Making one imports AbstractCore and may ask the server for its models, so it happens in a worker thread, once for all
who wait for the same. Retries of AbstractCore and of the SDKs below it are switched off: the policy of the runtime is
the only one that repeats a call.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from typing import Any

from msgspec import Struct

from ...core.secrets import SECRET_KEYS
from .extra import needed
from .log_scrubbing import watch_logs
from .severing import quicken

#: providers that are kept; of more, those not in use are closed, the one not used for longest first
MOST_PROVIDERS = 64

#: providers whose models run in this process, which take one call at a time
_IN_PROCESS = ("huggingface", "mlx")

#: the argument under which a call tells its provider of the schema that the answer must fit
ANSWER_MODEL = "_runtime_answer_model"


class Route(Struct, frozen=True):
    """What a provider is made for."""

    provider: str
    model: str
    base_url: str | None = None
    api_key: str | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The same without the secret."""
        mark = "" if self.api_key is None else sha256(self.api_key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self.provider, self.model, self.base_url or "", mark


class _Entry:
    __slots__ = ("instance", "lock", "turn", "users")

    def __init__(self, *, serial: bool) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.instance: Any = None
        #: held during a call of a model that takes one at a time
        self.turn: AbstractContextManager[Any] = threading.Lock() if serial else nullcontext()


class Providers:
    """Makes providers and keeps them. Safe from any thread; `take` blocks while one is made.

    `llm_kwargs` are for the provider `home`: its address is not for another provider, and its key neither for another
    provider nor for another address.
    """

    def __init__(self, home: str, llm_kwargs: Mapping[str, Any] | None = None) -> None:
        self._home, self._kwargs = home, dict(llm_kwargs or {})
        self._entries: OrderedDict[tuple[str, str, str, str], _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def take(self, route: Route) -> Iterator[Any]:
        """The provider, for the time of a call."""
        with self._lock:
            entry = self._entries.setdefault(route.key, _Entry(serial=route.provider in _IN_PROCESS))
            self._entries.move_to_end(route.key)
            entry.users += 1
        try:
            with entry.lock:
                if entry.instance is None:
                    entry.instance = _made(route, self._kwargs_for(route))
            with entry.turn:
                yield entry.instance
        finally:
            with self._lock:
                entry.users -= 1
                surplus = self._surplus()
            for instance in surplus:
                _close(instance)

    def loaded(self) -> list[dict[str, Any]]:
        """The providers that are there, `{"provider", "model", "base_url"}` each; no keys."""
        with self._lock:
            keys = [key for key, entry in self._entries.items() if entry.instance is not None]
        return [{"provider": provider, "model": model, "base_url": url or None} for provider, model, url, _ in keys]

    def close(self) -> None:
        """Close the connections of all; who calls later gets a new one."""
        with self._lock:
            entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            _close(entry.instance)

    def _kwargs_for(self, route: Route) -> dict[str, Any]:
        abroad = route.provider != self._home
        elsewhere = abroad or route.base_url not in (None, self._kwargs.get("base_url"))
        return {
            name: value
            for name, value in self._kwargs.items()
            if not (elsewhere and is_secret_name(name)) and not (abroad and name == "base_url")
        }

    def _surplus(self) -> list[Any]:
        idle = [key for key, entry in self._entries.items() if entry.users == 0]
        over = max(0, len(self._entries) - MOST_PROVIDERS)
        return [self._entries.pop(key).instance for key in idle[:over]]


def is_secret_name(name: str) -> bool:
    """Whether an argument of this name holds a secret."""
    return name.lower().replace("-", "_") in SECRET_KEYS


def _made(route: Route, llm_kwargs: dict[str, Any]) -> Any:
    once = needed("abstractcore.core.retry").RetryConfig(max_attempts=1, failure_threshold=10**9)
    given = {"enable_tracing": True, "max_traces": 0, **llm_kwargs, "retry_config": once}  # an id, and nothing kept
    if route.base_url is not None:
        given["base_url"] = route.base_url
    if route.api_key is not None:
        given["api_key"] = route.api_key
    provider = needed("abstractcore").create_llm(route.provider, model=route.model, **given)
    if hasattr(getattr(provider, "client", None), "max_retries"):  # an SDK with retries of its own
        provider.client.max_retries = 0
    quicken(provider)
    watch_logs(provider)
    _teach_schemas(provider)
    return provider


def _teach_schemas(provider: Any) -> None:
    """Let the provider send a JSON schema with an ordinary call.

    AbstractCore's own way (`response_model=`) returns neither usage nor finish reason, and repeats the call by itself.
    What it does at the last moment, to hand the schema to the server, is all that is needed.
    """
    inner = getattr(provider, "_generate_internal", None)
    if not callable(inner):
        return

    def generate_internal(*args: Any, **kwargs: Any) -> Any:
        model = kwargs.pop(ANSWER_MODEL, None)
        if model is not None:
            kwargs["response_model"] = model
        return inner(*args, **kwargs)

    provider._generate_internal = generate_internal


def sends_schemas(provider: Any) -> bool:
    """Whether the provider can send a JSON schema that its server then holds the answer to."""
    kind, facts = type(provider).__name__, getattr(provider, "model_capabilities", None) or {}
    if kind in ("HuggingFaceProvider", "MLXProvider", "AnthropicProvider"):  # they need a class, or send it as a tool
        return False
    declared = facts.get("structured_output")
    if kind in ("OllamaProvider", "LMStudioProvider"):
        return declared not in ("prompted", "none")
    return bool(declared == "native")


def _close(provider: Any) -> None:
    close = getattr(getattr(provider, "client", None), "close", None)
    if callable(close):
        close()
