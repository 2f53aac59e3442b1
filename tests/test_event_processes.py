"""Two processes on one SQLite file: one sends, the other listens; and the sender is killed at random moments."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
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

from .checks import check_ledger
from .event_worker import LISTENER, REGISTRY, SENDER
from .scale import scaled

ROOT = Path(__file__).parent.parent

#: seconds between two looks of the listener, and that a life of the sender may take
GLANCE, BOUND = 0.01, 60


class Place:
    """A database with a listening run, which this process drives, and a sending one, which others do."""

    def __init__(self, database: Path, count: int) -> None:
        self.database, self.count = database, count
        self.acknowledged: dict[str, int] = {"host": -1, "run": -1}
        self._db = SqliteDatabase(database, synchronous="NORMAL")
        self.rt = AsyncRuntime(
            run_store=AsyncSqliteRunStore(self._db),
            ledger_store=AsyncSqliteLedgerStore(self._db),
            workflow_registry=REGISTRY,
        )

    async def start(self) -> None:
        for workflow in (LISTENER, SENDER):
            await self.rt.start(workflow=workflow, run_id=workflow.workflow_id, vars={"count": self.count})

    async def send(self, kill_after: float | None) -> int:
        """A life of the sender, killed after so many seconds; its exit code."""
        first = self.acknowledged["host"] + 1
        arguments = (str(self.database), str(self.count), str(first))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.event_worker", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = await process.stdout.readline()  # its life begins with the first event
        reading = asyncio.create_task(process.stdout.read())
        try:
            await asyncio.wait_for(process.wait(), BOUND if kill_after is None else kill_after)
        except TimeoutError:
            process.kill()
        said = (line + await reading).decode()
        for text in said.splitlines(keepends=True):
            if text.endswith("\n"):
                kind, number = text.split()
                self.acknowledged[kind] = max(self.acknowledged[kind], int(number))
        return await process.wait()

    async def listen(self) -> RunState:
        """Drive the listener until it has heard everything."""
        while True:
            state = await self.rt.tick(workflow=LISTENER, run_id="listener")
            if state.status is RunStatus.COMPLETED:
                return state
            await asyncio.sleep(GLANCE)

    async def check(self, state: RunState) -> None:
        """All events of either kind were heard, each once, in their order."""
        heard: dict[str, list[int]] = {"host": [], "run": []}
        for kind, number in state.output["heard"]:
            heard[kind].append(number)
        assert heard == {"host": [*range(self.count)], "run": [*range(self.count)]}
        for run_id in ("listener", "sender"):
            ledger: list[dict[str, Any]] = await self.rt.get_ledger(run_id)
            check_ledger(await self.rt.get_state(run_id), ledger)

    async def close(self) -> None:
        await self.rt.aclose()
        await self._db.aclose()


@pytest.mark.timeout(300)
async def test_one_process_sends_and_another_listens(tmp_path: Path) -> None:
    place = Place(tmp_path / "runs.db", scaled(60, 1_000))
    await place.start()
    async with asyncio.timeout(BOUND):
        state, code = await asyncio.gather(place.listen(), place.send(None))
    assert code == 0
    await place.check(state)
    await place.close()


@pytest.mark.timeout(scaled(300, 3600))
async def test_a_sender_that_is_killed_loses_no_event_and_repeats_none(tmp_path: Path, seed: int) -> None:
    rng, killed = random.Random(seed), 0
    for world in range(scaled(2, 20)):
        place = Place(tmp_path / f"{world}.db", scaled(150, 300))
        await place.start()
        listening = asyncio.create_task(place.listen()) if rng.random() < 0.5 else None
        kills = 0
        while await place.send(rng.uniform(0, 0.1) if kills < 8 else None) == -signal.SIGKILL:
            kills += 1
        killed += kills
        async with asyncio.timeout(BOUND):
            await place.check(await (listening or place.listen()))
        await place.close()
    assert killed > 2
