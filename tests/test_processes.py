"""Several processes on one database: one performs an effect, the others see it, and the dead are replaced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    EffectCall,
    EffectOutcome,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
)

from . import workers
from .checks import attempts_of, check_ledger, lost_attempts_of
from .killed_worker import OUTSIDE, expected_output
from .outside import perform, performances
from .process_worker import HELD, RUN
from .scale import scaled
from .workers import Start, stop

start, start_in = workers.start, workers.start_in
RUNS = scaled(30, 500)

#: seconds; how long a test waits for what takes one at most
BOUND = 30


class Here:
    """A runtime in this process on the workers' database, and what it finds there."""

    def __init__(self, folder: Path) -> None:
        self.path, self.world = folder / "runs.db", folder / "world"
        self.db = SqliteDatabase(self.path)
        self.runs, self.ledgers = SqliteRunStore(self.db), SqliteLedgerStore(self.db)
        self.rt = Runtime(run_store=self.runs, ledger_store=self.ledgers, effect_handlers={"act": self.act})

    def act(self, call: EffectCall) -> EffectOutcome:
        perform(self.world, call)
        return EffectOutcome.completed("the successor")

    def begin(self, **vars: Any) -> None:
        self.rt.start(workflow=HELD, run_id=RUN, vars=vars)

    def tick(self) -> RunState:
        return self.rt.tick(workflow=HELD, run_id=RUN)

    def tick_until_it_moves(self) -> RunState:
        give_up = time.monotonic() + BOUND
        while (state := self.tick()).status is RunStatus.RUNNING:
            assert time.monotonic() < give_up, f"nobody took over: {state}"
        return state


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    here = Here(tmp_path)
    with here.db, here.rt:
        yield here


def test_three_processes_ticking_the_same_runs_perform_no_effect_twice(start: Start, here: Here, seed: int) -> None:
    rng = random.Random(seed)
    workers = [start("drive", rng.randrange(10**6), RUNS) for _ in range(3)]
    for worker in workers:
        assert worker.hear() == "ready"
    for worker in workers:
        worker.tell()
    for worker in workers:
        worker.end()
    attempts: Counter[str] = Counter()
    for number in range(RUNS):
        state, ledger = here.rt.get_state(f"run-{number}"), here.rt.get_ledger(f"run-{number}")
        assert (state.status, state.output) == (RunStatus.COMPLETED, expected_output(number))
        check_ledger(state, ledger)
        attempts += attempts_of([r for r in ledger if r["effect"] and str(r["effect"]["type"]).startswith("act")])
    done = performances(here.world)
    assert Counter(performance.key for performance in done) == attempts
    assert set(attempts.values()) == {1}
    assert len(attempts) == RUNS * OUTSIDE
    shares = Counter(performance.pid for performance in done)
    print(f"effects performed per process: {sorted(shares.values())}")
    assert len(shares) > 1, "one process did it all, and nothing was shown"


@pytest.mark.parametrize("asks", [False, True], ids=["that ends", "that waits"])
@pytest.mark.parametrize("how", ["deaf", "listening"])
def test_a_stopped_owner_is_replaced_and_its_late_outcome_changes_nothing(
    start: Start, here: Here, how: str, asks: bool
) -> None:
    here.begin(ask=asks)
    owner = start("hold", 0.3, how)
    assert owner.hear() == "inside"
    stop(owner, here.path)
    taken = here.tick_until_it_moves()
    assert taken.vars["by"] == "the successor"
    ledger = here.rt.get_ledger(RUN)
    os.kill(owner.process.pid, signal.SIGCONT)
    if how == "listening":
        assert owner.hear() == "cancelled"
    owner.tell()
    assert owner.hear() == f"{taken.status} False the successor"
    owner.end()
    assert "was taken over; its outcome is dropped" in owner.errors()
    assert here.rt.get_state(RUN) == taken
    assert here.rt.get_ledger(RUN) == ledger
    (key,) = lost_attempts_of(ledger)
    assert [(p.key, p.pid, p.attempt) for p in performances(here.world)] == [
        (key, owner.process.pid, 1),
        (key, os.getpid(), 2),
    ]


def test_a_process_stopped_between_promise_and_perform_cannot_overwrite_what_its_successor_did(
    start: Start, here: Here
) -> None:
    here.begin()
    owner = start("hold", 0.3, "promised")
    assert owner.hear() == "promised"
    stop(owner, here.path)
    taken, ledger = here.tick_until_it_moves(), here.rt.get_ledger(RUN)
    os.kill(owner.process.pid, signal.SIGCONT)
    owner.tell()
    while (said := owner.hear()) == "inside":
        owner.tell()
    assert said == f"{taken.status} False the successor"
    owner.end()
    assert "was taken over; its outcome is dropped" in owner.errors()
    assert here.rt.get_state(RUN) == taken
    assert here.rt.get_ledger(RUN) == ledger
    check_ledger(taken, ledger)
    (key,) = lost_attempts_of(ledger)
    assert attempts_of(ledger) == {key: 2}
    assert [(p.key, p.attempt) for p in performances(here.world)] == [(key, 2)], "it looks before it performs"


def test_a_killed_owner_is_replaced_at_once_however_long_its_lease(start: Start, here: Here) -> None:
    here.begin()
    owner = start("hold", 3600, "listening")
    assert owner.hear() == "inside"
    assert here.tick().status is RunStatus.RUNNING, "a living owner lost its effect"
    owner.kill()
    state = here.tick()
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"by": "the successor"})
    check_ledger(state, here.rt.get_ledger(RUN))
    assert [p.attempt for p in performances(here.world)] == [1, 2]
    assert len({p.key for p in performances(here.world)}) == 1


@pytest.mark.parametrize("how", ["listening", "thread"])
def test_a_cancel_from_another_process_reaches_the_running_handler(start: Start, here: Here, how: str) -> None:
    here.begin()
    owner = start("hold", 30, how)
    assert owner.hear() == "inside"
    begun = time.monotonic()
    cancelled = here.rt.cancel_run(RUN, reason="too late for that")
    assert owner.hear() == "cancelled"
    assert time.monotonic() - begun < BOUND / 3
    assert owner.hear() == "cancelled False None"
    owner.tell()
    owner.end()
    state, ledger = here.rt.get_state(RUN), here.rt.get_ledger(RUN)
    assert (state.status, state.error) == (RunStatus.CANCELLED, "too late for that")
    assert state == cancelled
    check_ended_by_cancel(state, ledger)
    assert len(performances(here.world)) == 1


def check_ended_by_cancel(state: RunState, ledger: list[dict[str, Any]]) -> None:
    assert len(ledger) == state.records
    assert [r["status"] for r in ledger] == ["started", "cancelled", "completed"]
    assert ledger[1]["result"]["outcome"] == "unknown"


def test_a_pause_from_another_process_lets_the_effect_land_and_nothing_runs_twice(start: Start, here: Here) -> None:
    here.begin()
    owner = start("hold", 30, "listening")
    assert owner.hear() == "inside"
    assert here.rt.pause_run(RUN, reason="lunch").paused
    owner.tell()
    assert owner.hear() == "waiting True the owner"
    owner.end()
    assert here.tick().paused, "a paused run moved"
    here.rt.resume_run(RUN)
    state = here.tick()
    assert (state.status, state.output) == (RunStatus.COMPLETED, {"by": "the owner"})
    check_ledger(state, here.rt.get_ledger(RUN))
    assert [p.pid for p in performances(here.world)] == [owner.process.pid]


def test_a_ledger_that_another_process_writes_is_followed_to_its_end(start: Start, here: Here, seed: int) -> None:
    worker = start("drive", seed, 3)
    assert worker.hear() == "ready"
    worker.tell()
    found = list(here.rt.follow_ledger("run-1", poll_seconds=0.02))
    assert here.rt.get_state("run-1").status is RunStatus.COMPLETED
    assert [entry.record for entry in found] == here.rt.get_ledger("run-1")
    assert [entry.offset for entry in found] == list(range(1, len(found) + 1))
    worker.end()


def test_of_processes_that_answer_one_question_at_once_one_is_heard(start: Start, here: Here) -> None:
    here.begin(ask=True)
    assert here.tick().status is RunStatus.WAITING
    workers = {worker.process.pid: worker for worker in (start("answer", number) for number in range(3))}
    for worker in workers.values():
        assert worker.hear() == "ready"
    for worker in workers.values():
        worker.tell()
    said = {pid: worker.hear() for pid, worker in workers.items()}
    assert sorted(said.values()) == ["delivered", "stale", "stale"]
    state = here.tick()
    assert said[state.vars["answer"]] == "delivered"
    check_ledger(state, here.rt.get_ledger(RUN))
