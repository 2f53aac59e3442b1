"""The examples of the published introduction run word for word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .scripted_servers import ScriptedServer

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


WITH_ABSTRACTCORE = """\
from abstractruntime.integrations.abstractcore import (
    create_local_runtime
)

rt = create_local_runtime(
    provider="ollama",
    model="qwen3:4b"
)
"""

APPROVAL_GATED = """\
from abstractruntime.integrations.abstractcore import (
    ApprovalToolExecutor,
    MappingToolExecutor,
    ToolApprovalPolicy,
)

tools = ApprovalToolExecutor(
    delegate=MappingToolExecutor({"write_file": write_file}),
    policy=ToolApprovalPolicy(),
)
"""

#: the tool of the reader, and what the example is for
BEFORE_APPROVAL = "def write_file(path: str): ...\n"
ASKS_BEFORE_IT_WRITES = """
assert tools.policy.requires_approval([{"name": "write_file", "arguments": {}}])
"""

#: what a reader does with the runtime of the example
ASK_A_MODEL = """
from tests.bridge_fixtures import asking
print(rt.run(asking({"prompt": "hello"})).output["answer"]["content"])
"""


@pytest.mark.parametrize("example", [MINIMAL_DURABLE_WORKFLOW, CORE_IMPORTS], ids=["workflow", "imports"])
def test_an_introductory_example_runs_word_for_word(example):
    run = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_the_example_of_approvals_asks_before_a_file_is_written():
    program = BEFORE_APPROVAL + APPROVAL_GATED + ASKS_BEFORE_IT_WRITES
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_the_example_with_abstractcore_asks_the_ollama_of_the_environment(tmp_path):
    with ScriptedServer() as server:
        environment = os.environ | {"OLLAMA_BASE_URL": server.url, "HOME": str(tmp_path)}
        run = subprocess.run(
            [sys.executable, "-c", WITH_ABSTRACTCORE + ASK_A_MODEL],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.stdout.strip() == "echo: hello", run.stderr
    assert server.asked[0].json["model"] == "qwen3:4b"
