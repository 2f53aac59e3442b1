"""Death and failure at every file operation of JSON stores: what is found after is exactly the commit, or nothing.

A scenario runs on a folder whose file operations are counted. At each of them the process dies before it, after it, or
in the middle of a write; or the machine loses power and takes with it what was not flushed; or the operation fails.
Then the folder is opened anew, and must hold what was acknowledged, with what was under way either whole or not at all.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from abstractruntime.core.backend import Write
from abstractruntime.core.codec import encode_records, encode_run
from abstractruntime.core.errors import StoreError, StoreUnclear
from abstractruntime.core.models import Request, RunState, RunStatus, StepRecord, StepStatus
from abstractruntime.storage.json_files.files import Files
from abstractruntime.storage.json_files.folder import Folder

from .faults import ProcessDied
from .scale import scaled

AT = "2026-01-31T09:00:00.000000+00:00"


class Disk(Files):
    """File operations that are counted, one of which goes wrong; it knows what has reached the disk."""

    def __init__(self, root: Path, faults: dict[int, str] | None = None, *, part: float = 0.5) -> None:
        super().__init__(durable=True)
        #: by number of the operation
        self.root, self._faults, self._part = root, faults or {}, part
        self.count = 0
        self.names: list[str] = []
        self.fired: list[str] = []
        self._failing = False
        self._paths: dict[int, Path] = {}
        #: content that was flushed, by inode; names that were flushed, with their inodes
        self._flushed: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        #: inodes whose content, and names with inodes, that a failed flush has dropped for good
        self._dropped: set[int] = set()
        self._dropped_names: set[tuple[str, int]] = set()
        self._kept: list[int] = []  # descriptors that keep inodes from being used again

    def well_again(self) -> None:
        """What went on failing fails no more."""
        self._failing = False

    def _step(self, name: str, do: Callable[[], Any], bad: Callable[[], Any] | None = None) -> Any:
        """Do it, or what its fault says; `bad` is what is left of it when it is torn or fails."""
        self.count += 1
        self.names.append(name)
        how = self._faults.get(self.count, "fails" if self._failing else "")
        if not how:
            return do()
        self.fired.append(f"{how} {name} {self.count}")
        if how in ("fails", "goes on failing", "torn") and bad is not None:
            bad()
        elif how in ("fails after", "after", "power"):
            do()
        self._failing = self._failing or how == "goes on failing"
        if "fail" in how:
            raise OSError(5, "Input/output error")
        raise ProcessDied(self.fired[-1])

    def open(self, path: Path, flags: int) -> int:
        descriptor: int = self._step("open", lambda: super(Disk, self).open(path, flags))
        self._paths[descriptor] = path
        self._kept.append(os.dup(descriptor))
        if flags & os.O_TRUNC:  # all of it is written anew
            self._dropped.discard(os.fstat(descriptor).st_ino)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> None:
        part = data[: int(len(data) * self._part)]
        self._step(
            "write",
            lambda: super(Disk, self).write(descriptor, data),
            lambda: super(Disk, self).write(descriptor, part),
        )

    def truncate(self, descriptor: int, size: int) -> None:
        self._step("truncate", lambda: super(Disk, self).truncate(descriptor, size))

    def fsync(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino

        def flush() -> None:
            if inode not in self._dropped:
                self._flushed[inode] = self._paths[descriptor].read_bytes()

        self._step("fsync", flush, lambda: self._dropped.add(inode))

    def replace(self, source: Path, target: Path) -> None:
        self._step("replace", lambda: super(Disk, self).replace(source, target))

    def unlink(self, path: Path) -> None:
        self._step("unlink", lambda: super(Disk, self).unlink(path))

    def sync_folder(self, folder: Path) -> None:
        now = {path.name: path.stat().st_ino for path in folder.iterdir()}
        fresh = now.items() - self._names.items()

        def flush() -> None:
            kept = {name: inode for name, inode in now.items() if (name, inode) not in self._dropped_names}
            old = {name: self._names[name] for name in now.keys() - kept.keys() if name in self._names}
            self._names = old | kept

        self._step("sync_folder", flush, lambda: self._dropped_names.update(fresh))

    def lose_power(self, rng: random.Random) -> None:
        """Leave what a power cut leaves: of what was not flushed, names and contents, any part may be there."""
        now = {path.name: path.stat().st_ino for path in self.root.iterdir()}
        contents = {path.stat().st_ino: path.read_bytes() for path in self.root.iterdir()}
        names: dict[str, int] = {}
        for name in now.keys() | self._names.keys():
            old, new = self._names.get(name), now.get(name)
            kept = rng.choice([old, new])
            if kept is not None:
                names[name] = kept
        survivors = {name: self._survivor(inode, contents, rng) for name, inode in names.items()}
        self.close()
        shutil.rmtree(self.root)
        self.root.mkdir()
        for name, content in survivors.items():
            (self.root / name).write_bytes(content)

    def _survivor(self, inode: int, contents: dict[int, bytes], rng: random.Random) -> bytes:
        flushed = self._flushed.get(inode, b"")
        written = contents.get(inode, flushed)
        if written == flushed:
            return written
        if not written.startswith(flushed):  # cut off or written anew
            return rng.choice([flushed, written])
        end = rng.randint(len(flushed), len(written))
        lost = rng.choice([b"", bytes(len(written) - end)])  # the size may be there before the content
        return written[:end] + lost

    def flushed(self) -> bool:
        """Whether all that is in the folder has reached the disk."""
        paths = [path for path in self.root.iterdir() if path.suffix in (".json", ".jsonl")]
        return all(
            self._names.get(path.name) == path.stat().st_ino
            and self._flushed.get(path.stat().st_ino) == path.read_bytes()
            for path in paths
        )

    def close(self) -> None:
        for descriptor in self._kept:
            os.close(descriptor)
        self._kept.clear()


def state(run_id: str, revision: int, **fields: Any) -> RunState:
    run = RunState(run_id, "w", fields.pop("status", RunStatus.RUNNING), "n", created_at=AT, updated_at=AT, **fields)
    run.revision, run.commit_id, run.vars = revision, f"{run_id}@{revision}", {"revision": revision}
    return run


def write(run_id: str, revision: int, before: int, count: int, **fields: Any) -> Write:
    """The commit that takes the run to this revision; a landing leaves it there and has an id of its own."""
    landing = bool(fields.get("landing"))
    run = state(run_id, revision, status=fields.pop("status", RunStatus.RUNNING))
    if landing:
        run.commit_id = f"{run_id}+{before}"
    records = [
        StepRecord(run_id, f"s{number}", "n", StepStatus.COMPLETED, {"text": "x" * 40}, {"n": number}, started_at=AT)
        for number in range(before + 1, before + count + 1)
    ]
    for record in records:
        record.commit_id = run.commit_id
    expected = revision if landing else (None if revision == 1 else revision - 1)
    return Write(
        run=run,
        data=b"" if landing else encode_run(run),
        expected=expected,
        expected_records=before,
        records=encode_records(records),
        count=count,
        lookup_key=fields.pop("lookup_key", None),
        **fields,
    )


def cancel(run_id: str) -> Request:
    return Request(run_id=run_id, kind="cancel", by="a", at=AT)


def appended(folder: Folder) -> None:
    folder.append(StepRecord("a", "own", "n", StepStatus.COMPLETED, {"text": "y" * 40}, started_at=AT))


#: what happens, in order; each step is a commit or another change that must be whole
STEPS: list[Callable[[Folder], Any]] = [
    lambda folder: folder.commit(write("other", 1, 0, 1)),
    lambda folder: folder.commit(write("a", 1, 0, 2)),
    lambda folder: folder.commit(write("a", 2, 2, 1, lookup_key="key")),
    lambda folder: folder.commit(write("a", 2, 3, 3, landing=True, lookup_key="landed")),
    lambda folder: folder.commit(write("a", 2, 6, 1, landing=True)),
    lambda folder: folder.commit(write("a", 3, 7, 2, requests=(cancel("other"),))),
    lambda folder: folder.commit(write("other", 2, 1, 1, answered=1)),
    lambda folder: folder.commit(
        write(
            "other",
            3,
            2,
            1,
            also=(write("a", 4, 9, 0, hot=True), write("made", 1, 0, 0), write("b", 1, 0, 0, if_absent=True)),
            requests=(cancel("a"),),
        )
    ),
    lambda folder: folder.commit(write("a", 5, 9, 0, answered=1, also=(write("made", 2, 0, 0, hot=True),))),
    lambda folder: folder.delete_run("made"),
    lambda folder: folder.delete_run("b"),
    appended,
    lambda folder: folder.commit(write("a", 5, 10, 2, landing=True, requests=(cancel("b"),))),
    lambda folder: folder.commit(write("b", 1, 0, 0)),
    lambda folder: folder.commit(write("a", 6, 12, 0, requests=(cancel("b"),), also=(write("made", 1, 0, 0),))),
    lambda folder: folder.delete_ledger("a"),
    lambda folder: folder.commit(write("a", 7, 0, 2, also=(write("made", 2, 0, 0, hot=True),))),
    lambda folder: folder.delete_run("a"),
]


def seen(folder: Folder) -> Any:
    """All that can be read."""
    with folder:
        runs = {}
        for run_id in ("a", "b", "other", "made"):
            loaded = folder.load(run_id)
            ledger = folder.ledger(run_id)
            runs[run_id] = (
                None if loaded is None else (loaded.run.revision, loaded.run.vars, loaded.run.records, loaded.requests),
                [(record.step_id, record.result, record.commit_id) for record in ledger.records()],
                [record.step_id for key in ("key", "landed") for record in ledger.find(key)],
            )
            assert ledger.count == len(runs[run_id][1])
        return runs, [run_id for _, run_id, _ in folder.index().in_order()]


def opened(root: Path, files: Files | None = None) -> Folder:
    """The folder as another process opens it; whoever had it is gone."""
    return Folder(root, files or Files(durable=False))


def left(folder: Folder) -> None:
    """Let its process be gone."""
    folder._lock.let_go()


def do(folder: Folder, step: Callable[[Folder], Any]) -> None:
    with folder:
        step(folder)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What can be read before the first step, and after each."""
    folder = opened(tmp_path_factory.mktemp("undisturbed"))
    found = [seen(folder)]
    for step in STEPS:
        do(folder, step)
        found.append(seen(folder))
    assert found[-1][0]["b"][0][3] == (cancel("b"),)
    assert found[-1][0]["other"][0][3] == ()
    return found


def operations(root: Path) -> list[str]:
    """The file operations of all the steps."""
    root.mkdir(parents=True)
    disk = Disk(root)
    folder = opened(root, disk)
    for step in STEPS:
        do(folder, step)
    left(folder)
    disk.close()
    assert len(disk.names) > 60
    return disk.names


def walk(root: Path, how: str, **fault: Any) -> Iterator[tuple[Disk, int]]:
    """Do the steps, with the fault at each operation in turn, and tell how many were acknowledged."""
    for at, name in enumerate(operations(root / "undisturbed"), 1):
        if how == "torn" and name != "write":
            continue
        place = root / str(at)
        place.mkdir()
        disk = Disk(place, {at: how}, **fault)
        folder, done = opened(place, disk), 0
        with pytest.raises(ProcessDied):  # noqa: PT012
            for step in STEPS:
                do(folder, step)
                done += 1
        left(folder)
        yield disk, done
        disk.close()
        shutil.rmtree(place)


@pytest.mark.parametrize(
    ("how", "part"), [("before", 0.0), ("after", 0.0), *(("torn", part) for part in (0.5, 0.9999))]
)
def test_the_process_may_die_at_every_file_operation(tmp_path, ends, how, part):
    for disk, done in walk(tmp_path, how, part=part):
        check_end(disk.root, ends, done, str(disk.fired))


def test_the_machine_may_lose_power_at_every_file_operation(tmp_path, ends, seed):
    rng = random.Random(seed)
    for number in range(scaled(1, 100)):
        for disk, done in walk(tmp_path / str(number), "power"):
            disk.lose_power(rng)
            check_end(disk.root, ends, done, str(disk.fired))


def check_end(root: Path, ends: list[Any], done: int, where: str) -> None:
    """Whoever reads sees a step whole or not at all, as do those who open the folder and go on."""
    reader = opened(root)
    found = seen(reader)
    assert found in (ends[done], ends[done + 1]), f"{where}, read"
    writer = opened(root)
    if found == ends[done]:
        for step in STEPS[done:]:
            do(writer, step)
    else:
        for step in STEPS[done + 1 :]:
            do(writer, step)
    assert seen(writer) == ends[-1], f"{where}, gone on"
    assert not list(root.glob(".*.tmp"))
    left(writer)
    assert seen(opened(root)) == ends[-1], f"{where}, opened again"


class NobodyKnowsError(Exception):
    """A deletion was not flushed, and there is nothing that could be written anew: it may come back."""


def persist(folder: Folder, disk: Disk, ends: list[Any], number: int) -> None:
    """Do a step as a host does: what failed is done again once the disk is well, unless it landed."""
    try:
        do(folder, STEPS[number])
    except StoreError as error:
        unclear = isinstance(error, StoreUnclear)
        disk.well_again()
        found = seen(folder)
        assert found in ((ends[number], ends[number + 1]) if unclear else (ends[number],)), disk.fired
        assert unclear or seen(opened(disk.root)) == ends[number], f"{disk.fired}: another process sees it"
        if found == ends[number]:
            persist(folder, disk, ends, number)
        elif "delete" in STEPS[number].__code__.co_names[0]:
            raise NobodyKnowsError from error
        settle(folder)
    if disk.fired:
        assert seen(folder) == ends[number + 1], disk.fired


def settle(folder: Folder) -> None:
    """What `landed` does before it says yes."""
    with folder:
        for run_id in ("a", "b", "other", "made"):
            folder._settle(run_id)


@pytest.mark.parametrize(("how", "part"), [("fails", 1.0), ("goes on failing", 0.9), ("fails after", 0)])
def test_every_file_operation_may_fail_and_the_same_object_goes_on(tmp_path, ends, how, part):
    for at in range(1, len(operations(tmp_path / "undisturbed")) + 1):
        place = tmp_path / str(at)
        place.mkdir()
        disk = Disk(place, {at: how}, part=part)
        folder = opened(place, disk)
        for number in range(len(STEPS)):
            with suppress(NobodyKnowsError):
                persist(folder, disk, ends, number)
        settle(folder)  # what the last commits left undone is done before they are forgotten
        assert disk.flushed(), f"{disk.fired}: not all has reached the disk"
        left(folder)
        assert seen(opened(place)) == ends[-1]
        disk.close()
        shutil.rmtree(place)


def test_a_file_that_a_failed_append_has_made_is_on_the_disk_after_the_next(tmp_path):
    """That took it for one whose name was on the disk; a loss of power took the name, and with it a run's records."""
    failed = 0
    for at in range(1, 10):
        place = tmp_path / str(at)
        place.mkdir()
        disk = Disk(place, {at: "fails"}, part=0.0)
        try:
            disk.append(place / "ledger_a.jsonl", 0, b"one\n")
        except StoreUnclear:
            continue  # whoever hears this writes the file anew
        except StoreError:
            failed += 1
            disk.well_again()
            disk.append(place / "ledger_a.jsonl", 0, b"one\n")
        assert disk.flushed(), disk.fired
        disk.lose_power(random.Random(at))
        assert (place / "ledger_a.jsonl").read_bytes() == b"one\n", disk.fired
        disk.close()
    assert failed > 1


def test_after_a_failure_the_process_may_die_and_the_machine_lose_power(tmp_path, ends, seed):
    rng = random.Random(seed)
    last = len(operations(tmp_path / "undisturbed"))
    for round_ in range(scaled(100, 20_000)):
        place = tmp_path / str(round_)
        place.mkdir()
        first = rng.randint(1, last)
        faults = {
            first: rng.choice(["fails", "goes on failing", "fails after"]),
            first + rng.randint(1, 12): rng.choice(["before", "after", "torn", "power"]),
        }
        disk = Disk(place, faults, part=rng.random())
        folder, done = opened(place, disk), 0
        try:
            for number in range(len(STEPS)):
                persist(folder, disk, ends, number)
                done += 1
        except NobodyKnowsError:
            pass
        except ProcessDied:
            left(folder)
            if "power" in disk.fired[-1]:
                disk.lose_power(rng)
            check_end(place, ends, done, str(disk.fired))
        left(folder)
        disk.close()
        shutil.rmtree(place)
