"""Programs that use a runtime and forget to close it: every one exits, at once, with code 0 and without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: seconds; a program that hangs would take for ever, a slow machine a few
BOUND = 30

PRELUDE = """
import asyncio, atexit, sys, threading
from abstractruntime import *
from abstractruntime.core.models import RunStatus

def work(run, ctx):
    return StepPlan("work", Effect(run.vars["effect"], {"prompt": "?"}, "did"), "end")

def end(run, ctx):
    return StepPlan("end", complete_output={"did": run.vars["did"]})

WF = WorkflowSpec("wf", "work", {"work": work, "end": end})
inside = threading.Event()

async def quick(call):
    return EffectOutcome.completed("done")

async def for_ever(call):
    inside.set()
    await asyncio.Event().wait()

def blocked(call):
    inside.set()
    threading.Event().wait()

def stores():
    if len(sys.argv) > 1:
        db = SqliteDatabase(sys.argv[1])
        pair = AsyncSqliteRunStore(db), AsyncSqliteLedgerStore(db)
    else:
        pair = AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore()
    return {
        "run_store": pair[0],
        "ledger_store": pair[1],
        "effect_handlers": {"quick": quick, "for_ever": for_ever, "blocked": blocked},
    }

async def wait_inside():
    while not inside.is_set():
        await asyncio.sleep(0.001)
"""

PROGRAMS = {
    "a run that ended": """
state = Runtime(**stores()).run(WF, vars={"effect": "quick"})
assert state.status is RunStatus.COMPLETED, state
""",
    "a run that waits": """
rt = Runtime(**stores())
state = rt.run(WF, vars={"effect": "ask_user"})
assert state.waiting, state
""",
    "a runtime whose with block was left by an error": """
try:
    with Runtime(**stores()) as rt:
        rt.run(WF, vars={"effect": "quick"})
        raise RuntimeError
except RuntimeError:
    rt.get_ledger("unknown")  # the stores are still open
""",
    "an async effect in flight in a daemon thread": """
rt = Runtime(**stores())
threading.Thread(target=rt.run, args=(WF,), kwargs={"vars": {"effect": "for_ever"}}, daemon=True).start()
inside.wait()
""",
    "a sync handler that blocks": """
rt = Runtime(**stores())
threading.Thread(target=rt.run, args=(WF,), kwargs={"vars": {"effect": "blocked"}}, daemon=True).start()
inside.wait()
""",
    "a call at exit": """
rt = Runtime(**stores())
rt.start(workflow=WF, run_id="one", vars={"effect": "quick"})
atexit.register(rt.tick, workflow=WF, run_id="one")
""",
    "ledgers that are followed, by a thread and by nobody any more": """
rt = Runtime(**stores())
rt.run(WF, run_id="one", vars={"effect": "ask_user"})
followed, dropped = rt.follow_ledger("one"), rt.follow_ledger("one")
next(dropped)
assert next(followed).offset == 1
threading.Thread(target=list, args=(followed,), daemon=True).start()
""",
    "asyncio, a ledger that nobody follows any more": """
async def main():
    rt = AsyncRuntime(**stores())
    await rt.run(WF, run_id="one", vars={"effect": "ask_user"})
    async for entry in rt.follow_ledger("one"):
        return entry.offset

assert asyncio.run(main()) == 1
""",
    "asyncio, a run that ended": """
async def main():
    return await AsyncRuntime(**stores()).run(WF, vars={"effect": "quick"})

state = asyncio.run(main())
assert state.status is RunStatus.COMPLETED, state
""",
    "asyncio, one runtime in two loops": """
rt = AsyncRuntime(**stores())
asyncio.run(rt.run(WF, vars={"effect": "quick"}))
state = asyncio.run(rt.run(WF, vars={"effect": "quick"}))
assert state.status is RunStatus.COMPLETED, state
""",
    "asyncio, cancelled in mid-effect": """
rt = AsyncRuntime(**stores())

async def main():
    await rt.start(workflow=WF, run_id="one", vars={"effect": "for_ever"})
    tick = asyncio.create_task(rt.tick(workflow=WF, run_id="one"))
    await wait_inside()
    asyncio.current_task().cancel()
    await tick

try:
    asyncio.run(main())
    raise SystemExit("was not cancelled")
except asyncio.CancelledError:
    state = asyncio.run(rt.get_state("one"))
    assert state.intent and state.intent.token is None, "the effect was not handed back"
""",
    "asyncio, a tick that nobody awaits": """
rt = AsyncRuntime(**stores())
ticks = []

async def main():
    await rt.start(workflow=WF, run_id="one", vars={"effect": "for_ever"})
    ticks.append(asyncio.create_task(rt.tick(workflow=WF, run_id="one")))
    await wait_inside()

asyncio.run(main())
""",
    "asyncio, a sync handler that blocks": """
async def main():
    rt = AsyncRuntime(**stores())
    tick = asyncio.create_task(rt.run(WF, vars={"effect": "blocked"}))
    await wait_inside()

asyncio.run(main())
""",
    "a scheduler that runs": """
sr = create_scheduled_runtime(**stores())
run_id, state = sr.run(WF, vars={"effect": "quick"})
assert state.status is RunStatus.COMPLETED and sr.is_running
""",
    "a scheduler in the middle of an effect": """
sr = create_scheduled_runtime(**stores(), workflows=[WF], poll_interval_s=0.01)
sr.start(workflow=WF, vars={"effect": "for_ever"})
inside.wait()
""",
    "a scheduler whose handler blocks": """
sr = create_scheduled_runtime(**stores(), workflows=[WF], poll_interval_s=0.01)
sr.start(workflow=WF, vars={"effect": "blocked"})
inside.wait()
""",
    "asyncio, a scheduler in the middle of an effect": """
async def main():
    sr = await create_async_scheduled_runtime(**stores(), workflows=[WF])
    await sr.start(workflow=WF, vars={"effect": "for_ever"})
    await wait_inside()

asyncio.run(main())
""",
    "asyncio, a blocking runtime inside": """
async def main():
    return Runtime(**stores()).run(WF, vars={"effect": "quick"})

state = asyncio.run(main())
assert state.status is RunStatus.COMPLETED, state
""",
}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_forgets_to_close_its_runtime_exits_quietly(program, kind, tmp_path):
    if "atexit.register" in program and (3, 12) <= sys.version_info < (3, 12, 3):
        pytest.skip("this Python starts no thread while it exits: gh-113964")
    arguments = [str(tmp_path / "runs.db")] if kind == "sqlite" else []
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
