"""Values that have hung or spoiled other runtimes, from nodes, handlers and hosts; secrets; and aliasing."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

import pytest

from abstractruntime import (
    Change,
    Effect,
    EffectCall,
    EffectOutcome,
    InvalidId,
    InvalidPlan,
    RunState,
    RunStatus,
    StepPlan,
    UnsafeValue,
)

from . import worlds
from .faults import ProcessDied
from .worlds import World, ask, chain, flow, one

world = worlds.world
async_world = worlds.async_world

QUESTION = one("ask_user", {"prompt": "?"})


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


GOOD: dict[str, Any] = {
    "null bytes": "a\x00b",
    "control characters": "\x01\x1f\x7f\u2028",
    "largest integer": 2**63 - 1,
    "huge_int": 10**300,
    "negative huge_int": -(2**70),
    "tiny float": 5e-324,
    "negative zero": 0.0,
    "emoji": "😀",
    "empty": {"": [], "a": {}, "b": ""},
    "deep": {"a": [[[[{"b": None}]]]]},
    "numeric text": "007",
}

BAD: dict[str, Any] = {
    "nan": float("nan"),
    "infinity": float("inf"),
    "lone_surrogates": "a\ud800b",
    "lone surrogate in a key": {"\udfff": 1},
    "bytes": b"x",
    "set": {1},
    "object": object(),
    "date": datetime(2026, 1, 1),
    "circle": circle(),
    "colliding keys": {1: "a", "1": "b"},
    "key of a tuple": {(1, 2): 3},
}


@pytest.mark.parametrize("value", GOOD.values(), ids=GOOD)
async def test_every_json_value_passes_through_node_handler_and_host_unchanged(world: World, value: Any) -> None:
    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["node"] = value
        return StepPlan("node", Effect("host", {"given": value}, "handler"), "ask")

    def handler(call: EffectCall) -> EffectOutcome:
        assert call.payload["given"] == value
        return EffectOutcome.completed(value)

    rt = world.runtime({"host": handler})
    work = flow("node", node=node, ask=ask("ask", "ask_user", {"prompt": "?"}, "host"))
    await rt.run(work, run_id="r", vars={"start": value})
    state = await rt.resume(workflow=work, run_id="r", wait_key=None, payload=value)
    expected = {"start": value, "node": value, "handler": value, "host": value}
    assert state.output == expected
    stored = await world.runtime().get_state("r")
    assert stored.output == expected
    assert repr(stored.output) == repr(state.output), "what is in memory is what a reload gives"


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_a_bad_value_of_a_handler_fails_the_effect_and_is_named(world: World, value: Any) -> None:
    rt = world.runtime({"host": lambda call: EffectOutcome.completed({"deep": [value]})})
    state = await rt.run(one("host"))
    assert state.status is RunStatus.FAILED
    assert "result.deep[0]" in state.error
    assert (await rt.get_state(state.run_id)).error == state.error


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_a_bad_value_of_a_node_is_a_node_error_and_is_named(world: World, value: Any) -> None:
    def in_vars(run: RunState, ctx: Any) -> StepPlan:
        run.vars["deep"] = [value]
        return StepPlan("node", next_node="end")

    plans = {
        "vars": in_vars,
        "payload": lambda run, ctx: StepPlan("node", Effect("host", {"deep": [value]}), "end"),
        "complete_output": lambda run, ctx: StepPlan("node", complete_output={"deep": [value]}),
    }
    rt = world.runtime({"host": lambda call: EffectOutcome.completed()})
    for part, node in plans.items():
        run_id = await rt.start(workflow=flow("node", node=node))
        with pytest.raises(UnsafeValue) as caught:
            await rt.tick(workflow=flow("node", node=node), run_id=run_id)
        assert part in str(caught.value)
        assert ".deep[0]" in str(caught.value)
        state = await rt.get_state(run_id)
        assert (state.status, state.current_node, state.node_errors) == (RunStatus.RUNNING, "node", 1)
        assert "deep" not in state.vars


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_a_bad_value_of_a_host_is_refused_and_is_named(world: World, value: Any) -> None:
    rt = world.runtime()
    await rt.run(QUESTION, run_id="r")
    before = await rt.get_state("r")
    with pytest.raises(UnsafeValue, match=r"vars\.deep\[0\]"):
        await rt.start(workflow=QUESTION, vars={"deep": [value]})
    with pytest.raises(UnsafeValue, match=r"payload\.deep\[0\]"):
        await rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload={"deep": [value]})
    with pytest.raises(UnsafeValue, match="updates"):
        await rt.update_limits("r", {"max_tokens": value})
    assert (await rt.get_state("r")).revision == before.revision


async def test_tuples_and_plain_keys_become_what_json_makes_of_them(world: World) -> None:
    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["x"] = {1: (2, 3), None: True, 1.5: ()}
        return StepPlan("node", next_node="end")

    state = await world.runtime().run(flow("node", node=node), vars={"y": (1,)})
    assert state.output == {"x": {"1": [2, 3], "null": True, "1.5": []}, "y": [1]}


async def test_an_error_text_that_json_cannot_carry_is_kept_legibly(world: World) -> None:
    def node(run: RunState, ctx: Any) -> StepPlan:
        raise ValueError("bad \ud800 text")

    rt = world.runtime({"host": lambda call: EffectOutcome.failed("bad \ud800 text")})
    state = await rt.run(one("host"), run_id="effect")
    assert "bad \\ud800 text" in state.error
    await rt.start(workflow=flow("node", node=node), run_id="node")
    with pytest.raises(ValueError, match="text"):
        await rt.tick(workflow=flow("node", node=node), run_id="node")
    assert (await rt.get_ledger("node"))[0]["error"] == "ValueError: bad \\ud800 text"


async def test_values_that_a_host_keeps_are_not_aliased_with_the_run(world: World) -> None:
    answer: dict[str, list[Any]] = {"list": [1]}
    vars: dict[str, list[Any]] = {"list": [1]}
    limits = {"max_iterations": 5}
    rt = world.runtime()
    await rt.run(QUESTION, run_id="r", vars=vars)
    await rt.update_limits("r", limits)
    state = await rt.resume(workflow=QUESTION, run_id="r", wait_key=None, payload=answer, max_steps=0)
    for kept in (answer["list"], vars["list"], state.vars["list"], state.vars["result"]["list"]):
        kept.append("changed")
    limits["max_iterations"] = 99
    stored = await rt.get_state("r")
    assert (stored.vars["list"], stored.vars["result"]["list"]) == ([1], [1])
    assert stored.vars["_limits"]["max_iterations"] == 5


async def test_values_that_a_handler_or_node_keeps_are_not_aliased_with_the_run(world: World) -> None:
    kept: dict[str, list[Any]] = {"result": [1], "change": [1], "payload": [1], "vars": [1], "output": [1]}

    def handler(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.completed(kept["result"], changes=(Change(path="change", value=kept["change"]),))

    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["vars"] = kept["vars"]
        return StepPlan("node", Effect("host", {"list": kept["payload"]}, "result"), "spoil")

    def spoil(run: RunState, ctx: Any) -> StepPlan:
        for name in ("result", "change", "vars"):
            run.vars[name].append("the node's own copy")
        for value in kept.values():
            value.append("changed behind the run's back")
        return StepPlan("spoil", complete_output={"list": kept["output"]})

    rt = world.runtime({"host": handler})
    state = await rt.run(flow("node", node=node, spoil=spoil), run_id="r")
    kept["output"].append("changed later")
    assert kept["result"] == [1, "changed behind the run's back"], "nor the run's with what a handler keeps"
    assert state.output == {"list": [1, "changed behind the run's back"]}
    for name in ("result", "change", "vars"):
        assert state.vars[name] == [1, "the node's own copy"]
    assert (await rt.get_state("r")).vars == state.vars
    ledger = await rt.get_ledger("r")
    assert ledger[0]["effect"]["payload"] == {"list": [1]}
    assert ledger[1]["result"] == [1]


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Text(str):
    """Text with something more, which no store keeps; so are numbers of array libraries."""


class Real(float):
    pass


class Whole(int):
    pass


SUBCLASSES: dict[str, Any] = {
    "defaultdict": defaultdict(list, {"a": [1]}),
    "OrderedDict": OrderedDict(a=1),
    "Counter": Counter("aab"),
    "StrEnum": Colour.RED,
    "IntEnum": Level.HIGH,
    "str": Text("text"),
    "float": Real(1.5),
    "int": Whole(3),
    "keys": {Level.HIGH: 1, Text("t"): 2, Real(1.5): 3},
    "nested": [{"level": Level.HIGH, "colour": Colour.RED}],
    "key": {Colour.RED: 1},
}


@pytest.mark.parametrize("value", SUBCLASSES.values(), ids=SUBCLASSES)
async def test_the_next_node_sees_plain_json_in_the_same_tick_as_after_a_reload(world: World, value: Any) -> None:
    seen: list[Any] = []

    def node(run: RunState, ctx: Any) -> StepPlan:
        run.vars["node"] = value
        return StepPlan("node", Effect("host", {"given": value}, "handler"), "look")

    def look(run: RunState, ctx: Any) -> StepPlan:
        seen.append((run.vars["node"], run.vars["handler"], run.vars["start"]))
        return StepPlan("look", next_node="end")

    rt = world.runtime({"host": lambda call: EffectOutcome.completed(value)})
    work = flow("node", node=node, look=look)
    await rt.start(workflow=work, run_id="r", vars={"start": value})
    await rt.tick(workflow=work, run_id="r", max_steps=2)
    stored = (await rt.get_state("r")).vars
    assert repr(seen[0]) == repr((stored["node"], stored["handler"], stored["start"]))


async def test_a_raw_key_is_in_no_state_ledger_or_trace_and_the_handler_gets_it(world: World) -> None:
    seen: list[str] = []

    def handler(call: EffectCall) -> EffectOutcome:
        seen.append(call.payload["params"]["api_key"])
        return EffectOutcome.completed({"echo": f"used {call.payload['params']['api_key']}"})

    def fails(call: EffectCall) -> EffectOutcome:
        raise ConnectionError(f"refused with {call.payload['params']['api_key']}")

    payload = {"params": {"api_key": "sk-very-secret", "max_tokens": 5}}
    for name, kind in (("ok", handler), ("bad", fails)):
        rt = world.runtime({"llm_call": kind})
        heard: list[Any] = []
        rt.subscribe_ledger(heard.append)
        state = await rt.run(one("llm_call", payload), run_id=name)
        everything = [state, await rt.get_state(name), await rt.get_ledger(name), await rt.get_node_traces(name), heard]
        assert "sk-very-secret" not in repr(everything)
        assert "'max_tokens': 5" in repr(everything)
    assert seen == ["sk-very-secret"]


async def test_a_named_secret_is_resolved_for_the_handler_alone_also_after_a_crash(world: World) -> None:
    seen: list[str] = []

    def handler(call: EffectCall) -> EffectOutcome:
        seen.append(call.payload["key"])
        if len(seen) == 1:
            raise ProcessDied
        return EffectOutcome.completed("done")

    work = one("host", {"key": {"$secret": "acme"}})
    secrets = {"acme": "sk-very-secret"}
    with pytest.raises(ProcessDied):
        await world.runtime({"host": handler}, secrets=secrets).run(work, run_id="r")
    rt = world.runtime({"host": handler}, secrets=secrets.get)
    state = await rt.tick(workflow=work, run_id="r")
    assert state.output == {"result": "done"}
    assert seen == ["sk-very-secret", "sk-very-secret"]
    assert "sk-very-secret" not in repr(await rt.get_ledger("r"))


async def test_an_effect_whose_raw_key_died_with_its_process_fails_and_names_the_key(world: World) -> None:
    def dies(call: EffectCall) -> EffectOutcome:
        raise ProcessDied

    work = one("host", {"api_key": "sk-very-secret"})
    with pytest.raises(ProcessDied):
        await world.runtime({"host": dies}).run(work, run_id="r")
    state = await world.runtime({"host": dies}).tick(workflow=work, run_id="r")
    assert state.status is RunStatus.FAILED
    assert "'api_key'" in state.error


async def test_a_missing_secret_fails_the_effect_before_anything_is_performed(world: World) -> None:
    state = await world.runtime({"host": lambda call: EffectOutcome.completed(1)}).run(
        one("host", {"key": {"$secret": "unheard-of"}})
    )
    assert state.status is RunStatus.FAILED
    assert "'unheard-of'" in state.error


@pytest.mark.parametrize("bad", ["../../etc/passwd", "a/../b", "/abs", "C:\\x", ".", "..", "\x00"])
async def test_a_path_is_never_a_run_id(world: World, bad: str) -> None:
    rt = world.runtime()
    with pytest.raises(InvalidId):
        await rt.start(workflow=QUESTION, run_id=bad)
    with pytest.raises(KeyError):
        await rt.get_state(bad)


@pytest.mark.parametrize("depth", [199, 201, 5_000])
async def test_a_result_is_refused_that_a_deeper_caller_could_not_read_back(async_world: World, depth: int):
    """The state was written, and called corrupt by whoever had less of the stack left."""

    async def handler(call: EffectCall) -> EffectOutcome:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return EffectOutcome.completed(value)

    rt = async_world.runtime({"deep": handler})
    state = await rt.run(chain(Effect("deep", {}, "_a.b.c.d.e")))  # `_`, or it would be part of the output, too
    assert (state.status is RunStatus.COMPLETED) == (depth < 200)
    assert depth < 200 or "nested too deeply" in state.error


async def test_a_result_key_of_too_many_names_is_a_node_error(async_world: World):
    rt = async_world.runtime({"any": lambda call: EffectOutcome.completed(1)})
    with pytest.raises(InvalidPlan, match="result_key of more than 50 names"):
        await rt.run(chain(Effect("any", {}, ".".join("a" * 60))))
