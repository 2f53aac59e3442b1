"""The write-ahead log: left behind, cut short, damaged, and kept short."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from abstractruntime import (
    RunState,
    RunStatus,
    SqliteDatabase,
    SqliteRunStore,
    StoreCorrupt,
)

from . import desks
from .desks import Desk
from .scale import scaled

facade, path = desks.facade, desks.path


def left_behind(path: Path, commits: int) -> list[int]:
    """A database as a killed process leaves it; where the log ended before each of these commits, and at the end."""
    source = path.with_name("source.db")
    with SqliteDatabase(source) as database:
        store = SqliteRunStore(database)
        store.load("make the file")
        database.checkpoint("TRUNCATE")
        ends = []
        for number in range(commits):
            ends.append(os.stat(f"{source}-wal").st_size)
            store.save(RunState(f"run-{number}", "w", RunStatus.RUNNING, "n", vars={"number": number}))
        ends.append(os.stat(f"{source}-wal").st_size)
        for suffix in ("", "-wal"):
            shutil.copy(f"{source}{suffix}", f"{path}{suffix}")
    return ends


def read_back(path: Path) -> int:
    with SqliteDatabase(path) as database:
        return len(SqliteRunStore(database).list_runs())


def test_a_log_that_was_left_behind_is_taken_whole(path):
    left_behind(path, 10)
    assert read_back(path) == 10


def test_a_log_whose_last_commit_was_cut_short_holds_all_commits_before(path, seed):
    ends = left_behind(path, 10)
    log = Path(f"{path}-wal")
    os.truncate(log, random.Random(seed).randrange(ends[-2], ends[-1]))
    assert read_back(path) == 9


def test_damage_anywhere_in_a_log_is_found_or_costs_nothing(tmp_path, seed):
    """The last commit alone cannot be told from one that a power failure cut short."""
    rng = random.Random(seed)
    origin = tmp_path / "origin.db"
    ends = left_behind(origin, 8)
    found = 0
    for number in range(scaled(25, 1_000)):
        path = tmp_path / f"{number}.db"
        content = bytearray(Path(f"{origin}-wal").read_bytes())
        content[rng.randrange(ends[-2])] ^= 1 << rng.randrange(8)
        shutil.copy(origin, path)
        Path(f"{path}-wal").write_bytes(content)
        try:
            assert read_back(path) == 8
        except StoreCorrupt:
            found += 1
            assert Path(f"{path}-wal").read_bytes() == content
    assert found


def test_a_damaged_log_is_corrupt_on_every_way_in_and_without_it_the_older_state_opens(path, facade):
    ends = left_behind(path, 10)
    log = Path(f"{path}-wal")
    content = bytearray(log.read_bytes())
    content[ends[5] + 1_000] ^= 1
    log.write_bytes(content)
    desk = Desk(path, facade)
    desk.is_refused(StoreCorrupt)
    desk.close()
    assert log.read_bytes() == content
    log.unlink()
    assert read_back(path) == 0
