"""Evidence: what tools brought back is kept beside the run, listed in it, and found again."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    AsyncRuntime,
    Effect,
    EffectCall,
    EffectOutcome,
    FileArtifactStore,
    InMemoryArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    InvalidId,
    OffloadingRunStore,
    RetryPolicy,
    RunState,
    RunStatus,
    Runtime,
    StepPlan,
    UnknownRun,
    is_artifact_ref,
    resolve_artifact,
)
from abstractruntime.core.errors import StoreCorrupt, StoreFull
from abstractruntime.core.models import Intent
from abstractruntime.evidence import EvidenceCaptureStats, EvidenceRecorder
from abstractruntime.evidence.recorder import EvidenceRecorder as FromItsDocumentedAddress

from . import worlds
from .clocks import StillClock
from .worlds import one

world = worlds.world

NOW = "2026-01-31T09:00:00.000000+00:00"
LONG = "<p>" + "long " * 1000


class Bench:
    """A recorder on a store in memory, and a run that it records for."""

    def __init__(self, store: Any = None, **options: Any) -> None:
        self.store: Any = store or InMemoryArtifactStore()
        self.recorder = EvidenceRecorder(artifact_store=self.store, clock=StillClock(), **options)
        self.run = RunState("r", "w", RunStatus.RUNNING, "n", actor_id="me", session_id="s")

    def record(self, calls: Any, results: Any) -> EvidenceCaptureStats:
        return self.recorder.record_tool_calls(run=self.run, node_id="n", tool_calls=calls, tool_results=results)

    @property
    def spans(self) -> list[dict[str, Any]]:
        return list(self.run.vars.get("_runtime", {}).get("memory_spans", []))

    @property
    def warnings(self) -> list[dict[str, Any]]:
        return list(self.run.vars.get("_runtime", {}).get("evidence_warnings", []))


def call(name: str, call_id: str = "c1", **arguments: Any) -> dict[str, Any]:
    return {"name": name, "call_id": call_id, "arguments": arguments}


def result(name: str, output: Any, call_id: str = "c1", **fields: Any) -> dict[str, Any]:
    return {"call_id": call_id, "name": name, "success": True, "output": output, "error": None, **fields}


def test_a_fetched_page_is_kept_and_references_take_its_place():
    bench = Bench()
    output = {"url": "https://a.example", "status_code": 200, "raw_text": LONG, "normalized_text": LONG.upper()}
    results: dict[str, Any] = {"mode": "executed", "results": [result("fetch_url", output)]}
    stats = bench.record([call("fetch_url", url="http://a.example")], results)
    (changed,) = results["results"]
    (span,) = bench.spans
    shown = changed["output"]
    assert stats.recorded == 1
    assert {key: shown[key] for key in ("url", "status_code")} == {"url": "https://a.example", "status_code": 200}
    assert not {"raw_text", "normalized_text"} & shown.keys()
    assert resolve_artifact(shown["raw_artifact"], bench.store).as_text() == LONG
    assert resolve_artifact(shown["normalized_artifact"], bench.store).as_text() == LONG.upper()
    assert changed["meta"] == {"evidence_id": span["artifact_id"]}
    artifacts = {key: shown[key] for key in ("raw_artifact", "normalized_artifact")}
    assert span == {
        "kind": "evidence",
        "artifact_id": span["artifact_id"],
        "created_at": NOW,
        "from_timestamp": NOW,
        "to_timestamp": NOW,
        "message_count": 0,
        "tool_name": "fetch_url",
        "call_id": "c1",
        "success": True,
        "url": "https://a.example",
        "artifacts": artifacts,
    }
    assert bench.store.load_json(span["artifact_id"]) == {
        "tool_name": "fetch_url",
        "call_id": "c1",
        "success": True,
        "error": None,
        "created_at": NOW,
        "run_id": "r",
        "workflow_id": "w",
        "node_id": "n",
        "arguments": {"url": "http://a.example"},
        "actor_id": "me",
        "session_id": "s",
        "url": "https://a.example",
        "status_code": 200,
        "artifacts": artifacts,
    }
    assert {found.run_id for found in bench.store.list_all()} == {"r"}
    assert [found.artifact_id for found in bench.store.search(tags={"kind": "evidence"})] == [span["artifact_id"]]


def test_the_output_of_a_command_is_kept_and_what_is_short_stays_in_its_place_too():
    bench = Bench()
    results = [result("execute_command", {"command": "make", "return_code": 2, "stdout": LONG, "stderr": "no rule"})]
    bench.record([call("execute_command", command="make")], results)
    output = results[0]["output"]
    assert "stdout" not in output
    assert output["stderr"] == "no rule"
    assert resolve_artifact(output["stdout_artifact"], bench.store).as_text() == LONG
    assert resolve_artifact(output["stderr_artifact"], bench.store).as_text() == "no rule"
    assert bench.spans[0]["command_preview"] == "make"
    assert bench.store.load_json(bench.spans[0]["artifact_id"])["return_code"] == 2


@pytest.mark.parametrize(("limit", "stays"), [(0, False), (6, False), (7, True)])
def test_how_long_a_text_may_be_to_stay_can_be_chosen(limit, stays):
    bench = Bench(inline_chars=limit)
    results = [result("execute_command", {"stdout": "no rule", "stderr": ""})]
    bench.record([], results)
    assert ("stdout" in results[0]["output"]) is stays
    assert results[0]["output"]["stderr"] == ""
    assert "stderr_artifact" not in results[0]["output"]


@pytest.mark.parametrize("output", [{"results": [{"title": "Tea"}]}, ["Tea"], "Tea"])
def test_the_results_of_a_search_stay_and_are_copied(output):
    bench = Bench()
    results = [result("web_search", output)]
    bench.record([call("web_search", query="tea " * 200)], results)
    (span,) = bench.spans
    assert results[0]["output"] == output
    assert span["query"] == ("tea " * 200)[:300] + "..."
    evidence = bench.store.load_json(span["artifact_id"])
    assert resolve_artifact(evidence["artifacts"]["output_artifact"], bench.store).as_json() == output
    assert evidence["query"] == "tea " * 200


def test_the_host_says_whose_results_are_evidence():
    bench = Bench(tool_names=["sensor"])
    results = [result("sensor", {"celsius": 20}), result("web_search", {"results": []})]
    assert bench.record([], results).recorded == 1
    evidence = bench.store.load_json(bench.spans[0]["artifact_id"])
    assert resolve_artifact(evidence["artifacts"]["output_artifact"], bench.store).as_json() == {"celsius": 20}
    assert "meta" not in results[1]


def test_a_tool_that_failed_is_evidence_too():
    bench = Bench()
    results = [{"call_id": "c1", "name": "fetch_url", "success": False, "error": "404"}]
    bench.record([call("fetch_url", url="https://gone.example")], results)
    (span,) = bench.spans
    assert (span["success"], span["url"]) == (False, "https://gone.example")
    assert bench.store.load_json(span["artifact_id"])["error"] == "404"
    assert "output" not in results[0]


@pytest.mark.parametrize(
    ("calls", "results", "urls"),
    [
        ([call("fetch_url", "1", url="a"), call("fetch_url", "2", url="b")], ["2", "1"], ["b", "a"]),
        ([call("fetch_url", "1", url="a"), call("fetch_url", "1", url="b")], ["1", "1"], ["a", "b"]),
        ([call("fetch_url", "", url="a")], ["1"], ["a"]),
        ([{"id": "1", "name": "fetch_url", "arguments": {"url": "a"}}], ["1"], ["a"]),
        ([call("fetch_url", "1", url="a"), call("fetch_url", "9", url="b")], ["1", "2"], ["a", None]),
        ([None, call("fetch_url", "1", url="a")], ["1"], ["a"]),
        ("nonsense", ["1"], [None]),
        (None, ["1"], [None]),
    ],
)
def test_a_result_is_evidence_of_the_call_that_it_belongs_to(calls, results, urls):
    bench = Bench()
    stats = bench.record(calls, [result("fetch_url", {"n": place}, given) for place, given in enumerate(results)])
    assert stats.recorded == len(results)
    assert bench.warnings == []
    assert [span.get("url") for span in bench.spans] == urls


def test_calls_that_are_none_are_no_trouble_while_an_effect_is_in_flight():
    bench = Bench()
    effect = Effect("tool_calls", {"tool_calls": [call("web_search", given={"$secret": "shop"}), None]})
    bench.run.intent = Intent(step_id="r:0.1", seq=0, node_id="n", effect=effect, key="k", started_at=NOW)
    nothing: list[Any] = [None, "text", [None], [5], {}]
    for calls in nothing:
        assert bench.record(calls, [result("web_search", {})]).recorded == 1


@pytest.mark.parametrize("results", [None, "text", {}, {"results": None}, [None, "x", {}, {"name": None}]])
def test_what_is_no_result_is_no_evidence_and_no_trouble(results):
    bench = Bench()
    assert bench.record([call("fetch_url")], results) == EvidenceCaptureStats(0)
    assert bench.run.vars == {}


def test_a_result_is_recorded_once():
    bench = Bench()
    results = [result("web_search", {"results": []}, meta={"mine": 1})]
    bench.record([], results)
    before = copy.deepcopy((results, bench.run.vars))
    assert bench.record([], results).recorded == 0
    assert (results, bench.run.vars) == before
    assert results[0]["meta"]["mine"] == 1


def test_what_is_the_same_in_everything_is_listed_once():
    bench = Bench()
    results = [result("web_search", {"results": []}), result("web_search", {"results": []})]
    bench.record([], results)
    (span,) = bench.spans
    assert [one["meta"]["evidence_id"] for one in results] == [span["artifact_id"]] * 2


def test_what_else_is_in_the_vars_of_the_run_stays_and_what_shares_it_does_not_change():
    bench = Bench()
    old: dict[str, Any] = {"_runtime": {"memory_spans": [{"kind": "memory_note"}], "control": {}}, "mine": 1}
    bench.run.vars = old
    before = copy.deepcopy(old)
    bench.record([], [result("web_search", {})])
    assert old == before
    assert [span["kind"] for span in bench.spans] == ["memory_note", "evidence"]
    assert (bench.run.vars["mine"], bench.run.vars["_runtime"]["control"]) == (1, {})


def test_raw_secrets_are_in_no_evidence():
    bench = Bench()
    output = {"results": [], "headers": {"Authorization": "Bearer hush"}}
    bench.record([call("web_search", query="tea", api_key="hush")], [result("web_search", output)])
    contents = [bench.store.load_text(found.artifact_id) for found in bench.store.list_all()]
    assert len(contents) == 2
    assert "hush" not in str(contents)


def test_arguments_that_are_json_text_are_read_and_other_texts_stay():
    bench = Bench()
    calls = [{"name": "web_search", "arguments": text} for text in ('{"query": "tea", "api_key": "hush"}', "{broken")]
    bench.record(calls, [result("web_search", {"n": 1}, ""), result("web_search", {"n": 2}, "")])
    evidence = [bench.store.load_json(span["artifact_id"]) for span in bench.spans]
    assert evidence[0]["arguments"] == {"query": "tea", "api_key": {"$redacted": "api_key"}}
    assert [evidence[0]["query"], evidence[1]["arguments"]] == ["tea", "{broken"]


class FullStore(InMemoryArtifactStore):
    """A store that takes so many artifacts."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def store(self, content: bytes, **options: Any) -> Any:
        if self.room <= 0:
            raise StoreFull("no room")
        self.room -= 1
        return super().store(content, **options)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_result_whose_evidence_cannot_be_kept_stays_as_it_is_and_the_run_is_told(room):
    """Three artifacts belong to it; whichever of them does not fit."""
    store = FullStore(room)
    bench = Bench(store)
    results = [result("execute_command", {"stdout": LONG, "stderr": LONG * 2})]
    before = copy.deepcopy(results)
    stats = bench.record([call("execute_command", command="make")], results)
    assert stats.recorded == 0
    assert results == before
    assert bench.spans == []
    assert bench.warnings == [
        {
            "created_at": NOW,
            "node_id": "n",
            "tool_name": "execute_command",
            "call_id": "c1",
            "error": "StoreFull: no room",
        }
    ]
    store.room = 99
    assert bench.record([], results).recorded == 1


@pytest.mark.parametrize("bad", ["\ud800", float("nan"), {1, 2}, b"bytes"])
def test_a_result_that_json_cannot_carry_does_not_keep_the_others_from_being_recorded(bad):
    bench = Bench()
    results = [result("web_search", {"x": bad}, "c1"), result("web_search", {"x": 1}, "c2")]
    assert bench.record([], results).recorded == 1
    assert [span["call_id"] for span in bench.spans] == ["c2"]
    assert [warning["call_id"] for warning in bench.warnings] == ["c1"]


@pytest.mark.parametrize("store", [None, object(), "path"])
def test_a_recorder_needs_an_artifact_store(store):
    with pytest.raises(TypeError, match="artifact_store must be an ArtifactStore"):
        EvidenceRecorder(artifact_store=store)


def test_tool_names_are_a_list():
    with pytest.raises(TypeError, match="tool_names must be a list of names"):
        EvidenceRecorder(artifact_store=InMemoryArtifactStore(), tool_names="fetch_url")
    assert FromItsDocumentedAddress is EvidenceRecorder


# In runs


CALLS = {"tool_calls": [call("fetch_url", url="https://a.example"), call("add", "c2", a=1)]}


def fetched() -> dict[str, Any]:
    page = result("fetch_url", {"url": "https://a.example", "raw_text": LONG})
    return {"mode": "executed", "results": [page, result("add", 2, "c2")]}


class Tools:
    """A handler of tool calls that records evidence, sync or async."""

    def __init__(self, store: Any, *, failures: int = 0) -> None:
        self.recorder = EvidenceRecorder(artifact_store=store)
        self.failures = failures

    def blocking(self, call: EffectCall) -> EffectOutcome:
        done = fetched()
        stats = self.recorder.record_tool_calls(
            run=call.run, node_id=call.node_id, tool_calls=call.payload["tool_calls"], tool_results=done
        )
        if call.attempt <= self.failures:
            raise ConnectionError("lost")
        return EffectOutcome.completed(done, changes=stats.changes)

    async def awaited(self, call: EffectCall) -> EffectOutcome:
        return await asyncio.to_thread(self.blocking, call)


@pytest.fixture
def disk(tmp_path: Path) -> FileArtifactStore:
    return FileArtifactStore(tmp_path / "artifacts")


@pytest.mark.parametrize("way", ["blocking", "awaited"])
async def test_a_handler_records_evidence_and_the_runtime_finds_it_again(world, disk, way):
    given: dict[str, Any] = {"artifact_store": disk if way == "blocking" else disk.aio}
    rt = world.runtime({"tool_calls": getattr(Tools(given["artifact_store"]), way)}, **given)
    state = await rt.run(one("tool_calls", CALLS))
    assert state.status is RunStatus.COMPLETED, state.error

    rt = world.runtime(**given)  # as another process would
    (span,) = await rt.list_evidence(state.run_id)
    page, added = state.vars["result"]["results"]
    assert (span["url"], page["meta"]["evidence_id"]) == ("https://a.example", span["artifact_id"])
    assert "meta" not in added
    evidence = await rt.load_evidence(span["artifact_id"])
    assert (evidence["run_id"], evidence["node_id"]) == (state.run_id, "work")
    assert (await resolve_artifact(evidence["artifacts"]["raw_artifact"], disk.aio)).as_text() == LONG
    assert "long long" not in str(await rt.get_ledger(state.run_id))


async def test_an_attempt_that_failed_leaves_no_evidence_in_the_run(world):
    store = InMemoryArtifactStore()
    options = {"artifact_store": store, "effect_policy": RetryPolicy(tool_max_attempts=2), "max_inline_backoff": 0.0}
    rt = world.runtime({"tool_calls": Tools(store, failures=1).blocking}, **options)
    state = await rt.run(one("tool_calls", CALLS))
    assert await rt.list_evidence(state.run_id) == []
    world.clock.advance(60)
    state = await rt.tick(workflow=one("tool_calls", CALLS), run_id=state.run_id)
    assert state.status is RunStatus.COMPLETED, state.error
    assert len(await rt.list_evidence(state.run_id)) == 1


@pytest.mark.parametrize("several", [False, True])
async def test_the_secrets_that_a_call_was_given_are_in_no_artifact(world, several):
    store = InMemoryArtifactStore()
    recorder = EvidenceRecorder(artifact_store=store)
    seen: list[str] = []

    def search(call: EffectCall) -> EffectOutcome:
        calls = call.payload["tool_calls"]
        seen.append(calls[0]["arguments"]["given"])
        results = [result("web_search", {"echo": f"with {seen[-1]}"}), result("execute_command", {"stdout": seen[-1]})]
        stats = recorder.record_tool_calls(run=call.run, node_id="n", tool_calls=calls, tool_results=results)
        return EffectOutcome.completed({"results": results}, changes=stats.changes)

    def plan(run: RunState, ctx: Any) -> StepPlan:
        arguments = {"query": "tea", "given": {"$secret": "shop"}}
        effect = Effect("tool_calls", {"tool_calls": [{"name": "web_search", "arguments": arguments}]}, "found")
        return StepPlan("plan", effects=[effect], next_node="end") if several else StepPlan("plan", effect, "end")

    rt = world.runtime({"tool_calls": search}, artifact_store=store, secrets={"shop": "hush-hush"})
    state = await rt.run(worlds.flow("plan", plan=plan))
    assert state.status is RunStatus.COMPLETED, state.error
    assert seen == ["hush-hush"]
    assert len(await rt.list_evidence(state.run_id)) == 2
    contents = [store.load_text(found.artifact_id) for found in store.list_all()]
    assert len(contents) == 4
    assert "hush" not in str([contents, state.vars, await rt.get_ledger(state.run_id)])
    assert "[redacted]" in str(contents)


async def test_what_is_listed_is_a_copy(world):
    store = InMemoryArtifactStore()
    rt = world.runtime({"tool_calls": Tools(store).blocking}, artifact_store=store)
    state = await rt.run(one("tool_calls", CALLS))
    listed = await rt.list_evidence(state.run_id)
    listed[0]["url"] = "changed"
    listed.clear()
    assert [span["url"] for span in await rt.list_evidence(state.run_id)] == ["https://a.example"]


async def test_a_run_without_evidence_lists_none_and_an_unknown_run_is_an_error(world):
    rt = world.runtime()
    spans = [{"kind": "memory_note"}, "odd", None]
    run_id = await rt.start(workflow=worlds.flow("end"), vars={"_runtime": {"memory_spans": spans}})
    assert await rt.list_evidence(run_id) == []
    odd = await rt.start(workflow=worlds.flow("end"), vars={"_runtime": {"memory_spans": {"kind": "evidence"}}})
    assert await rt.list_evidence(odd) == []
    with pytest.raises(UnknownRun):
        await rt.list_evidence("nobody")


async def test_evidence_that_is_not_there_is_none_and_what_can_be_no_id_is_an_error(world):
    store = InMemoryArtifactStore()
    rt = world.runtime(artifact_store=store)
    assert await rt.load_evidence("nothing") is None
    for other in (store.store_text("text"), store.store_json([1]), store.store(b"{}")):
        assert await rt.load_evidence(other.artifact_id) is None
    with pytest.raises(InvalidId):
        await rt.load_evidence("../etc/passwd")


async def test_evidence_needs_an_artifact_store_which_may_be_given_later(world):
    rt = world.runtime()
    with pytest.raises(RuntimeError, match="give the runtime artifact_store="):
        await rt.load_evidence("x")
    rt.set_artifact_store(InMemoryArtifactStore())
    assert await rt.load_evidence("x") is None


@pytest.fixture
def damaged(disk: FileArtifactStore) -> str:
    kept = disk.store_json({"tool_name": "fetch_url"})
    path = disk.content_path(kept.artifact_id)
    assert path is not None
    path.write_bytes(b'{"tool_name": "other"}')
    return kept.artifact_id


async def test_damaged_evidence_is_an_error(world, disk, damaged):
    with pytest.raises(StoreCorrupt):
        await world.runtime(artifact_store=disk).load_evidence(damaged)


def test_the_list_is_found_when_it_was_moved_out_of_an_ended_run():
    store = InMemoryArtifactStore()
    runs = OffloadingRunStore(InMemoryRunStore(), artifact_store=store, max_inline_bytes=100)
    handlers = {"tool_calls": Tools(store).blocking}
    with Runtime(
        run_store=runs, ledger_store=InMemoryLedgerStore(), effect_handlers=handlers, artifact_store=store
    ) as rt:
        state = rt.run(one("tool_calls", CALLS))
        assert all(map(is_artifact_ref, rt.get_state(state.run_id).vars["_runtime"]["memory_spans"]))
        assert [span["url"] for span in rt.list_evidence(state.run_id)] == ["https://a.example"]


async def test_evidence_that_a_fork_names_outlives_the_original(tmp_path):
    """The results are in no vars, so nothing but the entry in the fork names the page."""
    world = worlds.World("async", "sqlite", tmp_path)
    store = InMemoryArtifactStore()
    handlers = {"tool_calls": Tools(store).blocking}
    rt: AsyncRuntime = world.runtime(handlers, artifact_store=store)
    workflow = one("tool_calls", CALLS, None)
    run_id = await rt.start(workflow=workflow)
    await rt.tick(workflow=workflow, run_id=run_id, max_steps=1)
    forked = await rt.fork(run_id, workflow=workflow)
    await rt.delete_run(run_id, force=True)
    (span,) = await rt.list_evidence(forked)
    evidence = await rt.load_evidence(span["artifact_id"])
    assert evidence is not None
    assert resolve_artifact(evidence["artifacts"]["raw_artifact"], store).as_text() == LONG
    await world.close()
