"""From what callers say about an artifact to its metadata: arguments checked, kinds told, earlier metadata kept."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from typing import Any, BinaryIO

from msgspec import Struct
from msgspec.structs import asdict, replace

from ...core.clock import iso, parse_instant
from ...core.errors import ArtifactConflict, UnsafeValue
from ...core.ids import check_optional, check_text
from ...core.secrets import admit
from .models import ArtifactDescriptor, ArtifactMetadata
from .refs import ContentDigest, check_artifact_id

DEFAULT_TYPE = "application/octet-stream"

#: content types whose kind does not show in their first half
_KINDS = {
    "application/json": "json",
    "application/ld+json": "json",
    "application/x-ndjson": "json",
    "text/markdown": "markdown",
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/css": "code",
    "text/javascript": "code",
    "application/javascript": "code",
    "text/x-python": "code",
    "application/x-python-code": "code",
    "application/x-sh": "code",
    "application/sql": "code",
    "application/pdf": "document",
    "application/msword": "document",
    "application/rtf": "document",
    "application/epub+zip": "document",
}
_DOCUMENTS = ("application/vnd.openxmlformats-officedocument.", "application/vnd.oasis.opendocument.")
_MODALITIES = {"code": "text", "json": "text", "markdown": "text", "html": "text", "binary": None}
_WAV = {"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"}

#: fields of a descriptor that a tag of the same name fills in when they are not given
_FROM_TAGS = (
    "semantic_kind", "modality", "task", "session_id", "workflow_id", "node_id", "step_id", "effect_id", "turn_id",
    "parent_run_id", "actor_id",
)  # fmt: skip


class About(Struct, frozen=True, kw_only=True):
    """What a caller says about a content, checked and fit to be persisted."""

    content_type: str
    run_id: str | None
    tags: dict[str, str]
    metadata: dict[str, Any]
    descriptor: ArtifactDescriptor
    artifact_id: str | None

    def metadata_of(self, digest: ContentDigest, media: dict[str, Any], created_at: str) -> ArtifactMetadata:
        """The metadata of a new artifact."""
        return ArtifactMetadata(
            artifact_id=self.artifact_id or digest.artifact_id,
            content_type=self.content_type,
            size_bytes=digest.size,
            created_at=created_at,
            blob_id=digest.blob_id,
            run_id=self.run_id,
            tags=self.tags,
            metadata=self.metadata,
            descriptor=_described(self.descriptor, self.content_type, self.run_id, self.tags, media),
        )


def check_about(
    content_type: str,
    run_id: str | None,
    tags: Mapping[str, str] | None,
    metadata: Mapping[str, Any] | None,
    descriptor: ArtifactDescriptor | Mapping[str, Any] | None,
    artifact_id: str | None,
) -> About:
    """The arguments of `store`. Raises `InvalidId` or `UnsafeValue`, both ValueErrors, naming the wrong one."""
    return About(
        content_type=check_text(content_type, "content_type") or DEFAULT_TYPE,
        run_id=check_optional(run_id, "run_id"),
        tags=check_tags(tags),
        metadata=check_dict(metadata, "metadata"),
        descriptor=check_descriptor(descriptor),
        artifact_id=None if artifact_id is None else check_artifact_id(artifact_id),
    )


def check_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of tags: texts by name."""
    return {
        check_text(key, "the name of a tag"): check_text(value, f"tags[{key!r}]")
        for key, value in check_dict(tags, "tags").items()
    }


def check_dict(value: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """A copy of a dict as it may be persisted."""
    if value is not None and not isinstance(value, Mapping):
        raise UnsafeValue(what, f"a dict is expected, found a {type(value).__name__}")
    safe: dict[str, Any] = admit(dict(value or {}), what)
    return safe


def check_descriptor(descriptor: ArtifactDescriptor | Mapping[str, Any] | None) -> ArtifactDescriptor:
    """A copy of a descriptor, given as one or as a dict of some of its fields."""
    given = asdict(descriptor) if isinstance(descriptor, ArtifactDescriptor) else descriptor
    return ArtifactDescriptor.from_dict(check_dict(given, "descriptor"))


def merged(earlier: ArtifactMetadata, later: ArtifactMetadata) -> ArtifactMetadata:
    """The metadata of an artifact that is stored again: all that was known stays, what is new is added.

    Raises `ArtifactConflict` when the id stands for another content, or for the content of another run.
    """
    for name in ("blob_id", "run_id"):
        if getattr(earlier, name) != getattr(later, name):
            raise ArtifactConflict(earlier.artifact_id, "content" if name == "blob_id" else name)
    return replace(
        earlier,
        content_type=later.content_type if earlier.content_type == DEFAULT_TYPE else earlier.content_type,
        tags={**later.tags, **earlier.tags},
        metadata={**later.metadata, **earlier.metadata},
        descriptor=overlaid(later.descriptor, earlier.descriptor),
    )


def overlaid(below: ArtifactDescriptor, above: ArtifactDescriptor) -> ArtifactDescriptor:
    """Both in one: where both say something, the one above holds."""
    return replace(below, **{name: value for name, value in asdict(above).items() if value not in (None, {}, [])})


def render_kind(content_type: str) -> str:
    """How to show a content of this type.

    >>> render_kind("text/markdown; charset=utf-8")
    'markdown'
    """
    name = _plain(content_type)
    if name in _KINDS:
        return _KINDS[name]
    if name.endswith("+json"):
        return "json"
    family = name.partition("/")[0]
    if family in ("image", "audio", "video", "text"):
        return family
    return "document" if name.startswith(_DOCUMENTS) else "binary"


def wav_media(content_type: str, content: BinaryIO) -> dict[str, Any]:
    """What the header of a WAV file says; nothing of any other type, or of what is none after all."""
    if _plain(content_type) not in _WAV:
        return {}
    try:
        with wave.open(content) as sound:
            rate, frames = sound.getframerate(), sound.getnframes()
            return {
                "channels": sound.getnchannels(),
                "sample_rate": rate,
                "sample_width": sound.getsampwidth(),
                "frames": frames,
                "duration_s": frames / rate if rate else 0.0,
            }
    except (wave.Error, EOFError):  # the type was only claimed
        return {}


def instant(text: str) -> str:
    """An instant in the form in which stored ones sort. Raises ValueError."""
    return iso(parse_instant(text))


def _plain(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _described(
    given: ArtifactDescriptor, content_type: str, run_id: str | None, tags: dict[str, str], media: dict[str, Any]
) -> ArtifactDescriptor:
    kind = render_kind(content_type)
    told = {name: tags[name] for name in _FROM_TAGS if name in tags}
    found = ArtifactDescriptor(
        semantic_kind=tags.get("kind"),
        render_kind=kind,
        modality=_MODALITIES.get(kind, kind),
        classification_source="content_type" if given.render_kind is None else "caller",
        provenance={} if run_id is None else {"run_id": run_id},
        media=media,
    )
    return overlaid(replace(found, **told), given)
