"""Artifact stores: what the documented methods do, in memory and in files alike."""

from __future__ import annotations

import asyncio
import hashlib
import io
import wave
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    Artifact,
    ArtifactAccessStats,
    ArtifactConflict,
    ArtifactDescriptor,
    ArtifactMetadata,
    ArtifactStore,
    AsyncFileArtifactStore,
    AsyncInMemoryArtifactStore,
    FileArtifactStore,
    InMemoryArtifactStore,
    InvalidId,
    UnknownArtifact,
    UnsafeValue,
    artifact_ref,
    compute_artifact_id,
    get_artifact_id,
    is_artifact_ref,
    resolve_artifact,
)

from .clocks import StillClock

PATHS = ["../evil", "a/b", "a\\b", "", ".", "a.b", "a b", "é", "a\0b", "x" * 201, None, 7]


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: StillClock) -> ArtifactStore:
    if request.param == "memory":
        return InMemoryArtifactStore(clock=clock)
    return FileArtifactStore(tmp_path, durability="none", clock=clock)


# -- ids and refs


def test_the_id_is_a_hash_of_run_and_content():
    assert compute_artifact_id(b"x") == hashlib.sha256(b"x").hexdigest()[:32]
    assert compute_artifact_id(b"x", run_id="r") == hashlib.sha256(b"r\0x").hexdigest()[:32]


def test_a_ref_is_a_dict_that_holds_an_id():
    assert artifact_ref("a-1") == {"$artifact": "a-1"}
    assert is_artifact_ref({"$artifact": "a-1", "name": "more"})
    assert not any(map(is_artifact_ref, [{}, {"artifact": "a"}, "a", None, ["$artifact"]]))
    assert get_artifact_id({"$artifact": "a-1", "name": "more"}) == "a-1"


@pytest.mark.parametrize("value", [{}, "a", None, {"$artifact": None}, {"$artifact": "../a"}])
def test_what_is_no_ref_has_no_id(value):
    with pytest.raises(InvalidId):
        get_artifact_id(value)


def test_a_ref_is_resolved_by_its_store(store):
    ref = artifact_ref(store.store_text("hello").artifact_id)
    assert resolve_artifact(ref, store).as_text() == "hello"
    assert resolve_artifact(artifact_ref("nobody"), store) is None


@pytest.mark.parametrize("bad", PATHS)
def test_an_id_that_could_be_a_path_is_refused_everywhere(store, bad):
    calls = [
        store.load, store.load_text, store.load_json, store.get_metadata, store.exists, store.delete, store.open,
        store.content_path, store.update_metadata, lambda x: store.record_access(x, action="a"),
        lambda x: next(store.iter_content(x)), artifact_ref,
    ]  # fmt: skip
    if bad is not None:
        calls.append(lambda x: store.store(b"", artifact_id=x))
    for call in calls:
        with pytest.raises(InvalidId):
            call(bad)


# -- storing and loading


def test_what_is_stored_is_loaded(store, clock):
    meta = store.store(b"\0\xff", content_type="image/x", run_id="r", tags={"a": "1"}, metadata={"n": [1]})
    assert meta.artifact_id == compute_artifact_id(b"\0\xff", run_id="r")
    assert (meta.content_type, meta.size_bytes, meta.run_id) == ("image/x", 2, "r")
    assert (meta.tags, meta.metadata) == ({"a": "1"}, {"n": [1]})
    assert meta.created_at == "2026-01-31T09:00:00.000000+00:00"
    assert meta.blob_id == hashlib.sha256(b"\0\xff").hexdigest()
    found = store.load(meta.artifact_id)
    assert (found.metadata, found.content) == (meta, b"\0\xff")
    assert (found.artifact_id, found.content_type) == (meta.artifact_id, "image/x")
    assert store.get_metadata(meta.artifact_id) == meta
    assert store.exists(meta.artifact_id)


def test_texts_and_json_values_keep_their_form(store):
    text = store.store_text("grün", encoding="latin-1")
    assert store.load(text.artifact_id).content == b"gr\xfcn"
    assert store.load_text(text.artifact_id, "latin-1") == "grün"
    assert text.content_type == "text/plain"
    data = store.store_json({"b": [1, 2.5, None], "ä": "é"})
    assert store.load(data.artifact_id).content == '{"b":[1,2.5,null],"ä":"é"}'.encode()
    assert store.load_json(data.artifact_id) == {"b": [1, 2.5, None], "ä": "é"}
    assert data.content_type == "application/json"


def test_a_missing_artifact_is_none_and_false(store):
    assert [store.load("no"), store.load_text("no"), store.load_json("no"), store.get_metadata("no")] == [None] * 4
    assert [store.content_path("no"), store.update_metadata("no"), store.record_access("no", action="a")] == [None] * 3
    assert [store.exists("no"), store.delete("no"), store.delete_by_run("no")] == [False, False, 0]
    assert [store.list_all(), store.list_by_run("no"), store.count(), store.facet_counts("run_id")] == [[], [], 0, {}]
    for call in (store.open, lambda x: list(store.iter_content(x))):
        with pytest.raises(UnknownArtifact, match="'no'"):
            call("no")
    with pytest.raises(KeyError):
        store.open("no")


@pytest.mark.parametrize("content", [b"", b"x", b"0123456789"])
def test_a_content_is_read_in_pieces_and_as_a_file(store, content):
    artifact_id = store.store(content).artifact_id
    assert list(store.iter_content(artifact_id, chunk_size=4)) == [
        content[i : i + 4] for i in range(0, len(content), 4)
    ]
    with store.open(artifact_id) as file:
        assert file.read() == content
        file.seek(0)
        assert file.read(1) == content[:1]
    with pytest.raises(ValueError, match=r"chunk_size|arg 3"):
        list(store.iter_content(artifact_id, chunk_size=0))


def test_a_stream_may_be_a_file_or_pieces_and_makes_the_same_artifact(store, tmp_path):
    whole = store.store(b"abc" * 1000, run_id="r")
    path = tmp_path / "source"
    path.write_bytes(b"abc" * 1000)
    again = [
        store.store_stream([b"abc"] * 1000, run_id="r"),
        store.store_stream((bytearray(b"abc") for _ in range(1000)), run_id="r"),
        store.store_stream(io.BytesIO(b"abc" * 1000), run_id="r"),
        store.store_file(path, run_id="r"),
    ]
    assert again == [whole] * 4
    assert store.store_stream([]).size_bytes == 0


def test_a_source_that_breaks_off_leaves_nothing(store):
    def broken():
        yield b"x" * 100
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        store.store_stream(broken())
    for source in ("text", b"bytes", ["text"], [b"x", None]):
        with pytest.raises(UnsafeValue):
            store.store_stream(source)
    with pytest.raises(FileNotFoundError):
        store.store_file("/nowhere/at/all")
    assert store.list_all() == []
    assert store.gc(dry_run=True, grace_s=0)["blobs_total"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"tags": {"a": 1}}, {"tags": ["a"]}, {"tags": {1: "a", "1": "b"}}, {"metadata": {"n": float("nan")}},
        {"metadata": {"s": "\ud800"}}, {"metadata": {"b": b""}}, {"tags": {"a": "\ud800"}},
        {"descriptor": {"modality": 7}}, {"descriptor": "report"}, {"content_type": None}, {"run_id": 5},
        {"run_id": "\ud800"}, {"artifact_id": "a/b"},
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_nothing_is_stored(store, wrong):
    with pytest.raises(ValueError, match=r"."):
        store.store(b"x", **wrong)
    with pytest.raises(ValueError, match=r"."):
        store.store_stream([b"x"], **wrong)
    assert store.list_all() == []


def test_a_number_of_any_size_is_kept(store):
    artifact_id = store.store_json(10**400, metadata={"n": 10**400}).artifact_id
    assert store.get_metadata(artifact_id).metadata == {"n": 10**400}
    assert store.list_all()[0].metadata == {"n": 10**400}
    assert store.load_json(artifact_id) == 10**400


def test_a_cycle_in_metadata_is_refused(store):
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(UnsafeValue):
        store.store(b"x", metadata=cycle)
    with pytest.raises(UnsafeValue):
        store.store_json(cycle)
    for value in ("text", None, 7, ["a"]):
        with pytest.raises(UnsafeValue, match="store_text"):
            store.store(value)


def test_raw_secrets_in_metadata_are_not_kept_and_contents_are_as_given(store):
    meta = store.store_json({"password": "p"}, metadata={"api_key": "sk-1"})
    assert meta.metadata == {"api_key": {"$redacted": "api_key"}}
    assert store.load_json(meta.artifact_id) == {"password": "p"}


def test_a_secret_tag_cannot_be_kept_as_a_text(store):
    with pytest.raises(InvalidId, match="password"):
        store.store(b"", tags={"password": "secret"})


def test_what_is_handed_out_is_not_what_is_held(store):
    meta = store.store(b"x", tags={"a": "1"}, metadata={"list": [1]})
    for handed in (
        meta,
        store.get_metadata(meta.artifact_id),
        store.list_all()[0],
        store.load(meta.artifact_id).metadata,
    ):
        handed.tags["a"] = "changed"
        handed.metadata["list"].append(2)
        handed.descriptor.task = "changed"
    kept = store.get_metadata(meta.artifact_id)
    assert (kept.tags, kept.metadata, kept.descriptor.task) == ({"a": "1"}, {"list": [1]}, None)
    assert store.list_all() == [kept]


# -- storing again


def test_the_same_content_in_the_same_run_stored_again_loses_nothing(store, clock):
    first = store.store(b"x", run_id="r", tags={"a": "1", "b": "1"}, metadata={"m": 1}, descriptor={"task": "t"})
    store.record_access(first.artifact_id, action="content")
    clock.advance(60)
    store.store(b"x", run_id="r", tags={"b": "2", "c": "2"}, metadata={"m": 2, "n": 2}, descriptor={"node_id": "n"})
    kept = store.get_metadata(first.artifact_id)
    assert (kept.created_at, kept.tags) == (first.created_at, {"a": "1", "b": "1", "c": "2"})
    assert (kept.metadata, kept.access.access_count) == ({"m": 1, "n": 2}, 1)
    assert (kept.descriptor.task, kept.descriptor.node_id) == ("t", "n")


def test_a_content_type_is_learned_and_not_forgotten(store):
    artifact_id = store.store(b"x").artifact_id
    assert store.store(b"x", content_type="text/plain").content_type == "text/plain"
    assert store.store(b"x").content_type == "text/plain"
    assert store.get_metadata(artifact_id).content_type == "text/plain"


def test_a_chosen_id_never_turns_to_another_content_or_run(store):
    kept = store.store(b"one", run_id="r", artifact_id="report")
    with pytest.raises(ArtifactConflict, match=r"'report'.*content"):
        store.store(b"two", run_id="r", artifact_id="report")
    with pytest.raises(ArtifactConflict, match=r"'report'.*run_id"):
        store.store(b"one", run_id="s", artifact_id="report")
    with pytest.raises(ValueError, match="report"):
        store.store_stream([b"two"], artifact_id="report")
    assert store.load("report") == Artifact(kept, b"one")
    assert store.delete("report")
    assert store.store(b"two", artifact_id="report").size_bytes == 3


def test_artifacts_of_one_content_share_it_and_live_apart(store):
    one, two = store.store(b"x" * 100, run_id="r"), store.store(b"x" * 100, run_id="s")
    assert one.artifact_id != two.artifact_id
    assert one.blob_id == two.blob_id
    assert store.delete(one.artifact_id)
    assert not store.delete(one.artifact_id)
    assert store.gc(dry_run=False, grace_s=0)["blobs_deleted"] == 0
    assert store.load(two.artifact_id).content == b"x" * 100
    assert store.load(one.artifact_id) is None


# -- finding


@pytest.fixture
def shelf(store: ArtifactStore, clock: StillClock) -> ArtifactStore:
    """Four artifacts, one minute apart: a to d."""
    store.store(b"a", artifact_id="a", run_id="r", content_type="text/plain", tags={"kind": "note", "x": "1"})
    clock.advance(60)
    store.store(b"b", artifact_id="b", run_id="r", content_type="image/png", tags={"x": "1"})
    clock.advance(60)
    store.store(b"c", artifact_id="c", run_id="s", content_type="text/plain", descriptor={"session_id": "s1"})
    clock.advance(60)
    store.store(b"dd", artifact_id="d", content_type="text/plain", tags={"x": "2", "node_id": "n", "workflow_id": "w"})
    return store


def ids(found: list[ArtifactMetadata]) -> str:
    return "".join(meta.artifact_id for meta in found)


def test_lists_are_newest_first(shelf):
    assert ids(shelf.list_all()) == "dcba"
    assert ids(shelf.list_all(limit=2)) == "dc"
    assert ids(shelf.list_all(limit=0)) == ids(shelf.list_all(limit=-1)) == "dcba"
    assert ids(shelf.list_by_run("r")) == "ba"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "dcba"), ({"order": "asc"}, "abcd"), ({"limit": 1, "offset": 1}, "c"), ({"offset": 9}, ""),
        ({"run_id": "r"}, "ba"), ({"content_type": "text/plain"}, "dca"), ({"tags": {"x": "1"}}, "ba"),
        ({"tags": {"x": "1", "kind": "note"}}, "a"), ({"semantic_kind": "note"}, "a"), ({"render_kind": "image"}, "b"),
        ({"modality": "text", "run_id": "s"}, "c"), ({"session_id": "s1"}, "c"), ({"node_id": "n"}, "d"),
        ({"workflow_id": "w", "node_id": "n"}, "d"), ({"workflow_id": "w", "run_id": "r"}, ""),
        ({"created_after": "2026-01-31T09:01:00Z"}, "dcb"), ({"created_before": "2026-01-31T10:01:00+01:00"}, "a"),
        ({"created_after": "2026-01-31T09:01:00", "created_before": "2026-01-31T09:02:00"}, "b"),
        ({"limit": -1, "offset": 2}, "ba"), ({"run_id": "r' OR 1=1 --"}, ""), ({"tags": {"x": "%"}}, ""),
    ],
    ids=repr,
)  # fmt: skip
def test_a_search_finds_what_matches_all_filters(shelf, query, expected):
    assert ids(shelf.search(**query)) == expected
    filters = {name: value for name, value in query.items() if name not in ("order", "limit", "offset")}
    if filters == query:
        assert shelf.count(**filters) == len(expected)


def test_facets_and_stats_count_what_matches(shelf):
    assert list(shelf.facet_counts("content_type").items()) == [("text/plain", 3), ("image/png", 1)]
    assert shelf.facet_counts("run_id") == {"r": 2, "s": 1}
    assert shelf.facet_counts("tags.x", run_id="r") == {"1": 2}
    found = shelf.stats(facets=["render_kind"], content_type="text/plain", created_before="2027-01-01")
    assert found.pop("source") == type(shelf).__name__
    assert found == {
        "total": 3,
        "total_bytes": 4,
        "facets": {"render_kind": {"text": 3}},
        "filters": {"content_type": "text/plain", "created_before": "2027-01-01T00:00:00.000000+00:00"},
        "exact": True,
    }
    assert set(shelf.stats()["facets"]) == {"content_type", "semantic_kind", "render_kind", "modality"}


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.search(order="up"), lambda s: s.search(created_after="yesterday"), lambda s: s.count(colour="red"),
        lambda s: s.facet_counts("colour"), lambda s: s.search(run_id=5), lambda s: s.search(tags={"a": 1}),
        lambda s: s.search(limit="1"), lambda s: s.stats(facets=["colour"]), lambda s: s.list_all(limit=None),
        lambda s: s.gc(grace_s=-1), lambda s: s.gc(grace_s=float("nan")), lambda s: s.list_by_run(None),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused(shelf, call):
    with pytest.raises(ValueError, match=r"."):
        call(shelf)


def test_the_artifacts_of_a_run_are_deleted_together(shelf):
    assert shelf.delete_by_run("r") == 2
    assert ids(shelf.list_all()) == "dc"
    assert shelf.delete_by_run("r") == 0


# -- changing


def test_metadata_is_laid_over_what_is_there_or_takes_its_place(store, clock):
    first = store.store(b"x", tags={"a": "1", "b": "1"}, metadata={"m": 1}, descriptor={"task": "t", "node_id": "n"})
    clock.advance(60)
    changed = store.update_metadata(
        first.artifact_id, tags={"b": "2"}, metadata={"n": 2}, descriptor=ArtifactDescriptor(node_id="m")
    )
    assert (changed.tags, changed.metadata) == ({"a": "1", "b": "2"}, {"m": 1, "n": 2})
    assert (changed.descriptor.task, changed.descriptor.node_id) == ("t", "m")
    assert (changed.created_at, changed.blob_id) == (first.created_at, first.blob_id)
    replaced = store.update_metadata(first.artifact_id, tags={"c": "3"}, replace_tags=True, replace_metadata=True)
    assert (replaced.tags, replaced.metadata) == ({"c": "3"}, {})
    assert store.get_metadata(first.artifact_id) == replaced
    with pytest.raises(UnsafeValue):
        store.update_metadata(first.artifact_id, metadata={"n": float("inf")})
    assert store.list_all() == [replaced]


def test_only_telling_of_an_access_counts_it(store, clock):
    artifact_id = store.store(b"x").artifact_id
    store.load(artifact_id), store.get_metadata(artifact_id), store.list_all()
    assert store.get_metadata(artifact_id).access == ArtifactAccessStats()
    clock.advance(60)
    for action in ("content", "preview", "preview", "shown"):
        store.record_access(artifact_id, action=action, actor_id="me")
    store.record_access(artifact_id, action="download", session_id="s", run_id="r", at="2026-02-01T00:00:00Z")
    kept = store.get_metadata(artifact_id).access
    assert (kept.access_count, kept.content_access_count, kept.preview_count, kept.download_count) == (5, 1, 2, 1)
    assert kept.actions == {"content": 1, "preview": 2, "shown": 1, "download": 1}
    assert (kept.last_action, kept.last_accessed_at) == ("download", "2026-02-01T00:00:00.000000+00:00")
    assert (kept.last_actor_id, kept.last_session_id, kept.last_run_id) == (None, "s", "r")
    with pytest.raises(ValueError, match="instant"):
        store.record_access(artifact_id, action="content", at="soon")


# -- what an artifact is


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/png", "image"), ("audio/mpeg", "audio"), ("video/mp4", "video"), ("application/json", "json"),
        ("application/geo+json", "json"), ("text/markdown; charset=utf-8", "markdown"), ("TEXT/HTML", "html"),
        ("text/x-python", "code"), ("text/csv", "text"), ("application/pdf", "document"), ("font/woff", "binary"),
        ("application/octet-stream", "binary"), ("nonsense", "binary"),
    ],
)  # fmt: skip
def test_the_content_type_tells_how_to_show_it(store, content_type, kind):
    assert store.store(b"x", content_type=content_type).descriptor.render_kind == kind


def test_the_descriptor_is_filled_in_from_tags_and_run_and_what_is_given_holds(store):
    tags = {"kind": "report", "session_id": "s", "task": "t"}
    found = store.store_text(
        "x", run_id="r", tags=tags, descriptor={"task": "given", "producer": {"name": "p"}}
    ).descriptor
    assert (found.schema, found.version) == ("abstractruntime.artifact_descriptor.v1", 1)
    assert (found.semantic_kind, found.render_kind, found.modality) == ("report", "text", "text")
    assert (found.session_id, found.task, found.producer) == ("s", "given", {"name": "p"})
    assert (found.provenance, found.classification_source) == ({"run_id": "r"}, "content_type")


def test_a_wav_file_tells_its_length_and_what_only_claims_to_be_one_tells_nothing(store):
    data = io.BytesIO()
    with wave.open(data, "wb") as sound:
        sound.setparams((2, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0" * 16000)
    expected = {"channels": 2, "sample_rate": 8000, "sample_width": 2, "frames": 4000, "duration_s": 0.5}
    assert store.store(data.getvalue(), content_type="audio/wav").descriptor.media == expected
    assert store.store_stream([data.getvalue()], content_type="audio/x-wav", run_id="r").descriptor.media == expected
    for end in range(44):
        assert store.store(data.getvalue()[:end], content_type="audio/wav").size_bytes == end
    assert store.store(b"no sound", content_type="audio/wav").descriptor.media == {}


def test_models_become_dicts_and_are_made_from_them(store):
    meta = store.store(b"x", run_id="r", tags={"a": "1"}, metadata={"m": [1]}, descriptor={"source_refs": ["a"]})
    data = meta.to_dict()
    assert data["descriptor"]["render_kind"] == "binary"
    assert ArtifactMetadata.from_dict({**data, "from_the_future": 1}) == meta
    data["tags"]["a"] = "changed"
    assert meta.tags == {"a": "1"}
    assert ArtifactDescriptor.from_dict({}) == ArtifactDescriptor()
    wrong: list[Any] = [{"version": "x"}, [], None, {"media": 5}]
    for bad in wrong:
        with pytest.raises(ValueError, match="ArtifactDescriptor"):
            ArtifactDescriptor.from_dict(bad)


def test_a_content_that_is_no_text_or_json_says_so():
    artifact = Artifact(InMemoryArtifactStore().store(b"\xff{"), b"\xff{")
    with pytest.raises(ValueError, match="utf-8"):
        artifact.as_text()
    with pytest.raises(ValueError, match="no JSON"):
        artifact.as_json()


# -- stores of one's own, and async


class Own(ArtifactStore):
    """The least that a store needs, around one in memory."""

    def __init__(self) -> None:
        inner = InMemoryArtifactStore()
        self._store, self._lists = inner.store, inner.list_all
        self._load, self._gone = inner.load, inner.delete

    def store(self, content: bytes, **about: Any) -> ArtifactMetadata:
        return self._store(content, **about)

    def load(self, artifact_id: str) -> Artifact | None:
        return self._load(artifact_id)

    def get_metadata(self, artifact_id: str) -> ArtifactMetadata | None:
        found = self._load(artifact_id)
        return None if found is None else found.metadata

    def exists(self, artifact_id: str) -> bool:
        return self._load(artifact_id) is not None

    def delete(self, artifact_id: str) -> bool:
        return self._gone(artifact_id)

    def list_by_run(self, run_id: str) -> list[ArtifactMetadata]:
        return self.search(run_id=run_id)

    def list_all(self, *, limit: int = 1000) -> list[ArtifactMetadata]:
        return self._lists(limit=limit)


def test_a_store_of_ones_own_gets_the_other_methods_from_the_seven(tmp_path):
    store = Own()
    (tmp_path / "source").write_bytes(b"file")
    store.store_text("text", run_id="r", tags={"x": "1"})
    store.store_json([1], run_id="r")
    store.store_stream([b"st", b"ream"])
    found = store.store_file(tmp_path / "source")
    assert (
        b"".join(store.iter_content(found.artifact_id, chunk_size=3)) == store.open(found.artifact_id).read() == b"file"
    )
    assert (store.count(), store.count(tags={"x": "1"}), store.facet_counts("run_id")) == (4, 1, {"r": 2})
    assert store.stats()["total_bytes"] == 4 + 3 + 6 + 4
    assert store.delete_by_run("r") == 2
    assert store.content_path(found.artifact_id) is None
    for call in (store.gc, lambda: store.update_metadata("a"), lambda: store.record_access("a", action="a")):
        with pytest.raises(NotImplementedError, match="Own"):
            call()


@pytest.fixture(params=["memory", "files"])
def aio(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncInMemoryArtifactStore | AsyncFileArtifactStore:
    return AsyncInMemoryArtifactStore() if request.param == "memory" else AsyncFileArtifactStore(tmp_path)


async def test_the_async_store_is_the_same_store_awaited(aio, tmp_path):
    meta = await aio.store_text("hello", run_id="r", tags={"x": "1"})
    assert await aio.load_text(meta.artifact_id) == "hello"
    assert await asyncio.to_thread(aio.sync.load_text, meta.artifact_id) == "hello"
    assert await aio.search(tags={"x": "1"}) == await aio.list_by_run("r") == await aio.list_all() == [meta]
    assert (await aio.stats(run_id="r"))["total"] == await aio.count() == 1
    assert await aio.facet_counts("run_id") == {"r": 1}
    assert (await aio.update_metadata(meta.artifact_id, tags={"y": "2"})).tags == {"x": "1", "y": "2"}
    assert (await aio.record_access(meta.artifact_id, action="content")).access.access_count == 1
    assert await aio.load_json((await aio.store_json([1])).artifact_id) == [1]
    path = await aio.content_path(meta.artifact_id)
    assert path is None or path.name == f"{meta.blob_id}.bin"
    (tmp_path / "source").write_bytes(b"x")
    assert (await aio.store_file(tmp_path / "source")).size_bytes == 1
    assert (await aio.load(meta.artifact_id)).content == b"hello"
    assert await aio.exists(meta.artifact_id)
    assert await aio.get_metadata(meta.artifact_id)
    assert (await aio.delete(meta.artifact_id), await aio.delete_by_run("r")) == (True, 0)
    assert (await aio.gc(dry_run=False, grace_s=0))["blobs_deleted"] == 1
    assert (await resolve_artifact(artifact_ref("no"), aio)) is None


async def test_streams_are_async_both_ways(aio):
    async def pieces():
        for _ in range(3):
            yield b"0123456789"

    meta = await aio.store_stream(pieces(), run_id="r", content_type="text/plain")
    assert meta == await aio.store(b"0123456789" * 3, run_id="r")
    assert meta == await aio.store_stream([b"0123456789"] * 3, run_id="r")
    chunks = [chunk async for chunk in aio.iter_content(meta.artifact_id, chunk_size=20)]
    assert chunks == [b"01234567890123456789", b"0123456789"]
    async with aio.open(meta.artifact_id) as file:
        assert await file.read(12) == b"012345678901"
        await file.seek(-1, 2)
        assert [await file.read(), await file.read()] == [b"9", b""]
    file = await aio.open(meta.artifact_id)
    assert len(await file.read()) == 30
    await file.close()
    with pytest.raises(UnknownArtifact):
        await anext(aio.iter_content("no"))


async def test_an_async_source_that_breaks_off_leaves_nothing(aio):
    async def broken():
        yield b"x"
        raise ConnectionError("gone")

    async def texts():
        yield "x"

    with pytest.raises(ConnectionError):
        await aio.store_stream(broken())
    with pytest.raises(UnsafeValue):
        await aio.store_stream(texts())
    assert await aio.list_all() == []
    assert (await aio.gc(grace_s=0))["blobs_total"] == 0


async def test_a_stream_that_is_cancelled_leaves_nothing(aio, tmp_path):
    begun = asyncio.Event()

    async def endless():
        yield b"x"
        begun.set()
        await asyncio.Event().wait()

    storing = asyncio.create_task(aio.store_stream(endless()))
    await begun.wait()
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert await aio.list_all() == []
    assert (await aio.gc(grace_s=0))["blobs_total"] == 0
    assert not list((tmp_path / "artifacts").rglob("*.part"))


async def test_a_reader_that_leaves_early_leaves_no_file_open(aio):
    artifact_id = (await aio.store(b"x" * 100)).artifact_id
    chunks = aio.iter_content(artifact_id, chunk_size=10)
    assert await anext(chunks) == b"x" * 10
    await chunks.aclose()  # else a warning, which is an error here

    opening = asyncio.ensure_future(aio.open(artifact_id))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)

    async def read():
        return [chunk async for chunk in aio.iter_content(artifact_id, chunk_size=1)]

    for delay in range(5):
        reading = asyncio.create_task(read())
        for _ in range(delay):
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_a_store_is_the_store_of_its_async_twin(tmp_path):
    for sync in (InMemoryArtifactStore(), FileArtifactStore(tmp_path)):
        meta = await sync.aio.store(b"x")
        assert await asyncio.to_thread(sync.get_metadata, meta.artifact_id) == meta
        assert sync.aio.sync is sync
