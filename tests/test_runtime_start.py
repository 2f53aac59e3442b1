"""Starting runs: what a new run holds, ids of one's own, `run()`, and the limits methods."""

from __future__ import annotations

import asyncio

import pytest

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncRuntime,
    DefaultEffectPolicy,
    EffectOutcome,
    InMemoryLedgerStore,
    InMemoryRunStore,
    InvalidId,
    NoRetryPolicy,
    RunIdentityConflict,
    RunStatus,
    Runtime,
    RuntimeConfig,
    StepPlan,
    UnknownRun,
    UnsafeValue,
)

from . import worlds
from .clocks import StillClock
from .worlds import World, flow, go, one

world = worlds.world

QUESTION = one("ask_user", {"prompt": "Continue?"})


async def test_a_new_run_stands_at_the_entry_node_and_has_no_record(world: World) -> None:
    rt = world.runtime()
    run_id = await rt.start(workflow=QUESTION, vars={"a": 1}, actor_id="ada", session_id="s", parent_run_id="p")
    state = await rt.get_state(run_id)
    assert (state.run_id, state.workflow_id, state.status) == (run_id, "flow", RunStatus.RUNNING)
    assert (state.current_node, state.waiting, state.output, state.error) == ("work", None, None, None)
    assert (state.actor_id, state.session_id, state.parent_run_id) == ("ada", "s", "p")
    assert state.vars["a"] == 1
    assert state.revision == 1
    assert state.created_at == state.updated_at == "2026-01-31T09:00:00.000000+00:00"
    assert await rt.get_ledger(run_id) == []


async def test_every_start_without_an_id_makes_another_run(world: World) -> None:
    rt = world.runtime()
    ids = {await rt.start(workflow=QUESTION) for _ in range(5)}
    assert len(ids) == 5


async def test_vars_are_seeded_from_the_config(world: World) -> None:
    capabilities = {"tool_support": "native", "max_tokens": 1000, "max_output_tokens": 100}
    config = RuntimeConfig(max_iterations=7, provider="acme", model="m1", model_capabilities=capabilities)
    rt = world.runtime(config=config)
    vars = (await rt.get_state(await rt.start(workflow=QUESTION))).vars
    assert vars["_limits"] == config.to_limits_dict()
    assert vars["_limits"]["max_iterations"] == 7
    assert vars["_limits"]["max_tokens"] == 1000
    assert vars["_runtime"] == {
        "provider": "acme",
        "model": "m1",
        "tool_support": "native",
        "supports_native_tools": True,
    }


async def test_what_the_caller_gave_beats_the_config(world: World) -> None:
    rt = world.runtime(config=RuntimeConfig(provider="acme", max_iterations=7))
    given = {"_limits": {"max_iterations": 3}, "_runtime": {"provider": "mine", "effect_seq": 41}}
    vars = (await rt.get_state(await rt.start(workflow=QUESTION, vars=given))).vars
    assert vars["_limits"]["max_iterations"] == 3
    assert vars["_limits"]["current_iteration"] == 0, "limits are seeded per key"
    assert vars["_runtime"] == {"provider": "mine"}, "the issuance counter is the kernel's"


async def test_the_callers_vars_are_neither_changed_nor_shared(world: World) -> None:
    rt = world.runtime()
    given: dict[str, object] = {"list": [1], "_runtime": {"mine": 1}}
    run_id = await rt.start(workflow=QUESTION, vars=given)
    assert given == {"list": [1], "_runtime": {"mine": 1}}
    given["list"] = "changed"
    assert (await rt.get_state(run_id)).vars["list"] == [1]


@pytest.mark.parametrize("vars", [{"x": float("nan")}, {"x": b"bytes"}, {"x": {1, 2}}, {"x": "\ud800"}])
async def test_vars_that_json_cannot_carry_are_refused_with_their_path(world: World, vars: dict[str, object]) -> None:
    rt = world.runtime()
    with pytest.raises(UnsafeValue, match=r"vars\.x"):
        await rt.start(workflow=QUESTION, vars=vars, run_id="refused")
    with pytest.raises(UnknownRun):
        await rt.get_state("refused")


async def test_vars_that_are_no_dict_are_refused(world: World) -> None:
    with pytest.raises(TypeError, match="vars must be a dict, found list"):
        await world.runtime().start(workflow=QUESTION, vars=[])


async def test_the_same_start_under_one_id_returns_the_same_run_unchanged(world: World) -> None:
    rt = world.runtime()
    arguments = {"workflow": QUESTION, "run_id": "mine", "vars": {"a": [1]}, "session_id": "s", "actor_id": "ada"}
    assert await rt.start(**arguments) == "mine"
    moved = await rt.tick(workflow=QUESTION, run_id="mine")
    assert await world.runtime().start(**arguments) == "mine"
    again = await rt.get_state("mine")
    assert (again.status, again.revision) == (RunStatus.WAITING, moved.revision)


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"vars": {"a": 2}}, "vars"),
        ({"vars": None}, "vars"),
        ({"session_id": "other"}, "session_id"),
        ({"actor_id": "bob"}, "actor_id"),
        ({"parent_run_id": "p"}, "parent_run_id"),
        ({"workflow": flow("end", workflow_id="another")}, "workflow_id"),
    ],
)
async def test_another_start_under_a_taken_id_is_a_conflict(world: World, changed, differs: str) -> None:
    rt = world.runtime()
    arguments = {"workflow": QUESTION, "run_id": "mine", "vars": {"a": 1}, "session_id": "s"}
    await rt.start(**arguments)
    with pytest.raises(RunIdentityConflict, match=differs) as caught:
        await rt.start(**{**arguments, **changed})
    assert isinstance(caught.value, ValueError)
    assert caught.value.run_id == "mine"
    assert (await rt.get_state("mine")).revision == 1


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a b", "a\\b", "ä", "x" * 201, "a\nb", 7])
async def test_an_id_that_could_not_be_a_safe_name_is_refused(world: World, bad: object) -> None:
    with pytest.raises(InvalidId, match="run_id"):
        await world.runtime().start(workflow=QUESTION, run_id=bad)


async def test_run_starts_and_drives_to_the_end(world: World) -> None:
    state = await world.runtime().run(flow("a", a=go("a", "b"), b=go("b", "end")), vars={"x": 1}, run_id="r")
    assert (state.run_id, state.status, state.output) == ("r", RunStatus.COMPLETED, {"x": 1})


async def test_run_goes_beyond_the_steps_of_one_tick(world: World) -> None:
    def count(run, ctx):
        run.vars["n"] = run.vars.get("n", 0) + 1
        return StepPlan("count", next_node="count" if run.vars["n"] < 1200 else "end")

    state = await world.runtime().run(flow("count", count=count))
    assert state.output == {"n": 1200}


async def test_run_stops_at_a_wait_and_is_safe_to_repeat(world: World) -> None:
    rt = world.runtime()
    first = await rt.run(QUESTION, run_id="r", session_id="s", actor_id="ada")
    again = await rt.run(QUESTION, run_id="r", session_id="s", actor_id="ada")
    assert first.status is again.status is RunStatus.WAITING
    assert first.revision == again.revision


async def test_run_stops_when_the_next_attempt_is_due_later(world: World) -> None:
    rt = world.runtime(
        {"flaky": lambda call: EffectOutcome.failed("not yet")},
        effect_policy=DefaultEffectPolicy(3, default_backoff_base=500.0, default_backoff_max=500.0),
    )
    state = await rt.run(one("flaky"), run_id="r")
    assert state.status is RunStatus.RUNNING
    assert state.intent is not None
    assert state.intent.due == "2026-01-31T09:08:20.000000+00:00"


async def test_limits_are_read_and_written_by_their_documented_names(world: World) -> None:
    rt = world.runtime()
    run_id = await rt.start(workflow=QUESTION)
    before = await rt.get_state(run_id)
    updates = {"max_iterations": 10, "current_iteration": 9, "max_tokens": 200, "estimated_tokens_used": 250}
    assert await rt.update_limits(run_id, {**updates, "nonsense": 1}) is None
    state = await rt.get_state(run_id)
    assert {key: state.vars["_limits"][key] for key in updates} == updates
    assert "nonsense" not in state.vars["_limits"]
    assert state.updated_at == before.updated_at
    assert await rt.get_ledger(run_id) == []
    assert await rt.get_limit_status(run_id) == {
        "iterations": {"current": 9, "max": 10, "pct": 90.0, "warning": True},
        "tokens": {
            "estimated_used": 250,
            "max": 200,
            "max_input_tokens": None,
            "max_output_tokens": None,
            "pct": 125.0,
            "warning": True,
        },
        "history": {"max_messages": -1},
    }
    found = [(warning.limit_type, warning.status) for warning in rt.check_limits(state)]
    assert found == [("iterations", "warning"), ("tokens", "exceeded")]


async def test_the_engine_tells_of_limits_and_never_enforces_them(world: World) -> None:
    rt = world.runtime()
    run_id = await rt.start(workflow=flow("a", a=go("a", "end")), vars={"_limits": {"max_iterations": 0}})
    state = await rt.tick(workflow=flow("a", a=go("a", "end")), run_id=run_id)
    assert state.status is RunStatus.COMPLETED
    assert state.vars["_limits"]["current_iteration"] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda rt: rt.get_state("nobody"),
        lambda rt: rt.tick(workflow=QUESTION, run_id="nobody"),
        lambda rt: rt.resume(workflow=QUESTION, run_id="nobody", wait_key=None, payload={}),
        lambda rt: rt.cancel_run("nobody"),
        lambda rt: rt.pause_run("nobody"),
        lambda rt: rt.resume_run("nobody"),
        lambda rt: rt.get_limit_status("nobody"),
        lambda rt: rt.update_limits("nobody", {}),
    ],
)
async def test_an_unknown_run_is_a_key_error_that_names_it(world: World, call) -> None:
    with pytest.raises(KeyError, match="Unknown run_id: 'nobody'"):
        await call(world.runtime())


async def test_reading_what_an_unknown_run_did_finds_nothing(world: World) -> None:
    rt = world.runtime()
    assert await rt.get_ledger("nobody") == []
    assert await rt.get_node_traces("nobody") == {}
    assert await rt.get_node_trace("nobody", "n") == {"node_id": "n", "steps": []}


async def test_a_runtime_shows_what_it_was_built_from(world: World) -> None:
    runs, ledgers = world.stores()
    config, policy, registry = RuntimeConfig(model="m"), NoRetryPolicy(), {"flow": QUESTION}
    rt = world.runtime(stores=(runs, ledgers), config=config, effect_policy=policy, workflow_registry=registry)
    assert rt.run_store is runs
    assert rt.ledger_store is ledgers
    assert rt.config is config
    assert rt.effect_policy is policy
    assert rt.workflow_registry is registry
    assert rt.artifact_store is None
    other, store = NoRetryPolicy(), object()
    rt.set_effect_policy(other)
    rt.set_artifact_store(store)
    rt.set_workflow_registry(None)
    assert rt.effect_policy is other
    assert rt.artifact_store is store
    assert rt.workflow_registry is None


def test_either_runtime_takes_either_kind_of_store() -> None:
    work = flow("a", a=go("a", "end"))
    blocking = Runtime(run_store=AsyncInMemoryRunStore(), ledger_store=AsyncInMemoryLedgerStore())
    assert blocking.run(work).status is RunStatus.COMPLETED

    async def main() -> RunStatus:
        rt = AsyncRuntime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore())
        return (await rt.run(work)).status

    assert asyncio.run(main()) is RunStatus.COMPLETED


def test_the_private_names_that_programs_in_the_field_read_are_there() -> None:
    clock = StillClock()
    rt = Runtime(run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore(), clock=clock)
    assert rt._run_store is rt.run_store
    assert rt._ctx.now_iso() == "2026-01-31T09:00:00.000000+00:00"
