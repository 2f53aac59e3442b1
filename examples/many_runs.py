"""Many runs at once: two hundred workflows on one event loop, their handlers in flight together, on one SQLite file."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    SqliteDatabase,
    StepPlan,
    WorkflowSpec,
)

RUNS = 200


def fetch(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("fetch", Effect("fetch", {"city": run.vars["city"]}, result_key="weather"), next_node="report")


def report(run: RunState, ctx: Any) -> StepPlan:
    text = f"{run.vars['city']}: {run.vars['weather']}"
    return StepPlan("report", Effect("send", {"text": text}, result_key="sent"), next_node="done")


def done(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output=run.vars["sent"])


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("weather", "fetch", {"fetch": fetch, "report": report, "done": done})


class Services:
    """What the handlers talk to; it counts how many calls are in flight at once."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.in_flight = self.most = 0

    async def fetch(self, call: EffectCall) -> EffectOutcome:
        self.calls["fetch"] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0.5)  # a slow service: waiting for it costs nothing
        self.in_flight -= 1
        return EffectOutcome.completed("sunny")

    async def send(self, call: EffectCall) -> EffectOutcome:
        self.calls["send"] += 1
        return EffectOutcome.completed({"id": call.key, "text": call.payload["text"]})


async def main(path: Path) -> None:
    services = Services()
    async with SqliteDatabase(path) as db:
        runs, ledger = AsyncSqliteRunStore(db), AsyncSqliteLedgerStore(db)
        handlers = {"fetch": services.fetch, "send": services.send}
        async with AsyncRuntime(run_store=runs, ledger_store=ledger, effect_handlers=handlers) as rt:
            states = await asyncio.gather(*(rt.run(WORKFLOW, vars={"city": f"city {n}"}) for n in range(RUNS)))
        records = sum((await ledger.count_many(state.run_id for state in states)).values())
    print(f"runs: {dict(Counter(state.status.value for state in states))}")
    print(f"calls: {dict(services.calls)}, most in flight together: {services.most}")
    print(f"ledger: {records} records, {records // RUNS} per run")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder) / "runs.db"))
