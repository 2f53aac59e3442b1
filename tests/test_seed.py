"""The examples of the published introduction run word for word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MINIMAL_DURABLE_WORKFLOW = """\
from abstractruntime import (
    Effect, EffectType, Runtime, StepPlan, WorkflowSpec
)
from abstractruntime.storage import (
    InMemoryLedgerStore, InMemoryRunStore
)


def ask(run, ctx):
    return StepPlan(
        node_id="ask",
        effect=Effect(
            type=EffectType.ASK_USER,
            payload={"prompt": "Continue?"},
            result_key="answer",
        ),
        next_node="done",
    )


def done(run, ctx):
    answer = run.vars.get("answer") or {}
    text = answer.get("text") if isinstance(answer, dict) else None
    return StepPlan(
        node_id="done",
        complete_output={"answer": text}
    )


wf = WorkflowSpec(
    workflow_id="demo",
    entry_node="ask",
    nodes={"ask": ask, "done": done}
)
rt = Runtime(
    run_store=InMemoryRunStore(),
    ledger_store=InMemoryLedgerStore()
)

run_id = rt.start(workflow=wf)
state = rt.tick(workflow=wf, run_id=run_id)
assert state.status.value == "waiting"

state = rt.resume(
    workflow=wf,
    run_id=run_id,
    wait_key=state.waiting.wait_key,
    payload={"text": "yes"}
)
assert state.status.value == "completed"
"""

CORE_IMPORTS = """\
# Core kernel
from abstractruntime import (
    Effect, EffectType, Runtime, StepPlan, WorkflowSpec
)

# SQLite backends
from abstractruntime import SqliteRunStore, SqliteLedgerStore

# Zero-config driver wrapper
from abstractruntime import create_scheduled_runtime
"""


@pytest.mark.parametrize("example", [MINIMAL_DURABLE_WORKFLOW, CORE_IMPORTS], ids=["workflow", "imports"])
def test_an_introductory_example_runs_word_for_word(example):
    run = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
