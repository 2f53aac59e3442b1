"""A summary by a model: a run of one LLM_CALL below the run that compacts, with a ledger and tokens of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ...core.models import Effect, EffectType, RunState, RunStatus, StepPlan
from ...core.outcomes import EffectCall
from ...core.spec import WorkflowSpec
from .desk import artifact_id

#: starts a run with these vars under this id below another, unless it is there, and drives it to its end
Subrun = Callable[[RunState, WorkflowSpec[Any], dict[str, Any], str], Awaitable[RunState]]


def _ask(run: RunState, ctx: Any) -> StepPlan:
    effect = Effect(EffectType.LLM_CALL, {"prompt": run.vars["prompt"]}, result_key="answer")
    return StepPlan("ask", effect, next_node="answer")


def _answer(run: RunState, ctx: Any) -> StepPlan:
    found = run.vars.get("answer")
    text = found.get("content") if isinstance(found, dict) else found
    return StepPlan("answer", complete_output={"answer": text})


#: takes `prompt`, gives what the model said as `answer`
SUMMARIZE: WorkflowSpec[Any] = WorkflowSpec("wf_memory_compact_llm", "ask", {"ask": _ask, "answer": _answer})

#: by their ids, the workflows that nobody has to register
OWN: dict[str, WorkflowSpec[Any]] = {SUMMARIZE.workflow_id: SUMMARIZE}


async def summarized(subrun: Subrun, call: EffectCall, prompt: str) -> RunState:
    """The run that made the summary, as it ended.

    Every attempt at the effect finds the run of the one before. Only where that failed, or was cancelled, it makes
    another one.
    """
    base, number = artifact_id("compact", call), 1
    while True:
        run_id = base if number == 1 else f"{base}-{number}"
        state = await subrun(call.run, SUMMARIZE, {"prompt": prompt}, run_id)
        if state.status is RunStatus.COMPLETED or number >= call.attempt:
            return state
        number += 1
