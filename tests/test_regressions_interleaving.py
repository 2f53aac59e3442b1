"""Whatever comes between a step and its commit: it is kept, and nothing is done twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import pytest

from abstractruntime import EffectCall, EffectOutcome, Request, RunState, RunStatus, StepPlan

from . import worlds
from .spies import WatchedRunStore
from .worlds import World, ask, flow, go, one, statuses

async_world = worlds.async_world

EVENT = one("wait_event", {"wait_key": "k"})


def work_of_every_kind() -> Any:
    """Outside effects, inside ones, moves and a wait with a deadline in the past."""

    def count(run: RunState, ctx: Any) -> StepPlan:
        run.vars["count"] = run.vars.get("count", 0) + 1
        return StepPlan("count", next_node="b")

    return flow(
        "a",
        a=ask("a", "host", {"n": 1}, "first", "count"),
        count=count,
        b=ask("b", "wait_event", {"wait_key": "k", "until": "2026-01-31T08:00:00Z"}, "waited", "c"),
        c=ask("c", "answer_user", {"message": "hi"}, "said", "d"),
        d=ask("d", "host", {"n": 2}, "second"),
    )


async def hold_and_release(rt: Any, run_id: str) -> None:
    await rt.pause_run(run_id)
    await rt.resume_run(run_id)


async def change_vars(rt: Any, run_id: str) -> None:
    run = await rt.run_store.load(run_id)
    run.vars["theirs"] = run.vars.get("theirs", 0) + 1
    await rt.run_store.save(run)


OUTSIDE: dict[str, Callable[[Any, str], Awaitable[Any]]] = {
    "limits": lambda rt, run_id: rt.update_limits(run_id, {"max_iterations": 7}),
    "hold and release": hold_and_release,
    "save": change_vars,
    "hold": lambda rt, run_id: rt.pause_run(run_id),
    "cancel": lambda rt, run_id: rt.cancel_run(run_id),
}


class Between:
    """Lets something from outside land just before commit number `at` of a runtime."""

    def __init__(self, at: int, act: Callable[[], Awaitable[Any]]) -> None:
        self.at, self.act, self.seen = at, act, 0

    async def __call__(self, write: Any) -> None:
        self.seen += 1
        if self.seen == self.at:
            await self.act()


@pytest.mark.parametrize("what", OUTSIDE)
async def test_whatever_comes_between_a_step_and_its_commit_is_kept_and_nothing_is_done_twice(
    async_world: World, what: str
) -> None:
    """For every commit of a workflow, something from outside lands just before it."""
    work, other = work_of_every_kind(), async_world.runtime()
    for at in range(2, 40):
        performed: Counter[str] = Counter()
        run_id = f"r{at}"

        def handler(call: EffectCall, performed: Counter[str] = performed) -> EffectOutcome:
            performed[call.key] += 1
            return EffectOutcome.completed(call.payload["n"])

        between = Between(at, partial(OUTSIDE[what], other, run_id))
        runs, ledgers = async_world.stores()
        rt = async_world.runtime({"host": handler}, stores=(WatchedRunStore(runs, between), ledgers))
        state = await rt.run(work, run_id=run_id)
        if state.paused:
            await rt.resume_run(run_id)
            state = await rt.tick(workflow=work, run_id=run_id)
        check_between(what, at, state, await rt.get_ledger(run_id), performed)
        if between.seen < at:
            return
    raise AssertionError("the walk never came to its end")


def check_between(what: str, at: int, state: RunState, ledger: list[dict[str, Any]], performed: Counter[str]) -> None:
    where = f"{what} before commit {at}"
    assert state.records == len(ledger), where
    assert max(performed.values(), default=1) == 1, where
    if state.status is RunStatus.CANCELLED:
        assert what == "cancel", where
        assert ledger[-1]["result"].get("late") or ledger[-1]["idempotency_key"] == "system:terminal_status:cancelled"
        return
    assert state.status is RunStatus.COMPLETED, where
    assert (state.output["first"], state.output["second"], state.output["count"]) == (1, 2, 1), where
    assert len(performed) == 2, where
    assert state.output.get("theirs", 1) == 1, where


async def test_what_comes_between_really_lands(async_world: World) -> None:
    """The walk above walks: each of its actions, once it comes in between, is seen in the end."""
    work, ends = work_of_every_kind(), {}
    for what, act in OUTSIDE.items():
        other, run_id = async_world.runtime(), what.replace(" ", "-")
        runs, ledgers = async_world.stores()
        between = Between(4, partial(act, other, run_id))
        handlers = {"host": lambda call: EffectOutcome.completed(1)}
        rt = async_world.runtime(handlers, stores=(WatchedRunStore(runs, between), ledgers))
        ends[what] = await rt.run(work, run_id=run_id)
    assert ends["limits"].vars["_limits"]["max_iterations"] == 7
    assert "resumed_at" in ends["hold and release"].vars["_runtime"]["control"]
    assert ends["save"].output["theirs"] == 1
    assert ends["hold"].paused
    assert ends["cancel"].status is RunStatus.CANCELLED


@pytest.mark.parametrize("how", ["tick", "resume"])
@pytest.mark.parametrize("kind", ["cancel", "pause"])
async def test_what_was_asked_of_a_run_is_answered_although_its_graph_changed_meanwhile(
    async_world: World, kind: Literal["cancel", "pause"], how: str
) -> None:
    def ask_other(call: EffectCall) -> EffectOutcome:
        asked = Request(run_id="other", kind=kind, by=call.run.run_id, at=call.now)
        return EffectOutcome.completed(requests=(asked,))

    old, new = one("wait_event", {"wait_key": "k"}), flow("work", work=EVENT.nodes["work"], new=go("new", "end"))
    rt = async_world.runtime({"ask_other": ask_other})
    await rt.run(old, run_id="other")
    await rt.run(one("ask_other"))
    if how == "tick":
        state = await rt.tick(workflow=new, run_id="other")
    else:
        with pytest.raises(ValueError, match="Run is paused" if kind == "pause" else "Run is not waiting"):
            await rt.resume(workflow=new, run_id="other", wait_key="k", payload=1)
        state = await rt.get_state("other")
    assert state.paused if kind == "pause" else state.status is RunStatus.CANCELLED


async def test_a_change_of_the_graph_that_meets_another_writer_is_followed_all_the_same(async_world: World) -> None:
    old, new = one("wait_event", {"wait_key": "k"}), flow("work", work=EVENT.nodes["work"], new=go("new", "end"))
    other = async_world.runtime()
    for how in ("tick", "resume"):
        await other.run(old, run_id=how)
        between = Between(1, partial(other.update_limits, how, {"max_tokens": 5}))
        runs, ledgers = async_world.stores()
        rt = async_world.runtime(stores=(WatchedRunStore(runs, between), ledgers))
        if how == "tick":
            state = await rt.tick(workflow=new, run_id=how)
        else:
            state = await rt.resume(workflow=new, run_id=how, wait_key="k", payload=1)
        assert state.fingerprint == new.fingerprint
        assert state.vars["_limits"]["max_tokens"] == 5
        assert statuses(await rt.get_ledger(how), "workflow_changed") == ["completed"]
