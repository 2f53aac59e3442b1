"""Artifact stores and stores of snapshots that do one thing wrong each."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from abstractruntime.core.errors import AbstractRuntimeError
from abstractruntime.storage.artifacts import InMemoryArtifactStore, compute_artifact_id
from abstractruntime.storage.snapshots import InMemorySnapshotStore
from abstractruntime.testing.conformance import (
    ArtifactStoreConformance,
    Capability,
    SnapshotStoreConformance,
)

from .breaking import OURS, each_in

artifact_store = each_in(ArtifactStoreConformance)
snapshot_store = each_in(SnapshotStoreConformance)


@artifact_store("test_contents_come_back_byte_by_byte")
class ConvertsLineEnds(InMemoryArtifactStore):
    def load(self, artifact_id: str) -> Any:
        found = super().load(artifact_id)
        return found and replace(found, content=found.content.replace(b"\r\n", b"\n"))


@artifact_store("test_an_id_never_comes_to_stand_for_another_content")
class PointsElsewhere(InMemoryArtifactStore):
    def store(self, content: bytes, *, artifact_id: str | None = None, **about: Any) -> Any:
        if artifact_id is not None and content == b"second":
            self.delete(artifact_id)
        return super().store(content, artifact_id=artifact_id, **about)


@artifact_store("test_the_same_content_again_loses_nothing_that_was_known")
class ForgetsEarlierTags(InMemoryArtifactStore):
    def store(self, content: bytes, *, tags: Any = None, **about: Any) -> Any:
        meta = super().store(content, tags=tags, **about)
        self.update_metadata(meta.artifact_id, tags=tags, replace_tags=True)
        return meta


@artifact_store("test_what_is_handed_out_is_not_aliased_with_what_is_stored")
class HandsOutItsMetadata(InMemoryArtifactStore):
    def get_metadata(self, artifact_id: str) -> Any:
        return self._metas.get(artifact_id)


@artifact_store("test_listings_give_the_newest_first_and_keep_their_limit")
class ListsOldArtifactsFirst(InMemoryArtifactStore):
    def list_all(self, *, limit: int = 1000) -> Any:
        return super().list_all(limit=limit)[::-1]


@artifact_store("test_filters_must_all_hold")
class IgnoresTags(InMemoryArtifactStore):
    def search(self, *, tags: Any = None, **filters: Any) -> Any:
        return super().search(**filters)


@artifact_store("test_counts_facets_and_stats_agree")
class CountsEverything(InMemoryArtifactStore):
    def facet_counts(self, field: str, **filters: Any) -> Any:
        return super().facet_counts(field)


@artifact_store("test_delete_forgets_one_and_delete_by_run_those_of_a_run")
class DeletesSharedContents(InMemoryArtifactStore):
    def delete_by_run(self, run_id: str) -> int:
        return super().delete_by_run(run_id) + 1


@artifact_store("test_gc_collects_only_what_no_artifact_has")
class CollectsTheYoung(InMemoryArtifactStore):
    def gc(self, *, dry_run: bool = True, grace_s: float = 3600.0) -> Any:
        return super().gc(dry_run=dry_run, grace_s=0)


@artifact_store("test_accesses_are_counted_when_they_are_told_and_only_then")
class CountsEveryLoad(InMemoryArtifactStore):
    def load(self, artifact_id: str) -> Any:
        self.record_access(artifact_id, action="content")
        return super().load(artifact_id)


@artifact_store("test_an_id_is_never_a_path")
class TakesAnyId(InMemoryArtifactStore):
    def store(self, content: bytes, *, artifact_id: str | None = None, **about: Any) -> Any:
        return super().store(content, artifact_id=artifact_id and artifact_id.replace(".", "_"), **about)


@artifact_store("test_texts_and_json_come_back")
class KnowsOneEncoding(InMemoryArtifactStore):
    def store_text(self, text: str, *, encoding: str = "utf-8", **about: Any) -> Any:
        return super().store_text(text, **about)


@artifact_store("test_ids_that_differ_in_case_are_two")
class KnowsNoCaseOfArtifacts(InMemoryArtifactStore):
    def load(self, artifact_id: str) -> Any:
        return super().load(artifact_id.lower())


@artifact_store("test_what_cannot_be_kept_is_refused_and_loses_nothing")
class TakesTexts(InMemoryArtifactStore):
    def store(self, content: Any, **about: Any) -> Any:
        return super().store(content.encode() if isinstance(content, str) else content, **about)


@artifact_store("test_all_that_is_known_comes_back")
class LosesDetails(InMemoryArtifactStore):
    def store(self, content: bytes, *, metadata: Any = None, **about: Any) -> Any:
        return super().store(content, **about)


@artifact_store("test_the_same_content_of_two_runs_is_two_artifacts")
class SharesArtifacts(InMemoryArtifactStore):
    def store(self, content: bytes, *, run_id: str | None = None, **about: Any) -> Any:
        return super().store(content, **{"artifact_id": compute_artifact_id(content), **about})


@artifact_store("test_what_is_missing_is_none_or_false")
class RaisesForUnknownArtifacts(InMemoryArtifactStore):
    def load(self, artifact_id: str) -> Any:
        found = super().load(artifact_id)
        if found is None:
            raise KeyError(artifact_id)
        return found


@artifact_store("test_metadata_can_be_changed")
class OnlyAddsTags(InMemoryArtifactStore):
    def update_metadata(self, artifact_id: str, *, replace_tags: bool = False, **about: Any) -> Any:
        return super().update_metadata(artifact_id, **about)


@artifact_store("test_several_writers_at_once_lose_nothing")
class CopiesItsTable(InMemoryArtifactStore):
    def store(self, content: bytes, **about: Any) -> Any:
        before = dict(self._metas)
        meta = super().store(content, **about)
        time.sleep(0.001)  # in which another writer comes between
        self._metas = {**before, meta.artifact_id: meta}
        return meta


@artifact_store("test_a_restart_keeps_all_or_nothing", OURS | {Capability.PERSISTENT})
class ForgetsArtifactsAtARestart(InMemoryArtifactStore):
    pass


@snapshot_store("test_nothing_is_aliased_with_what_is_stored")
class LoadsTheSameSnapshot(InMemorySnapshotStore):
    def load(self, snapshot_id: str) -> Any:
        self.handed_out = getattr(self, "handed_out", {})
        return self.handed_out.setdefault(snapshot_id, super().load(snapshot_id))


@snapshot_store("test_every_field_comes_back")
class LosesThePosition(InMemorySnapshotStore):
    def save(self, snapshot: Any) -> None:
        super().save(replace(snapshot, position=0))


@snapshot_store("test_save_tells_when_it_was_updated")
class KeepsItToItself(InMemorySnapshotStore):
    def save(self, snapshot: Any) -> None:
        super().save(replace(snapshot))


@snapshot_store("test_the_list_gives_the_newest_first_and_keeps_its_limit")
class ListsTheOldestSnapshotFirst(InMemorySnapshotStore):
    def list(self, **filters: Any) -> Any:
        return super().list(**filters)[::-1]


@snapshot_store("test_filters_must_all_hold_and_know_no_case")
class FindsPartsOfTags(InMemorySnapshotStore):
    def list(self, *, tag: Any = None, **filters: Any) -> Any:
        found = super().list(**filters)
        return [one for one in found if not tag or any(tag.lower() in own.lower() for own in one.tags)]


@snapshot_store("test_delete_forgets_one")
class OnlySaysThatItForgot(InMemorySnapshotStore):
    def delete(self, snapshot_id: str) -> bool:
        return self.load(snapshot_id) is not None


@snapshot_store("test_bad_values_are_refused_or_kept_and_lose_nothing")
class DropsBadSnapshots(InMemorySnapshotStore):
    def save(self, snapshot: Any) -> None:
        with suppress(AbstractRuntimeError):
            super().save(snapshot)


@snapshot_store("test_the_latest_save_counts")
class KeepsTheFirstName(InMemorySnapshotStore):
    def save(self, snapshot: Any) -> None:
        found = self.load(snapshot.snapshot_id)
        super().save(replace(snapshot, name=found.name) if found else snapshot)


@snapshot_store("test_an_id_is_refused_or_kept_and_never_a_path")
class KnowsNoCaseOfSnapshots(InMemorySnapshotStore):
    def save(self, snapshot: Any) -> None:
        super().save(replace(snapshot, snapshot_id=snapshot.snapshot_id.lower()))


@snapshot_store("test_a_run_that_is_taken_out_is_the_one_that_was_put_in")
class LosesIntents(InMemorySnapshotStore):
    def save(self, snapshot: Any) -> None:
        state = {key: value for key, value in snapshot.run_state.items() if key != "intent"}
        super().save(replace(snapshot, run_state=state))


@snapshot_store("test_an_unknown_snapshot_is_none")
class RaisesForUnknownSnapshots(InMemorySnapshotStore):
    def load(self, snapshot_id: str) -> Any:
        found = super().load(snapshot_id)
        if found is None:
            raise KeyError(snapshot_id)
        return found


@snapshot_store("test_a_hundred_is_the_default_limit")
class HasNoDefaultLimitOfSnapshots(InMemorySnapshotStore):
    def list(self, *, limit: int = 10_000, **filters: Any) -> Any:
        return super().list(limit=limit, **filters)


@snapshot_store("test_several_writers_at_once_lose_nothing")
class CopiesItsSnapshots(InMemorySnapshotStore):
    def save(self, snapshot: Any) -> None:
        before = dict(self._kept)
        super().save(snapshot)
        time.sleep(0.001)  # in which another writer comes between
        self._kept = {**before, snapshot.snapshot_id: self._kept[snapshot.snapshot_id]}


@snapshot_store("test_a_restart_keeps_all_or_nothing", OURS | {Capability.PERSISTENT})
class ForgetsSnapshotsAtARestart(InMemorySnapshotStore):
    pass
