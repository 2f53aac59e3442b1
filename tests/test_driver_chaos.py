"""Four processes drive many runs on one SQLite file, and are killed and stopped at random: every run ends right."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import AsyncRuntime, RunState, RunStatus, SqliteDatabase

from .chaos_worker import ANSWERER, CALLER, CHILDREN, EFFECTS, EFFECTS_OF_CHILD, REGISTRY
from .checks import Ledger, attempts_of, check_ledger, lost_attempts_of, told_by
from .outside import Performance, performances
from .scale import scaled

ROOT = Path(__file__).parent.parent
WORKERS = 4
PAIRS = scaled(60, 500)

#: seconds between two blows, of a lease, that a process is stopped at most, that runs sleep at most, and for all of it
EVERY, LEASE, STOPPED, SLEEP, BOUND = scaled(500, 1000) / 1000, 1.5, 3.0, scaled(3, 20), scaled(100, 900)


class Worker:
    """One process, and when it is to go on if it is stopped."""

    def __init__(self, folder: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.chaos_worker",
            str(folder / "runs.db"),
            str(folder / "world"),
            f"{LEASE}",
        ]
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, text=True
            )
        self.goes_on_at: float | None = None


class Chaos:
    """The workers, and what befalls them."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder, self._rng = folder, rng
        self.workers = [Worker(folder) for _ in range(WORKERS)]
        self.killed: set[int] = set()
        self.stopped: set[int] = set()
        self.counts = Counter[str]()

    def strike(self) -> None:
        """Kill a worker and start another, or stop one for a while."""
        place = self._rng.randrange(WORKERS)
        worker = self.workers[place]
        pid = worker.process.pid
        assert worker.process.poll() is None, self.log()
        if self._rng.random() < 0.5:
            worker.process.kill()
            worker.process.communicate()
            self.killed.add(pid)
            self.counts["killed"] += 1
            self.workers[place] = Worker(self._folder)
        elif worker.goes_on_at is None:
            worker.process.send_signal(signal.SIGSTOP)
            worker.goes_on_at = time.monotonic() + self._rng.uniform(0.1, STOPPED)
            self.stopped.add(pid)
            self.counts["stopped"] += 1

    def let_go_on(self, *, all_of_them: bool = False) -> None:
        for worker in self.workers:
            if worker.goes_on_at is not None and (all_of_them or time.monotonic() >= worker.goes_on_at):
                worker.goes_on_at = None
                worker.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.let_go_on(all_of_them=True)
        for worker in self.workers:
            worker.process.communicate("\n", timeout=60)
            assert worker.process.returncode == 0, self.log()

    def kill_all(self) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.communicate()

    def log(self) -> str:
        return (self._folder / "log").read_text()


@pytest.fixture
def chaos(tmp_path: Path, seed: int) -> Iterator[Chaos]:
    chaos = Chaos(tmp_path, random.Random(seed))
    yield chaos
    chaos.kill_all()


async def begin(rt: AsyncRuntime, rng: random.Random) -> None:
    async def one(workflow: Any, number: int, sleeps: float) -> None:
        run_id = f"{workflow.workflow_id}-{number}"
        vars = {"number": number, "sleeps": sleeps}
        await rt.start(workflow=workflow, run_id=run_id, session_id=f"pair-{number}", vars=vars)

    pairs = [(workflow, number) for number in range(PAIRS) for workflow in (CALLER, ANSWERER)]
    await asyncio.gather(*(one(workflow, number, rng.uniform(0, SLEEP)) for workflow, number in pairs))


async def count(rt: AsyncRuntime, status: RunStatus) -> int:
    found, cursor = 0, None
    while True:
        page = await rt.find_runs(status=status, root_only=True, limit=500, cursor=cursor)
        found, cursor = found + len(page.items), page.cursor
        if cursor is None:
            return found


async def until_all_end(rt: AsyncRuntime, chaos: Chaos) -> None:
    next_blow, bound = time.monotonic() + EVERY, time.monotonic() + BOUND
    while await count(rt, RunStatus.COMPLETED) < 2 * PAIRS:
        chaos.let_go_on()
        if time.monotonic() >= next_blow:
            chaos.strike()
            next_blow += EVERY
        assert time.monotonic() < bound, await what_hangs(rt, chaos)
        await asyncio.sleep(0.05)


async def what_hangs(rt: AsyncRuntime, chaos: Chaos) -> str:
    statuses = (RunStatus.RUNNING, RunStatus.WAITING, RunStatus.FAILED)
    rows = (await rt.find_runs(status=statuses, limit=20)).items
    states = [str(await rt.get_state(row["run_id"])) for row in rows]
    return "\n".join([*states, chaos.log()[-5000:]])


async def outcomes(rt: AsyncRuntime) -> list[tuple[RunState, Ledger]]:
    """All runs, children too."""
    found: list[tuple[RunState, Ledger]] = []
    cursor = None
    while True:
        page = await rt.find_runs(limit=500, cursor=cursor)
        run_ids = [row["run_id"] for row in page.items]
        found += [(await rt.get_state(run_id), await rt.get_ledger(run_id)) for run_id in run_ids]
        cursor = page.cursor
        if cursor is None:
            return found


def check_run(state: RunState, ledger: Ledger) -> None:
    """It ended right, once, and its ledger alone tells the same."""
    assert state.status is RunStatus.COMPLETED, state
    check_ledger(state, ledger)
    told = told_by(ledger)
    assert (told.status, told.output) == ("completed", state.output)
    number = state.vars["number"]
    child = state.workflow_id == "child"
    assert state.output == {
        "did": {str(place + 1): place + 1 for place in range(EFFECTS_OF_CHILD if child else EFFECTS)},
        "heard": None if child else {"of": number},
        "number": number,
    }
    assert sum(record["node_id"] == "n0" and record["status"] == "completed" for record in ledger) == 1


def check_performances(ledgers: list[Ledger], done: list[Performance], chaos: Chaos) -> Counter[str]:
    """Each effect was performed once, but where a blow fell between its performance and its settlement."""
    attempts, lost = Counter[str](), Counter[str]()
    for ledger in ledgers:
        outside = [r for r in ledger if r["effect"] and str(r["effect"]["type"]).startswith("act")]
        attempts += attempts_of(outside)
        lost += lost_attempts_of(outside)
    performers: dict[str, list[int]] = {}
    for one in done:
        performers.setdefault(one.key, []).append(one.pid)
    assert len(attempts) == 2 * PAIRS * (EFFECTS + CHILDREN * EFFECTS_OF_CHILD)
    assert performers.keys() == attempts.keys(), "an effect was never performed, or under a key nobody knows"
    counts = Counter(effects=len(attempts), attempts_lost=lost.total())
    for key, pids in performers.items():
        assert attempts[key] == 1 + lost[key], "an attempt was lost, and the ledger does not say so"
        assert len(pids) <= attempts[key], "performed again although no attempt was lost"
        if len(pids) > 1:
            unharmed = [pid for pid in pids if pid not in chaos.killed | chaos.stopped]
            assert len(unharmed) <= 1, "performed twice although its performer was left in peace"
            counts["performed_again"] += 1
            counts["of them killed"] += any(pid in chaos.killed for pid in pids)
    return counts


@pytest.mark.skipif(os.name == "nt", reason="no SIGSTOP")
@pytest.mark.timeout(BOUND + 60)
async def test_killed_and_stopped_at_random_every_run_ends_right(
    chaos: Chaos, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncRuntime.open(f"sqlite:///{tmp_path}/runs.db", workflow_registry=REGISTRY) as rt:
        await begin(rt, random.Random(seed))
        begun = time.monotonic()
        await until_all_end(rt, chaos)
        took = time.monotonic() - begun
        chaos.end()
        found = await outcomes(rt)
    assert len(found) == 2 * PAIRS * (1 + CHILDREN)
    for state, ledger in found:
        check_run(state, ledger)
    counts = chaos.counts + check_performances([ledger for _, ledger in found], performances(tmp_path / "world"), chaos)
    counts["fenced"] = chaos.log().count("was taken over; its outcome is dropped")
    with SqliteDatabase(tmp_path / "runs.db") as database:
        database.check(full=True)
    with capsys.disabled():
        print(f"\n{2 * PAIRS} runs in {took:.0f} s, seed {seed}: {dict(counts)}")
