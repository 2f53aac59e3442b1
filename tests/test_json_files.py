"""JSON stores: what stands in the files, whose folder it is, and what happens when the ground is taken away."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime import (
    AsyncJsonFileRunStore,
    AsyncJsonlLedgerStore,
    AsyncRuntime,
    Effect,
    EffectOutcome,
    HashChainedLedgerStore,
    InMemoryArtifactStore,
    InvalidId,
    JsonFileRunStore,
    JsonlLedgerStore,
    OffloadingLedgerStore,
    OffloadingRunStore,
    Request,
    RevisionConflict,
    RunState,
    RunStatus,
    Runtime,
    StepPlan,
    StepRecord,
    StepStatus,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreVanished,
    WorkflowSpec,
    verify_ledger_chain,
)
from abstractruntime.core import portal
from abstractruntime.storage.json_files.backend import JsonBackend
from abstractruntime.storage.json_files.files import Files
from abstractruntime.storage.json_files.folder import Folder
from abstractruntime.storage.json_files.names import id_of_run_file, ledger_file, run_file
from abstractruntime.storage.user_pair import UserPair, join_stores

from .checks import check_ledger
from .scale import scaled
from .test_json_crashes import STEPS, do, left, opened, seen, write
from .worlds import eventually

ROOT = Path(__file__).parent.parent
AT = "2026-01-31T09:00:00.000000+00:00"


class Desk:
    """A pair of blocking stores on one folder."""

    def __init__(self, folder: Path, durability: Any = "none") -> None:
        self.folder = folder
        self.runs = JsonFileRunStore(folder, durability=durability)
        self.ledgers = JsonlLedgerStore(folder, durability=durability)

    def save(self, run_id: str = "r", **fields: Any) -> RunState:
        run = RunState(run_id, "w", fields.pop("status", RunStatus.RUNNING), "n", fields.pop("vars", {}), **fields)
        self.runs.save(run)
        return run

    def append(self, run_id: str = "r", text: str = "x") -> None:
        self.ledgers.append(record(run_id, text))

    def texts(self, run_id: str = "r") -> list[str]:
        return [found["result"]["text"] for found in self.ledgers.list(run_id)]

    def load(self, run_id: str = "r") -> RunState:
        run = self.runs.load(run_id)
        assert run is not None
        return run

    def anew(self) -> Desk:
        """The same folder as a process opens it that comes after this one."""
        folder = self.runs.aio._backend._folder or self.ledgers.aio._backend._folder
        assert folder is not None
        left(folder)
        folder.begin()
        return self


def record(run_id: str, text: str) -> StepRecord:
    return StepRecord(run_id, f"s-{text}", "n", StepStatus.COMPLETED, None, {"text": text}, started_at=AT, ended_at=AT)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "runs")


# -- what stands in the files


def test_a_run_is_a_file_that_people_and_programs_can_read(desk):
    desk.save(vars={"ü": [1, {"deep": None}]}, session_id="s")
    text = (desk.folder / "run_r.json").read_text()
    found = json.loads(text)
    assert list(found)[:13] == list(RunState.__struct_fields__[:13])
    assert (found["run_id"], found["status"], found["vars"]) == ("r", "running", {"ü": [1, {"deep": None}]})
    assert (found["waiting"], found["output"], found["session_id"]) == (None, None, "s")
    assert '\n  "current_node": "n",\n' in text
    assert list(found)[-2:] == ["store", "crc"]


def test_a_ledger_is_a_file_with_a_record_per_line(desk):
    for text in "abc":
        desk.append(text=text)
    lines = (desk.folder / "ledger_r.jsonl").read_text().splitlines()
    assert [json.loads(line)["result"]["text"] for line in lines] == ["a", "b", "c"]
    assert set(StepRecord.__struct_fields__[:16]) <= set(json.loads(lines[0]))


def test_what_was_edited_by_hand_is_refused_until_its_checksum_is_deleted(desk):
    desk.save(vars={"n": 1})
    desk.append()
    path, lines = desk.folder / "run_r.json", desk.folder / "ledger_r.jsonl"
    desk.anew()
    path.write_text(path.read_text().replace('"n": 1', '"n": 2'))
    lines.write_text(lines.read_text().replace('"text":"x"', '"text":"y"'))
    with pytest.raises(StoreCorrupt, match=r'run_r\.json.*delete the member "crc"'):
        desk.runs.load("r")
    found = json.loads(path.read_text())
    del found["crc"]
    path.write_text(json.dumps(found))
    with pytest.raises(StoreCorrupt, match=r'ledger_r\.jsonl: line 1: .*delete the member "crc"'):
        desk.ledgers.list("r")
    line = json.loads(lines.read_text())
    del line["crc"]
    lines.write_text(json.dumps(line) + "\n")
    run = desk.runs.load("r")
    assert run.vars == {"n": 2}
    assert desk.texts() == ["y"]
    run.vars["n"] = 3
    desk.runs.save(run)
    desk.append()
    assert json.loads(path.read_text())["crc"]
    assert desk.texts() == ["y", "x"]


def test_a_file_that_was_written_by_another_program_with_its_checksum_elsewhere_is_refused(desk):
    desk.save()
    path = desk.folder / "run_r.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    with pytest.raises(StoreCorrupt, match="checksum"):
        desk.runs.load("r")


def test_a_folder_of_the_published_layout_is_gone_on_with(desk):
    desk.folder.mkdir()
    for number, run_id in enumerate(["b", "a", "c"]):
        doc: dict[str, Any] = {
            "run_id": run_id,
            "workflow_id": "w",
            "status": "running",
            "current_node": "n",
            "vars": {},
        }
        doc |= {"created_at": f"2026-01-31T09:0{number}:00+00:00", "updated_at": AT, "waiting": None}
        (desk.folder / f"run_{run_id}.json").write_text(json.dumps(doc, indent=2))
    line = {"run_id": "a", "step_id": "s", "node_id": "n", "status": "completed", "result": {"text": "old"}}
    (desk.folder / "ledger_a.jsonl").write_text(json.dumps(line))  # and no newline at its end
    assert [row["run_id"] for row in desk.runs.find_runs().items] == ["c", "a", "b"]
    assert desk.runs.load("a").records == 1
    desk.append("a", "new")
    run = desk.runs.load("a")
    desk.runs.save(run)
    desk.save("d")
    assert desk.texts("a") == ["old", "new"]
    for again in (desk, desk.anew()):
        assert [row["run_id"] for row in again.runs.find_runs().items] == ["d", "c", "a", "b"]


# -- names

IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).filter(
    lambda text: text.isprintable() and not set(text) & {"/", "\\"} and text not in (".", "..")
)


@given(some=st.lists(IDS, min_size=2, max_size=2, unique=True))
def test_every_id_has_a_file_name_of_its_own_that_is_no_path(some):
    for name_of in (run_file, ledger_file):
        names = [name_of(run_id) for run_id in some]
        assert len(set(names)) == 2
        for name in names:
            assert len(f".{name}.tmp") <= 255
            assert all(c.isascii() and (c.isalnum() or c in "_-.%=") for c in name)
    assert all("%=" in run_file(run_id) or id_of_run_file(run_file(run_id)) == run_id for run_id in some)


def test_plain_ids_stand_in_the_names_as_they_are():
    assert run_file("a-B_c.9") == "run_a-B_c.9.json"
    assert ledger_file("a" * 200) == f"ledger_{'a' * 200}.jsonl"
    assert run_file("a:b ä~") == "run_a%3Ab%20%C3%A4%7E.json"


@pytest.mark.parametrize("run_id", ["ä", "a:b", "CON", "con", "...", "a b", "%41", "%=", "é" * 200, "x" * 200, "~"])
def test_an_id_of_any_kind_is_stored_and_found(desk, run_id):
    desk.save(run_id)
    desk.append(run_id)
    for again in (desk, desk.anew()):
        assert again.runs.load(run_id).run_id == run_id
        assert [row["run_id"] for row in again.runs.list_run_index()] == [run_id]
        assert again.texts(run_id) == ["x"]
    assert desk.runs.delete(run_id)
    assert desk.ledgers.delete(run_id) == 1
    assert sorted(path.name for path in desk.folder.iterdir()) == [".abstractruntime.lock"]


@pytest.mark.parametrize("run_id", ["../up", "a/b", "..", "", "\ud800", "a\0b"])
def test_what_can_be_no_id_is_never_a_path(desk, run_id):
    with pytest.raises(InvalidId):
        desk.save(run_id)
    with pytest.raises(InvalidId):
        desk.append(run_id)
    try:
        assert desk.runs.load(run_id) is None
        assert desk.ledgers.list(run_id) == []
    except InvalidId:
        assert run_id == "\ud800"
    assert not desk.folder.exists()


def test_where_two_ids_lead_to_one_file_it_is_said_and_nothing_is_replaced(desk):
    desk.save("R")
    desk.append("R")
    for name in ("run_{}.json", "ledger_{}.jsonl"):  # as a file system does that tells no upper from lower case
        (desk.folder / name.format("r")).symlink_to(desk.folder / name.format("R"))
    desk.runs.load("R")
    with pytest.raises(StoreCorrupt, match="upper from lower case"):
        desk.save("r")
    (desk.folder / "run_r.json").unlink()
    with pytest.raises(StoreCorrupt, match=r"ledger_r\.jsonl: line 1: it is of run 'R'"):
        desk.append("r")
    assert desk.runs.load("R").run_id == "R"


# -- ledgers after a crash


@pytest.mark.parametrize("torn", [b'{"run_id":"r","st', b"{", b"\0\0\0\0", b'{"run_id"\0\0\0\n', b"\xff\xfe"])
def test_a_line_that_a_crash_cut_off_swallows_no_record(desk, caplog, torn):
    desk.append(text="a")
    desk.anew()
    path = desk.folder / "ledger_r.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    assert (desk.texts(), desk.ledgers.count("r")) == (["a"], 1)
    assert path.read_bytes().endswith(torn), "reading changed the file"
    desk.append(text="b")
    assert "what a crash left" in caplog.text
    for again in (desk, desk.anew()):
        assert (again.texts(), again.ledgers.count("r")) == (["a", "b"], 2)
    assert len(path.read_text().splitlines()) == 2


def test_a_record_whose_newline_is_missing_is_a_record(desk):
    desk.append(text="a")
    desk.anew()
    path = desk.folder / "ledger_r.jsonl"
    path.write_bytes(path.read_bytes().rstrip())
    assert desk.texts() == ["a"]
    desk.append(text="b")
    assert desk.anew().texts() == ["a", "b"]


def test_records_of_a_landing_count_together_or_not_at_all(tmp_path):
    folder = opened(tmp_path)
    do(folder, lambda folder: folder.commit(write("r", 1, 0, 1)))
    do(folder, lambda folder: folder.commit(write("r", 1, 1, 3, landing=True)))
    left(folder)
    path = tmp_path / "ledger_r.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    folder = opened(tmp_path)
    with folder:
        assert folder.ledger("r").count == 1
        folder.commit(write("r", 1, 1, 1, landing=True))
        assert [found.step_id for found in folder.ledger("r").records()] == ["s1", "s2"]


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\0\0\n", b"{}\n", b'{"run_id":"other"}\n'])
def test_garbage_between_records_is_reported_and_nothing_is_lost(desk, garbage):
    for text in "ab":
        desk.append(text=text)
    desk.append("other")
    desk.anew()
    path = desk.folder / "ledger_r.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    damaged = first + garbage + second
    path.write_bytes(damaged)
    for call in (desk.append, desk.texts, lambda: desk.ledgers.count("r")):
        with pytest.raises(StoreCorrupt, match=r"ledger_r\.jsonl: line 2"):
            call()
    assert path.read_bytes() == damaged
    assert desk.texts("other") == ["x"]
    desk.append("other", "y")
    path.write_bytes(first + second)
    assert desk.texts() == ["a", "b"]
    path.write_bytes(damaged)
    assert desk.anew().ledgers.delete("r") == 3
    assert desk.texts() == []


def test_a_ledger_that_lost_records_which_the_run_knows_is_reported(desk):
    async def commit() -> None:
        backend = join_stores(desk.runs, desk.ledgers)
        for revision in range(1, 4):
            await backend.commit(write("r", revision, 2 * (revision - 1), 2))

    portal.call(commit)
    desk.anew()
    path = desk.folder / "ledger_r.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))  # the last two are in the run's file
    assert desk.ledgers.count("r") == 6
    path.write_bytes(b"".join(lines[:3]))
    with pytest.raises(StoreCorrupt, match="it has 3 records, and the run's file says 6"):
        desk.ledgers.count("r")
    path.unlink()
    with pytest.raises(StoreCorrupt, match="it has 0 records"):
        desk.runs.load("r")


# -- damage at any place


def damaged_copies(folder: Path, rng: Any) -> Any:
    """Each file with one bit flipped, or cut off, at a random place; each is put back."""
    for path in sorted(folder.glob("[rl]*.json*")):
        whole = path.read_bytes()
        for _ in range(scaled(25, 2_000)):
            at, how = rng.randrange(len(whole)), rng.choice(["flip", "flip", "cut"])
            flipped = whole[at] ^ (1 << rng.randrange(8))
            path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :] if how == "flip" else whole[:at])
            yield path, f"{how} at {at} of {path.name}, {len(whole)} bytes"
        path.write_bytes(whole)


def test_a_flipped_bit_and_a_file_that_was_cut_off_are_found_and_nothing_else_is_lost(tmp_path, seed, caplog):
    rng = random.Random(seed)
    writer = opened(tmp_path)
    for step in STEPS[:-1]:
        do(writer, step)
    expected, order = seen(writer)
    left(writer)
    for path, where in damaged_copies(tmp_path, rng):
        caplog.clear()
        folder, found = opened(tmp_path), dict[str, Any]()
        with folder:
            for run_id in expected:
                try:
                    loaded, ledger = folder.load(run_id), folder.ledger(run_id)
                    found[run_id] = [record.step_id for record in ledger.records()], loaded and loaded.run.vars
                    if ledger.torn:
                        found[run_id] = f"reported: {ledger.torn}"
                except StoreCorrupt as error:
                    found[run_id] = "reported" if str(path) in str(error) else f"another file: {error}"
        for run_id, (run, records, _) in expected.items():
            whole = [step for step, *_ in records], run and run[1]
            hit = path.name in (run_file(run_id), ledger_file(run_id))
            assert (
                found[run_id] == whole
                or (hit and str(found[run_id]).startswith("reported"))
                or healed(found[run_id], whole, path, folder, run_id)
            ), where
    assert seen(opened(tmp_path)) == (expected, order)


def healed(found: Any, whole: Any, path: Path, folder: Folder, run_id: str) -> bool:
    """Records behind those that the run's file knows may be cut off between two lines, and nobody can tell."""
    if path.name != ledger_file(run_id) or isinstance(found, str):
        return False
    with folder:
        run = folder.state(run_id)
    fewer = len(found[0])
    return bool(found == (whole[0][:fewer], whole[1]) and (run is None or run.records <= fewer))


def test_a_damaged_run_is_never_unknown_and_lists_name_its_file(desk):
    desk.save("good")
    desk.save("bad")
    desk.append("bad")
    path = desk.folder / "run_bad.json"
    whole = path.read_bytes()
    for again in (desk, desk.anew()):
        path.write_bytes(whole[:100])
        for call in (
            lambda again=again: again.runs.load("bad"),
            lambda again=again: again.runs.list_runs(),
            lambda again=again: again.save("bad"),
        ):
            with pytest.raises(StoreCorrupt, match=r"run_bad\.json"):
                call()
        assert again.runs.load("good").run_id == "good"
        again.save(f"new-{len(os.listdir(desk.folder))}")
        path.write_bytes(whole)
        assert again.runs.load("bad").run_id == "bad"
    desk.anew()
    path.write_bytes(whole[:100])
    for call in (desk.runs.list_run_index, desk.runs.find_runs, desk.runs.find_waits):
        with pytest.raises(StoreCorrupt, match=r"run_bad\.json"):
            call()
    path.write_bytes(whole)
    assert "bad" in [run.run_id for run in desk.runs.list_runs()]
    path.write_bytes(whole[:100])
    desk.anew().save("another")
    assert desk.runs.delete("bad")
    assert "bad" not in [run.run_id for run in desk.runs.list_runs()]
    assert desk.texts("bad") == ["x"]


def test_a_file_that_was_deleted_is_no_unknown_run(desk):
    desk.save()
    (desk.folder / "run_r.json").unlink()
    with pytest.raises(StoreCorrupt, match="missing"):
        desk.runs.load("r")


# -- whose folder it is

HOLDER = """
import sys
from abstractruntime import *
runs, ledgers = JsonFileRunStore(sys.argv[1]), JsonlLedgerStore(sys.argv[1])
runs.save(RunState("held", "w", RunStatus.RUNNING, "n"))
print("holding", flush=True)
for line in sys.stdin:
    run = runs.load("held")
    run.vars["line"] = line.strip()
    runs.save(run)
    ledgers.append(StepRecord("held", "s", "n", StepStatus.COMPLETED, result={"text": line.strip()}))
    print("saved", flush=True)
"""


@pytest.fixture
def holder(desk: Desk) -> Any:
    command = [sys.executable, "-c", HOLDER, str(desk.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def tell(holder: Any, line: str) -> None:
    holder.stdin.write(line + "\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "saved\n"


def test_a_second_process_may_read_and_is_told_who_writes(desk, holder):
    for call in (desk.save, desk.append, lambda: desk.runs.delete("held"), lambda: desk.ledgers.delete("held")):
        with pytest.raises(StoreError, match=f"process {holder.pid} on .* \\(since 20"):
            call()
    assert [run.run_id for run in desk.runs.list_runs()] == ["held"]
    for line in ("one", "two"):
        tell(holder, line)
        assert desk.runs.load("held").vars == {"line": line}
        assert desk.runs.list_runs()[0].vars == {"line": line}
        assert desk.texts("held")[-1] == line


def test_a_killed_process_holds_nothing_and_the_next_goes_on(desk, holder):
    assert desk.runs.load("held").vars == {}
    tell(holder, "one")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    desk.save()
    assert sorted(row["run_id"] for row in desk.runs.list_run_index()) == ["held", "r"]
    desk.append("held", "two")
    assert desk.texts("held") == ["one", "two"]


FORKER = """
import os, sys
from abstractruntime import *
runs, ledgers = JsonFileRunStore(sys.argv[1]), JsonlLedgerStore(sys.argv[1])
runs.save(RunState("r", "w", RunStatus.RUNNING, "n"))
pid = os.fork()
if pid == 0:
    assert runs.load("r") is not None
    try:
        runs.save(RunState("child", "w", RunStatus.RUNNING, "n"))
        code = 1
    except StoreError as error:
        code = 0 if f"process {os.getppid()}" in str(error) else 2
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
runs.save(RunState("parent", "w", RunStatus.RUNNING, "n"))
begin, parent = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(parent)
    os.read(begin, 1)  # until the parent is gone
    runs.save(RunState("child", "w", RunStatus.RUNNING, "n"))
    print(*(row["run_id"] for row in runs.find_runs().items))
    sys.stdout.flush()
os._exit(0)
"""


def test_a_forked_child_does_not_hold_what_its_parent_holds(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FORKER, str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "child parent r\n"), done.stderr


def test_all_objects_on_one_folder_share_it_whatever_way_leads_there(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    one, other = Desk(real), Desk(tmp_path / "link")
    run = one.save(vars={"n": 1})
    other.append()
    again = other.load("r")
    again.vars["n"] = 2
    other.runs.save(again)
    with pytest.raises(RevisionConflict):
        one.runs.save(run)
    assert isinstance(join_stores(one.runs, other.ledgers), JsonBackend)
    assert isinstance(join_stores(one.runs.aio, other.ledgers), JsonBackend)
    assert isinstance(join_stores(one.runs, Desk(tmp_path / "elsewhere").ledgers), UserPair)


def test_what_a_user_overrides_is_called(tmp_path):
    class Own(JsonFileRunStore):
        def save(self, run: RunState, *, overwrite: bool = False) -> None:
            super().save(run, overwrite=overwrite)

    assert isinstance(join_stores(Own(tmp_path), JsonlLedgerStore(tmp_path)), UserPair)


@pytest.mark.parametrize("durability", ["FULL", None, 1])
def test_durability_is_full_or_none(tmp_path, durability):
    for kind in (JsonFileRunStore, JsonlLedgerStore, AsyncJsonFileRunStore, AsyncJsonlLedgerStore):
        with pytest.raises(ValueError, match='"full" or "none"'):
            kind(tmp_path, durability=durability)


# -- the ground is taken away


def test_a_folder_that_is_deleted_is_missed_and_gone_on_with_when_it_is_back(desk, tmp_path):
    desk.save()
    desk.append()
    desk.folder.rename(tmp_path / "away")
    for call in (
        desk.save,
        desk.append,
        lambda: desk.runs.load("r"),
        desk.runs.list_runs,
        lambda: desk.ledgers.list("r"),
    ):
        with pytest.raises(StoreVanished, match="Put it or a backup"):
            call()
    assert not desk.folder.exists()
    (tmp_path / "away").rename(desk.folder)
    assert desk.runs.load("r").run_id == "r"
    desk.append(text="y")
    assert desk.texts() == ["x", "y"]
    assert desk.runs.list_run_index()[0]["run_id"] == "r"


def test_nothing_is_made_by_reading(desk):
    assert desk.runs.load("r") is None
    assert desk.runs.list_runs() == []
    assert desk.ledgers.list("r") == []
    assert not desk.folder.exists()


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match="Not a directory"):
        Desk(tmp_path / "runs").save()


class Refusing(Files):
    """A disk that refuses to open files, with this errno."""

    number = 0

    def open(self, path: Path, flags: int) -> int:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return super().open(path, flags)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EROFS, StoreReadOnly), (errno.EACCES, StoreReadOnly), (errno.ENOSPC, StoreFull)]
)
def test_what_the_disk_refuses_is_named_and_the_same_object_goes_on(tmp_path, number, kind):
    files = Refusing(durable=False)
    folder = opened(tmp_path, files)
    do(folder, STEPS[0])
    files.number = number
    for step in (STEPS[1], lambda folder: folder.append(record("other", "x"))):
        with pytest.raises(kind, match="nothing was written"):
            do(folder, step)
    files.number = 0
    do(folder, STEPS[1])
    with folder:
        assert folder.ledger("other").count == 1


FULL = """
import sys
from pathlib import Path
from abstractruntime import *
from tests.full_disk_worker import Disk
way, folder = sys.argv[1], Path(sys.argv[2])
disk, runs, ledgers = Disk(way, folder), JsonFileRunStore(folder / "runs"), JsonlLedgerStore(folder / "runs")
run = RunState("r", "w", RunStatus.RUNNING, "n")
runs.save(run)
for text in ("a", "b"):
    ledgers.append(StepRecord("r", text, "n", StepStatus.COMPLETED, result={"text": "x" * 30_000}))
disk.fill()
errors = []
run.vars["large"] = "x" * 100_000
record = StepRecord("r", "c", "n", StepStatus.COMPLETED, result={"text": "x" * 30_000})
for call in (lambda: runs.save(run), lambda: ledgers.append(record)):
    try:
        call()
    except StoreFull as error:
        assert "nothing was written" in str(error), error
        errors.append(error)
assert len(errors) == 2, errors
assert runs.load("r").vars == {} and ledgers.count("r") == 2 == len(ledgers.list("r"))
disk.make_room()
runs.save(run)
ledgers.append(record)
assert len(runs.load("r").vars["large"]) == 100_000
assert [found["step_id"] for found in ledgers.list("r")] == ["a", "b", "c"]
print("fine")
"""
WAYS = ["limit", *(["disk"] if os.geteuid() == 0 and sys.platform == "linux" else [])]


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_said_and_nothing_is_lost_or_half_there(tmp_path, way):
    if way == "disk":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], check=True)  # noqa: S607
    try:
        command = [sys.executable, "-c", FULL, way, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    finally:
        if way == "disk":
            subprocess.run(["umount", str(tmp_path)], check=True)  # noqa: S607
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


# -- the index


class Counting(Files):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__(durable=False)
        self.read_files: Counter[str] = Counter()

    def read(self, path: Path, start: int = 0) -> bytes | None:
        self.read_files[path.name] += 1
        return super().read(path, start)


def test_a_listing_reads_no_file_again(tmp_path):
    files = Counting()
    folder = opened(tmp_path, files)
    for number in range(20):
        with folder:
            folder.commit(write(f"r{number}", 1, 0, 1))
    reader = opened(tmp_path, files)
    for other in (folder, reader):
        with other:
            other.index()
            files.read_files.clear()
            for _ in range(3):
                assert len(other.index().in_order()) == 20
        assert not files.read_files
    do(folder, lambda folder: folder.commit(write("r7", 2, 1, 1)))
    with reader:
        files.read_files.clear()
        reader.index()
    assert files.read_files == {"run_r7.json": 1}


def test_the_order_of_creation_outlives_the_process(desk):
    names = ["m", "b", "z", "a"]
    for name in names:
        desk.save(name, parent_run_id="p", created_at=AT)
    desk.runs.delete("z")
    desk.anew().save("c", parent_run_id="p", created_at=AT)
    assert [run.run_id for run in desk.anew().runs.list_children(parent_run_id="p")] == ["m", "b", "a", "c"]


# -- the backend


async def test_the_guards_of_a_commit(tmp_path):
    runs, ledgers = AsyncJsonFileRunStore(tmp_path), AsyncJsonlLedgerStore(tmp_path)
    backend = join_stores(runs, ledgers)
    await backend.commit(write("r", 1, 0, 2, lookup_key="k"))
    for wrong in (
        write("r", 1, 0, 1),
        write("r", 3, 2, 1),
        write("r", 2, 1, 1),
        write("r", 2, 2, 1, answered=1),
        write("r", 2, 2, 1, landing=True),
        write("nobody", 2, 0, 1),
        write("nobody", 1, 0, 1, landing=True),
    ):
        with pytest.raises(RevisionConflict):
            await backend.commit(wrong)
    await backend.commit(write("r", 1, 2, 2, landing=True))
    loaded = await backend.load("r")
    assert loaded is not None
    assert (loaded.run.revision, loaded.run.records) == (1, 4)
    assert [found.step_id for found in await backend.find("r", "k")] == ["s1", "s2"]
    assert [found.step_id for found in await backend.records("r", after=1, limit=2)] == ["s2", "s3"]
    for commit_id, there in (("r@1", True), ("r+2", True), ("r@2", False)):
        assert await backend.landed("r", commit_id) is there
    ask = Request(run_id="r", kind="cancel", by="x", at=AT)
    await backend.commit(write("x", 1, 0, 0, requests=(ask, ask, Request(run_id="?", kind="cancel", by="x", at=AT))))
    loaded = await backend.load("r")
    assert loaded is not None
    assert loaded.requests == (ask,)
    with pytest.raises(RevisionConflict):
        await backend.commit(write("r", 2, 4, 0))
    claims = await backend.claims(["r", "x", "?"])
    assert claims == {"r": (None, True), "x": (None, False)}
    await backend.commit(write("r", 2, 4, 0, answered=1))
    assert (await backend.claims(["r"])) == {"r": (None, False)}
    assert not await backend.alive("somebody", 0)


async def test_a_chain_is_kept_and_carried_on(tmp_path):
    runs, ledgers = AsyncJsonFileRunStore(tmp_path), AsyncJsonlLedgerStore(tmp_path)
    first = await ledgers._append(record("r", "a"), chain=True)
    await ledgers.append(record("r", "b"))
    assert first.record_hash
    run = RunState("r", "w", RunStatus.RUNNING, "n")
    await runs.save(run)
    loaded = await runs.load("r")
    assert loaded is not None
    assert loaded.chain_head == (await ledgers.list("r"))[-1]["record_hash"]
    await runs.save(loaded)
    await ledgers.append(record("r", "c"))
    again = await runs.load("r")
    found = await ledgers.list("r")
    assert again is not None
    assert again.chain_head == found[-1]["record_hash"] != loaded.chain_head
    assert verify_ledger_chain(found, head=again.chain_head, count=again.records)["ok"]
    await ledgers.append(record("plain", "a"))
    assert (await ledgers.list("plain"))[0]["record_hash"] is None


async def test_a_write_is_carried_through_although_its_caller_is_cancelled(tmp_path):
    backend = JsonBackend(tmp_path, "none")
    begun, go_on, done = threading.Event(), threading.Event(), []

    def operation(folder: Folder) -> None:
        begun.set()
        go_on.wait(30)
        done.append(1)

    task = asyncio.create_task(backend.write(operation))
    await eventually(begun.is_set)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


def test_many_threads_and_loops_write_to_one_folder(desk):
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            other = Desk(desk.folder)
            for _ in range(10):
                other.append("shared", str(number))
                other.append(f"own-{number}", "x")
                while True:
                    run = other.load("counter")
                    run.vars["n"] += 1
                    try:
                        other.runs.save(run)
                        break
                    except RevisionConflict:
                        continue
        except BaseException as error:
            errors.append(error)

    async def awaited(number: int) -> None:
        ledgers = AsyncJsonlLedgerStore(desk.folder, durability="none")
        await asyncio.gather(*(ledgers.append(record("shared", f"loop-{number}")) for _ in range(10)))

    desk.save("counter", vars={"n": 0})
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    threads += [threading.Thread(target=lambda number=number: asyncio.run(awaited(number))) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert desk.runs.load("counter").vars == {"n": 40}
    assert desk.ledgers.count("shared") == len(desk.anew().texts("shared")) == 70
    assert desk.ledgers.count_many([f"own-{number}" for number in range(4)]) == {f"own-{n}": 10 for n in range(4)}


# -- a runtime on it

WORKFLOW: WorkflowSpec[Any] = WorkflowSpec(
    "w",
    "begin",
    {
        "begin": lambda run, ctx: StepPlan("begin", Effect("act", {"n": 1}, "one"), "fan"),
        "fan": lambda run, ctx: StepPlan(
            "fan", effects=[Effect("act", {"n": n}, f"many.{n}") for n in range(5)], next_node="end"
        ),
        "end": lambda run, ctx: StepPlan("end", complete_output={"one": run.vars["one"], "many": run.vars["many"]}),
    },
)
OUTPUT = {"one": 2, "many": {str(n): 2 * n for n in range(5)}}


def act(call: Any) -> EffectOutcome:
    return EffectOutcome.completed(call.payload["n"] * 2)


def test_a_blocking_runtime_lives_in_a_folder(desk):
    with Runtime(run_store=desk.runs, ledger_store=desk.ledgers, effect_handlers={"act": act}) as rt:
        run_id = rt.start(workflow=WORKFLOW)
        done = rt.tick(workflow=WORKFLOW, run_id=run_id)
    assert done.output == OUTPUT
    check_ledger(desk.anew().runs.load(run_id), desk.ledgers.list(run_id))


async def test_an_async_runtime_moves_many_runs_in_a_folder(tmp_path):
    stores: dict[str, Any] = {
        "run_store": AsyncJsonFileRunStore(tmp_path, durability="none"),
        "ledger_store": AsyncJsonlLedgerStore(tmp_path, durability="none"),
    }
    async with AsyncRuntime(**stores, effect_handlers={"act": act}) as rt:
        run_ids = [await rt.start(workflow=WORKFLOW) for _ in range(20)]
        done = await asyncio.gather(*(rt.tick(workflow=WORKFLOW, run_id=run_id) for run_id in run_ids))
    assert all(run.output == OUTPUT for run in done)
    for run_id in run_ids:
        run = await stores["run_store"].load(run_id)
        check_ledger(run, await stores["ledger_store"].list(run_id))


# -- killed

KILLED = """
import sys
from abstractruntime import *
from abstractruntime.core import portal
from abstractruntime.storage.user_pair import join_stores
from tests.test_json_crashes import write
folder, first = sys.argv[1], int(sys.argv[2])
backend = join_stores(AsyncJsonFileRunStore(folder), AsyncJsonlLedgerStore(folder))
async def main():
    for revision in range(first, first + 100_000):
        loaded = await backend.load("r")
        before = loaded.run.records if loaded else 0
        await backend.commit(write("r", revision, before, 2))
        await backend.commit(write("r", revision, before + 2, 3, landing=True))
        print(revision, before + 5, flush=True)
portal.call(main)
"""


def test_killed_at_random_moments_every_acknowledged_commit_is_there_and_the_ledger_agrees(tmp_path, seed):
    rng, revision, records = random.Random(seed), 0, 0
    for _ in range(scaled(5, 200)):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(revision + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            acknowledged = process.stdout.readline()
            try:
                process.wait(rng.uniform(0, 0.2))
            except subprocess.TimeoutExpired:
                process.kill()
            acknowledged = (acknowledged + process.stdout.read()).splitlines()[-1]
        told = [int(number) for number in acknowledged.split()]
        desk = Desk(tmp_path)
        run, ledger = desk.runs.load("r"), desk.ledgers.list("r")
        assert run is not None
        assert run.revision in (told[0], told[0] + 1)
        assert run.records == len(ledger) == desk.ledgers.count("r")
        assert len(ledger) - told[1] in ((0,) if run.revision == told[0] else (2, 5))
        assert [found["step_id"] for found in ledger] == [f"s{number}" for number in range(1, len(ledger) + 1)]
        revision, records = run.revision, len(ledger)
    assert records >= 25


READ_ONLY = """
import os, sys
from pathlib import Path
from abstractruntime import *
from tests.read_only_worker import become_nobody
given = Path(sys.argv[1])
if os.geteuid() == 0:
    become_nobody(given)
folder = given / "deep" / "runs"
runs, ledgers = JsonFileRunStore(folder), JsonlLedgerStore(folder)
run, record = RunState("r", "w", RunStatus.RUNNING, "n"), StepRecord("r", "s", "n", StepStatus.COMPLETED)
def refused():
    for call in (lambda: runs.save(run), lambda: ledgers.append(record)):
        try:
            call()
        except StoreReadOnly as error:
            assert "nothing was written" in str(error), error
        else:
            raise AssertionError("it was written")
given.chmod(0o500)
refused()
given.chmod(0o700)
runs.save(run)
ledgers.append(record)
folder.chmod(0o500)
try:
    runs.save(run)
except StoreReadOnly:
    pass
else:
    raise AssertionError("it was written")
assert runs.load("r") is not None and ledgers.count("r") == 1
folder.chmod(0o700)
runs.save(run)
(folder / "ledger_r.jsonl").chmod(0o400)
try:
    ledgers.append(record)
except StoreReadOnly:
    pass
else:
    raise AssertionError("it was written")
(folder / "ledger_r.jsonl").chmod(0o600)
ledgers.append(record)
assert ledgers.count("r") == len(ledgers.list("r")) == 2
"""


def test_what_may_not_be_written_to_is_said_and_gone_on_with_when_it_may():
    with tempfile.TemporaryDirectory() as folder:  # where another user may enter, unlike in pytest's
        command = [sys.executable, "-c", READ_ONLY, folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_decorated_stores_work_on_a_folder(desk):
    artifacts = InMemoryArtifactStore()
    ledgers = OffloadingLedgerStore(
        HashChainedLedgerStore(desk.ledgers), artifact_store=artifacts, max_inline_bytes=100
    )
    runs = OffloadingRunStore(desk.runs, artifact_store=artifacts, max_inline_bytes=100)

    def large(call: Any) -> EffectOutcome:
        return EffectOutcome.completed("x" * 1_000)

    with Runtime(run_store=runs, ledger_store=ledgers, effect_handlers={"act": large}) as rt:
        run_id = rt.start(workflow=WORKFLOW)
        done = rt.tick(workflow=WORKFLOW, run_id=run_id)
        assert done.output["one"] == "x" * 1_000
        assert rt.verify_ledger(run_id)["ok"]
    assert "x" * 200 not in (desk.folder / ledger_file(run_id)).read_text()
    run = desk.anew().load(run_id)
    assert verify_ledger_chain(desk.ledgers.list(run_id), head=run.chain_head, count=run.records)["ok"]
