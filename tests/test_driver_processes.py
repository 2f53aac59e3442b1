"""Two processes with a driver each on one SQLite file, and one of them killed or stopped in the middle."""

from __future__ import annotations

import os
import signal
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
from .workers import stopped

ROOT = Path(__file__).parent.parent
RUNS = scaled(200, 2_000)
#: ticks at once of one process
AT_ONCE = 8
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


def driver(processes: list[Process], folder: Path, name: str, lease: float = 30.0) -> Process:
    arguments = [str(folder / "runs.db"), str(folder / "world"), name, f"{lease}"]
    command = [sys.executable, "-m", "tests.driving_worker", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(rt: Runtime) -> int:
    return len(rt.run_store.list_runs(status=RunStatus.COMPLETED, limit=RUNS + AT_ONCE))


def performed(folder: Path) -> list[tuple[str, str]]:
    """Key and process of every call."""
    found = []
    world = folder / "world"
    for line in world.read_text().splitlines() if world.exists() else ():
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
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_what_a_killed_or_stopped_driver_was_at_is_taken_over(tmp_path, processes, how):
    """The other one has looked at those runs in vain by then, ever more rarely; that their owner is gone shows at once.

    One that is stopped loses them when its lease runs out, and takes notice of it when it goes on.
    """
    with Runtime.open(f"sqlite:///{tmp_path}/runs.db") as rt:
        stuck = driver(processes, tmp_path, "stuck", lease=30.0 if how is signal.SIGKILL else 1.0)
        for number in range(AT_ONCE):
            rt.start(workflow=WORKFLOW, run_id=f"stuck-{number}")
        wait_until(stuck, lambda: len(performed(tmp_path)) == AT_ONCE)
        other = driver(processes, tmp_path, "other")
        for number in range(RUNS):
            rt.start(workflow=WORKFLOW, run_id=f"run-{number}")
        wait_until(other, lambda: ended(rt) == RUNS)
        if how is signal.SIGKILL:
            stuck.kill()
        else:
            wait_until(other, lambda: stopped(stuck, tmp_path / "runs.db"))
        wait_until(other, lambda: ended(rt) == RUNS + AT_ONCE)
        calls: dict[str, list[str]] = {}
        for key, name in performed(tmp_path):
            calls.setdefault(key, []).append(name)
        assert len(calls) == 2 * (RUNS + AT_ONCE)
        repeated = [names for names in calls.values() if len(names) > 1]
        assert repeated == [["stuck", "other"]] * AT_ONCE, "what was in flight is performed again, and nothing else"
        if how is signal.SIGSTOP:
            ledgers = [rt.get_ledger(f"stuck-{number}") for number in range(AT_ONCE)]
            stuck.send_signal(signal.SIGCONT)
            stuck.communicate("\n")
            assert stuck.returncode == 0
            assert [rt.get_ledger(f"stuck-{number}") for number in range(AT_ONCE)] == ledgers
