"""A process is killed with SIGKILL again and again, at random moments; another goes on, and nothing is lost."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from abstractruntime import RunStatus, SqliteDatabase, SqliteLedgerStore, SqliteRunStore

from .checks import attempts_of, check_ledger, check_on_the_way, lost_attempts_of
from .killed_worker import OUTSIDE, expected_output
from .outside import performances
from .scale import scaled

ROOT = Path(__file__).parent.parent
RUNS = 8
KILLS = scaled(50, 500)

#: seconds; far more than one life takes
BOUND = 60


class Nursery:
    """The parent of all workers of `tests.killed_worker`."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.killed_worker"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )

    def bear(self, *arguments: object) -> int:
        """Let a worker live; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, arguments)).encode() + b"\n")
        return self.hear(BOUND)

    def hear(self, within: float) -> int:
        """The next number that is told; TimeoutError when nothing is within so many seconds."""
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], within)[0]:
            raise TimeoutError
        line = out.readline()
        assert line, self.errors()
        return int(line)

    def errors(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path / "log")
    yield nursery
    nursery.close()


class World:
    """One database, the world outside it, and the processes that lived and died on them."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        folder.mkdir()
        self.database, self.outside, self._nursery = folder / "runs.db", folder / "world", nursery
        self.lives: list[int] = []

    def live(self, until: float | None) -> float | None:
        """One life: killed after so many seconds (None is returned), or to its end, and how many seconds it took."""
        pid = self._nursery.bear(self.database, self.outside, RUNS)
        self.lives.append(pid)
        begun = time.monotonic()
        try:
            code = self._nursery.hear(BOUND if until is None else until)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            code = self._nursery.hear(BOUND)
            assert until is not None, f"a life took more than {BOUND} s"
        assert code in (0, -signal.SIGKILL), self._nursery.errors()
        return None if code else time.monotonic() - begun

    def check_on_the_way(self) -> None:
        """Right after a kill the file is whole, and state and ledger of every run agree."""
        with SqliteDatabase(self.database) as db:
            runs, ledgers = SqliteRunStore(db), SqliteLedgerStore(db)
            for number in range(RUNS):
                state = runs.load(f"run-{number}")
                if state is not None:
                    check_on_the_way(state, ledgers.list(state.run_id))

    def check_end(self) -> Counter[str]:
        """All runs completed, and what the kills cost is accounted for; returns the counts."""
        attempts: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        with SqliteDatabase(self.database) as db:
            runs, ledgers = SqliteRunStore(db), SqliteLedgerStore(db)
            for number in range(RUNS):
                state, ledger = runs.load(f"run-{number}"), ledgers.list(f"run-{number}")
                assert state is not None
                assert (state.status, state.output) == (RunStatus.COMPLETED, expected_output(number))
                check_ledger(state, ledger)
                outside = [r for r in ledger if r["effect"] and str(r["effect"]["type"]).startswith("act")]
                attempts += attempts_of(outside)
                lost += lost_attempts_of(outside)
            with db.connection() as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            connection.close()
        done = performances(self.outside)
        performed = Counter(performance.key for performance in done)
        assert len(attempts) == RUNS * OUTSIDE
        assert performed.keys() == attempts.keys(), "an effect was never performed, or under a key nobody knows"
        for key, times in performed.items():
            assert attempts[key] == 1 + lost[key], "an attempt was lost, and the ledger does not say so"
            assert times <= attempts[key], "performed again although no process died between perform and settle"
            lives = [self.lives.index(performance.pid) for performance in done if performance.key == key]
            assert lives == sorted(set(lives)), "performed twice by one process, or by a dead one"
        again = sum(performed.values()) - len(performed)
        return Counter(effects=len(performed), performed_again=again, attempts_lost=lost.total())


def undisturbed(folder: Path, nursery: Nursery) -> float:
    """How many seconds the runs take when nobody kills anybody."""
    world = World(folder, nursery)
    duration = world.live(None)
    assert duration is not None
    assert world.check_end() == Counter(effects=RUNS * OUTSIDE)
    return duration


@pytest.mark.timeout(scaled(300, 3600))
def test_killed_at_random_moments_every_run_completes_and_every_effect_is_accounted_for(
    nursery: Nursery, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    duration = min(undisturbed(tmp_path / "first", nursery), undisturbed(tmp_path / "second", nursery))
    kills, worlds, counts = 0, 0, Counter[str]()
    while kills < KILLS:
        world = World(tmp_path / str(worlds), nursery)
        worlds += 1
        while world.live(rng.uniform(0, duration * rng.choice((0.4, 1))) if kills < KILLS else None) is None:
            kills += 1
            if rng.random() < 0.5:  # else the next process is the first that looks at what the dead one left
                world.check_on_the_way()
        counts += world.check_end()
    with capsys.disabled():
        print(f"\n{kills} kills in {worlds} worlds of {RUNS} runs, seed {seed}: {dict(counts)}")
