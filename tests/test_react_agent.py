"""The agent of the examples: alone, killed, and as a fleet, as processes that talk to a model server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import AsyncRuntime, InMemoryLedgerStore, InMemoryRunStore, RunStatus
from abstractruntime.integrations.abstractcore.effect_handlers import make_tool_calls_handler
from abstractruntime.storage.base import Page

from .scripted_servers import ScriptedServer, Seen
from .worlds import one

EXAMPLES = Path(__file__).parent.parent / "examples"
FLEET = 200


def call(name: str, /, **arguments: str) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def model(seen: Seen) -> dict[str, Any]:
    """A model that plans, looks, remembers, asks, writes and recalls, by how often it has answered."""
    messages = seen.json["messages"]
    turn = sum(message["role"] == "assistant" for message in messages)
    last = messages[-1]["content"]
    who = next(message["content"] for message in messages if message["role"] == "user").split()[-1]
    match turn:
        case 0:
            calls = [call("remember", note=f"{who} likes tea"), call("read_note", name=who)]
            return {"content": "Plan: look, remember, ask, write.", "tool_calls": calls}
        case 1:
            return {"tool_calls": [call("ask_user", prompt="Which tea?")]}
        case 2:
            return {"tool_calls": [call("write_note", name=who, text=last)]}
        case 3:
            return {"tool_calls": [call("recall", query="likes")]}
    return {"content": f"Done: {'likes tea' in last}"}


@pytest.fixture
def environment(tmp_path):
    home = {"HOME": str(tmp_path / "home"), "ABSTRACTCORE_CONFIG_DIR": str(tmp_path / "home")}
    return {**os.environ, **home, "PYTHONPATH": str(EXAMPLES.parent)}


class Agent:
    """The agent as a process, and its terminal."""

    def __init__(self, folder: Path, environment: dict[str, str], url: str) -> None:
        arguments = ["Write about tea, ann", "openai-compatible", "qwen3-4b", url]
        self.process = subprocess.Popen(
            [sys.executable, "-u", EXAMPLES / "react_agent.py", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self, prompt: str) -> str:
        """What it prints, up to this prompt."""
        assert self.process.stdout is not None
        said = ""
        while not said.endswith(prompt):
            piece = self.process.stdout.read(1)
            assert piece, f"it ended instead of asking: {said!r}"
            said += piece
        return said

    def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def rest(self) -> str:
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out
        return out

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_it_is_killed_three_times_and_does_nothing_twice(tmp_path, environment):
    with ScriptedServer([lambda seen: {**model(seen), "hold": True}, *[model] * 5]) as server:
        first = Agent(tmp_path, environment, server.openai_url)
        server.wait_until(lambda server: len(server.asked) == 1, 60)
        first.kill()  # in its first call of the model
        second = Agent(tmp_path, environment, server.openai_url)
        second.hear("Which tea? ")
        second.kill()  # while the question is open
        third = Agent(tmp_path, environment, server.openai_url)
        third.hear("Which tea? ")
        third.say("green")
        assert "write_note {'name': 'ann', 'text': 'green'}" in third.hear("Approve write_note? ")
        assert not (tmp_path / "notes" / "ann").exists()
        third.kill()  # while the approval is open
        fourth = Agent(tmp_path, environment, server.openai_url)
        fourth.hear("Approve write_note? ")
        fourth.say("yes")
        assert fourth.rest() == "Done: True\n"
        assert (tmp_path / "notes" / "ann").read_text() == "green"
        assert len(server.asked) == 6, "five answers, and one call that a kill cost"
        fifth = Agent(tmp_path, environment, server.openai_url)
        assert fifth.rest() == "Done: True\n"
        assert len(server.asked) == 6


def test_what_a_person_denies_is_not_done_and_comes_back_to_the_model(tmp_path, environment):
    with ScriptedServer([model] * 5) as server:
        agent = Agent(tmp_path, environment, server.openai_url)
        agent.hear("Which tea? ")
        agent.say("green")
        agent.hear("Approve write_note? ")
        agent.say("no")
        assert agent.rest() == "Done: True\n"
        assert not (tmp_path / "notes" / "ann").exists()
        assert "Denied" in json.dumps(server.asked[3].json["messages"][-1])


def test_the_same_agent_as_a_fleet(tmp_path, environment):
    with ScriptedServer([model] * 5 * FLEET, gate=FLEET) as server:
        done = subprocess.run(
            [
                sys.executable,
                EXAMPLES / "react_fleet.py",
                str(FLEET),
                "openai-compatible",
                "qwen3-4b",
                server.openai_url,
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert len(server.asked) == 5 * FLEET
        last = done.stdout.splitlines()[-1]
        for kind, number in {"llm_call": 5, "resume": 2, "tool_calls": 2, "memory_note": 1, "memory_query": 1}.items():
            assert f"{number * FLEET} {kind}" in last, last
        assert len(list((tmp_path / "notes").iterdir())) == FLEET
        assert server.max_inflight >= FLEET


async def test_the_fleet_takes_no_approval_for_a_question(monkeypatch):
    """One that came after the look at the approvals was answered with a text, and the program ended."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from react_agent import ASKING
    from react_fleet import work_off

    calls = [{"name": "write_note", "arguments": {"name": "a", "text": "b"}, "call_id": "1"}]
    writing = one("tool_calls", {"tool_calls": calls})
    async with AsyncRuntime(
        run_store=InMemoryRunStore(),
        ledger_store=InMemoryLedgerStore(),
        effect_handlers={"tool_calls": make_tool_calls_handler(tools=ASKING)},
    ) as rt:
        state = await rt.run(writing)
        assert state.status is RunStatus.WAITING
        nobody = await rt.list_approvals(run_id="nobody")

        async def before_it_came(**query: Any) -> Page:
            return nobody

        monkeypatch.setattr(rt, "list_approvals", before_it_came)
        assert await work_off(rt) == 0
        assert (await rt.get_state(state.run_id)).status is RunStatus.WAITING
