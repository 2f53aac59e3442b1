"""What an effect writes to other runs lands in the commit of its own run, once, whatever else happens to them."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    Change,
    Effect,
    EffectCall,
    EffectOutcome,
    Request,
    RunState,
    RunStatus,
    StepPlan,
)
from abstractruntime.core.changes import changed
from abstractruntime.core.models import Elsewhere

from .faults import FaultyBackend, ProcessDied
from .test_ledger_chain import DictLedger, DictRuns
from .worlds import Gate, World, flow, one


@pytest.fixture(params=["memory", "sqlite", "json"])
async def async_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """`AsyncRuntime` on every kind of stores."""
    made = World("async", request.param, tmp_path)
    yield made
    await made.close()


def owner_of(run_id: str) -> RunState:
    return RunState(run_id, "notes", RunStatus.COMPLETED, "done", vars={"notes": []}, output={})


def note(call: EffectCall) -> EffectOutcome:
    """Write a note to the run that owns the notes, which is made if need be."""
    own = {"id": call.key, "by": call.run.run_id, "text": call.payload["text"]}
    change = Change(path="notes", op="append_once", match=("id", call.key), value=own)
    owner = call.payload.get("owner", "owner")
    made = owner_of(owner) if call.payload.get("create", True) else None
    return EffectOutcome.completed(
        {"noted": True}, elsewhere=(Elsewhere(run_id=owner, create=made, changes=(change,)),)
    )


def tag(call: EffectCall) -> EffectOutcome:
    change = Change(path="notes", op="merge", match=("by", call.payload["by"]), value={"tag": call.payload["tag"]})
    return EffectOutcome.completed({"tagged": True}, elsewhere=(Elsewhere(run_id="owner", changes=(change,)),))


HANDLERS = {"note": note, "tag": tag}


# -- the changes themselves


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        (Change(path="a.b", value=1), {}, {"a": {"b": 1}}),
        (Change(path="a", op="append", value=1), {"a": [0]}, {"a": [0, 1]}),
        (Change(path="a", op="append", value=1), {"a": "text"}, {"a": [1]}),
        (Change(path="a", op="append_once", match=("id", 1), value={"id": 1}), {}, {"a": [{"id": 1}]}),
        (
            Change(path="a", op="append_once", match=("id", 1), value={"id": 1, "new": True}),
            {"a": [{"id": 1}]},
            {"a": [{"id": 1}]},
        ),
        (
            Change(path="a", op="merge", match=("id", 1), value={"x": 2}),
            {"a": [{"id": 1, "x": 1}, {"id": 2}, "text", {"id": 1}]},
            {"a": [{"id": 1, "x": 2}, {"id": 2}, "text", {"id": 1, "x": 2}]},
        ),
        (Change(path="a", op="merge", match=("id", 1), value={"x": 2}), {"a": [{"id": 2}]}, {"a": [{"id": 2}]}),
        (Change(path="a.b", op="merge", match=("id", None), value={"x": 2}), {"a": {"b": [{}]}}, {"a": {"b": [{}]}}),
    ],
)
def test_a_change_does_what_it_says_and_changes_nothing_in_place(change, before, after):
    kept = copy.deepcopy(before)
    assert changed(before, [change]) == after
    assert before == kept


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "append_once", "value": {}},
        {"op": "merge", "value": {}},
        {"op": "set", "value": 1, "match": ("a", 1)},
        {"op": "merge", "value": 1, "match": ("a", 1)},
    ],
)
def test_a_change_that_could_mean_nothing_is_refused(fields):
    with pytest.raises(ValueError, match="a change with op="):
        Change(path="a", **fields)


# -- with a run's commit


async def test_the_other_run_is_made_and_written_once(async_world: World):
    rt = async_world.runtime(HANDLERS)
    for number in range(3):
        await rt.run(one("note", {"text": f"note {number}"}), run_id=f"run-{number}")
    owner = await rt.get_state("owner")
    assert [found["by"] for found in owner.vars["notes"]] == ["run-0", "run-1", "run-2"]
    assert (owner.status, owner.current_node, owner.revision) == (RunStatus.COMPLETED, "done", 3)
    await rt.run(one("tag", {"by": "run-1", "tag": "seen"}))
    owner = await rt.get_state("owner")
    assert [found.get("tag") for found in owner.vars["notes"]] == [None, "seen", None]


async def test_many_runs_write_to_one_at_once_and_nothing_is_lost(async_world: World):
    rt = async_world.runtime(HANDLERS)
    await asyncio.gather(*(rt.run(one("note", {"text": "x"}), run_id=f"run-{n}") for n in range(30)))
    owner = await rt.get_state("owner")
    assert sorted(found["by"] for found in owner.vars["notes"]) == sorted(f"run-{n}" for n in range(30))


async def test_effects_of_one_step_write_there_too(async_world: World):
    rt = async_world.runtime(HANDLERS)
    effects = [Effect("note", {"text": f"{n}"}, f"r.n{n}") for n in range(8)]
    state = await rt.run(flow("work", work=lambda run, ctx: StepPlan("work", effects=effects, next_node="end")))
    assert state.status is RunStatus.COMPLETED
    owner = await rt.get_state("owner")
    assert sorted(found["text"] for found in owner.vars["notes"]) == [f"{n}" for n in range(8)]


async def test_a_run_that_moves_is_written_to_without_a_lost_update(async_world: World):
    """The other run is in the middle of its own life: both its steps and the notes land."""
    rt = async_world.runtime(HANDLERS)

    def count(run: RunState, ctx: Any) -> StepPlan:
        run.vars["n"] = run.vars.get("n", 0) + 1
        return StepPlan("count", next_node="count" if run.vars["n"] < 40 else "end")

    counting = flow("count", count=count)
    await rt.start(workflow=counting, run_id="owner", vars={"notes": []})
    notes = [rt.run(one("note", {"text": "x", "create": False}), run_id=f"run-{n}") for n in range(10)]

    async def tick() -> None:
        for _ in range(1_000):  # a step that a note comes between is done again by a later tick
            if (await rt.tick(workflow=counting, run_id="owner", max_steps=1)).status is not RunStatus.RUNNING:
                return
            await asyncio.sleep(0)

    await asyncio.gather(tick(), *notes)
    owner = await rt.get_state("owner")
    assert owner.vars["n"] == 40
    assert len(owner.vars["notes"]) == 10


async def test_what_was_asked_of_the_other_run_goes_on_standing(async_world: World):
    """A request is answered by the run itself: a note from elsewhere neither answers it nor waits for it."""
    gate = Gate()

    async def slow(call: EffectCall) -> EffectOutcome:
        await gate.passed()
        return EffectOutcome.completed({})

    async def stop(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.completed({}, requests=(Request(run_id="owner", kind="cancel", by="me", at=call.now),))

    rt = async_world.runtime({**HANDLERS, "slow": slow, "stop": stop})
    waits = one("ask_user", {"prompt": "?"})
    await rt.start(workflow=waits, run_id="owner", vars={"notes": []})
    await rt.tick(workflow=waits, run_id="owner")
    await rt.run(one("stop", {}))
    await rt.run(one("note", {"text": "x", "create": False}), run_id="noter")
    owner = await rt.get_state("owner")
    assert owner.status is RunStatus.WAITING
    assert len(owner.vars["notes"]) == 1
    owner = await rt.tick(workflow=waits, run_id="owner")
    assert owner.status is RunStatus.CANCELLED
    assert len(owner.vars["notes"]) == 1


async def test_a_run_that_is_not_there_fails_the_effect(async_world: World):
    rt = async_world.runtime(HANDLERS)
    state = await rt.run(one("note", {"text": "x", "create": False, "owner": "nobody"}))
    assert state.status is RunStatus.FAILED
    assert "Unknown run_id: 'nobody'" in state.error
    effects = [Effect("note", {"text": "x", "create": False, "owner": "nobody"}, "r")]
    state = await rt.run(flow("work", work=lambda run, ctx: StepPlan("work", effects=effects, next_node="end")))
    assert state.status is RunStatus.FAILED
    assert "Unknown run_id: 'nobody'" in state.error


async def test_changes_to_the_run_itself_are_its_own(async_world: World):
    def self_note(call: EffectCall) -> EffectOutcome:
        change = Change(path="mine", op="append", value=1)
        return EffectOutcome.completed({}, elsewhere=(Elsewhere(run_id=call.run.run_id, changes=(change,)),))

    rt = async_world.runtime({"self": self_note})
    assert (await rt.run(one("self", {}))).output["mine"] == [1]


async def test_an_ill_made_outcome_is_refused(async_world: World):
    def other(call: EffectCall) -> EffectOutcome:
        made = Elsewhere(run_id="a", create=owner_of("b"))
        return EffectOutcome.completed({}, elsewhere=(made,))

    def nan(call: EffectCall) -> EffectOutcome:
        change = Change(path="x", value=float("nan"))
        return EffectOutcome.completed({}, elsewhere=(Elsewhere(run_id="a", changes=(change,)),))

    rt = async_world.runtime({"other": other, "nan": nan})
    for kind, why in (("other", "creates run 'b' and names run 'a'"), ("nan", "nan is no JSON number")):
        state = await rt.run(one(kind, {}))
        assert state.status is RunStatus.FAILED
        assert why in state.error


@pytest.mark.parametrize("mode", FaultyBackend.MODES)
async def test_every_write_may_fail_and_each_note_is_there_once(async_world: World, mode: str):
    workflow = flow(
        "first",
        first=lambda run, ctx: StepPlan("first", Effect("note", {"text": "1"}, None), "second"),
        second=lambda run, ctx: StepPlan("second", Effect("note", {"text": "2"}, None), "end"),
    )
    rt, store = async_world.faulty_runtime(HANDLERS)
    await rt.run(workflow, run_id="reference")
    for at in range(1, 30):
        run_id, owner = f"run-{at}", await rt.get_state("owner")
        broken, store = async_world.faulty_runtime(HANDLERS, at=at, mode=mode)
        try:
            await broken.start(workflow=workflow, run_id=run_id)
            await broken.tick(workflow=workflow, run_id=run_id)
        except ProcessDied:
            await rt.start(workflow=workflow, run_id=run_id)
            await rt.tick(workflow=workflow, run_id=run_id)
        assert store.backend is not None
        if not store.backend.fired:
            return
        assert (await rt.get_state(run_id)).status is RunStatus.COMPLETED
        notes = (await rt.get_state("owner")).vars["notes"]
        assert [found["text"] for found in notes if found["by"] == run_id] == ["1", "2"], f"{mode} at write {at}"
        assert len(notes) == len(owner.vars["notes"]) + 2
    raise AssertionError("the walk never came to its end")


async def test_stores_that_do_not_commit_together_write_there_too():
    runs, ledger = DictRuns(), DictLedger()
    async with AsyncRuntime(run_store=runs, ledger_store=ledger, effect_handlers=HANDLERS) as rt:
        for number in range(2):
            await rt.run(one("note", {"text": "x"}), run_id=f"run-{number}")
        assert [found["by"] for found in (await rt.get_state("owner")).vars["notes"]] == ["run-0", "run-1"]


def test_a_run_that_was_made_and_deleted_does_not_come_back(tmp_path):
    """Files: what a commit has written to others is forgotten when it is there."""
    first = """
import sys
from abstractruntime import JsonFileRunStore, JsonlLedgerStore, Runtime
from tests.test_elsewhere import HANDLERS, one
runs = JsonFileRunStore(sys.argv[1])
rt = Runtime(run_store=runs, ledger_store=JsonlLedgerStore(sys.argv[1]), effect_handlers=HANDLERS)
rt.run(one("note", {"text": "x"}, then=None), run_id="noter")
print(runs.delete("owner"))
"""
    second = """
import sys
from abstractruntime import JsonFileRunStore, RunState
runs = JsonFileRunStore(sys.argv[1])
runs.save(RunState("other", "w", "running", "n"))
print(runs.load("noter").status, runs.load("owner"))
"""
    root = Path(__file__).parent.parent
    said = [
        subprocess.run([sys.executable, "-c", program, tmp_path], cwd=root, capture_output=True, text=True, check=True)
        for program in (first, second)
    ]
    assert [done.stdout.split() for done in said] == [["True"], ["completed", "None"]]
