"""Artifacts in files: their layout, what happens when files are damaged or missing, and when the disk fails."""

from __future__ import annotations

import errno
import json
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    ArtifactMetadata,
    FileArtifactStore,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnclear,
)
from abstractruntime.storage.artifacts.metas import look
from abstractruntime.storage.drafts import Draft
from abstractruntime.storage.sqlite.failures import translated_os

from .scale import SOAK, scaled

ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(tmp_path: Path) -> FileArtifactStore:
    return FileArtifactStore(tmp_path, durability="none")


def meta_file(folder: Path, artifact_id: str) -> Path:
    return folder / "artifacts" / "refs" / f"{artifact_id}.meta"


def files(folder: Path, kind: str = "") -> list[str]:
    root = folder / "artifacts"
    found = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"]
    return sorted(str(path.relative_to(root)) for path in found if str(path.relative_to(root)).startswith(kind))


# -- layout


def test_the_files_lie_where_they_are_documented(store, tmp_path):
    meta = store.store_text("hello", run_id="r", tags={"a": "1"})
    store.store_text("hello", artifact_id="named")
    store.list_all()
    blob = f"blobs/{meta.blob_id}.bin"
    metas = sorted([f"refs/{meta.artifact_id}.meta", "refs/named.meta"])
    assert files(tmp_path) == ["artifact_catalog.sqlite3", blob, *metas]
    assert (tmp_path / "artifacts" / blob).read_bytes() == b"hello"
    assert store.content_path("named") == tmp_path / "artifacts" / blob
    written = json.loads(meta_file(tmp_path, meta.artifact_id).read_text())
    assert len(written.pop("checksum")) == 64
    assert written == meta.to_dict()


def test_nothing_is_made_before_something_is_stored(tmp_path):
    store = FileArtifactStore(tmp_path / "new")
    assert (store.list_all(), store.load("a"), store.gc(dry_run=False)["blobs_total"]) == ([], None, 0)
    assert not (tmp_path / "new").exists()


def test_metadata_without_a_checksum_is_read(store, tmp_path):
    meta = store.store_text("hello")
    plain = {"artifact_id": meta.artifact_id, "content_type": "text/plain", "size_bytes": 5, "blob_id": meta.blob_id}
    unknown = {"tags": None, "access": None, "descriptor": {"media": None, "task": "t"}, "something_else": 1}
    data = {**plain, **unknown, "created_at": "2026-01-31T10:00:00+01:00"}
    meta_file(tmp_path, meta.artifact_id).write_text(json.dumps(data, indent=2))
    found = store.get_metadata(meta.artifact_id)
    assert (found.created_at, found.tags) == ("2026-01-31T09:00:00.000000+00:00", {})
    assert (found.descriptor.task, found.descriptor.media, found.access.access_count) == ("t", {}, 0)
    assert store.list_all() == [found]
    assert store.load_text(meta.artifact_id) == "hello"


def test_an_unknown_durability_is_refused(tmp_path):
    with pytest.raises(ValueError, match="durability"):
        FileArtifactStore(tmp_path, durability="some")  # type: ignore[arg-type]


def test_many_artifacts_of_one_content_are_one_file(store, tmp_path):
    for number in range(20):
        store.store_stream([b"x" * 1000] * 10, run_id=f"run-{number}")
    assert len(files(tmp_path, "blobs")) == 1
    assert len(files(tmp_path, "refs")) == 20


# -- durability


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every flush and renaming, in order, with the kind of file or folder."""
    found: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def name(descriptor: int) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return path.name if stat.S_ISDIR(os.fstat(descriptor).st_mode) else path.suffix

    def seen_fsync(descriptor: int) -> None:
        found.append(("fsync", name(descriptor)))
        fsync(descriptor)

    def seen_replace(source: Any, target: Any) -> None:
        found.append(("rename", Path(target).suffix))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    return found


FILE_OF = {".bin": "blobs", ".meta": "refs"}
WRITTEN = {kind: [("fsync", ".part"), ("rename", kind), ("fsync", folder)] for kind, folder in FILE_OF.items()}

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@on_linux
@pytest.mark.parametrize("streamed", [False, True])
def test_content_then_metadata_are_flushed_then_named_then_their_folder_flushed(tmp_path, calls, streamed):
    store = FileArtifactStore(tmp_path)
    store.store(b"first")
    assert calls[-6:] == WRITTEN[".bin"] + WRITTEN[".meta"]
    made = [name for what, name in calls[:-6]]
    assert made.count("artifacts") == 3  # one flush for each folder that was made in it
    assert tmp_path.name in made
    del calls[:]
    meta = store.store_stream([b"x"]) if streamed else store.store(b"x")
    assert calls == WRITTEN[".bin"] + WRITTEN[".meta"]
    del calls[:]
    store.store(b"x", run_id="r")
    assert calls == [("fsync", ".bin"), ("fsync", "blobs"), *WRITTEN[".meta"]]  # its writer may not have come so far
    del calls[:]
    store.update_metadata(meta.artifact_id, tags={"a": "1"})
    assert calls == WRITTEN[".meta"]
    del calls[:]
    store.delete(meta.artifact_id)
    assert calls == [("fsync", "refs")]


@on_linux
def test_without_durability_nothing_is_flushed(store, calls):
    store.delete(store.store(b"x").artifact_id)
    store.store_stream([b"x"])
    assert [what for what, _ in calls if what == "fsync"] == []


# -- damage


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def overwrite(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(len(data))
    data[start : start + 64] = chance.randbytes(64)
    path.write_bytes(data)


Kept = dict[str, tuple[ArtifactMetadata, bytes]]


def filled(folder: Path) -> Kept:
    """A store of a dozen artifacts, three of which share a content, with a catalog; what it holds."""
    store = FileArtifactStore(folder, durability="none")
    kept: Kept = {}
    for number in range(12):
        content = b"shared" if number < 3 else random.Random(number).randbytes(number * 40 + 1)
        meta = store.store(content, run_id=f"r{number % 4}", tags={"n": str(number)}, artifact_id=f"a{number}")
        kept[meta.artifact_id] = (meta, content)
    assert len(store.list_all()) == 12
    return kept


def given(call: Callable[[str], Any], artifact_id: str) -> Any:
    """What the call gives, or None when it says that the store is damaged."""
    try:
        return call(artifact_id)
    except StoreCorrupt:
        return None


def as_file(store: FileArtifactStore, artifact_id: str) -> bytes:
    with store.open(artifact_id) as file:
        return file.read()


def check_the_rest(folder: Path, kept: Kept, hit: str) -> int:
    """Whatever was hit is refused or is what it was; all else is untouched. How many artifacts cannot be loaded."""
    store = FileArtifactStore(folder, durability="none")
    listed = {meta.artifact_id: meta for meta in store.list_all()}
    lost = 0
    for artifact_id, (meta, content) in kept.items():
        assert store.exists(artifact_id)
        known = given(store.get_metadata, artifact_id)
        assert known == meta or (known is None and hit == f"{artifact_id}.meta")
        assert listed.get(artifact_id) == known
        found = given(store.load, artifact_id)
        contents = [
            found and found.content,
            given(partial(as_file, store), artifact_id),
            given(lambda name: b"".join(store.iter_content(name, chunk_size=100)), artifact_id),
        ]
        if contents != [content] * 3:
            assert contents == [None] * 3
            assert hit in (f"{artifact_id}.meta", f"{meta.blob_id}.bin")
            lost += 1
    assert store.gc(dry_run=False, grace_s=0)["blobs_deleted"] == 0
    return lost


@pytest.mark.parametrize("harm", [flip, cut, empty, overwrite])
def test_damage_anywhere_is_found_or_harmless_and_loses_nothing_else(tmp_path, seed, harm):
    chance = random.Random(seed)
    kept = filled(tmp_path)
    lost = Counter[str]()
    for _ in range(scaled(80, 3000)):
        path = tmp_path / "artifacts" / chance.choice(files(tmp_path))
        before = path.read_bytes()
        harm(path, chance)
        lost[path.suffix] += check_the_rest(tmp_path, kept, path.name)
        if path.suffix != ".sqlite3":  # that one was made anew
            path.write_bytes(before)
        assert check_the_rest(tmp_path, kept, "") == 0
    assert lost[".sqlite3"] == 0
    assert lost[".bin"] > 0
    assert lost[".meta"] > 0


def test_any_flipped_bit_of_a_content_is_found(store, tmp_path, seed):
    chance = random.Random(seed)
    meta = store.store(bytes(range(256)))
    path = store.content_path(meta.artifact_id)
    for _ in range(50):
        before = path.read_bytes()
        flip(path, chance)
        with pytest.raises(StoreCorrupt, match=meta.artifact_id):
            store.load(meta.artifact_id)
        path.write_bytes(before)


@pytest.mark.parametrize(
    "wrong", ["", "{", "[]", "null", '{"artifact_id": "a"}', '{"artifact_id": 5}', "\xff", "9" * 999]
)
def test_a_metadata_file_that_is_none_is_corrupt_and_not_missing(store, tmp_path, caplog, wrong):
    store.store(b"one", artifact_id="a")
    store.store(b"two", artifact_id="b")
    path = meta_file(tmp_path, "a")
    path.write_text(wrong, encoding="latin-1")
    for call in (store.load, store.get_metadata, store.open, store.update_metadata, store.content_path):
        with pytest.raises(StoreCorrupt, match=str(path)):
            call("a")
    with pytest.raises(StoreCorrupt):
        store.store(b"one", artifact_id="a")
    assert store.exists("a")
    assert [meta.artifact_id for meta in store.list_all()] == ["b"]
    assert str(path) in caplog.text
    assert store.count() == 1
    assert caplog.text.count("Left out of lists") == 1  # told once
    assert store.delete("a")
    assert store.store(b"one", artifact_id="a") == store.load("a").metadata
    assert store.count() == 2


def test_metadata_under_another_name_is_corrupt(store, tmp_path):
    store.store(b"one", artifact_id="a")
    meta_file(tmp_path, "a").rename(meta_file(tmp_path, "b"))
    with pytest.raises(StoreCorrupt, match="of artifact 'a'"):
        store.load("b")
    assert store.load("a") is None
    assert store.list_all() == []


def test_a_missing_content_is_corrupt_and_storing_it_again_repairs_it(store):
    meta = store.store(b"x" * 100)
    other = store.store(b"x" * 100, run_id="r")
    store.content_path(meta.artifact_id).unlink()
    for call in (store.load, store.open, lambda x: list(store.iter_content(x))):
        with pytest.raises(StoreCorrupt, match="is missing"):
            call(meta.artifact_id)
    assert store.content_path(meta.artifact_id) is None
    assert store.exists(meta.artifact_id)
    store.store(b"x" * 100)
    assert store.load(meta.artifact_id).content == store.load(other.artifact_id).content == b"x" * 100


def test_storing_a_content_again_repairs_a_damaged_one(store, seed):
    meta = store.store(b"x" * 100)
    flip(store.content_path(meta.artifact_id), random.Random(seed))
    assert store.store(b"x" * 100, run_id="r").blob_id == meta.blob_id
    assert store.load(meta.artifact_id).content == b"x" * 100


def test_the_last_piece_of_a_damaged_content_is_never_given_out(store):
    meta = store.store(b"0123456789")
    store.content_path(meta.artifact_id).write_bytes(b"0123456780")
    chunks = store.iter_content(meta.artifact_id, chunk_size=4)
    assert [next(chunks), next(chunks)] == [b"0123", b"4567"]
    with pytest.raises(StoreCorrupt, match="SHA-256"):
        next(chunks)


# -- the catalog is only an index


def rows(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "artifacts" / "artifact_catalog.sqlite3")) as connection:
        return [row[0] for row in connection.execute("SELECT artifact_id FROM artifacts ORDER BY 1")]


def test_a_list_is_right_whatever_the_catalog_says(store, tmp_path):
    for number in range(5):
        store.store(b"x", artifact_id=f"a{number}")
    assert store.count() == 5
    assert rows(tmp_path) == [f"a{number}" for number in range(5)]
    catalog = tmp_path / "artifacts" / "artifact_catalog.sqlite3"
    for spoil in (catalog.unlink, lambda: catalog.write_bytes(b"no database" * 1000), lambda: catalog.write_bytes(b"")):
        spoil()
        assert FileArtifactStore(tmp_path).count() == 5
        assert rows(tmp_path) == [f"a{number}" for number in range(5)]
    with closing(sqlite3.connect(catalog, isolation_level=None)) as connection:
        connection.execute("UPDATE artifacts SET meta = replace(meta, 'a3', 'a4') WHERE artifact_id = 'a3'")
        connection.execute("UPDATE artifacts SET artifact_id = 'other' WHERE artifact_id = 'a2'")
    assert FileArtifactStore(tmp_path).count() == 5
    assert rows(tmp_path) == [f"a{number}" for number in range(5)]
    with closing(sqlite3.connect(catalog, isolation_level=None)) as connection:
        connection.execute("DROP TABLE artifacts")
        connection.execute("CREATE TABLE artifacts (something_else)")
    assert FileArtifactStore(tmp_path).count() == 5
    assert FileArtifactStore(tmp_path).rebuild_catalog() == 5
    assert rows(tmp_path) == [f"a{number}" for number in range(5)]


def test_what_another_store_object_did_is_seen_at_once(tmp_path):
    one, two = FileArtifactStore(tmp_path, durability="none"), FileArtifactStore(tmp_path, durability="none")
    for number in range(30):
        meta = one.store(b"%d" % number)
        assert two.count() == number + 1
        for tag in "abcd":  # replaced twice within one tick of the file system's clock: the same size, the same inode
            one.update_metadata(meta.artifact_id, tags={"x": "-"})
            one.update_metadata(meta.artifact_id, tags={"x": tag})
            assert two.get_metadata(meta.artifact_id) in two.list_all(), (number, tag)
        two.update_metadata(meta.artifact_id, tags={"x": "e"})
        assert one.count(tags={"x": "e"}) == number + 1
    assert two.delete(one.list_all()[0].artifact_id)
    assert one.count() == 29


def test_a_file_that_may_change_again_within_the_same_tick_is_not_known_by_its_stamp(store, tmp_path):
    store.store(b"x", artifact_id="a")
    refs = tmp_path / "artifacts" / "refs"
    assert look(refs, {}).seen["a"].stamp == ""
    os.utime(meta_file(tmp_path, "a"), (1, 1))
    first = look(refs, {}).seen
    assert first["a"].stamp
    assert look(refs, first).seen["a"] is first["a"]
    store.update_metadata("a", tags={"x": "1"})
    os.utime(meta_file(tmp_path, "a"), (1, 1))
    assert look(refs, first).seen["a"].meta.tags == {"x": "1"}


def test_a_catalog_that_cannot_be_written_costs_nothing_but_time(store, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("abstractruntime.storage.artifacts.catalog._BUSY_SECONDS", 0.01)
    store.store(b"x", artifact_id="a")
    store.list_all()
    store.store(b"y", artifact_id="b")
    with closing(sqlite3.connect(tmp_path / "artifacts" / "artifact_catalog.sqlite3", isolation_level=None)) as busy:
        busy.execute("BEGIN EXCLUSIVE")
        assert store.count() == 2
        assert FileArtifactStore(tmp_path).count() == 2
    assert "locked" in caplog.text
    assert FileArtifactStore(tmp_path).count() == 2
    assert rows(tmp_path) == ["a", "b"]


def test_no_connection_stays_open(store, tmp_path):
    def open_files() -> int:
        return len([name for name in os.listdir("/proc/self/fd") if "catalog" in _target(name)])

    def _target(name: str) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            return ""

    threads = [threading.Thread(target=lambda n=n: (store.store(b"%d" % n), store.list_all())) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 20
    if sys.platform.startswith("linux"):
        assert open_files() == 0


# -- a failing disk


class Failing:
    """Makes the n-th of some calls fail, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, code: int) -> None:
        self.calls, self._at, self._code = 0, fail_at, code
        for place, name in ((os, "fsync"), (os, "replace"), (os, "utime"), (Draft, "write")):
            monkeypatch.setattr(place, name, self._wrapped(getattr(place, name)))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls += 1
            if self.calls == self._at:
                error = OSError(self._code, os.strerror(self._code))
                if isinstance(args[0], Draft):
                    raise translated_os(error, "draft") from error
                raise error
            return real(*args)

        return call


def walk(folder: Path, code: int, operation: Callable[[FileArtifactStore], Any]) -> list[StoreError]:
    """Let each call of an operation fail once; after each failure the store is whole and the operation works."""
    errors: list[StoreError] = []
    for fail_at in range(1, 100):
        place = folder / f"{code}-{fail_at}"
        kept = FileArtifactStore(place).store(b"kept", artifact_id="kept", tags={"a": "1"})
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, fail_at, code)
            try:
                operation(FileArtifactStore(place))
            except StoreError as error:
                errors.append(error)
        if failing.calls < fail_at:
            return errors
        store: Any = FileArtifactStore(place)
        assert store.load("kept").content == b"kept"
        assert store.get_metadata("kept").created_at == kept.created_at
        assert not [name for name in files(place) if ".part" in name]
        for meta in store.list_all():
            assert store.load(meta.artifact_id) is not None
        operation(store)
        assert store.gc(dry_run=False, grace_s=0)["errors"] == []
        assert store.load("kept").content == b"kept"
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    "operation",
    [
        lambda store: store.store(b"new", run_id="r"),
        lambda store: store.store_stream([b"a", b"b"], run_id="r"),
        lambda store: store.store(b"kept", run_id="r"),
        lambda store: store.store(b"kept", artifact_id="kept", tags={"b": "2"}),
        lambda store: store.update_metadata("kept", tags={"b": "2"}),
        lambda store: store.record_access("kept", action="content"),
    ],
    ids=["store", "stream", "shared", "again", "update", "access"],
)
def test_a_disk_that_fails_anywhere_is_told_and_loses_nothing(tmp_path, operation):
    full = walk(tmp_path, errno.ENOSPC, operation)
    assert full
    assert {type(error) for error in full} == {StoreFull, StoreUnclear}  # unclear: only the name may be lost
    broken, read_only = walk(tmp_path, errno.EIO, operation), walk(tmp_path, errno.EROFS, operation)
    assert len(broken) == len(read_only) == len(full)
    assert {type(error) for error in read_only} == {StoreReadOnly, StoreUnclear}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_says_so(store, tmp_path):
    meta = store.store(b"x")
    folders = [tmp_path / "artifacts" / name for name in ("blobs", "refs")]
    for folder in folders:
        folder.chmod(0o500)
    try:
        with pytest.raises(StoreReadOnly):
            store.store(b"y")
        assert store.load(meta.artifact_id) is not None
    finally:
        for folder in folders:
            folder.chmod(0o700)


def test_a_folder_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="artifacts"):
        FileArtifactStore(tmp_path / "file").store(b"x")


def test_a_store_whose_folder_was_removed_says_so(store, tmp_path):
    store.store(b"x")
    for path in sorted((tmp_path / "artifacts").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(StoreError, match="Check the path"):
        store.store(b"y")
    assert store.list_all() == []


# -- memory


MEGABYTE = 1 << 20
SIZE = 1024 * MEGABYTE if SOAK else 64 * MEGABYTE

STREAMER = """
import hashlib, resource, sys
from abstractruntime import FileArtifactStore

folder, size = sys.argv[1], int(sys.argv[2])
store = FileArtifactStore(folder, durability="none")
piece = bytes(range(256)) * 4096
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.store_stream([piece] * 4, artifact_id="small")
list(map(len, store.iter_content("small")))
before = peak()
meta = store.store_stream((piece for _ in range(size // len(piece))), artifact_id="large")
store.store_file(store.content_path("large"), run_id="r")
digest = hashlib.sha256()
for chunk in store.iter_content("large"):
    digest.update(chunk)
assert digest.hexdigest() == meta.blob_id and meta.size_bytes == size
with store.open("large") as file:
    assert file.read(256) == piece[:256]
print(peak() - before)
"""


def test_a_large_content_never_sits_in_memory(tmp_path):
    command = [sys.executable, "-c", STREAMER, str(tmp_path), str(SIZE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 16 * MEGABYTE, grown
