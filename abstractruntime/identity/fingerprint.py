"""Who acts: an id computed from what an actor is, so that the same actor has the same id everywhere."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from ..core.errors import UnsafeValue


class ActorFingerprint(Struct, frozen=True):
    """An actor and its id. Use `actor_id` as the `actor_id` of runs."""

    actor_id: str
    kind: str
    display_name: str | None = None
    metadata: dict[str, Any] | None = None

    @classmethod
    def from_metadata(
        cls, *, kind: str, display_name: str | None = None, metadata: dict[str, Any] | None = None
    ) -> ActorFingerprint:
        """The actor of this description: equal descriptions have equal ids. Raises `UnsafeValue` if it is no JSON.

        >>> ActorFingerprint.from_metadata(kind="agent", display_name="Ada").actor_id
        'ar_e508cb48c68433441d52489b'
        """
        described = {"kind": kind, "display_name": display_name, "metadata": metadata or {}}
        try:
            text = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            digest = sha256(text.encode()).hexdigest()
        except (TypeError, ValueError, RecursionError) as error:
            raise UnsafeValue(f"actor {kind!r}", f"its description cannot be written as JSON ({error})") from error
        return cls(f"ar_{digest[:24]}", kind, display_name, metadata)

    def to_dict(self) -> dict[str, Any]:
        """The four fields as a dict."""
        return asdict(self)
