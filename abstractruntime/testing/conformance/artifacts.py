"""What an artifact store must do: keep contents unchanged under ids that never stand for anything else."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from ...storage.artifacts import Artifact, ArtifactMetadata, compute_artifact_id
from . import values
from .capabilities import Capability
from .suite import Suite, Work

CONTENTS = {
    "empty": b"",
    "text": "grüße 🙂".encode(),
    "all_bytes": bytes(range(256)) * 40,
    "lines": b"a\r\nb\nc\r\x00\x1a",
    "large": b"0123456789abcdef" * 70_000,
}
#: none of them is letters, digits, `_` and `-` alone
BAD_IDS = (*values.PATHS, "a.b", "ä", "a b", "a\x00b", "x" * 201)


class ArtifactStoreConformance(Suite):
    """The suite of artifact stores: see `storage.artifacts.ArtifactStore`. `make` returns the store."""

    known: ClassVar = frozenset({Capability.UPDATE, Capability.ACCESS, Capability.COLLECT, Capability.PERSISTENT})

    def kept(self, content: bytes, **about: Any) -> ArtifactMetadata:
        """Store a content."""
        found = self.do(self.store.store, content, **about)
        assert isinstance(found, ArtifactMetadata)
        return found

    def content(self, artifact_id: str) -> bytes | None:
        """The content of an artifact, or None."""
        found = self.do(self.store.load, artifact_id)
        assert found is None or isinstance(found, Artifact)
        return None if found is None else found.content

    def ids(self, method: Any, *args: Any, **options: Any) -> list[str]:
        """The ids that a listing gives, in its order."""
        return [meta.artifact_id for meta in self.do(method, *args, **options)]

    def test_optional_methods_are_there_as_declared(self) -> None:
        for capability, name, args, options in (
            (Capability.UPDATE, "update_metadata", ("unknown",), {"tags": {"a": "b"}}),
            (Capability.ACCESS, "record_access", ("unknown",), {"action": "content"}),
            (Capability.COLLECT, "gc", (), {}),
        ):
            try:
                self.do(getattr(self.store, name), *args, **options)
            except (NotImplementedError, AttributeError):  # it lacks the method, as its capabilities must say
                self.agrees(capability, False)
            else:
                self.agrees(capability, True)

    def test_contents_come_back_byte_by_byte(self) -> None:
        for name, content in CONTENTS.items():
            meta = self.kept(content, run_id="r", tags={"name": name})
            assert (meta.size_bytes, meta.run_id, meta.tags) == (len(content), "r", {"name": name})
            assert meta.artifact_id == compute_artifact_id(content, run_id="r")
            assert self.content(meta.artifact_id) == content, name
            assert self.do(self.store.exists, meta.artifact_id) is True

    def test_texts_and_json_come_back(self) -> None:
        text = values.GOOD_VALUES["text"]
        meta = self.do(self.store.store_text, text)
        assert (meta.content_type, self.do(self.store.load_text, meta.artifact_id)) == ("text/plain", text)
        meta = self.do(self.store.store_text, "grün", encoding="latin-1")
        assert self.do(self.store.load_text, meta.artifact_id, "latin-1") == "grün"
        meta = self.do(self.store.store_json, values.GOOD_VALUES)
        assert meta.content_type == "application/json"
        assert self.do(self.store.load_json, meta.artifact_id) == values.GOOD_VALUES

    def test_all_that_is_known_comes_back(self) -> None:
        about = {
            "content_type": "image/png",
            "run_id": "r",
            "tags": {"kind": "plot", "ä": "日本"},
            "metadata": {"deep": [1, {"x": None}]},
            "descriptor": {"semantic_kind": "report", "node_id": "n", "session_id": "s", "workflow_id": "w"},
        }
        meta = self.kept(b"content", **about)
        found = self.do(self.store.get_metadata, meta.artifact_id)
        assert found == meta == self.do(self.store.load, meta.artifact_id).metadata
        assert (found.content_type, found.tags, found.metadata) == ("image/png", about["tags"], about["metadata"])
        described = found.descriptor
        assert (described.semantic_kind, described.node_id, described.session_id) == ("report", "n", "s")
        assert described.render_kind == "image", "it is told from the content type"

    def test_what_is_missing_is_none_or_false(self) -> None:
        self.kept(b"known", artifact_id="known")
        for method in ("load", "load_text", "load_json", "get_metadata"):
            assert self.do(getattr(self.store, method), "unknown") is None, method
        assert self.do(self.store.exists, "unknown") is False
        assert self.do(self.store.delete, "unknown") is False
        assert self.do(self.store.delete_by_run, "unknown") == 0
        assert self.do(self.store.list_by_run, "unknown") == []

    def test_an_id_is_never_a_path(self) -> None:
        before = {path for path in self.folder.parent.iterdir()}
        for artifact_id in BAD_IDS:
            try:
                self.kept(b"content", artifact_id=artifact_id)
            except ValueError:
                continue
            raise AssertionError(f"{artifact_id!r} was taken for an artifact id; expected a ValueError")
        assert {path for path in self.folder.parent.iterdir()} == before
        assert self.do(self.store.list_all) == []

    def test_ids_that_differ_in_case_are_two(self) -> None:
        for artifact_id in ("a", "A", "a-1", "a_1", "x" * 200):
            self.kept(artifact_id.encode(), artifact_id=artifact_id)
        assert [self.content(artifact_id) for artifact_id in ("a", "A", "a-1", "a_1")] == [b"a", b"A", b"a-1", b"a_1"]

    def test_an_id_never_comes_to_stand_for_another_content(self) -> None:
        self.kept(b"first", artifact_id="plan", run_id="r")
        assert self.refuses(self.store.store, b"second", artifact_id="plan", run_id="r")
        assert self.content("plan") == b"first"

    def test_the_same_content_again_loses_nothing_that_was_known(self) -> None:
        first = self.kept(b"content", run_id="r", tags={"a": "1"}, metadata={"m": 1})
        again = self.kept(b"content", run_id="r", tags={"b": "2"})
        assert (again.artifact_id, again.created_at) == (first.artifact_id, first.created_at)
        found = self.do(self.store.get_metadata, first.artifact_id)
        assert (found.tags, found.metadata) == ({"a": "1", "b": "2"}, {"m": 1})

    def test_the_same_content_of_two_runs_is_two_artifacts(self) -> None:
        first, second = (self.kept(b"content", run_id=run_id) for run_id in ("a", "b"))
        assert first.artifact_id != second.artifact_id
        assert first.blob_id == second.blob_id
        assert self.do(self.store.delete, first.artifact_id) is True
        assert (self.content(first.artifact_id), self.content(second.artifact_id)) == (None, b"content")

    def test_what_is_handed_out_is_not_aliased_with_what_is_stored(self) -> None:
        tags, details = {"a": "1"}, {"list": [1]}
        meta = self.kept(b"content", run_id="r", tags=tags, metadata=details)
        tags["a"], details["list"] = "2", []
        loaded, listed = self.do(self.store.load, meta.artifact_id), self.do(self.store.list_by_run, "r")
        for handed_out in (meta, self.do(self.store.get_metadata, meta.artifact_id), loaded.metadata, *listed):
            handed_out.tags["a"], handed_out.content_type = "2", "spoiled"
            handed_out.metadata["list"].append(2)
            handed_out.descriptor.semantic_kind = "spoiled"
        found = self.do(self.store.get_metadata, meta.artifact_id)
        assert (found.tags, found.metadata) == ({"a": "1"}, {"list": [1]})
        assert "spoiled" not in (found.content_type, found.descriptor.semantic_kind)

    def test_what_cannot_be_kept_is_refused_and_loses_nothing(self) -> None:
        self.kept(b"good", artifact_id="good")
        assert self.refuses(self.store.store, "a text")
        assert self.refuses(self.store.store, b"x", metadata={"o": object()})
        assert self.refuses(self.store.store_json, {"nan": float("nan")})
        assert self.refuses(self.store.store_text, "a\ud800b")
        assert self.ids(self.store.list_all) == ["good"]

    def test_delete_forgets_one_and_delete_by_run_those_of_a_run(self) -> None:
        for n in range(3):
            self.kept(b"%d" % n, run_id="a", artifact_id=f"a{n}")
            self.kept(b"%d" % n, run_id="b", artifact_id=f"b{n}")
        assert self.do(self.store.delete, "a1") is True
        assert self.do(self.store.delete, "a1") is False
        assert self.do(self.store.exists, "a1") is False
        assert self.do(self.store.delete_by_run, "a") == 2
        assert sorted(self.ids(self.store.list_all)) == ["b0", "b1", "b2"]
        assert [self.content(f"b{n}") for n in range(3)] == [b"0", b"1", b"2"]
        self.kept(b"other", run_id="a", artifact_id="a1")
        assert self.content("a1") == b"other"

    def _five(self) -> list[ArtifactMetadata]:
        """Five artifacts, the oldest first."""
        given: list[dict[str, Any]] = [
            {"run_id": "a", "content_type": "text/plain", "tags": {"kind": "x", "n": "1"}},
            {"run_id": "b", "content_type": "text/plain", "tags": {"kind": "y"}},
            {"run_id": "a", "content_type": "image/png", "descriptor": {"semantic_kind": "plot", "node_id": "n"}},
            {"content_type": "application/json", "tags": {"kind": "x"}, "descriptor": {"session_id": "s"}},
            {"run_id": "a", "content_type": "text/plain", "descriptor": {"workflow_id": "w", "node_id": "n"}},
        ]
        kept = [self.kept(b"%d" % n * (n + 1), artifact_id=f"x{n}", **about) for n, about in enumerate(given)]
        return sorted(kept, key=lambda meta: (meta.created_at, meta.artifact_id))

    def test_listings_give_the_newest_first_and_keep_their_limit(self) -> None:
        newest = [meta.artifact_id for meta in reversed(self._five())]
        for limit, most in ((1, 1), (3, 3), (1000, 1000), (0, None), (-1, None)):
            assert self.ids(self.store.list_all, limit=limit) == newest[:most], limit
            assert self.ids(self.store.search, limit=limit) == newest[:most], limit
        assert self.ids(self.store.list_by_run, "a") == [id_ for id_ in newest if id_ in ("x0", "x2", "x4")]
        assert self.ids(self.store.search, order="asc", offset=1, limit=2) == newest[::-1][1:3]
        assert self.ids(self.store.search, offset=3) == newest[3:]

    def test_filters_must_all_hold(self) -> None:
        metas = self._five()
        for filters, expected in (
            ({"run_id": "a"}, {"x0", "x2", "x4"}),
            ({"run_id": "a", "content_type": "text/plain"}, {"x0", "x4"}),
            ({"tags": {"kind": "x"}}, {"x0", "x3"}),
            ({"tags": {"kind": "x", "n": "1"}}, {"x0"}),
            ({"semantic_kind": "plot"}, {"x2"}),
            ({"render_kind": "image"}, {"x2"}),
            ({"session_id": "s"}, {"x3"}),
            ({"node_id": "n"}, {"x2", "x4"}),
            ({"node_id": "n", "workflow_id": "w"}, {"x4"}),
            ({"run_id": "nobody"}, set()),
            ({"created_after": metas[0].created_at}, {f"x{n}" for n in range(5)}),
            ({"created_before": metas[0].created_at}, set()),
        ):
            assert set(self.ids(self.store.search, **filters)) == expected, filters
            assert self.do(self.store.count, **filters) == len(expected), filters

    def test_counts_facets_and_stats_agree(self) -> None:
        self._five()
        assert self.do(self.store.count) == 5
        types = {"text/plain": 3, "image/png": 1, "application/json": 1}
        assert self.do(self.store.facet_counts, "content_type") == types
        assert self.do(self.store.facet_counts, "run_id", content_type="text/plain") == {"a": 2, "b": 1}
        stats = self.do(self.store.stats, facets=["content_type"])
        assert (stats["total"], stats["total_bytes"], stats["facets"]) == (5, 15, {"content_type": types})
        assert self.do(self.store.stats, run_id="a")["total"] == 3

    def test_metadata_can_be_changed(self) -> None:
        self.needs(Capability.UPDATE)
        self.kept(b"content", artifact_id="x", tags={"a": "1", "b": "2"}, metadata={"m": 1})
        update = self.store.update_metadata
        found = self.do(update, "x", tags={"b": "3", "c": "4"}, metadata={"n": 2}, descriptor={"task": "t"})
        assert (found.tags, found.metadata) == ({"a": "1", "b": "3", "c": "4"}, {"m": 1, "n": 2})
        assert found == self.do(self.store.get_metadata, "x")
        assert found.descriptor.task == "t"
        found = self.do(update, "x", tags={"d": "5"}, replace_tags=True, metadata={}, replace_metadata=True)
        assert (found.tags, found.metadata, found.descriptor.task) == ({"d": "5"}, {}, "t")
        assert self.ids(self.store.search, tags={"d": "5"}) == ["x"]
        assert self.ids(self.store.search, tags={"a": "1"}) == []
        assert self.do(update, "unknown", tags={"a": "1"}) is None
        assert self.content("x") == b"content"

    def test_accesses_are_counted_when_they_are_told_and_only_then(self) -> None:
        self.needs(Capability.ACCESS)
        self.kept(b"content", artifact_id="x")
        self.content("x")
        assert self.do(self.store.get_metadata, "x").access.access_count == 0
        for action in ("content", "preview", "content", "of_my_own"):
            self.do(self.store.record_access, "x", action=action, actor_id="ann", at=values.instant(1))
        access = self.do(self.store.get_metadata, "x").access
        assert (access.access_count, access.content_access_count, access.preview_count) == (4, 2, 1)
        assert (access.last_action, access.last_actor_id) == ("of_my_own", "ann")
        assert (access.last_accessed_at, access.actions["of_my_own"]) == (values.instant(1), 1)
        assert self.do(self.store.record_access, "unknown", action="content") is None

    def test_gc_collects_only_what_no_artifact_has(self) -> None:
        self.needs(Capability.COLLECT)
        self.kept(b"shared", run_id="a", artifact_id="a")
        self.kept(b"shared", run_id="b", artifact_id="b")
        self.kept(b"alone", run_id="a", artifact_id="alone")
        self.do(self.store.delete_by_run, "a")
        told = self.do(self.store.gc, grace_s=0)
        assert (told["dry_run"], told["blobs_deleted"], told["bytes_reclaimed"]) == (True, 1, 5)
        young = self.do(self.store.gc, dry_run=False)
        assert young["blobs_deleted"] == 0, "what was stored just now may be about to be used"
        done = self.do(self.store.gc, dry_run=False, grace_s=0)
        assert (done["blobs_deleted"], done["blobs_referenced"], done["errors"]) == (1, 1, [])
        assert self.content("b") == b"shared"
        self.kept(b"alone", artifact_id="again")
        assert self.content("again") == b"alone"

    def test_a_restart_keeps_all_or_nothing(self) -> None:
        before = [self.do(self.store.load, meta.artifact_id) for meta in self._five()]
        listed = self.ids(self.store.list_all)
        self.reopened()
        after = [self.do(self.store.load, artifact.artifact_id) for artifact in before]
        assert after == before or not any(after), "a part of the artifacts is gone after a restart"
        self.agrees(Capability.PERSISTENT, after == before)
        if after == before:
            assert self.ids(self.store.list_all) == listed
            assert self.do(self.store.count, run_id="a") == 3

    def test_several_writers_at_once_lose_nothing(self) -> None:
        def work(writer: int) -> Work:
            for n in range(5):
                # each content is stored by all, in a run of their own and in one that they share
                for run_id in (f"r{writer}", "shared"):
                    meta = yield (partial(self.store.store, b"%d" % n, run_id=run_id),)
                    assert isinstance(meta, ArtifactMetadata)

        self.at_once(self.store.store, *(work(writer) for writer in range(4)))
        assert self.do(self.store.count) == 25
        assert {self.content(id_) for id_ in self.ids(self.store.list_all)} == {b"%d" % n for n in range(5)}
