"""Actors have the same id wherever it is computed."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from abstractruntime.core.errors import UnsafeValue
from abstractruntime.identity import ActorFingerprint


def test_an_actor_id_is_the_hash_of_the_description():
    text = '{"display_name":"Zoë","kind":"agent","metadata":{"a":1,"b":[true,null]}}'
    actor = ActorFingerprint.from_metadata(kind="agent", display_name="Zoë", metadata={"b": [True, None], "a": 1})
    assert actor.actor_id == "ar_" + hashlib.sha256(text.encode()).hexdigest()[:24]
    assert (actor.kind, actor.display_name, actor.metadata) == ("agent", "Zoë", {"b": [True, None], "a": 1})


def test_no_metadata_is_the_same_as_empty_metadata():
    assert (
        ActorFingerprint.from_metadata(kind="human").actor_id
        == ActorFingerprint.from_metadata(kind="human", metadata={}).actor_id
    )


@pytest.mark.parametrize(
    "other",
    [{"kind": "human"}, {"kind": "agent", "display_name": "Ada"}, {"kind": "agent", "metadata": {"a": 1}}],
)
def test_another_description_is_another_actor(other):
    assert ActorFingerprint.from_metadata(**other).actor_id != ActorFingerprint.from_metadata(kind="agent").actor_id


def test_a_fingerprint_is_positional_frozen_and_a_dict_of_its_fields():
    actor = ActorFingerprint("ar_1", "agent", "Ada")
    assert actor.to_dict() == {"actor_id": "ar_1", "kind": "agent", "display_name": "Ada", "metadata": None}
    with pytest.raises(AttributeError):
        actor.kind = "human"  # type: ignore[misc]


def cycle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize("metadata", [{"x": {1}}, {"x": float("nan")}, {"x": "\ud800"}, cycle()], ids=str)
def test_metadata_that_is_no_json_is_refused(metadata):
    with pytest.raises(UnsafeValue, match="actor 'agent'"):
        ActorFingerprint.from_metadata(kind="agent", metadata=metadata)
