"""Effect handlers: the forms they may be written in, what they are given, and what they may return."""

from __future__ import annotations

import functools
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from abstractruntime import (
    Change,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    RunStatus,
    StepPlan,
    WaitReason,
    WaitState,
)

from . import worlds
from .worlds import World, ask, end, flow, one, statuses

world = worlds.world


def told(**facts: Any) -> EffectOutcome:
    return EffectOutcome.completed(facts)


def legacy_two(run: RunState, effect: Effect) -> EffectOutcome:
    return told(run=run.run_id, x=effect.payload["x"])


def legacy_three(run: RunState, effect: Effect, default_next_node: str | None) -> EffectOutcome:
    return told(run=run.run_id, x=effect.payload["x"], next=default_next_node)


def star(*args: Any) -> EffectOutcome:
    return legacy_three(*args)


def two_and_star(run: RunState, effect: Effect, *rest: Any) -> EffectOutcome:
    return legacy_three(run, effect, *rest)


def three_with_default(run: RunState, effect: Effect, default_next_node: str | None = None) -> EffectOutcome:
    return legacy_three(run, effect, default_next_node)


def by_name(call: Any) -> EffectOutcome:
    return told(run=call.run.run_id, x=call.payload["x"], next=call.next_node)


def by_annotation(it: EffectCall) -> EffectOutcome:
    return by_name(it)


def by_position(anything: Any) -> EffectOutcome:
    return by_name(anything)


def with_an_option(call: EffectCall, verbose: bool = False) -> EffectOutcome:
    return by_name(call)


def keyword_only(call: EffectCall, *, verbose: bool = False) -> EffectOutcome:
    return by_name(call)


class Objects:
    """Handlers as methods and objects."""

    def method(self, call: EffectCall) -> EffectOutcome:
        return by_name(call)

    def __call__(self, run: RunState, effect: Effect, default_next_node: str | None) -> EffectOutcome:
        return legacy_three(run, effect, default_next_node)


def bound(prefix: str, call: EffectCall) -> EffectOutcome:
    return by_name(call)


FORMS: dict[str, Any] = {
    "two": legacy_two,
    "three": legacy_three,
    "star": star,
    "two_and_star": two_and_star,
    "three_with_default": three_with_default,
    "by_name": by_name,
    "by_annotation": by_annotation,
    "by_position": by_position,
    "with_an_option": with_an_option,
    "keyword_only": keyword_only,
    "method": Objects().method,
    "object": Objects(),
    "partial": functools.partial(bound, "x"),
    "lambda": lambda call: by_name(call),
}


def as_async(function: Any) -> Any:
    """The same handler, async."""
    if isinstance(function, Objects):

        class AsyncObject:
            async def __call__(self, run: RunState, effect: Effect, default_next_node: str | None) -> EffectOutcome:
                return legacy_three(run, effect, default_next_node)

        return AsyncObject()

    @functools.wraps(function)
    async def handler(*args: Any) -> Any:
        return function(*args)

    return handler


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_handler_may_be_written_in_every_documented_form(world: World, form: str, kind: str) -> None:
    handler = FORMS[form] if kind == "sync" else as_async(FORMS[form])
    state = await world.runtime({"host": handler}).run(one("host", {"x": 3}), run_id="r")
    assert state.status is RunStatus.COMPLETED, state.error
    expected = {"run": "r", "x": 3} if form == "two" else {"run": "r", "x": 3, "next": "end"}
    assert state.output == {"result": expected}


async def test_a_sync_handler_may_return_an_awaitable(world: World) -> None:
    async def later(call: EffectCall) -> EffectOutcome:
        return told(x=call.payload["x"])

    rt = world.runtime({"host": lambda call: later(call)})
    assert (await rt.run(one("host", {"x": 1}))).output == {"result": {"x": 1}}


@pytest.mark.parametrize("bad", [lambda: None, lambda *, call: None])
def test_what_can_be_no_handler_is_refused_when_the_runtime_is_built(bad: Any, tmp_path: Any) -> None:
    with pytest.raises(TypeError, match="is no effect handler"):
        World("async", "memory", tmp_path).runtime({"host": bad})


async def test_a_handlers_call_holds_the_facts_of_its_attempt(world: World) -> None:
    calls: list[EffectCall] = []

    def handler(call: EffectCall) -> EffectOutcome:
        calls.append(call)
        return EffectOutcome.completed()

    rt = world.runtime({"host": handler})
    work = flow("first", first=ask("first", "host", {"x": 1}, None, "second"), second=ask("second", "host", {}, "k"))
    state = await rt.run(work, run_id="r", vars={"v": 1})
    first, second = calls
    assert (first.node_id, first.next_node, first.step_id, first.attempt) == ("first", "second", "r:0.1", 1)
    assert (first.effect.type, first.payload, first.effect.result_key) == ("host", {"x": 1}, None)
    assert first.now == "2026-01-31T09:00:00.000000+00:00"
    assert not first.cancelled.is_set()
    assert (first.run.run_id, first.run.vars["v"], first.run.status) == ("r", 1, RunStatus.RUNNING)
    ledger = await rt.get_ledger("r")
    assert [first.key, first.key, second.key, second.key] == [r["idempotency_key"] for r in ledger[:4]]
    assert first.key != second.key
    assert state.records == len(ledger)


async def test_what_a_handler_does_to_its_copies_is_lost(world: World) -> None:
    def greedy(call: EffectCall) -> EffectOutcome:
        call.run.vars["list"].append("mine")
        call.run.status = RunStatus.FAILED
        call.payload["list"].append("mine")
        return EffectOutcome.completed("done")

    def node(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("node", Effect("host", {"list": run.vars["list"]}, "result"), "end")

    rt = world.runtime({"host": greedy})
    state = await rt.run(flow("node", node=node), vars={"list": [1]})
    assert state.output == {"list": [1], "result": "done"}
    for record in await rt.get_ledger(state.run_id):
        if record["effect"] and record["effect"]["type"] == "host":
            assert record["effect"]["payload"] == {"list": [1]}


async def test_a_sync_handler_runs_in_a_worker_thread_and_a_node_does_not(world: World) -> None:
    threads: dict[str, str] = {}

    def handler(call: EffectCall) -> EffectOutcome:
        threads["handler"] = threading.current_thread().name
        return EffectOutcome.completed()

    def node(run: RunState, ctx: Any) -> StepPlan:
        threads["node"] = threading.current_thread().name
        return StepPlan("node", Effect("host"), "end")

    await world.runtime({"host": handler}).run(flow("node", node=node))
    assert threads["handler"] == "abstractruntime-worker"
    assert "abstractruntime" not in threads["node"]


async def test_changes_of_an_outcome_land_with_its_result_in_their_order(world: World) -> None:
    def handler(call: EffectCall) -> EffectOutcome:
        changes = (
            Change(path="a.b", value=1),
            Change(path="log", value="x", op="append"),
            Change(path="log", value="y", op="append"),
            Change(path="new.list", value=1, op="append"),
            Change(path="result", value="overwritten"),
        )
        return EffectOutcome.completed("result", changes=changes)

    state = await world.runtime({"host": handler}).run(one("host"), vars={"log": ["w"], "a": "old"})
    assert state.output == {"a": {"b": 1}, "log": ["w", "x", "y"], "new": {"list": [1]}, "result": "result"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "found a NoneType"),
        ({"result": 1}, "found a dict"),
        (EffectOutcome("done"), "found status 'done'"),
        (SimpleNamespace(status="ok"), "found status 'ok'"),
        (EffectOutcome("waiting"), "needs a WaitState in .wait; found NoneType"),
        (EffectOutcome.waiting({"reason": "user"}), "found dict"),  # type: ignore[arg-type]
        (EffectOutcome.waiting(WaitState(WaitReason.JOB, resume_to_node="nowhere")), "'nowhere' is no node"),
        (EffectOutcome.waiting(WaitState(WaitReason.UNTIL, until="tomorrow")), "'tomorrow' is no instant"),
        (EffectOutcome.waiting(WaitState(WaitReason.JOB, details={"x": {1}})), "wait.details.x"),
        (EffectOutcome.completed({"x": [b"bytes"]}), "result.x[0]"),
        (EffectOutcome.completed(float("nan")), "nan is no JSON number"),
        (EffectOutcome.completed(changes=(Change(path="a", value=object()),)), "changes[0]"),
    ],
)
async def test_an_outcome_that_cannot_be_kept_fails_the_effect_and_says_why(
    world: World, value: Any, words: str
) -> None:
    rt = world.runtime({"host": lambda call: value})
    state = await rt.run(one("host"))
    assert state.status is RunStatus.FAILED
    assert words in state.error
    ledger = await rt.get_ledger(state.run_id)
    assert statuses(ledger, "host") == ["started", "failed"]
    assert words in ledger[1]["error"]


async def test_an_object_with_the_fields_of_an_outcome_is_one(world: World) -> None:
    rt = world.runtime({"host": lambda call: SimpleNamespace(status="completed", result={"x": (1, 2)})})
    assert (await rt.run(one("host"))).output == {"result": {"x": [1, 2]}}
    rt = world.runtime({"host": lambda call: SimpleNamespace(status="failed", error="so it is")})
    assert "so it is" in (await rt.run(one("host"))).error


async def test_a_handler_that_raises_fails_the_effect_with_its_words(world: World) -> None:
    def bad(call: EffectCall) -> EffectOutcome:
        raise LookupError("no such door")

    def mute(call: EffectCall) -> EffectOutcome:
        raise TimeoutError

    rt = world.runtime({"bad": bad, "mute": mute})
    state = await rt.run(one("bad"))
    assert (state.status, state.error) == (RunStatus.FAILED, "Effect handler raised exception: no such door")
    assert statuses(await rt.get_ledger(state.run_id), "bad") == ["started", "failed"]
    assert "TimeoutError" in (await rt.run(one("mute"))).error


async def test_an_effect_without_a_handler_fails_the_run_and_names_its_type(world: World) -> None:
    for kind in ("unheard_of", "llm_call"):
        rt = world.runtime()
        state = await rt.run(one(kind))
        assert state.status is RunStatus.FAILED
        assert f"No effect handler registered for {kind}" in state.error
        assert statuses(await rt.get_ledger(state.run_id), kind) == ["started", "failed"]


async def test_a_host_may_name_effects_of_its_own_and_replace_ours(world: World) -> None:
    rt = world.runtime(
        {
            "my.own/effect": lambda call: told(own=str(call.effect.type)),
            EffectType.ANSWER_USER: lambda call: told(replaced=call.payload["message"]),
        }
    )
    assert (await rt.run(one("my.own/effect"))).output == {"result": {"own": "my.own/effect"}}
    assert (await rt.run(one("answer_user", {"message": "hi"}))).output == {"result": {"replaced": "hi"}}


async def test_a_waiting_outcome_gets_a_key_of_its_own_when_it_names_none(world: World) -> None:
    def wait(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.waiting(WaitState(WaitReason.JOB, resume_to_node=call.next_node, result_key="got"))

    rt = world.runtime({"host": wait})
    work = flow("a", a=ask("a", "host", {}, None, "b"), b=ask("b", "host", {}, None, "c"), c=end)
    first = await rt.run(work, run_id="r")
    second = await rt.resume(workflow=work, run_id="r", wait_key=first.waiting.wait_key, payload=1)
    assert first.waiting.wait_key != second.waiting.wait_key
    assert (await rt.resume(workflow=work, run_id="r", wait_key=None, payload=2)).output == {"got": 2}
