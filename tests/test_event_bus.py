"""Steps of runs on AbstractCore's global event bus."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectOutcome,
    EffectType,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunState,
    Runtime,
    StepPlan,
    WorkflowSpec,
)
from abstractruntime.core.models import StepRecord, StepStatus
from abstractruntime.integrations.abstractcore.event_bus import attach_global_event_bus_bridge, emit_step_record
from abstractruntime.integrations.abstractcore.extra import needed

ROOT = Path(__file__).parent.parent


@pytest.fixture
def heard(monkeypatch, tmp_path) -> Iterator[list[Any]]:
    """The workflow events that the bus emits."""
    for name in ("HOME", "ABSTRACTCORE_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    events = needed("abstractcore.events")
    kinds = [kind for kind in events.EventType if kind.name.startswith("WORKFLOW_STEP_")]
    found: list[Any] = []
    take: Callable[[Any], None] = found.append
    for kind in kinds:
        events.GlobalEventBus.on(kind, take)
    yield found
    for kind in kinds:
        events.GlobalEventBus.off(kind, take)


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect(EffectType.ASK_USER, {"prompt": "Go on?"}, "answer"), "act")


def act(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("act", Effect("act", {}, "done"), "end")


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"done": True})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("told", "ask", {"ask": ask, "act": act, "end": end})
HANDLERS: dict[str, Any] = {"act": lambda call: EffectOutcome.failed("it broke", retryable=False)}


def stores() -> dict[str, Any]:
    return {"run_store": InMemoryRunStore(), "ledger_store": InMemoryLedgerStore(), "effect_handlers": HANDLERS}


def kinds_of(heard: list[Any]) -> list[str]:
    return [event.type.value.removeprefix("workflow_step_") for event in heard]


def test_the_steps_of_a_run_are_events(heard):
    with Runtime(**stores()) as runtime:
        unsubscribe = attach_global_event_bus_bridge(runtime=runtime, source="tests")
        run_id = runtime.start(workflow=WORKFLOW, session_id="s1")
        run = runtime.tick(workflow=WORKFLOW, run_id=run_id)
        assert kinds_of(heard) == ["started", "waiting"]
        assert run.waiting is not None
        waiting = heard[1].data
        assert waiting["wait"]["wait_key"] == run.waiting.wait_key
        assert (waiting["run_id"], waiting["node_id"], waiting["status"]) == (run_id, "ask", "waiting")
        assert (waiting["effect_type"], waiting["session_id"], heard[1].source) == ("ask_user", "s1", "tests")
        assert waiting["record"]["step_id"] == waiting["step_id"] == heard[0].data["step_id"]
        runtime.resume(workflow=WORKFLOW, run_id=run_id, wait_key=run.waiting.wait_key, payload={"text": "yes"})
        failed = [event.data for event in heard if event.type.value == "workflow_step_failed"]
        assert [(data["node_id"], "it broke" in data["error"]) for data in failed] == [("act", True)]
        unsubscribe()
        unsubscribe()
        count = len(heard)
        runtime.tick(workflow=WORKFLOW, run_id=runtime.start(workflow=WORKFLOW))
        assert len(heard) == count


async def test_one_run_alone_and_a_listener_that_fails(heard, capsys):
    events = needed("abstractcore.events")

    def fails(event: Any) -> None:
        raise RuntimeError("a listener")

    events.GlobalEventBus.on(events.EventType.WORKFLOW_STEP_STARTED, fails)
    try:
        async with AsyncRuntime(**stores()) as runtime:
            first, second = [await runtime.start(workflow=WORKFLOW) for _ in range(2)]
            attach_global_event_bus_bridge(runtime=runtime, run_id=second)
            for run_id in (first, second):
                run = await runtime.tick(workflow=WORKFLOW, run_id=run_id)
                assert run.waiting is not None
    finally:
        events.GlobalEventBus.off(events.EventType.WORKFLOW_STEP_STARTED, fails)
    assert {event.data["run_id"] for event in heard} == {second}
    assert {event.source for event in heard} == {"abstractruntime"}
    assert "a listener" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (StepStatus.STARTED, "started"),
        (StepStatus.COMPLETED, "completed"),
        (StepStatus.WAITING, "waiting"),
        (StepStatus.FAILED, "failed"),
        (StepStatus.CANCELLED, "failed"),
    ],
)
def test_each_status_has_its_event(heard, status, kind):
    record = StepRecord(run_id="r", step_id="r:1.1", node_id="n", status=status, effect={"type": "act"})
    emit_step_record(record, source="tests")
    emit_step_record({"run_id": "r", "status": status.value}, source="tests")
    assert kinds_of(heard) == [kind, kind]
    assert [event.data["status"] for event in heard] == [status.value] * 2
    assert (heard[0].data["effect_type"], heard[1].data["effect_type"]) == ("act", None)


def test_a_status_without_an_event_is_left_out(heard):
    emit_step_record({"status": "imagined"})
    emit_step_record({})
    assert heard == []


def test_without_abstractcore_the_extra_is_named():
    program = (
        "import sys; sys.modules['abstractcore'] = None; sys.modules['abstractcore.events'] = None\n"
        "from abstractruntime.integrations.abstractcore import event_bus, media, remote_client, residency\n"
        "try: event_bus.attach_global_event_bus_bridge(runtime=None)\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'pip install "abstractruntime[abstractcore]"' in done.stdout


def test_a_runtime_that_tells_nothing_is_an_error(heard):
    with pytest.raises(AttributeError, match="subscribe_ledger"):
        attach_global_event_bus_bridge(runtime=SimpleNamespace())
