"""Runtimes whose LLM_CALL, TOOL_CALLS and MODEL_RESIDENCY are AbstractCore's: local, remote, hybrid, in files or not.

*Local*: model and tools in this process. *Remote*: the model on an AbstractCore Server, tools wherever the host runs
them: a run waits for their results. *Hybrid*: the model on a server, tools here. Each comes as a blocking `Runtime` and
as an `AsyncRuntime`, which close the connections to models when they are closed. Without stores they keep runs in
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

from msgspec.structs import replace

from ...core.config import RuntimeConfig
from ...core.policy import EffectPolicy, RetryPolicy
from ...runtime import AsyncRuntime
from ...storage.artifacts import FileArtifactStore, InMemoryArtifactStore
from ...storage.in_memory import InMemoryLedgerStore, InMemoryRunStore
from ...storage.json_files import JsonFileRunStore, JsonlLedgerStore
from ...storage.observable import ObservableLedgerStore, ObservableLedgerStoreProtocol
from ...sync import Runtime
from .effect_handlers import build_effect_handlers
from .llm_call import Delta
from .local_client import MultiLocalAbstractCoreLLMClient
from .runtime_options import RuntimeOptions
