"""Runtimes whose LLM_CALL, TOOL_CALLS and MODEL_RESIDENCY are AbstractCore's: local, remote, hybrid, in files or not.

*Local*: model and tools in this process. *Remote*: the model on an AbstractCore Server, tools wherever the host runs
them: a run waits for their results. *Hybrid*: the model on a server, tools here. Each comes as a blocking `Runtime` and
as an `AsyncRuntime`; both close the connections to models when they are closed. Without stores, runs live in memory.

What all of them take:

* `run_store`, `ledger_store`: both or neither; with one alone, both are in memory;
* `effect_policy`: three attempts at LLM_CALL and one at TOOL_CALLS, unless it says otherwise;
* `config`, `context`, `artifact_store`, and the other arguments of `AsyncRuntime`, as there;
* `extra_effect_handlers`: handlers that are added, or take the place of ours;
* `tool_executor`: who runs tools; its `set_timeout_s` gets `tool_timeout_s`;
* `on_delta`: gets the pieces of answers as they come, see `make_llm_call_handler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from ...runtime import AsyncRuntime
from ...storage.artifacts import FileArtifactStore
from ...storage.json_files import JsonFileRunStore, JsonlLedgerStore
from ...sync import Runtime
from .assembling import BridgeOptions, local_parts, remote_parts


def create_local_runtime(
    *,
    provider: str,
    model: str,
    llm_kwargs: dict[str, Any] | None = None,
    bloc_root_dir: Any = None,
    prompt_cache_export_root_dir: Any = None,
    core_config_file: Any = None,
    capability_defaults: Any = None,
    **options: Unpack[BridgeOptions],
) -> Runtime:
    """A runtime whose models and tools run in this process.

    `provider` and `model` are AbstractCore's, `llm_kwargs` more arguments of its `create_llm`; an effect may name
    others. What is known about the model goes into `config`. `bloc_root_dir`, `prompt_cache_export_root_dir`,
    `core_config_file` and `capability_defaults` are taken for programs that give them and do nothing: AbstractCore has
    settings of its own for these, and a warning is logged. Raises ImportError without AbstractCore.

    >>> rt = create_local_runtime(provider="ollama", model="qwen3:4b")
    """
    unused = _named(bloc_root_dir, prompt_cache_export_root_dir, core_config_file, capability_defaults)
    return Runtime(**local_parts(provider, model, llm_kwargs, unused, options))


def create_async_local_runtime(
    *,
    provider: str,
    model: str,
    llm_kwargs: dict[str, Any] | None = None,
    bloc_root_dir: Any = None,
    prompt_cache_export_root_dir: Any = None,
    core_config_file: Any = None,
    capability_defaults: Any = None,
    **options: Unpack[BridgeOptions],
) -> AsyncRuntime:
    """`create_local_runtime` for async programs.

    It imports AbstractCore, which takes half a second: call it before the loop runs, or with `asyncio.to_thread`.
    """
    unused = _named(bloc_root_dir, prompt_cache_export_root_dir, core_config_file, capability_defaults)
    return AsyncRuntime(**local_parts(provider, model, llm_kwargs, unused, options))


def create_remote_runtime(
    *,
    server_base_url: str,
    model: str,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    **options: Unpack[BridgeOptions],
) -> Runtime:
    """A runtime whose models run on an AbstractCore Server, and whose tools the host runs.

    TOOL_CALLS wait, for reason `event`, until `resume` brings `{"mode": "executed", "results": [...]}`; with a
    `tool_executor` they run here. `model` is `provider/model`, `headers` go with every request.
    """
    return Runtime(**remote_parts(server_base_url, model, headers, timeout_s, options))


def create_async_remote_runtime(
    *,
    server_base_url: str,
    model: str,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    **options: Unpack[BridgeOptions],
) -> AsyncRuntime:
    """`create_remote_runtime` for async programs."""
    return AsyncRuntime(**remote_parts(server_base_url, model, headers, timeout_s, options))


def create_hybrid_runtime(
    *,
    server_base_url: str,
    model: str,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    **options: Unpack[BridgeOptions],
) -> Runtime:
    """A runtime whose models run on an AbstractCore Server, and whose tools run here, in `tool_executor`."""
    return Runtime(**remote_parts(server_base_url, model, headers, timeout_s, options, tools_here=True))


def create_async_hybrid_runtime(
    *,
    server_base_url: str,
    model: str,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    **options: Unpack[BridgeOptions],
) -> AsyncRuntime:
    """`create_hybrid_runtime` for async programs."""
    return AsyncRuntime(**remote_parts(server_base_url, model, headers, timeout_s, options, tools_here=True))


def create_local_file_runtime(*, base_dir: str | Path, provider: str, model: str, **options: Any) -> Runtime:
    """`create_local_runtime` with runs, ledgers and artifacts as files in one folder."""
    return create_local_runtime(provider=provider, model=model, **_in_files(base_dir), **options)


def create_async_local_file_runtime(*, base_dir: str | Path, provider: str, model: str, **options: Any) -> AsyncRuntime:
    """`create_local_file_runtime` for async programs."""
    return create_async_local_runtime(provider=provider, model=model, **_in_files(base_dir), **options)


def create_remote_file_runtime(*, base_dir: str | Path, server_base_url: str, model: str, **options: Any) -> Runtime:
    """`create_remote_runtime` with runs, ledgers and artifacts as files in one folder."""
    return create_remote_runtime(server_base_url=server_base_url, model=model, **_in_files(base_dir), **options)


def create_async_remote_file_runtime(
    *, base_dir: str | Path, server_base_url: str, model: str, **options: Any
) -> AsyncRuntime:
    """`create_remote_file_runtime` for async programs."""
    return create_async_remote_runtime(server_base_url=server_base_url, model=model, **_in_files(base_dir), **options)


def _in_files(base_dir: str | Path) -> dict[str, Any]:
    return {
        "run_store": JsonFileRunStore(base_dir),
        "ledger_store": JsonlLedgerStore(base_dir),
        "artifact_store": FileArtifactStore(base_dir),
    }


def _named(bloc: Any, export: Any, file: Any, defaults: Any) -> list[str]:
    """The names of the arguments that were given and do nothing."""
    given = {
        "bloc_root_dir": bloc,
        "prompt_cache_export_root_dir": export,
        "core_config_file": file,
        "capability_defaults": defaults,
    }
    return [name for name, value in given.items() if value is not None]
