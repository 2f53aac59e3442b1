"""Programs that forget to close: every one exits, at once and with code 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: seconds; a program that hangs would take for ever, a slow machine a few
BOUND = 30

PROGRAMS = {
    "a finished call": """
drive(one)
""",
    "a finished call in a thread": """
thread = threading.Thread(target=drive, args=(one,))
thread.start()
thread.join()
""",
    "a call in flight in a daemon thread": """
threading.Thread(target=drive, args=(for_ever,), daemon=True).start()
begun.wait()
""",
    "a served function in flight in a daemon thread": """
async def asks():
    await here(block)

threading.Thread(target=drive, args=(asks,), daemon=True).start()
begun.wait()
""",
    "a background task on the loop": """
async def leaves_a_task():
    tasks.append(asyncio.create_task(for_ever()))
    await asyncio.sleep(0)

drive(leaves_a_task)
""",
    "a worker thread of the loop that blocks": """
async def blocks_a_worker():
    tasks.append(asyncio.create_task(anyio.to_thread.run_sync(block)))
    while not begun.is_set():
        await asyncio.sleep(0)

drive(blocks_a_worker)
""",
    "a call at exit": """
drive(one)  # a Python that is exiting may refuse to start the thread
atexit.register(drive, one)
""",
    "a call under a running loop": """
async def main():
    drive(one)

asyncio.run(main())
""",
}

PRELUDE = """
import asyncio, atexit, threading
import anyio
from abstractruntime.core.portal import drive, here

tasks = []
begun = threading.Event()

async def one():
    return await here(int, "1")

async def for_ever():
    begun.set()
    await asyncio.Event().wait()

def block():
    begun.set()
    threading.Event().wait()
"""


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_forgets_to_close_exits_quietly(program):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
