"""Garbage collection of artifacts: what goes, what stays, and that writers beside it lose nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from abstractruntime import FileArtifactStore, InMemoryArtifactStore
from abstractruntime.storage import drafts as drafting
from abstractruntime.storage.artifacts import collecting, metas

from .artifact_worker import CONTENTS, content_of
from .clocks import StillClock
from .scale import scaled

ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(tmp_path: Path) -> FileArtifactStore:
    return FileArtifactStore(tmp_path, durability="none")


def blobs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "artifacts" / "blobs").iterdir())


def drafts(folder: Path) -> list[Path]:
    return list((folder / "artifacts").rglob("*.part"))


# -- what goes and what stays


def test_a_dry_run_tells_what_would_go_and_deletes_nothing(store, tmp_path):
    store.store(b"kept")
    store.delete(store.store(b"gone!").artifact_id)
    expected = {"blobs_total": 2, "blobs_referenced": 1, "blobs_deleted": 1, "bytes_reclaimed": 5, "errors": []}
    assert store.gc(grace_s=0) == {"dry_run": True, **expected}
    assert len(blobs(tmp_path)) == 2
    assert store.gc(dry_run=False, grace_s=0) == {"dry_run": False, **expected}
    assert len(blobs(tmp_path)) == 1
    assert store.gc(dry_run=False, grace_s=0)["blobs_deleted"] == 0
    assert [store.load(meta.artifact_id).content for meta in store.list_all()] == [b"kept"]


def test_what_is_young_stays_and_storing_it_again_makes_it_young():
    clock = StillClock()
    store = InMemoryArtifactStore(clock=clock)
    check_grace(store, lambda seconds: clock.advance(seconds))


def test_what_is_young_stays_in_files_too(store, tmp_path):
    def age(seconds: float) -> None:
        for name in blobs(tmp_path):
            path = tmp_path / "artifacts" / "blobs" / name
            os.utime(path, (time.time() - seconds, path.stat().st_mtime - seconds))

    check_grace(store, age)


def check_grace(store, age) -> None:
    store.delete(store.store(b"x").artifact_id)
    assert store.gc(dry_run=False)["blobs_deleted"] == 0
    age(3000)
    assert store.gc(dry_run=False)["blobs_deleted"] == 0
    age(3700)
    store.delete(store.store(b"x").artifact_id)
    assert store.gc(dry_run=False)["blobs_deleted"] == 0
    age(3700)
    assert store.gc(dry_run=False)["blobs_deleted"] == 1


def test_the_catalog_has_no_say_in_what_goes(store, tmp_path):
    artifact_id = store.store(b"x").artifact_id
    catalog = tmp_path / "artifacts" / "artifact_catalog.sqlite3"
    assert not catalog.exists()  # as after a crash before it was written
    assert store.gc(dry_run=False, grace_s=0)["blobs_deleted"] == 0
    store.list_all()
    catalog.write_bytes(b"damaged")
    assert store.gc(dry_run=False, grace_s=0)["blobs_deleted"] == 0
    assert store.load(artifact_id).content == b"x"


def test_damaged_metadata_keeps_every_content_and_is_told_of(store, tmp_path):
    store.store(b"named by damaged metadata", artifact_id="a")
    store.delete(store.store(b"garbage, but who knows").artifact_id)
    path = tmp_path / "artifacts" / "refs" / "a.meta"
    before = path.read_bytes()
    path.write_bytes(before[:-10])
    for dry_run in (True, False):
        report = store.gc(dry_run=dry_run, grace_s=0)
        assert (report["blobs_deleted"], report["bytes_reclaimed"], len(report["errors"])) == (0, 0, 1)
        assert str(path) in report["errors"][0]
    assert len(blobs(tmp_path)) == 2
    path.write_bytes(before)
    assert store.gc(dry_run=False, grace_s=0)["blobs_deleted"] == 1
    assert store.load("a").content == b"named by damaged metadata"


def test_metadata_that_is_damaged_or_written_meanwhile_keeps_the_content(store, tmp_path, monkeypatch):
    """What happens between the first look and the turn is seen by the second."""
    store.delete(store.store(b"x").artifact_id)
    store.store(b"y", artifact_id="y")
    look, looks = metas.look, []

    def look_and_store(refs, known):
        found = look(refs, known)
        looks.append(known)
        if len(looks) == 1:
            store.store(b"x", artifact_id="meanwhile")
            os.utime(store.content_path("meanwhile"), (1, 1))  # as if the clock had been set back
        return found

    monkeypatch.setattr(collecting, "look", look_and_store)
    assert store.gc(dry_run=False, grace_s=0)["blobs_deleted"] == 0
    assert len(looks) == 2
    assert store.load("meanwhile").content == b"x"


def test_an_artifact_that_is_deleted_and_collected_while_it_is_loaded_is_gone_and_not_corrupt(store, monkeypatch):
    artifact_id = store.store(b"x").artifact_id
    read, reads = store._read, []

    def read_and_delete(name):
        found = read(name)
        reads.append(found)
        if len(reads) == 1:
            store.delete(name)
            store.gc(dry_run=False, grace_s=0)
        return found

    monkeypatch.setattr(store, "_read", read_and_delete)
    assert store.load(artifact_id) is None
    assert reads[0] is not None


def test_other_files_in_the_folders_are_left_alone(store, tmp_path):
    store.store(b"x")
    strange = tmp_path / "artifacts" / "blobs" / "README.bin"
    strange.write_text("not ours")
    assert store.gc(dry_run=False, grace_s=0)["blobs_total"] == 1
    assert strange.exists()


def test_a_content_that_cannot_be_deleted_is_an_error_of_the_report(store, tmp_path, monkeypatch):
    store.delete(store.store(b"x").artifact_id)

    def refuse(self, missing_ok=False):
        raise PermissionError(1, "no")

    monkeypatch.setattr(Path, "unlink", refuse)
    report = store.gc(dry_run=False, grace_s=0)
    assert (report["blobs_deleted"], len(report["errors"])) == (0, 1)
    assert "cannot be deleted" in report["errors"][0]


def test_the_draft_of_a_living_writer_stays(store, tmp_path):
    def slow():
        yield b"first"
        assert len(drafts(tmp_path)) == 1
        assert store.gc(dry_run=False, grace_s=0)["errors"] == []
        assert len(drafts(tmp_path)) == 1
        yield b"second"

    assert store.store_stream(slow(), artifact_id="a").size_bytes == 11
    assert store.load("a").content == b"firstsecond"
    assert drafts(tmp_path) == []


def test_a_draft_that_is_collected_before_it_is_locked_is_begun_again(store, tmp_path, monkeypatch):
    store.store(b"x")
    lock = drafting._lock
    collected: list[Path] = []

    def collect_first(descriptor):
        if not collected:
            collected.extend(drafts(tmp_path))
            assert store.gc(dry_run=False, grace_s=0)["errors"] == []
        lock(descriptor)

    monkeypatch.setattr(drafting, "_lock", collect_first)
    draft = drafting.Draft(tmp_path / "artifacts" / "blobs", durable=False)
    assert collected
    assert not collected[0].exists()
    assert draft.path.exists()
    draft.close()


# -- beside writers


def test_threads_that_store_while_garbage_is_collected_lose_nothing(tmp_path):
    stores = [FileArtifactStore(tmp_path, durability="none") for _ in range(4)]
    problems: list[object] = []
    ended = threading.Event()

    def write(number: int) -> None:
        store, chance = stores[number], random.Random(number)
        try:
            for turn in range(scaled(60, 3000)):
                content = chance.choice(CONTENTS)
                artifact_id = store.store(content, artifact_id=f"{number}-{turn}").artifact_id
                found = store.load(artifact_id)
                if found is None or found.content != content:
                    problems.append(artifact_id)
                store.delete(artifact_id)
        except BaseException as error:  # told by the test's own thread
            problems.append(error)

    def collect() -> None:
        while not ended.is_set():
            deleted.append(stores[3].gc(dry_run=False, grace_s=0)["blobs_deleted"])

    deleted: list[int] = []
    collector = threading.Thread(target=collect)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in (collector, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    collector.join()
    assert problems == []
    assert sum(deleted) > 0


def test_threads_that_change_one_artifact_lose_no_change(tmp_path):
    stores = [FileArtifactStore(tmp_path, durability="none") for _ in range(4)]
    stores[0].store(b"x", artifact_id="a")

    def change(number: int) -> None:
        for turn in range(25):
            stores[number].update_metadata("a", tags={f"{number}-{turn}": "1"})
            stores[number].record_access("a", action="content")
            stores[number].store(b"x", artifact_id="a", tags={f"again-{number}-{turn}": "1"})

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = stores[0].get_metadata("a")
    assert found is not None
    assert (len(found.tags), found.access.content_access_count) == (200, 100)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start workers, who write what they tell into files; all are gone when the test ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(mode: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.artifact_worker", mode, str(tmp_path), *map(str, arguments)]
        with (tmp_path / "-".join(["told", mode, *map(str, arguments)])).open("wb") as told:
            started.append(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=told))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def check_told(folder: Path, told: str) -> int:
    """Every acknowledged artifact loads, unless its writer went on to delete it; how many there are."""
    store, kept = FileArtifactStore(folder), dict[str, int]()
    for line in told.splitlines(keepends=True):
        if line.endswith("\n"):
            artifact_id, what = line.split()
            if what == "deleting":
                del kept[artifact_id]
            else:
                kept[artifact_id] = int(what)
    for artifact_id, content in kept.items():
        found = store.load(artifact_id)
        assert found is not None, artifact_id
        assert found.content == content_of(artifact_id, content)
    assert kept.keys() <= {meta.artifact_id for meta in store.list_all(limit=0)}
    return len(kept)


def test_processes_that_store_while_another_collects_lose_nothing(tmp_path, start):
    collector = start("gc")
    writers = [start("store", f"w{number}", scaled(80, 5000)) for number in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    collector.communicate()
    assert collector.returncode == 0
    kept = [check_told(tmp_path, path.read_text()) for path in tmp_path.glob("told-store-*")]
    assert len(kept) == 2
    assert all(kept)
    rounds, deleted = map(int, (tmp_path / "told-gc").read_text().split())
    assert rounds > 1
    assert deleted > 0


def test_a_writer_killed_at_any_moment_loses_nothing_it_was_told_is_kept(tmp_path, start, seed):
    chance = random.Random(seed)
    collector = start("gc")
    kept = 0
    for life in range(scaled(10, 300)):
        writer = start("store", f"life{life}", 0)
        told = tmp_path / f"told-store-life{life}-0"
        while not told.stat().st_size:
            assert writer.poll() is None
            time.sleep(0.01)  # between two looks at another process
        time.sleep(chance.random() * 0.05)  # any moment of its work
        writer.kill()
        writer.wait()
        kept += check_told(tmp_path, told.read_text())
    collector.communicate()
    assert collector.returncode == 0
    assert kept > 0
    store = FileArtifactStore(tmp_path)
    for meta in store.list_all(limit=0):
        assert store.load(meta.artifact_id) is not None
    assert store.gc(dry_run=False, grace_s=0)["errors"] == []
    assert drafts(tmp_path) == []
    assert len(blobs(tmp_path)) == len({meta.blob_id for meta in store.list_all(limit=0)})
