"""Tools that need approval: a batch waits in the inbox, one call is edited and one denied, a crash loses neither.

The first process dies after the decision and before any tool. The second performs what was approved, once, under the
ids that were decided about.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from abstractruntime import (
    Effect,
    EffectType,
    RunState,
    RunStatus,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StaleResumeError,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.integrations.abstractcore.approvals import ApprovalToolExecutor
from abstractruntime.integrations.abstractcore.tool_calls import make_tool_calls_handler

CALLS = [
    {"name": "read_file", "call_id": "a", "arguments": {"path": "notes.txt"}},
    {"name": "write_file", "call_id": "b", "arguments": {"path": "/etc/motd", "text": "hello"}},
    {"name": "delete_file", "call_id": "c", "arguments": {"path": "notes.txt"}},
]


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect(EffectType.TOOL_CALLS, {"tool_calls": CALLS}, "tools"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output=run.vars["tools"])


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("agent", "act", {"act": act, "end": end})


class Files:
    """Performs calls; a real one would take `runtime_call_id` as its idempotency key."""

    def execute(self, *, tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
        results = []
        for call in tool_calls:
            print(f"performs {call['name']} {call['arguments']}", flush=True)
            results.append({"call_id": call["call_id"], "success": True, "output": f"{call['name']} is done"})
        return {"mode": "executed", "results": results}


def decide(rt: Runtime) -> None:
    """What a web page would do: show the inbox and send a decision."""
    (item,) = rt.list_approvals().items
    for call in item["calls"]:
        print(f"{'ask ' if call['needs_approval'] else 'fine'} {call['name']} {call['arguments']}", flush=True)
    safer = {"approved": True, "arguments": {"path": "motd", "text": "hello"}}
    decision = {"decisions": {"b": safer, "c": {"approved": False, "reason": "keep it"}}, "digest": item["digest"]}
    state = rt.decide("chat", item["wait_key"], decision, actor_id="ann", max_steps=0)
    try:
        rt.approve("chat", item["wait_key"])
    except StaleResumeError as error:
        print(f"a second decision: {error}", flush=True)
    print(f"decided: {state.status}, and no tool has run", flush=True)
    time.sleep(60)


def work(file: Path) -> None:
    tools = ApprovalToolExecutor(delegate=Files())
    with SqliteDatabase(file) as database:
        stores: dict[str, Any] = {"run_store": SqliteRunStore(database), "ledger_store": SqliteLedgerStore(database)}
        handlers: dict[str, Any] = {EffectType.TOOL_CALLS: make_tool_calls_handler(tools=tools)}
        with Runtime(**stores, effect_handlers=handlers) as rt:
            rt.start(workflow=WORKFLOW, run_id="chat")
            state = rt.tick(workflow=WORKFLOW, run_id="chat")
            if state.status is RunStatus.WAITING:
                decide(rt)
            for result in state.output["results"]:
                print(f"{result['name']}: {result['output'] or result['error']}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", __file__, str(Path(folder, "runs.db"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
            for line in first.stdout or ():
                print(f"process 1 | {line.rstrip()}")
                if line.startswith("decided"):
                    first.kill()
        print("process 1 > killed with SIGKILL")
        second = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        for line in second.stdout.splitlines():
            print(f"process 2 | {line}")


if __name__ == "__main__":
    work(Path(sys.argv[1])) if sys.argv[1:] else main()
