"""Media that a model makes: bytes become artifacts, and the result of the call holds their refs.

Binary data never reaches a run or its ledger: without an artifact store the call fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from ...storage.artifacts import artifact_ref
from .normalising import plain
from .protocols import LLMError

#: of what an artifact is told where it comes from
_ORIGIN = ("session_id", "workflow_id", "node_id", "step_id", "actor_id", "parent_run_id")


class Made(Struct, frozen=True, kw_only=True):
    """One thing that a model made."""

    modality: str
    task: str
    data: bytes | None
    content_type: str = "application/octet-stream"
    format: str | None = None
    backend_id: str | None = None
    provider: str | None = None
    model: str | None = None
    metadata: dict[str, Any] = {}


def made_by_core(response: Any) -> list[Made]:
    """What the answer of AbstractCore to `generate(output=...)` holds.

    >>> made_by_core(llm.generate("a cat", output="image"))  # doctest: +SKIP
    [Made(modality='image', task='image_generation', ...)]
    """
    return [
        Made(
            modality=str(item.modality or modality),
            task=str(item.task or ""),
            data=None if item.data is None else bytes(item.data),
            content_type=item.content_type or "application/octet-stream",
            format=item.format,
            backend_id=item.backend_id,
            provider=item.provider,
            model=item.model,
            metadata=without_contents(item.metadata or {}),
        )
        for modality, items in (response.outputs or {}).items()
        for item in items
    ]


def kept(
    made: Iterable[Made],
    *,
    store: Any,
    trace: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    response: Any = None,
    runtime_provider: str | None = None,
    runtime_model: str | None = None,
    gen_time: float | None = None,
) -> dict[str, Any]:
    """Store what was made and give the documented result of a call with an output selector; blocking.

    `trace` names the run and where in it, `text` is the result of the text that came along, `response` AbstractCore's
    answer, for its resources, warnings and errors. Raises `LLMError`: not retryable without a store, retryable when
    nothing was made. Storing the same content for the same run again gives the same artifact.
    """
    things = list(made)
    outputs: dict[str, list[dict[str, Any]]] = {}
    errors = without_contents([_facts(issue) for issue in getattr(response, "errors", None) or ()])
    for thing in things:
        if thing.data:
            outputs.setdefault(thing.modality, []).append(_stored(thing, store, trace or {}))
    resources = without_contents(
        {name: [_facts(item) for item in items] for name, items in (getattr(response, "resources", None) or {}).items()}
    )
    if not outputs and not resources:
        told = "; ".join(str(issue.get("message")) for issue in errors) or "no reason given"
        raise LLMError(f"The model made no media: {told}", kind="empty")
    said = dict(text or {})
    first = next((thing for thing in things if thing.data), None)
    return {
        "content": said.get("content"),
        "reasoning": said.get("reasoning"),
        "data": said.get("data"),
        "text": said or None,
        "outputs": outputs,
        "resources": resources,
        "warnings": without_contents([_facts(issue) for issue in getattr(response, "warnings", None) or ()]),
        "errors": errors,
        "usage": said.get("usage"),
        "provider": (first and first.provider) or runtime_provider,
        "model": (first and first.model) or runtime_model,
        "runtime_provider": runtime_provider,
        "runtime_model": runtime_model,
        "media_provider": first and first.provider,
        "media_model": first and first.model,
        "finish_reason": said.get("finish_reason") or "stop",
        "metadata": without_contents(getattr(response, "metadata", None) or {}),
        "trace_id": said.get("trace_id"),
        "gen_time": gen_time,
    }


def _stored(thing: Made, store: Any, trace: Mapping[str, Any]) -> dict[str, Any]:
    if store is None:
        raise LLMError(
            "A model made media and there is no artifact store to keep them in: give the runtime artifact_store=.",
            kind="configuration",
            retryable=False,
        )
    origin = {key: trace[key] for key in _ORIGIN if isinstance(trace.get(key), str)}
    run_id = trace.get("run_id")
    meta = store.store(
        thing.data,
        content_type=thing.content_type,
        run_id=run_id if isinstance(run_id, str) else None,
        tags={"kind": "generated_media", "modality": thing.modality},
        descriptor={
            "semantic_kind": "generated_media",
            "modality": thing.modality,
            "task": thing.task or None,
            "generation": {"provider": thing.provider, "model": thing.model},
            **origin,
        },
    )
    return {
        "modality": thing.modality,
        "task": thing.task,
        "content_type": thing.content_type,
        "format": thing.format,
        "backend_id": thing.backend_id,
        "provider": thing.provider,
        "model": thing.model,
        "artifact_ref": artifact_ref(meta.artifact_id),
        "artifact_id": meta.artifact_id,
        "size_bytes": meta.size_bytes,
        "metadata": thing.metadata,
    }


def without_contents(value: Any) -> Any:
    """`value` as JSON can carry it: without bytes, and without contents in base64.

    >>> without_contents({"seed": 7, "image": b"...", "b64_json": "iVBO", "size": (1, 2)})
    {'seed': 7, 'size': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): without_contents(item) for key, item in value.items() if not _is_content(key, item)}
    if isinstance(value, list | tuple):
        return [without_contents(item) for item in value if not isinstance(item, bytes | bytearray)]
    return plain(value)


def _is_content(key: Any, item: Any) -> bool:
    return isinstance(item, bytes | bytearray) or (isinstance(item, str) and str(key).startswith("b64"))


def _facts(thing: Any) -> dict[str, Any]:
    """The fields of an object of AbstractCore, or of a dict."""
    return dict(thing) if isinstance(thing, Mapping) else dict(vars(thing))
