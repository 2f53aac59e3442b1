"""The documented address of the LLM clients."""

from .local_client import LocalAbstractCoreLLMClient, MultiLocalAbstractCoreLLMClient
from .protocols import AbstractCoreControlClient, AbstractCoreLLMClient, LLMError
from .remote_client import RemoteAbstractCoreLLMClient

__all__ = [
    "AbstractCoreControlClient",
    "AbstractCoreLLMClient",
    "LLMError",
    "LocalAbstractCoreLLMClient",
    "MultiLocalAbstractCoreLLMClient",
    "RemoteAbstractCoreLLMClient",
]
