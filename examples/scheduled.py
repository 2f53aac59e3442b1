"""Runs that move by themselves: a timer, a retry after a pause, and a question that a person answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import Any

from abstractruntime import (
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    StepPlan,
    WorkflowSpec,
    create_scheduled_runtime,
)


def wait(run: RunState, ctx: Any) -> StepPlan:
    until = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
    return StepPlan("wait", Effect(EffectType.WAIT_UNTIL, {"until": until}), "weigh")


def weigh(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("weigh", Effect("weigh", {}, "grams"), "ask")


def ask(run: RunState, ctx: Any) -> StepPlan:
    prompt = f"Send {run.vars['grams']['grams']} g?"
    return StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": prompt}, "answer"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"sent": run.vars["answer"]["text"] == "yes"})


PARCEL: WorkflowSpec[Any] = WorkflowSpec("parcel", "wait", {"wait": wait, "weigh": weigh, "ask": ask, "end": end})


def scales(call: EffectCall) -> EffectOutcome:
    """They need a second try."""
    print(f"the scales are asked, attempt {call.attempt}")
    return EffectOutcome.failed("no reading") if call.attempt == 1 else EffectOutcome.completed({"grams": 420})


def main() -> None:
    moved: SimpleQueue[RunState] = SimpleQueue()
    with create_scheduled_runtime(
        workflows=[PARCEL],
        effect_handlers={"weigh": scales},
        effect_policy=DefaultEffectPolicy(2, 1.2),  # two attempts, with a pause between them
        poll_interval_s=0.2,
        on_run_resumed=moved.put,
    ) as sr:
        run_id = sr.start(workflow=PARCEL)  # nobody ticks it
        while (state := moved.get()).waiting is None or state.waiting.prompt is None:
            pass
        print(f"{state.status}: {state.waiting.prompt}")
        state = sr.respond(run_id, {"text": "yes"})
        print(f"{state.status}: {state.output}")


if __name__ == "__main__":
    main()
