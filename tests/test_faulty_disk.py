"""A disk that fails now and then, by libfiu under `make soak`: flushes that fail, writes for which there is no room.

Whatever the process was told had ended has ended, whatever it was promised is there, states and ledgers agree, and
no effect landed twice. The same worker runs once without faults in every run of the tests, so that it stays true.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from abstractruntime import FileArtifactStore, RunStatus
from abstractruntime.core import portal
from abstractruntime.storage.user_pair import join_stores

from .checks import check_ledger
from .faulty_disk_worker import stores
from .scale import SOAK

#: faults that a kind of store cannot meet: SQLite flushes with fdatasync and renames nothing, files go the other way
UNMET = {("sqlite", "fsync"), ("sqlite", "renames"), ("json", "fdatasync"), ("artifacts", "fdatasync")}

ROOT = Path(__file__).parent.parent
FIU = shutil.which("fiu-run")

FAULTS = {
    "none": [],
    "fsync": ["enable_random name=posix/io/sync/fsync,probability=0.05"],
    "fdatasync": ["enable_random name=posix/io/sync/fdatasync,probability=0.05"],
    "no room": [
        f"enable_random name=posix/io/rw/{call},probability=0.03,failinfo={errno.ENOSPC}"
        for call in ("write", "pwrite", "pwrite64")
    ],
    "i/o errors": [
        f"enable_random name=posix/io/rw/{call},probability=0.03,failinfo={errno.EIO}"
        for call in ("write", "pwrite", "pwrite64")
    ],
    "renames": [f"enable_random name=posix/io/dir/rename,probability=0.1,failinfo={errno.EIO}"],
}


def worked(kind: str, folder: Path, faults: list[str], count: int) -> list[str]:
    command = [sys.executable, "-m", "tests.faulty_disk_worker", kind, str(folder), str(count)]
    if faults:
        assert FIU is not None
        command = [FIU, "-x", "-f", "", *(part for fault in faults for part in ("-c", fault)), *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [*done.stdout.splitlines(), *(f"failed {line}" for line in done.stderr.splitlines())]  # the log, too


def said(lines: list[str], word: str) -> list[str]:
    return [line.partition(" ")[2] for line in lines if line.startswith(f"{word} ")]


@pytest.mark.parametrize("kind", ["sqlite", "json", "artifacts"])
@pytest.mark.parametrize("fault", FAULTS if SOAK else ["none"])
def test_what_was_acknowledged_is_there_and_agrees(kind, fault, tmp_path):
    if FAULTS[fault] and not FIU:
        pytest.skip("needs fiu-run, of the package fiu-utils")
    count = 100 if FAULTS[fault] else 5
    lines = worked(kind, tmp_path, FAULTS[fault], count)
    print("\n".join(sorted({line for line in lines if line.startswith("failed")})))
    assert bool(said(lines, "failed")) == (bool(FAULTS[fault]) and (kind, fault) not in UNMET)
    if kind == "artifacts":
        store = FileArtifactStore(tmp_path)
        stored = said(lines, "stored")
        assert len(stored) == count
        assert all(store.load(artifact_id) is not None for artifact_id in stored)
        return
    runs, ledger = stores(kind, tmp_path)
    backend = join_stores(runs.aio, ledger.aio)
    ended = said(lines, "ended")
    assert len(ended) == count
    for run_id in ended:
        loaded = portal.call(backend.load, run_id)
        assert loaded is not None
        assert loaded.run.status is RunStatus.COMPLETED
        assert loaded.run.output == {"acts": {"n1": 1, "n2": 2, "n3": 3}}
        check_ledger(loaded.run, ledger.list(run_id))
    performed = said(lines, "performed")
    assert len(set(performed)) == 3 * count, "an effect got another key"
