"""The main job: a workflow on a SQLite file is killed twice, goes on both times, and proves that nothing was lost.

Run it with `make demo`. The workflow ships parcels through a carrier outside and asks the user. Process 1 is killed
inside an effect: the carrier has acted, its answer has not arrived. Process 2 goes on and is killed while it waits for
the user. Process 3 gets the answer and completes the run. Process 4 reads everything back and checks it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from abstractruntime import (
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    WorkflowSpec,
)

RUN_ID, PARCELS = "order-1001", ["lamp", "desk", "chair"]


def pack(run: RunState, ctx: Any) -> StepPlan:
    """Ship the next parcel. A node only decides; the handler in `work` does it."""
    parcel = PARCELS[len(run.vars["shipped"])]
    effect = Effect("ship", {"parcel": parcel}, result_key=f"shipped.{parcel}")
    return StepPlan("pack", effect, next_node="ask" if parcel == PARCELS[-1] else "pack")


def ask(run: RunState, ctx: Any) -> StepPlan:
    question = {"prompt": "Send the invoice?", "choices": ["yes", "no"], "allow_free_text": False}
    return StepPlan("ask", Effect(EffectType.ASK_USER, question, result_key="answer"), next_node="done")


def done(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output={"shipped": [*run.vars["shipped"]], "invoice": run.vars["answer"]["text"]})


ORDER: WorkflowSpec[Any] = WorkflowSpec("order", "pack", {"pack": pack, "ask": ask, "done": done})


class Carrier:
    """The world outside: a file. Like a payment API, it takes an idempotency key and acts once per key."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "carrier.jsonl"

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def ship(self, key: str, parcel: str) -> bool:
        """Whether the parcel leaves now; not when it has left under this key before."""
        leaves = key not in {call["key"] for call in self.calls()}
        with self.file.open("a") as file:
            file.write(json.dumps({"key": key, "parcel": parcel, "shipped": leaves}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return leaves


def work(folder: Path) -> None:
    """Drive the order as far as it goes. Every process runs this; what another left behind is picked up."""

    def ship(call: EffectCall) -> EffectOutcome:
        parcel = call.payload["parcel"]
        leaves = Carrier(folder).ship(call.key, parcel)
        print(f"{parcel}: attempt {call.attempt}, key {call.key[:8]}: {'shipped' if leaves else 'had been shipped'}")
        if parcel == "desk" and call.attempt == 1:
            print("inside the effect: the carrier has acted, its answer is on the way")
            sys.stdin.readline()  # for ever: the kill comes first
        return EffectOutcome.completed({"parcel": parcel})

    with SqliteDatabase(folder / "demo.db") as db:
        runs, ledger = SqliteRunStore(db), SqliteLedgerStore(db)
        with Runtime(run_store=runs, ledger_store=ledger, effect_handlers={"ship": ship}, lease_seconds=3) as rt:
            rt.start(workflow=ORDER, run_id=RUN_ID, vars={"shipped": {}})  # the same run, when it exists
            while (state := rt.tick(workflow=ORDER, run_id=RUN_ID)).status is RunStatus.RUNNING:
                time.sleep(0.2)  # a dead owner is noticed at once, or when its lease is over where no file locks are
            if state.waiting is not None:
                print(f"waiting for the user: {state.waiting.prompt} {state.waiting.choices}")
                answer, key = {"text": sys.stdin.readline().strip()}, state.waiting.wait_key
                state = rt.resume(workflow=ORDER, run_id=RUN_ID, wait_key=key, payload=answer, resume_id="answer-1")
            print(f"{state.status}: {state.output}")


def audit(folder: Path) -> None:
    """Show the ledger, hold it against the state and the world outside, and say what each kill cost."""
    with SqliteDatabase(folder / "demo.db") as db:
        state, ledger = SqliteRunStore(db).load(RUN_ID), SqliteLedgerStore(db).list(RUN_ID)
    assert state is not None
    for record in ledger:
        record["kind"] = record["effect"]["type"] if record["effect"] else "complete"
        note = "outcome unknown" if record["error"] else ""
        columns = "{node_id:6}{kind:12}attempt {attempt}  {status:11}{idempotency_key!s:.8}  ".format(**record)
        print(f"{columns}{note}".rstrip())
    started = Counter(r["step_id"] for r in ledger if r["status"] == "started")
    ended = Counter(r["step_id"] for r in ledger if r["status"] != "started" and r["step_id"] in started)
    ships = [record for record in ledger if record["kind"] == "ship"]
    attempts = Counter(r["idempotency_key"] for r in ships if r["status"] == "started")
    landed = Counter(r["idempotency_key"] for r in ships if r["status"] == "completed")
    lost = [r["idempotency_key"] for r in ships if r["result"] == {"outcome": "unknown"}]
    calls = Carrier(folder).calls()
    called, shipped = Counter(c["key"] for c in calls), Counter(c["key"] for c in calls if c["shipped"])
    again = f"attempts {sum(attempts[key] for key in lost)}, shipped {sum(shipped[key] for key in lost)}"
    asked, answered = (sum(r["status"] == "waiting" for r in ledger), sum(r["kind"] == "resume" for r in ledger))
    ended_well = (state.status, state.output) == (RunStatus.COMPLETED, {"shipped": PARCELS, "invoice": "yes"})
    checks = {
        f"the run is {state.status}, with the expected output": ended_well,
        f"records: the state counts {state.records}, the ledger has {len(ledger)}": state.records == len(ledger),
        f"{started.total()} promises, {ended.total()} ends, one each": started == ended == Counter([*started]),
        f"{len(landed)} parcels in the ledger, each landed once": landed == Counter([*attempts]) and len(landed) == 3,
        f"{shipped.total()} parcels shipped by the carrier, each key once": shipped == landed,
        f"{called.total()} calls to the carrier, {attempts.total()} attempts in the ledger": called == attempts,
        f"kill 1 cost {len(lost)} attempt, made again with the same key: {again}": again == "attempts 2, shipped 1",
        f"kill 2 cost nothing: asked {asked} time, answered {answered} time": asked == answered == 1,
    }
    for text, holds in checks.items():
        print(f"{'ok  ' if holds else 'FAIL'} {text}")
    if not all(checks.values()):
        sys.exit(f"{[*checks.values()].count(False)} of {len(checks)} checks do not hold")


def process(number: int, what: str, folder: Path, *, kill_at: str = "", answer: str = "") -> None:
    """Run one process and relay what it says; kill it at the line that begins with `kill_at`."""
    command = [sys.executable, "-u", __file__, what, str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, **pipes) as child:
        for line in child.stdout or ():
            print(f"  process {number} | {line.rstrip()}", flush=True)
            if kill_at and line.startswith(kill_at):
                child.kill()  # SIGKILL: nothing in the process can catch it
                print(f"  process {number} > killed with SIGKILL", flush=True)
            elif answer and line.startswith("waiting") and child.stdin:
                print(f"  process {number} < {answer}", flush=True)
                child.stdin.write(f"{answer}\n")
                child.stdin.flush()
    if bool(child.returncode) != bool(kill_at):
        sys.exit(f"FAILED: process {number} ended with code {child.returncode}")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="abstractruntime-demo-") as name:
        print(f"[1/4] an order of {len(PARCELS)} parcels on {name}/demo.db; killed inside an effect")
        process(1, "work", Path(name), kill_at="inside")
        print("[2/4] another process goes on; killed while it waits for the user")
        process(2, "work", Path(name), kill_at="waiting")
        print("[3/4] another gets the answer and completes the run")
        process(3, "work", Path(name), answer="yes")
        print("[4/4] another reads the ledger and checks it against the state and the world outside")
        process(4, "audit", Path(name))
    print("Killed twice: nothing lost, nothing done twice.")


if __name__ == "__main__":
    {"work": work, "audit": audit}[sys.argv[1]](Path(sys.argv[2])) if sys.argv[1:] else main()
