"""A request is approved by an event: whoever decides need not know which runs wait, and no event is lost to a late one.

Two orders of one customer wait for the bank. Its answer reaches both, the one that waits already and the one that comes
to wait afterwards; silence counts as a no after two days.
"""

from __future__ import annotations

from typing import Any

from abstractruntime import (
    Effect,
    EffectType,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunState,
    Runtime,
    StepPlan,
    WorkflowSpec,
)

TWO_DAYS = 2 * 24 * 3600


def wait(run: RunState, ctx: Any) -> StepPlan:
    payload = {"name": "credit:decided", "timeout_s": TWO_DAYS}  # of this run's session
    return StepPlan("wait", Effect(EffectType.WAIT_EVENT, payload, result_key="decision"), next_node="close")


def close(run: RunState, ctx: Any) -> StepPlan:
    decision = run.vars["decision"]
    approved = not decision.get("timed_out") and decision["payload"]["approved"]
    told = {"name": "order:closed", "payload": {"order": run.vars["order"], "approved": approved}}
    return StepPlan("close", Effect(EffectType.EMIT_EVENT, told, result_key="told"), next_node="end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"order": run.vars["order"], "told": run.vars["told"]["delivered"]})


ORDER: WorkflowSpec[Any] = WorkflowSpec("order", "wait", {"wait": wait, "close": close, "end": end})


def count(run: RunState, ctx: Any) -> StepPlan:
    """Listens to all that is said in the session, until two orders are closed."""
    heard = run.vars.setdefault("heard", [])
    got = run.vars.pop("got", None)
    if got is not None and got["name"] == "order:closed":
        heard.append(got["payload"]["order"])
    if len(heard) == 2:
        return StepPlan("count", complete_output={"closed": heard})
    return StepPlan("count", Effect(EffectType.WAIT_EVENT, {"name": "*"}, result_key="got"), next_node="count")


COUNTER: WorkflowSpec[Any] = WorkflowSpec("counter", "count", {"count": count})


def main() -> None:
    registry = {workflow.workflow_id: workflow for workflow in (ORDER, COUNTER)}
    stores: dict[str, Any] = {"run_store": InMemoryRunStore(), "ledger_store": InMemoryLedgerStore()}
    with Runtime(**stores, workflow_registry=registry) as rt:
        rt.run(COUNTER, session_id="customer-7", run_id="counter")
        rt.run(ORDER, vars={"order": "books"}, session_id="customer-7", run_id="waits")
        rt.start(workflow=ORDER, vars={"order": "lamp"}, session_id="customer-7", run_id="late")

        sent: dict[str, Any] = {"name": "credit:decided", "session_id": "customer-7", "payload": {"approved": True}}
        told = rt.emit_event(**sent, event_id="decision-1", max_steps=10)
        print(f"reached: {', '.join(told['delivered_to'])}")
        again = rt.emit_event(**sent, event_id="decision-1", max_steps=10)
        print(f"sent again: reached {again['delivered']}")

        late = rt.tick(workflow=ORDER, run_id="late")  # it only now comes to wait, and the event lies there
        for state in (rt.get_state("waits"), late, rt.tick(workflow=COUNTER, run_id="counter")):
            print(f"{state.run_id} {state.status.value}: {state.output}")


if __name__ == "__main__":
    main()
