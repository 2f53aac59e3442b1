"""The factories: local, hybrid and remote runtimes, blocking and async, in memory and in files."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import abstractruntime.integrations.abstractcore as bridge
from abstractruntime import AsyncRuntime, InMemoryRunStore, Runtime, RuntimeConfig
from abstractruntime.integrations.abstractcore import (
    create_async_local_file_runtime,
    create_async_local_runtime,
    create_local_file_runtime,
    create_local_runtime,
)

from .bridge_fixtures import asking
from .bridge_fixtures import home as home
from .scripted_servers import ScriptedServer

ROOT = Path(__file__).parent.parent
PAIRS = ["local", "remote", "hybrid", "local_file", "remote_file"]


def local(server, make=create_local_runtime, **options):
    return make(provider="ollama", model="qwen3:4b", llm_kwargs={"base_url": server.url}, **options)


def test_a_local_runtime_asks_a_model_and_knows_it():
    with ScriptedServer() as server, local(server) as rt:
        state = rt.run(asking({"prompt": "hello"}))
        assert state.output["answer"]["content"] == "echo: hello"
        assert isinstance(rt, Runtime)
        assert rt.config.model == "qwen3:4b"
        assert state.vars["_limits"]["max_tokens"] == rt.config.model_capabilities["max_tokens"]
        assert state.vars["_runtime"]["provider"] == "ollama"
        assert rt.effect_policy.max_attempts(asking_effect("llm_call")) == 3
        assert rt.effect_policy.max_attempts(asking_effect("tool_calls")) == 1
        assert server.connections > 0


def asking_effect(kind):
    from abstractruntime import Effect

    return Effect(kind, {})


async def test_an_async_local_runtime_does_the_same_and_closes_its_connections():
    with ScriptedServer() as server:
        rt = await asyncio.to_thread(local, server, create_async_local_runtime)
        assert isinstance(rt, AsyncRuntime)
        async with rt:
            state = await rt.run(asking({"prompt": "hello"}))
        assert state.output["answer"]["content"] == "echo: hello"


def test_a_file_runtime_writes_its_documented_folder_and_another_goes_on_there(tmp_path):
    with ScriptedServer() as server:
        with local(server, create_local_file_runtime, base_dir=tmp_path) as rt:
            state = rt.run(asking({"prompt": "hello"}))
        assert (tmp_path / f"run_{state.run_id}.json").exists()
        assert json.loads((tmp_path / f"ledger_{state.run_id}.jsonl").read_text().splitlines()[0])
        with local(server, create_local_file_runtime, base_dir=tmp_path) as rt:
            assert rt.get_state(state.run_id).output == state.output


async def test_an_async_file_runtime_takes_the_same_folder(tmp_path):
    with ScriptedServer() as server:
        made = await asyncio.to_thread(local, server, create_async_local_file_runtime, base_dir=tmp_path)
        async with made as rt:
            state = await rt.run(asking({"prompt": "hello"}))
            assert (await rt.get_state(state.run_id)).status.value == "completed"


def test_one_store_alone_is_none_and_the_ledger_can_be_subscribed_to():
    with ScriptedServer() as server:
        runs = InMemoryRunStore()
        with local(server, run_store=runs) as rt:
            assert rt.run_store is not runs
            told: list[object] = []
            rt.ledger_store.subscribe(told.append)
            rt.run(asking({"prompt": "hello"}))
            assert told


def test_what_a_config_says_counts_more_than_what_is_known_of_the_model():
    with ScriptedServer() as server, local(server, config=RuntimeConfig(max_tokens=1000)) as rt:
        assert rt.config.max_tokens == 1000
        assert rt.config.to_limits_dict()["max_tokens"] == 1000


def test_handlers_of_ones_own_take_the_place_of_ours_and_settings_without_effect_are_told(caplog):
    from abstractruntime import EffectOutcome

    caplog.set_level(logging.WARNING, "abstractruntime")
    extra = {"llm_call": lambda call: EffectOutcome.completed({"content": "mine"})}
    with ScriptedServer() as server, local(server, extra_effect_handlers=extra, bloc_root_dir="x") as rt:
        assert rt.run(asking({"prompt": "x"})).output["answer"] == {"content": "mine"}
    assert "bloc_root_dir" in caplog.text


def test_a_conversation_is_summed_up_by_the_model():
    with ScriptedServer(['{"summary": "they met", "key_points": [], "confidence": 1}']) as server, local(server) as rt:
        from abstractruntime import Effect, StepPlan, WorkflowSpec

        def compact(run, ctx):
            return StepPlan("compact", Effect("memory_compact", {"preserve_recent": 0}, "done"))

        context = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
        state = rt.run(WorkflowSpec("compact", "compact", {"compact": compact}), vars={"context": context})
        assert state.status.value == "completed", state.error
        assert "they met" in json.dumps(state.vars["context"])


@pytest.mark.parametrize("name", PAIRS)
def test_each_factory_has_an_async_twin_with_the_same_arguments(name):
    sync, aio = getattr(bridge, f"create_{name}_runtime"), getattr(bridge, f"create_async_{name}_runtime")
    assert inspect.signature(sync).parameters == inspect.signature(aio).parameters
    assert not inspect.iscoroutinefunction(aio)


def test_names_of_the_bridge_are_there_without_abstractcore():
    program = (
        "import sys; sys.modules['abstractcore'] = sys.modules['httpx'] = None\n"
        "import abstractruntime.integrations.abstractcore as bridge\n"
        "assert all(hasattr(bridge, name) for name in bridge.__all__)\n"
        "try: bridge.create_local_runtime(provider='ollama', model='m')\n"
        "except ImportError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert 'pip install "abstractruntime[abstractcore]"' in found.stdout, found.stderr


def test_the_logging_of_a_program_stays_as_it_is():
    program = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "from abstractruntime.integrations.abstractcore import create_local_runtime\n"
        "create_local_runtime(provider='ollama', model='qwen3:4b')\n"
        "assert 'abstractcore' in sys.modules\n"
        "logging.getLogger('mine').info('heard')\n"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "heard" in found.stdout.splitlines(), found.stderr


def test_a_program_that_forgets_to_close_exits():
    with ScriptedServer() as server:
        program = (
            "from abstractruntime.integrations.abstractcore import create_local_runtime\n"
            "from tests.bridge_fixtures import asking\n"
            f"model = {{'model': 'qwen3:4b', 'llm_kwargs': {{'base_url': {server.url!r}}}}}\n"
            "rt = create_local_runtime(provider='ollama', **model)\n"
            "print(rt.run(asking({'prompt': 'hello'})).output['answer']['content'])\n"
        )
        found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "echo: hello", found.stderr


@pytest.mark.parametrize(("given", "expected"), [(None, 7200.0), (5, 5)])
def test_tools_have_a_time_limit_and_a_client_controls_models(given, expected):
    class Tools:
        def set_timeout_s(self, seconds):
            self.seconds = seconds

        def execute(self, *, tool_calls):
            return {"mode": "executed", "results": []}

    tools = Tools()
    with ScriptedServer() as server, local(server, tool_executor=tools, tool_timeout_s=given):
        assert tools.seconds == expected
    client = bridge.MultiLocalAbstractCoreLLMClient(provider="ollama", model="m")
    assert isinstance(client, bridge.AbstractCoreControlClient)
    assert isinstance(client, bridge.AbstractCoreLLMClient)


def test_a_call_under_way_keeps_no_program_from_its_exit():
    with ScriptedServer([{"hold": True}]) as server:
        program = (
            "import sys, threading\n"
            "from abstractruntime.integrations.abstractcore import create_local_runtime\n"
            "from tests.bridge_fixtures import asking\n"
            f"model = {{'model': 'qwen3:4b', 'llm_kwargs': {{'base_url': {server.url!r}}}}}\n"
            "rt = create_local_runtime(provider='ollama', **model)\n"
            "threading.Thread(target=lambda: rt.run(asking({'prompt': 'hello'})), daemon=True).start()\n"
            "sys.stdin.readline()\n"
        )
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            server.wait_until(lambda s: len(s.asked) == 1, 30)
            _, error = running.communicate("\n", timeout=30)
        assert running.returncode == 0, error
