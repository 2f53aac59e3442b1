"""Pictures and speech made by the server's providers, through `/v1/images/generations` and `/v1/audio/speech`.

Video, music, editing of pictures and voices of one's own have no remote form here: such a selector is refused. What the
server can do depends on its installation; a light AbstractCore forwards pictures to OpenAI-compatible providers and
speech to those that list their models.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.threads import WorkerThreads
from .media import media_list
from .media_outputs import Made, kept, without_contents
from .protocols import LLMError
from .remote_failures import failure_of, parsed, unreadable
from .remote_request import checked
from .remote_transport import Answer, Transport

IMAGES, SPEECH = "/v1/images/generations", "/v1/audio/speech"
#: what a selector may say, and what it means
_MODALITIES = {
    "image": "image", "image_generation": "image", "t2i": "image",
    "voice": "voice", "speech": "voice", "audio": "voice", "tts": "voice",
    "text": "text", "text_generation": "text",
}  # fmt: skip
#: of a selector, what is for us and not for the provider
_OURS = {
    "id", "modality", "type", "output", "task", "source", "prompt", "text", "media", "provider", "model", "run_id",
    "tags", "artifact_id",
}  # fmt: skip
_SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp"))


class RemoteMedia:
    """Makes what `params["output"]` asks for: `"image"`, `{"modality": "voice", "model": ...}`, or a list of such."""

    def __init__(self, transport: Transport, threads: WorkerThreads) -> None:
        self._transport, self._threads = transport, threads

    def wanted(self, params: Mapping[str, Any]) -> bool:
        """Whether anything but text is asked for. Raises `LLMError` for what the server cannot be asked for."""
        return any(modality != "text" for modality, _ in _specs(params))

    def wants_text(self, params: Mapping[str, Any]) -> bool:
        """Whether text is asked for beside the rest."""
        return any(modality == "text" for modality, _ in _specs(params))

    def check(self, params: Mapping[str, Any], media: Any, store: Any) -> None:
        """Raise `LLMError` for what cannot be made or kept, before anything is paid for."""
        if store is None:
            raise _impossible("configuration", "Media need an artifact store to be kept in: give artifact_store=.")
        if media_list(media) and not self.wants_text(params):
            raise _impossible(
                "invalid_request",
                "A server is asked for pictures and speech by a text alone: leave out media, or run the model locally.",
            )

    async def make(
        self,
        prompt: str,
        params: Mapping[str, Any],
        *,
        default_model: str,
        headers: dict[str, str],
        timeout_s: float | None,
        store: Any,
        text: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Make everything in order, keep it, and give the documented result; `text` is the one that came along."""
        made: list[Made] = []
        for modality, spec in _specs(params):
            if modality != "text":
                body = _body(modality, str(spec.get("prompt") or spec.get("text") or prompt), spec, params)
                path = IMAGES if modality == "image" else SPEECH
                answer = await self._transport.send(
                    "POST", path, headers=headers, body=body, timeout_s=timeout_s, binary=modality == "voice"
                )
                if not 200 <= answer.status < 300:
                    raise failure_of(answer.status, answer.headers, answer.content)
                made += _pictures(answer, spec) if modality == "image" else [_sound(answer, spec)]
        provider, _, model = default_model.partition("/")
        trace = params.get("trace_metadata")
        result: dict[str, Any] = await self._threads.run(
            lambda: kept(made, store=store, trace=trace, text=text, runtime_provider=provider, runtime_model=model)
        )
        return result


def _specs(params: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    given = params.get("output") or params.get("outputs")
    if not given:
        return []
    items = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    return [_spec(item) for item in items]


def _spec(item: Any) -> tuple[str, dict[str, Any]]:
    spec = {"modality": item} if isinstance(item, str) else dict(item) if isinstance(item, Mapping) else {}
    task = str(spec.get("task") or "").strip().lower()
    name = str(spec.get("modality") or spec.get("type") or spec.get("output") or task).strip().lower()
    modality = _MODALITIES.get(name)
    if modality is None or (task and _MODALITIES.get(task) != modality):
        raise _impossible(
            "invalid_request",
            f"A server can be asked for pictures and speech, found the output selector {item!r:.200}. Say "
            '{"modality": "image"} or {"modality": "voice"}, or run the model locally.',
        )
    return modality, spec


def _body(modality: str, text: str, spec: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in spec.items() if key not in _OURS and value is not None}
    body["prompt" if modality == "image" else "input"] = text
    provider, model = spec.get("provider"), spec.get("model")
    if model:
        body["model"] = f"{provider}/{model}" if provider and not str(model).startswith(f"{provider}/") else model
    elif provider:
        body["provider"] = provider
    if params.get("base_url") is not None:
        body.setdefault("base_url", params["base_url"])
    return checked(body)


def _pictures(answer: Answer, spec: Mapping[str, Any]) -> list[Made]:
    body = parsed(answer.content)
    items = body.get("data")
    if not isinstance(items, list) or not items:
        raise unreadable("it holds no pictures")
    return [_picture(item, spec) for item in items]


def _picture(item: Any, spec: Mapping[str, Any]) -> Made:
    text = item.get("b64_json") if isinstance(item, dict) else None
    try:
        data = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise unreadable(f"a picture is no base64 ({error})") from error
    if not data:
        raise unreadable("a picture is empty")
    kind = next((kind for mark, kind in _SIGNATURES if data.startswith(mark)), "application/octet-stream")
    return _made("image", "image_generation", data, kind, spec, without_contents(item))


def _sound(answer: Answer, spec: Mapping[str, Any]) -> Made:
    if not answer.content:
        raise unreadable("the sound is empty")
    kind = {name.lower(): value for name, value in answer.headers.items()}.get("content-type", "audio/wav")
    return _made("voice", "tts", answer.content, kind.partition(";")[0].strip(), spec, {})


def _made(
    modality: str, task: str, data: bytes, content_type: str, spec: Mapping[str, Any], facts: dict[str, Any]
) -> Made:
    model = str(spec["model"]) if spec.get("model") else None
    provider = str(spec["provider"]) if spec.get("provider") else None
    if provider is None and model is not None and "/" in model:
        provider, _, model = model.partition("/")
    return Made(
        modality=modality,
        task=task,
        data=data,
        content_type=content_type,
        format=content_type.partition("/")[2],
        provider=provider,
        model=model,
        metadata=facts,
    )


def _impossible(kind: str, text: str) -> LLMError:
    return LLMError(text, kind=kind, retryable=False)
