"""A life that uses every built-in effect, with a fault at every write, on every kind of stores: the same end."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import (
    Effect,
    EffectType,
    InMemoryArtifactStore,
    RunState,
    RunStatus,
    StepPlan,
    WorkflowRegistry,
)
from abstractruntime.effects.memory.desk import session_memory_owner_run_id
from abstractruntime.memory.spans import spans_of

from .checks import check_ledger
from .faults import FaultyBackend, ProcessDied
from .scale import scaled
from .worlds import World, flow

ROOT = Path(__file__).parent.parent
MODES = FaultyBackend.MODES
KINDS = ["memory", "sqlite", "json"]

#: every write is walked under soak; the offset of the first one differs by the day's other parameters
STRIDE = scaled(4, 1)


def step(node: str, kind: str, payload: Any, following: str) -> Any:
    """A node that asks for an effect and keeps its result under its own name; a payload may be made of the run."""

    def plan(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan(node, Effect(kind, payload(run) if callable(payload) else payload, f"got.{node}"), following)

    return plan


def noted(run: RunState) -> Any:
    return {"span_ids": [run.vars["got"]["note"]["results"][0]["meta"]["span_id"]], "placement": "end"}


CHILD = flow(
    "remember",
    workflow_id="child",
    remember=step("remember", "memory_note", {"note": "of the child", "scope": "session"}, "tell"),
    tell=step("tell", "emit_event", {"name": "pong", "payload": {"from": "child"}}, "end"),
)
EARS = flow("listen", workflow_id="ears", listen=step("listen", "wait_event", {"name": "*"}, "end"))
STEPS: list[tuple[str, str, Any]] = [
    ("say", "answer_user", {"message": "hello"}),
    ("emit", "emit_event", {"name": "ping", "payload": {"n": 1}}),
    ("hear", "wait_event", {"name": "ping"}),
    ("child", "start_subworkflow", {"workflow_id": "child"}),
    ("pong", "wait_event", {"name": "pong"}),
    ("fan", "start_subworkflow", {"children": [{"workflow_id": "child"}] * 2, "max_parallel": 1, "join": "collect"}),
    ("silence", "wait_event", {"name": "never", "until": "2026-01-31T08:00:00Z"}),
    ("past", "wait_until", {"until": "2026-01-31T08:00:00Z"}),
    ("ask", "ask_user", {"prompt": "Go on?"}),
    ("note", "memory_note", {"note": "of the run", "tags": {"a": "b"}}),
    ("tag", "memory_tag", {"span_id": 1, "tags": {"c": "d"}}),
    ("session", "memory_query", {"scope": "session", "return": "meta", "limit_spans": 10}),
    ("compact", "memory_compact", {"preserve_recent": 2}),
    ("back", "memory_rehydrate", noted),
    ("look", "vars_query", {"path": "got.ask"}),
]
NAMES = [name for name, _, _ in STEPS]
LIFE = flow(
    "say",
    workflow_id="life",
    **{
        name: step(name, kind, payload, [*NAMES, "end"][place + 1]) for place, (name, kind, payload) in enumerate(STEPS)
    },
)
TALK = {"context": {"messages": [{"role": "user", "content": f"line {number}"} for number in range(5)]}}


def summarize(messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return {"summary": f"{len(messages)} lines"}


async def live(world: World, artifacts: Any, *, at: int = 0, mode: str = "die_before") -> FaultyBackend | None:
    """One life of the process; every part may be repeated by the next."""
    registry = WorkflowRegistry()
    for workflow in (LIFE, CHILD, EARS):
        registry.register(workflow)
    rt, store = world.faulty_runtime(
        at=at, mode=mode, artifact_store=artifacts, workflow_registry=registry, chat_summarizer=summarize
    )
    try:
        await rt.start(workflow=EARS, run_id="ears", session_id="s")
        await rt.tick(workflow=EARS, run_id="ears")
        await rt.start(workflow=LIFE, run_id="main", session_id="s", vars=TALK)
        state = await rt.tick(workflow=LIFE, run_id="main")
        if state.status is RunStatus.WAITING:
            assert state.current_node == "ask"
            await rt.resume(workflow=LIFE, run_id="main", wait_key=None, payload="yes", resume_id="once")
        await rt.tick(workflow=EARS, run_id="ears")
    except ProcessDied:
        assert at
    return store.backend


async def end_of(world: World, artifacts: Any) -> dict[str, Any]:
    """What must not depend on faults: how the runs ended, and what is remembered."""
    rt = world.runtime(artifact_store=artifacts)
    main, ears = await rt.get_state("main"), await rt.get_state("ears")
    check_ledger(main, await rt.get_ledger("main"))
    check_ledger(ears, await rt.get_ledger("ears"))
    owner = await rt.get_state(session_memory_owner_run_id("s"))
    children = await rt.find_runs(workflow_id="child", limit=50)
    return {
        "main": (main.status, main.output["got"], main.vars["context"]),
        "ears": (ears.status, ears.output["got"]["listen"]["name"]),
        "remembered": sorted(span["artifact_id"] for span in spans_of(owner.vars)),
        "children": sorted((row["run_id"], row["status"]) for row in children.items),
        "artifacts": sorted(kept.artifact_id for kept in artifacts.list_all()),
    }


async def life(kind: str, folder: Path, *, at: int = 0, mode: str = "die_before") -> tuple[dict[str, Any], int]:
    world, artifacts = World("async", kind, folder, synchronous="NORMAL"), InMemoryArtifactStore()
    try:
        backend = await live(world, artifacts, at=at, mode=mode)
        assert backend is None or backend.fired or at > backend.writes
        if mode.startswith("die"):
            await live(world, artifacts)  # the next process
        return await end_of(world, artifacts), 0 if backend is None else backend.writes
    finally:
        await world.close()


def test_the_life_uses_every_effect_there_is():
    used = {kind for _, kind, _ in STEPS}
    later = {"llm_call", "tool_calls", "model_residency"}  # of the bridge, or of hosts
    assert used | later == {str(kind) for kind in EffectType if "memory_kg" not in kind}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
async def test_every_write_may_fail_and_the_end_is_the_same(kind: str, mode: str, tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    expected, _ = await life("memory", tmp_path / "reference")
    status, got, _ = expected["main"]
    assert status is RunStatus.COMPLETED
    assert got["hear"]["payload"] == {"n": 1}
    assert got["pong"]["payload"] == {"from": "child"}
    assert got["silence"]["timed_out"] is True
    assert [result.get("ok", True) for result in got["fan"]["results"]] == [True, True]
    assert len(expected["remembered"]) == len(expected["children"]) == 3
    at = 1 + (MODES.index(mode) + KINDS.index(kind)) % STRIDE
    while True:
        folder = tmp_path / f"{at}"
        folder.mkdir()
        found, writes = await life(kind, folder, at=at, mode=mode)
        assert found == expected, f"{mode} at write {at}"
        if at > writes:
            break
        at += STRIDE
    assert at > 40


def lived(kind: str, folder: Path) -> str:
    command = [sys.executable, "-m", "tests.every_effect_worker", kind, str(folder), "check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("kind", ["sqlite", "json"])
def test_killed_at_random_moments_the_life_ends_the_same(kind: str, tmp_path: Path, seed: int) -> None:
    rng, killed = random.Random(seed), 0
    (tmp_path / "reference").mkdir()
    expected = lived("sqlite", tmp_path / "reference")
    for number in range(scaled(3, 200)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for _ in range(rng.randint(1, 2)):
            command = [sys.executable, "-m", "tests.every_effect_worker", kind, str(folder)]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(rng.uniform(0.0, 0.3))  # any moment of its life
                process.kill()
            killed += process.returncode == -signal.SIGKILL
        assert lived(kind, folder) == expected
    print(f"killed {killed} times before its end")
