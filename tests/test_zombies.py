"""A process is stopped at random moments until another has done its work, and then goes on: it changes nothing."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    RunState,
    RunStatus,
    SqliteDatabase,
)

from . import workers
from .checks import attempts_of, check_ledger, lost_attempts_of
from .killed_worker import OUTSIDE, expected_output, handlers
from .outside import performances
from .process_worker import HANDS, hand
from .scale import scaled
from .workers import Start, Worker, stopped

start_in = workers.start_in

RUNS = 6
ROUNDS = scaled(5, 60)

#: seconds: of the leases of those that are stopped, and of the work during which they are
LEASE, WORK = 0.2, 0.2

Outcome = dict[str, tuple[RunState, list[dict[str, Any]]]]


async def finish_all(folder: Path) -> Outcome:
    """Move all runs to their ends, here; the ends."""
    names = [f"run-{number}" for number in range(RUNS)]
    async with SqliteDatabase(folder / "runs.db") as db:
        stores: dict[str, Any] = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
        async with AsyncRuntime(**stores, effect_handlers=handlers(folder / "world")) as rt:
            pending = set(names)
            async with asyncio.timeout(60):
                await asyncio.gather(*(hand(rt, random.Random(number), pending) for number in range(HANDS)))
            return {name: (await rt.get_state(name), await rt.get_ledger(name)) for name in names}


def stop_somewhere(worker: Worker, folder: Path, rng: random.Random) -> int:
    """Stop it at a random moment of its work; how often it was found in the middle of a write, and went on."""
    threading.Event().wait(rng.uniform(0, WORK))
    writing = 0
    while not stopped(worker.process, folder / "runs.db"):
        writing += 1
        threading.Event().wait(rng.uniform(0, 0.01))
    return writing


def check(outcome: Outcome, folder: Path) -> Counter[str]:
    """Every run completed, every effect landed once, and what was performed more often is accounted for."""
    attempts: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for number in range(RUNS):
        state, ledger = outcome[f"run-{number}"]
        assert (state.status, state.output) == (RunStatus.COMPLETED, expected_output(number))
        check_ledger(state, ledger)
        outside = [r for r in ledger if r["effect"] and str(r["effect"]["type"]).startswith("act")]
        attempts += attempts_of(outside)
        lost += lost_attempts_of(outside)
    performed = Counter(performance.key for performance in performances(folder / "world"))
    assert len(attempts) == RUNS * OUTSIDE
    assert performed.keys() == attempts.keys()
    assert all(attempts[key] == 1 + lost[key] >= times for key, times in performed.items())
    return Counter(lost=lost.total(), performed_again=performed.total() - len(performed))


@pytest.mark.timeout(scaled(120, 3600))
def test_stopped_at_random_moments_a_process_that_goes_on_later_changes_nothing(
    tmp_path: Path, start_in: Callable[[Path], Start], seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    folders = [tmp_path / str(number) for number in range(ROUNDS)]
    counts: Counter[str] = Counter()
    for folder in folders:
        folder.mkdir()
        zombie = start_in(folder)("drive", rng.randrange(10**6), RUNS, LEASE)
        assert zombie.hear() == "ready"
        zombie.tell()
        try:
            counts["found writing"] += stop_somewhere(zombie, folder, rng)
        except ProcessLookupError:
            counts["had ended"] += 1
        ends = asyncio.run(finish_all(folder))
        zombie.process.send_signal(signal.SIGCONT)
        zombie.end()
        assert asyncio.run(finish_all(folder)) == ends
        counts += check(ends, folder)
        counts["fenced"] += zombie.errors().count("was taken over; its outcome is dropped")
    with capsys.disabled():
        print(f"\n{ROUNDS} stopped processes, seed {seed}: {dict(counts)}")
