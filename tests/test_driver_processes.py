"""Two processes with a driver each on one SQLite file, and one of them killed in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from abstractruntime import RunStatus, Runtime

from .driving_worker import WORKFLOW
from .scale import scaled

ROOT = Path(__file__).parent.parent
RUNS = scaled(200, 2_000)
Process = subprocess.Popen[str]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Process]]:
    started: list[Process] = []

    def kill() -> None:
        for process in started:
            process.kill()

    watch = threading.Timer(scaled(60, 600), kill)
    watch.start()
    yield started
    watch.cancel()
    kill()
    for process in started:
        process.communicate()


def driver(processes: list[Process], folder: Path, name: str) -> Process:
    command = [sys.executable, "-m", "tests.driving_worker", str(folder / "runs.db"), str(folder / "world"), name]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(rt: Runtime) -> int:
    return len(rt.run_store.list_runs(status=RunStatus.COMPLETED, limit=RUNS))


def performed(folder: Path) -> list[tuple[str, str]]:
    """Key and process of every call."""
    found = []
    for line in (folder / "world").read_text().splitlines():
        key, name = line.split()
        found.append((key, name))
    return found


def wait_until(process: Process, condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not condition():
        assert process.poll() is None, "the driver is gone"
        pause.wait(0.02)


def test_two_drivers_perform_each_effect_once(tmp_path, processes):
    with Runtime.open(f"sqlite:///{tmp_path}/runs.db") as rt:
        first = driver(processes, tmp_path, "first")
        second = driver(processes, tmp_path, "second")
        for number in range(RUNS):
            rt.start(workflow=WORKFLOW, run_id=f"run-{number}")
        wait_until(first, lambda: ended(rt) == RUNS)
        for process in (first, second):
            process.communicate("\n")
            assert process.returncode == 0
        calls = Counter(key for key, _ in performed(tmp_path))
        assert len(calls) == 2 * RUNS
        assert set(calls.values()) == {1}
        for number in range(RUNS):
            ledger = rt.get_ledger(f"run-{number}")
            records = [record for record in ledger if (record["effect"] or {}).get("type") == "work"]
            assert [record["status"] for record in records] == ["started", "completed"] * 2


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_what_a_killed_driver_was_at_is_taken_over(tmp_path, processes):
    with Runtime.open(f"sqlite:///{tmp_path}/runs.db") as rt:
        for number in range(RUNS):
            rt.start(workflow=WORKFLOW, run_id=f"run-{number}")
        first = driver(processes, tmp_path, "first")
        wait_until(first, lambda: (tmp_path / "world").exists() and len(performed(tmp_path)) > RUNS // 4)
        first.kill()
        first.wait()
        second = driver(processes, tmp_path, "second")
        wait_until(second, lambda: ended(rt) == RUNS)
        calls: dict[str, list[str]] = {}
        for key, name in performed(tmp_path):
            calls.setdefault(key, []).append(name)
        assert len(calls) == 2 * RUNS
        repeated = [names for names in calls.values() if len(names) > 1]
        assert len(repeated) <= 8, "at most what was in flight is performed again"
        assert all(names == ["first", "second"] for names in repeated)
