"""Nodes find the artifact store at their run, and put refs into vars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abstractruntime import (
    AsyncFileArtifactStore,
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncRuntime,
    FileArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    Runtime,
    StepPlan,
    WorkflowSpec,
    artifact_ref,
    resolve_artifact,
)


def done(run: Any, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output=run.vars["report"])


def test_a_node_stores_an_artifact_and_puts_its_ref_in_vars(tmp_path: Path) -> None:
    def write(run: Any, ctx: Any) -> StepPlan:
        meta = run._runtime_artifact_store.store_text("long" * 1000, run_id=run.run_id)
        run.vars["report"] = artifact_ref(meta.artifact_id)
        return StepPlan("write", next_node="done")

    store = FileArtifactStore(tmp_path)
    stores: dict[str, Any] = {"run_store": InMemoryRunStore(), "ledger_store": InMemoryLedgerStore()}
    with Runtime(**stores, artifact_store=store) as rt:
        state = rt.run(WorkflowSpec("w", "write", {"write": write, "done": done}))
    assert resolve_artifact(state.output, store).as_text() == "long" * 1000
    assert [artifact_ref(meta.artifact_id) for meta in store.list_by_run(state.run_id)] == [state.output]


async def test_an_async_node_awaits_the_async_store(tmp_path: Path) -> None:
    async def write(run: Any, ctx: Any) -> StepPlan:
        meta = await run._runtime_artifact_store.store_text("long" * 1000, run_id=run.run_id)
        run.vars["report"] = artifact_ref(meta.artifact_id)
        return StepPlan("write", next_node="done")

    store = AsyncFileArtifactStore(tmp_path)
    stores: dict[str, Any] = {"run_store": AsyncInMemoryRunStore(), "ledger_store": AsyncInMemoryLedgerStore()}
    async with AsyncRuntime(**stores, artifact_store=store) as rt:
        state = await rt.run(WorkflowSpec("w", "write", {"write": write, "done": done}))
    assert (await resolve_artifact(state.output, store)).as_text() == "long" * 1000
