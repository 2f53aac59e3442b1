"""AbstractCore's models and tools as effects of a runtime: `pip install "abstractruntime[abstractcore]"`.

Nothing of AbstractCore is imported before a model or a tool is used.
"""

from ...core.config import RuntimeConfig
from .approvals import ApprovalToolExecutor, ToolApprovalPolicy
from .effect_handlers import build_effect_handlers, make_llm_call_handler
from .event_bus import attach_global_event_bus_bridge, emit_step_record
from .factory import (
    create_async_hybrid_runtime,
    create_async_local_file_runtime,
    create_async_local_runtime,
    create_async_remote_file_runtime,
    create_async_remote_runtime,
    create_hybrid_runtime,
    create_local_file_runtime,
    create_local_runtime,
    create_remote_file_runtime,
    create_remote_runtime,
)
from .llm_call import Delta
from .local_client import LocalAbstractCoreLLMClient, MultiLocalAbstractCoreLLMClient
from .protocols import AbstractCoreControlClient, AbstractCoreLLMClient, LLMError
from .remote_client import RemoteAbstractCoreLLMClient
from .tool_executor import (
    AbstractCoreToolExecutor,
    CompositeToolExecutor,
    DelegatingMcpToolExecutor,
    MappingToolExecutor,
    McpToolExecutor,
    PassthroughToolExecutor,
    ToolExecutor,
)

__all__ = [
    "AbstractCoreControlClient",
    "AbstractCoreLLMClient",
    "AbstractCoreToolExecutor",
    "ApprovalToolExecutor",
    "CompositeToolExecutor",
    "DelegatingMcpToolExecutor",
    "Delta",
    "LLMError",
    "LocalAbstractCoreLLMClient",
    "MappingToolExecutor",
    "McpToolExecutor",
    "MultiLocalAbstractCoreLLMClient",
    "PassthroughToolExecutor",
    "RemoteAbstractCoreLLMClient",
    "RuntimeConfig",
    "ToolApprovalPolicy",
    "ToolExecutor",
    "attach_global_event_bus_bridge",
    "build_effect_handlers",
    "create_async_hybrid_runtime",
    "create_async_local_file_runtime",
    "create_async_local_runtime",
    "create_async_remote_file_runtime",
    "create_async_remote_runtime",
    "create_hybrid_runtime",
    "create_local_file_runtime",
    "create_local_runtime",
    "create_remote_file_runtime",
    "create_remote_runtime",
    "emit_step_record",
    "make_llm_call_handler",
]
