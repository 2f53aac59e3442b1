"""A process on a disk that fails now and then: `python -m tests.faulty_disk_worker KIND FOLDER RUNS`.

It is run under `fiu-run`, which lets calls of the C library fail. It moves runs to their ends, tries again what failed
with a StoreError, and says `ended <run>` of each whose end it saw, `stored <artifact>` of each that it was promised.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from abstractruntime import (
    Effect,
    EffectCall,
    EffectOutcome,
    FileArtifactStore,
    JsonFileRunStore,
    JsonlLedgerStore,
    RunState,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    StoreError,
    WorkflowSpec,
)
from abstractruntime.core.errors import StoreVanished

#: how often the same is tried
PATIENCE = 200


def act(run: RunState, ctx: Any) -> StepPlan:
    count = run.vars["count"] = run.vars.get("count", 0) + 1
    return StepPlan("act", Effect("act", {"n": count}, f"acts.n{count}"), "act" if count < 3 else "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"acts": run.vars["acts"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("faulty", "act", {"act": act, "end": end})


def perform(call: EffectCall) -> EffectOutcome:
    say(f"performed {call.key}")
    return EffectOutcome.completed(call.payload["n"])


def say(text: str) -> None:
    """A whole line to standard output, however often that must be tried."""
    data = text.encode() + b"\n"
    while data:
        with contextlib.suppress(OSError):
            data = data[os.write(1, data) :]


def stores(kind: str, folder: Path) -> tuple[Any, Any]:
    if kind == "sqlite":
        db = SqliteDatabase(folder / "runs.db")
        return SqliteRunStore(db), SqliteLedgerStore(db)
    return JsonFileRunStore(folder), JsonlLedgerStore(folder)


def move(kind: str, folder: Path, runs: int) -> None:
    rt: Runtime | None = None
    for number in range(runs):
        run_id = f"run-{number}"
        for _ in range(PATIENCE):
            try:
                if rt is None:
                    made = stores(kind, folder)
                    rt = Runtime(run_store=made[0], ledger_store=made[1], effect_handlers={"act": perform})
                rt.start(workflow=WORKFLOW, run_id=run_id)
                if rt.tick(workflow=WORKFLOW, run_id=run_id).status == "completed":
                    say(f"ended {run_id}")
                    break
            except StoreVanished:  # told so when the look at the file fails; a new object is the way out
                rt = None
            except StoreError as error:
                say(f"failed {type(error).__name__}: {error}".replace("\n", " "))


def keep(folder: Path, count: int) -> None:
    store: FileArtifactStore | None = None
    for number in range(count):
        content = f"content {number % 7} ".encode() * 500
        for _ in range(PATIENCE):
            try:
                store = store or FileArtifactStore(folder)
                kept = store.store(content, run_id=f"run-{number}")
                say(f"stored {kept.artifact_id}")
                break
            except StoreError as error:
                say(f"failed {type(error).__name__}: {error}".replace("\n", " "))


def main(kind: str, folder: str, count: str) -> None:
    if kind == "artifacts":
        keep(Path(folder), int(count))
    else:
        move(kind, Path(folder), int(count))
    sys.stdout.flush()
    os._exit(0)  # closing would only meet the same disk


if __name__ == "__main__":
    main(*sys.argv[1:])
