"""Node traces, folded from ledger records into their documented shape."""

from __future__ import annotations

from typing import Any

import pytest

from abstractruntime.core.models import StepRecord, StepStatus
from abstractruntime.core.traces import MAX_STEPS, node_traces

BEGAN = "2026-01-31T09:00:00.000000+00:00"
ENDED = "2026-01-31T09:00:01.250000+00:00"
EFFECT = {"type": "pay", "payload": {"amount": 5}, "result_key": "paid"}


def record(status: StepStatus = StepStatus.COMPLETED, node: str = "n", **fields: Any) -> StepRecord:
    fields = {
        "effect": EFFECT,
        "started_at": BEGAN,
        "ended_at": ENDED,
        "idempotency_key": "k",
        **fields,
    }
    return StepRecord("r", "r:0.1", node, status, **fields)


def only_step(one: StepRecord) -> dict[str, Any]:
    (trace,) = node_traces([one]).values()
    (step,) = trace["steps"]
    assert isinstance(step, dict)
    return step


def test_a_run_without_effects_has_no_traces():
    assert node_traces([]) == {}


def test_a_completed_effect_is_one_step_with_its_result():
    assert node_traces([record(StepStatus.STARTED, ended_at=None), record(result={"ok": True})]) == {
        "n": {
            "node_id": "n",
            "steps": [
                {
                    "ts": ENDED,
                    "node_id": "n",
                    "status": "completed",
                    "idempotency_key": "k",
                    "reused_prior_result": False,
                    "effect": EFFECT,
                    "duration_ms": 1250.0,
                    "result": {"ok": True},
                }
            ],
            "updated_at": ENDED,
        }
    }


def test_a_waiting_effect_shows_its_wait_and_no_result():
    wait = {"reason": "user", "wait_key": "user:r:n:0"}
    step = only_step(record(StepStatus.WAITING, result={"wait": wait}))
    assert step["status"] == "waiting"
    assert step["wait"] == wait
    assert not {"result", "error"} & set(step)


def test_a_failed_effect_shows_its_error_and_no_result():
    step = only_step(record(StepStatus.FAILED, error="card refused", result={"outcome": "unknown"}))
    assert step["status"] == "failed"
    assert step["error"] == "card refused"
    assert not {"result", "wait"} & set(step)


def test_a_cancelled_effect_shows_what_is_known_of_it():
    step = only_step(record(StepStatus.CANCELLED, result={"cancelled": True, "outcome": "unknown"}))
    assert step["status"] == "cancelled"
    assert step["result"] == {"cancelled": True, "outcome": "unknown"}


def test_a_reused_result_says_so():
    assert only_step(record(reused_from="r:0.1"))["reused_prior_result"] is True


def test_an_attempt_in_flight_is_no_step_yet():
    assert node_traces([record(StepStatus.STARTED, ended_at=None)]) == {}


@pytest.mark.parametrize(
    "engine_record",
    [
        record(effect=None, result={"completed": True, "output": {}}, idempotency_key="system:completion:n"),
        record(effect=None, status=StepStatus.FAILED, error="ValueError: no", idempotency_key=None),
        record(effect={"type": "resume", "payload": {}, "result_key": None}, idempotency_key=None),
        record(effect={"type": "workflow_changed", "payload": {}, "result_key": None}, idempotency_key=None),
        record(
            effect={"type": "emit_event", "payload": {"name": "abstract.status"}, "result_key": None},
            idempotency_key="system:terminal_status:completed",
        ),
    ],
    ids=["completion", "node error", "resume", "changed graph", "status"],
)
def test_what_the_engine_notes_for_itself_is_no_step(engine_record: StepRecord):
    assert node_traces([engine_record]) == {}


def test_an_event_that_the_author_emits_is_a_step():
    effect = {"type": "emit_event", "payload": {"name": "hello"}, "result_key": None}
    assert only_step(record(effect=effect))["effect"] == effect


def test_steps_are_kept_per_node_oldest_first():
    records = [record(node=node, result=number) for number, node in enumerate(["a", "b", "a", "a", "b"])]
    traces = node_traces(records)
    assert list(traces) == ["a", "b"]
    assert {node: [step["result"] for step in trace["steps"]] for node, trace in traces.items()} == {
        "a": [0, 2, 3],
        "b": [1, 4],
    }


def test_every_attempt_of_an_effect_is_a_step():
    records = [record(StepStatus.FAILED, error="busy"), record(StepStatus.FAILED, error="busy"), record(result=1)]
    assert [step["status"] for step in node_traces(records)["n"]["steps"]] == ["failed", "failed", "completed"]


@pytest.mark.parametrize("count", [MAX_STEPS - 1, MAX_STEPS, MAX_STEPS + 1, 3 * MAX_STEPS])
def test_a_node_shows_its_last_hundred_steps(count: int):
    traces = node_traces([record(result=number, ended_at=ENDED) for number in range(count)])
    assert MAX_STEPS == 100
    assert [step["result"] for step in traces["n"]["steps"]] == list(range(max(0, count - 100), count))


def test_a_node_was_last_updated_when_its_last_step_ended():
    later = "2026-01-31T10:00:00.000000+00:00"
    assert node_traces([record(), record(ended_at=later)])["n"]["updated_at"] == later


def test_records_of_hosts_with_other_spellings_of_time_have_a_duration_too():
    step = only_step(record(started_at="2026-01-31T10:00:00+01:00", ended_at="2026-01-31T09:00:02Z"))
    assert step["duration_ms"] == 2000.0
    assert only_step(record(ended_at=None))["duration_ms"] == 0.0
