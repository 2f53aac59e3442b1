"""LLM_CALL and durability: cancels reach the provider, waits between attempts survive, and secrets are nowhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from abstractruntime import (
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RetryPolicy,
    SqliteDatabase,
)
from abstractruntime.integrations.abstractcore import build_effect_handlers

from . import llm_worker
from .bridge_fixtures import asking, client_of
from .bridge_fixtures import home as home
from .clocks import StillClock
from .scripted_servers import ScriptedServer

KINDS = pytest.mark.parametrize("kind", ["openai-compatible", "ollama"])
KEY = "sk-very-secret-key-123"


@contextlib.asynccontextmanager
async def runtime_on(client, **options):
    stores = {"run_store": InMemoryRunStore(), "ledger_store": InMemoryLedgerStore()} | options
    async with AsyncRuntime(**stores, effect_handlers=build_effect_handlers(llm=client)) as rt:
        yield rt


@KINDS
async def test_cancelling_the_awaiting_tick_closes_the_socket_and_another_tick_asks_again(kind):
    with ScriptedServer([{"hold": True}, "second"]) as server:
        async with client_of(server, kind) as client, runtime_on(client) as rt:
            workflow = asking({"prompt": "hi"})
            run_id = await rt.start(workflow=workflow)
            tick = asyncio.create_task(rt.tick(workflow=workflow, run_id=run_id))
            await server.until(lambda s: len(s.asked) == 1)
            tick.cancel()
            with pytest.raises(asyncio.CancelledError):
                await tick
            await server.until(lambda s: s.aborted == 1)
            state = await rt.tick(workflow=workflow, run_id=run_id)
            assert state.output["answer"]["content"] == "second"


@KINDS
async def test_cancelling_the_run_closes_the_socket(kind):
    with ScriptedServer([{"hold": True}]) as server:
        async with client_of(server, kind) as client, runtime_on(client) as rt:
            workflow = asking({"prompt": "hi"})
            run_id = await rt.start(workflow=workflow)
            tick = asyncio.create_task(rt.tick(workflow=workflow, run_id=run_id))
            await server.until(lambda s: len(s.asked) == 1)
            await rt.cancel_run(run_id, reason="enough")
            await server.until(lambda s: s.aborted == 1)
            assert (await tick).status.value == "cancelled"
            assert len(server.asked) == 1


@KINDS
async def test_a_server_that_says_when_to_come_back_is_asked_then_and_not_before(kind):
    clock = StillClock()
    options = {"clock": clock, "effect_policy": RetryPolicy(llm_max_attempts=3), "max_inline_backoff": 0}
    script = [{"status": 429, "headers": {"Retry-After": "30"}}, "now"]
    with ScriptedServer(script) as server:
        async with client_of(server, kind) as client, runtime_on(client, **options) as rt:
            workflow = asking({"prompt": "hi"})
            run_id = await rt.start(workflow=workflow)
            assert (await rt.tick(workflow=workflow, run_id=run_id)).status.value == "running"
            clock.advance(29)
            await rt.tick(workflow=workflow, run_id=run_id)
            assert len(server.asked) == 1
            clock.advance(2)
            state = await rt.tick(workflow=workflow, run_id=run_id)
            assert state.output["answer"]["content"] == "now"
            assert len(server.asked) == 2


async def test_two_hundred_runs_on_one_loop_have_their_calls_under_way_at_once():
    with ScriptedServer(gate=200) as server:
        async with client_of(server) as client, runtime_on(client) as rt:
            states = await asyncio.gather(*(rt.run(asking({"prompt": f"call {n}"})) for n in range(200)))
        assert server.max_inflight == 200
        assert {state.output["answer"]["content"] for state in states} == {f"echo: call {n}" for n in range(200)}


async def test_a_killed_process_leaves_its_call_to_another(tmp_path):
    path = str(tmp_path / "runs.db")
    with ScriptedServer([{"hold": True}, "after the kill"]) as server:
        command = [sys.executable, "-m", "tests.llm_worker", path, server.openai_url]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        worker = subprocess.Popen(command, env=environment)  # noqa: ASYNC220 - a moment before anything else runs
        try:
            await server.until(lambda s: len(s.asked) == 1, 30)
            worker.send_signal(signal.SIGKILL)
        finally:
            worker.kill()
            await asyncio.to_thread(worker.wait)
        await server.until(lambda s: s.aborted == 1)
        state = await llm_worker.main(path, server.openai_url)
        assert state.status.value == "completed"
        assert state.output["answer"]["content"] == "after the kill"
        assert len(server.asked) == 2
    async with SqliteDatabase(path) as db:
        records = await AsyncSqliteLedgerStore(db).list(llm_worker.RUN_ID)
        keys = {record["idempotency_key"] for record in records if (record["effect"] or {}).get("type") == "llm_call"}
        assert len(keys) == 1


@pytest.mark.parametrize("fails", [False, True])
async def test_provider_keys_are_redacted_before_anything_is_persisted(tmp_path, caplog, fails):
    """A2: an API key in `LLM_CALL.params` is in no file, record, trace, log or error; and it works."""
    caplog.set_level(logging.DEBUG)
    told = f"incorrect key {KEY}"
    script = [{"status": 401, "body": {"error": {"message": told}}}] if fails else [told]
    payload = {"prompt": "hi", "params": {"api_key": KEY}}
    with ScriptedServer(script) as server:
        async with client_of(server) as client, SqliteDatabase(tmp_path / "runs.db") as db:
            stores = {"run_store": AsyncSqliteRunStore(db), "ledger_store": AsyncSqliteLedgerStore(db)}
            async with runtime_on(client, **stores) as rt:
                state = await rt.run(asking(payload))
                ledger = await rt.get_ledger(state.run_id)
                traces = await rt.get_node_traces(state.run_id)
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert state.status.value == ("failed" if fails else "completed")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert KEY not in json.dumps([ledger, traces, state.vars, state.output, state.error])
    assert KEY not in caplog.text
    assert b"redacted" in written


async def test_pictures_are_in_no_result():
    url = "data:image/png;base64," + "A" * 200
    with ScriptedServer([f"look: {url}"]) as server:
        async with client_of(server) as client, runtime_on(client) as rt:
            state = await rt.run(asking({"prompt": "paint", "params": {"keep_raw_response": True}}))
    assert url not in json.dumps(state.output)
    assert "[200 characters]" in state.output["answer"]["content"]
