"""Media that go into a call: from artifacts, paths and dicts to what AbstractCore or its server takes.

An item of `media` is one of

* a path as text,
* `{"$artifact": id}` or `{"artifact_id": id}`, and perhaps `filename` and `content_type`,
* a dict as AbstractCore takes it: `{"path": ...}` or `{"content": ..., "mime_type": ...}`,
* `{"url": ...}`, or a content part as OpenAI has it: `{"type": "image_url", "image_url": {"url": ...}}`.

Contents are read when the call is made and never stored in the run. Pictures need Pillow in the process that talks to
the model (`pip install "abstractruntime[multimodal]"`): a light AbstractCore drops them with a line in the log, so
`media_files` refuses them there.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import mimetypes
import re
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from ...core.errors import InvalidId
from .protocols import LLMError

UNKNOWN_TYPE = "application/octet-stream"
#: bytes of one item
LARGEST = 100 * 2**20
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Medium(Struct, frozen=True, kw_only=True):
    """One item: its content, or the address or content part that stands for it."""

    name: str = "media"
    content_type: str = UNKNOWN_TYPE
    data: bytes = b""
    url: str | None = None
    part: dict[str, Any] | None = None


def media_list(media: Any) -> list[Any]:
    """The items of `media`, which may be one of them, a list or None."""
    if media is None or media == "":
        return []
    return list(media) if isinstance(media, list | tuple) else [media]


def read_medium(item: Any, store: Any) -> Medium:
    """Read an item; blocking. Raises `LLMError`, not retryable, naming what cannot be had.

    `store` is the artifact store, and may be None where no item is an artifact.
    """
    if isinstance(item, str | Path):
        return _read_path(Path(item), {})
    if not isinstance(item, Mapping):
        raise _refused(f"An item of media must be a path or a dict, found {type(item).__name__}.")
    if artifact_of(item) is not None:
        return _read_artifact(item, store)
    path = item.get("path") or item.get("file_path")
    if isinstance(path, str) and item.get("content") is None:
        return _read_path(Path(path), item)
    if item.get("type") in ("image_url", "file", "text"):
        return Medium(part=dict(item))
    if isinstance(item.get("url"), str):
        return Medium(url=item["url"], content_type=_type_of(item) or _guessed(item["url"]))
    if item.get("content") is not None:
        return _given(item)
    raise _refused(
        f"An item of media needs $artifact, path, url or content; found only {sorted(map(str, item))!r:.200}."
    )


def content_part(medium: Medium) -> dict[str, Any]:
    """The item as a part of a message for the server: a picture as `image_url`, all else as `file`."""
    if medium.part is not None:
        return medium.part
    url = medium.url
    if url is None:
        url = f"data:{medium.content_type};base64,{base64.b64encode(medium.data).decode()}"
    if medium.content_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file_url": {"url": url}}


@contextmanager
def media_files(media: Any, store: Any) -> Generator[list[Any], None, None]:
    """`media` as an AbstractCore of this process takes it: artifacts as files, which are deleted at the end.

    Blocking. Raises `LLMError`, not retryable, for an artifact that is not there and for pictures without Pillow.
    """
    with tempfile.TemporaryDirectory(prefix="abstractruntime-media-") as folder:
        ready: list[Any] = []
        for index, item in enumerate(media_list(media)):
            if isinstance(item, Mapping) and artifact_of(item) is not None:
                medium = _read_artifact(item, store)
                place = Path(folder, str(index), medium.name)
                place.parent.mkdir()
                place.write_bytes(medium.data)
                item = str(place)
            _check_supported(item)
            ready.append(item)
        yield ready


def artifact_of(item: Mapping[str, Any]) -> str | None:
    """The id of the artifact that an item names, or None."""
    found = item.get("$artifact", item.get("artifact_id"))
    return None if found is None else str(found)


def _read_artifact(item: Mapping[str, Any], store: Any) -> Medium:
    identity = artifact_of(item)
    if store is None:
        raise _refused(f"media names the artifact {identity!r}, and there is no artifact store to read it from.")
    try:
        known = store.get_metadata(identity)
        _check_size(str(identity), 0 if known is None else known.size_bytes)
        artifact = store.load(identity)
    except InvalidId as error:
        raise _refused(f"media: {error}") from error
    if artifact is None:
        raise _refused(f"media names the artifact {identity!r}, which is not in the artifact store.")
    content_type = _type_of(item) or artifact.content_type or UNKNOWN_TYPE
    name = item.get("filename") or artifact.metadata.tags.get("filename") or f"{identity}{_ending(content_type)}"
    return Medium(name=_safe_name(str(name)), content_type=content_type, data=artifact.content)


def _read_path(path: Path, item: Mapping[str, Any]) -> Medium:
    try:
        place = path.expanduser()
        if place.exists() and not place.is_file():  # a pipe would never end
            raise _refused(f"media: {str(path)!r:.300} is no file.")
        _check_size(str(path), place.stat().st_size)
        data = place.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a home that nobody has
        raise _refused(f"media: {str(path)!r:.300} cannot be read ({error}).") from error
    return Medium(name=_safe_name(path.name), content_type=_type_of(item) or _guessed(path.name), data=data)


def _given(item: Mapping[str, Any]) -> Medium:
    content, kind = item["content"], _type_of(item)
    if isinstance(content, str) and item.get("content_format") == "base64":
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refused(f"media: the content of an item is no base64 ({error}).") from error
    elif isinstance(content, str):
        data, kind = content.encode("utf-8", "replace"), kind or "text/plain"
    else:
        raise _refused(f"media: the content of an item must be text, found {type(content).__name__}.")
    return Medium(content_type=kind or UNKNOWN_TYPE, data=data)


def _check_supported(item: Any) -> None:
    """Refuse a picture that AbstractCore would drop."""
    facts = item if isinstance(item, Mapping) else {"path": str(item)}
    kind = _type_of(facts) or _guessed(str(facts.get("path") or facts.get("file_path") or ""))
    if kind.startswith("image/") and importlib.util.find_spec("PIL") is None:
        raise _refused('Pictures need Pillow, which is not installed: pip install "abstractruntime[multimodal]"')


def _check_size(name: str, size: int) -> None:
    if size > LARGEST:
        raise _refused(f"media: {name!r:.300} has {size} bytes, more than the {LARGEST} that a call may carry.")


def _type_of(item: Mapping[str, Any]) -> str | None:
    found = item.get("content_type") or item.get("mime_type")
    return found if isinstance(found, str) and found != "auto" else None


def _guessed(name: str) -> str:
    if name.startswith("data:"):
        return name[5:].partition(";")[0].partition(",")[0] or UNKNOWN_TYPE
    return mimetypes.guess_type(name)[0] or UNKNOWN_TYPE


def _ending(content_type: str) -> str:
    return mimetypes.guess_extension(content_type.partition(";")[0].strip()) or ".bin"


def _safe_name(name: str) -> str:
    """A file name without folders, or anything that a file system takes for more than a name."""
    return _UNSAFE.sub("_", name)[-120:].lstrip(".") or "media"


def _refused(text: str) -> LLMError:
    return LLMError(text, kind="invalid_request", retryable=False)
