"""A ReAct agent: it plans, uses tools, asks, remembers, and goes on after kill -9 where it was.

    python examples/react_agent.py "Write down what we know about tea" ollama qwen3:4b

A person approves what writes. Start it again after a crash: nothing that was done is done twice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from abstractruntime import Effect, EffectType, RunState, RunStatus, Runtime, StepPlan, WorkflowSpec
from abstractruntime.integrations.abstractcore import (
    ApprovalToolExecutor,
    MappingToolExecutor,
    ToolApprovalPolicy,
    create_local_file_runtime,
)

NOTES = Path("notes")
SYSTEM = "You are a careful assistant. First say your plan in one line, then act with the tools, one step at a time."


def read_note(name: str) -> str:
    """Read one of the user's notes."""
    return (NOTES / Path(name).name).read_text(encoding="utf-8")


def write_note(name: str, text: str) -> str:
    """Write one of the user's notes."""
    NOTES.mkdir(exist_ok=True)
    (NOTES / Path(name).name).write_text(text, encoding="utf-8")
    return f"{len(text)} characters written"


TOOLS = MappingToolExecutor.from_tools([read_note, write_note])
ASKING = ApprovalToolExecutor(delegate=TOOLS, policy=ToolApprovalPolicy(auto_approve_tools=["read_note"]))

#: tools that are effects of the runtime: what each becomes, the argument that it is made of, and what the model reads
OWN: dict[str, tuple[EffectType, str, str]] = {
    "ask_user": (EffectType.ASK_USER, "prompt", "Ask the user, who may answer days later."),
    "remember": (EffectType.MEMORY_NOTE, "note", "Remember something for later."),
    "recall": (EffectType.MEMORY_QUERY, "query", "Find what was remembered."),
}
SPECS = TOOLS.tool_specs() + [
    {"name": name, "description": about, "parameters": {argument: {"type": "string"}}}
    for name, (_, argument, about) in OWN.items()
]


def think(run: RunState, ctx: Any) -> StepPlan:
    messages = run.vars.setdefault("messages", [{"role": "user", "content": run.vars["task"]}])
    payload = {"system_prompt": SYSTEM, "messages": messages, "tools": SPECS}
    return StepPlan("think", Effect(EffectType.LLM_CALL, payload, "reply"), "heed")


def heed(run: RunState, ctx: Any) -> StepPlan:
    reply = run.vars.pop("reply")
    calls = run.vars["calls"] = reply["tool_calls"] or []
    message = {"role": "assistant", "content": reply["content"] or ""}
    run.vars["messages"].append(message)
    if not calls:
        return StepPlan("heed", complete_output={"answer": message["content"]})
    functions = [{"name": call["name"], "arguments": json.dumps(call["arguments"])} for call in calls]
    pairs = zip(calls, functions, strict=True)
    message["tool_calls"] = [{"id": call["call_id"], "type": "function", "function": what} for call, what in pairs]
    return StepPlan("heed", next_node="act")


def act(run: RunState, ctx: Any) -> StepPlan:
    calls = run.vars["calls"]
    if not calls:
        return StepPlan("act", next_node="think")
    own = next((call for call in calls if call["name"] in OWN), None)
    run.vars["doing"] = doing = calls if own is None else [own]
    run.vars["calls"] = [call for call in calls if call not in doing]
    if own is None:
        return StepPlan("act", Effect(EffectType.TOOL_CALLS, {"tool_calls": doing}, "seen"), "observe")
    kind, argument, _ = OWN[own["name"]]
    return StepPlan("act", Effect(kind, {argument: str(own["arguments"].get(argument))}, "seen"), "observe")


def observe(run: RunState, ctx: Any) -> StepPlan:
    seen = run.vars.pop("seen")
    results = seen.get("results") or [{"output": seen.get("text")}]  # of a question, what the user said
    for call, result in zip(run.vars["doing"], results, strict=True):
        said = str(result.get("error") or result["output"])
        run.vars["messages"].append({"role": "tool", "tool_call_id": call["call_id"], "content": said})
    return StepPlan("observe", next_node="act")


AGENT: WorkflowSpec[Any] = WorkflowSpec("react", "think", {node.__name__: node for node in (think, heed, act, observe)})


def answered(rt: Runtime, run: RunState) -> RunState:
    assert run.waiting is not None
    calls = (run.waiting.details or {}).get("tool_calls", [])  # that want an approval; none of a question
    print(*(f"  {call['name']} {call['arguments']}\n" for call in calls), sep="", end="")
    said = input(f"{run.waiting.prompt} ").strip()
    payload = {"approved": said.lower() in ("y", "yes")} if calls else {"text": said}
    return rt.resume(workflow=AGENT, run_id=run.run_id, wait_key=run.waiting.wait_key, payload=payload)


def main(task: str, provider: str = "ollama", model: str = "qwen3:4b", base_url: str = "") -> None:
    options = {"llm_kwargs": {"base_url": base_url} if base_url else None, "tool_executor": ASKING}
    with create_local_file_runtime(base_dir="agent", provider=provider, model=model, **options) as rt:
        run_id = rt.start(workflow=AGENT, vars={"task": task}, run_id="agent")  # or the one that was started before
        run = rt.tick(workflow=AGENT, run_id=run_id, max_steps=1000)
        while run.status is RunStatus.WAITING:
            run = answered(rt, run)
    print(run.output["answer"] if run.output else f"{run.status}: {run.error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
