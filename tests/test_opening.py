"""From a URL to a runtime with all its stores, which it closes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from abstractruntime import AsyncRuntime, RunState, RunStatus, Runtime, StepPlan, StoreClosed, WorkflowSpec
from abstractruntime.storage.opening import open_stores


def end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={})


WF: WorkflowSpec[Any] = WorkflowSpec("wf", "end", {"end": end})


NO_URLS = ["", "runs.db", "sqlite:", "sqlite://", "sqlite:///", "sqlite:runs.db", "files:", "memory", "redis://x"]


def urls(folder: Path) -> list[str]:
    return [
        "memory:",
        f"sqlite:///{folder}/runs.db",
        "sqlite:///:memory:",
        f"files:{folder}/data",
        f"files://{folder}/b",
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_blocking_runtime_has_blocking_stores_of_every_kind(number, tmp_path):
    with Runtime.open(urls(tmp_path)[number]) as rt:
        state = rt.run(WF, run_id="one")
        assert rt.run_store.load("one").status is RunStatus.COMPLETED
        assert len(rt.ledger_store.list("one")) == len(rt.get_ledger("one"))
        meta = rt.artifact_store.store(b"text", content_type="text/plain", run_id="one")
        assert rt.artifact_store.load(meta.artifact_id).content == b"text"
        snapshot = rt.snapshot_run("one", name="end")
        assert rt.snapshot_store.load(snapshot.snapshot_id).run_id == state.run_id


@pytest.mark.parametrize("number", range(5))
async def test_an_async_runtime_too(number, tmp_path):
    async with AsyncRuntime.open(urls(tmp_path)[number]) as rt:
        assert (await rt.run(WF, run_id="one")).status is RunStatus.COMPLETED
        assert (await rt.run_store.load("one")).status is RunStatus.COMPLETED
        assert (await rt.snapshot_run("one", name="end")).run_id == "one"


@pytest.mark.parametrize("number", [1, 3])
def test_what_was_written_is_there_when_it_is_opened_again(number, tmp_path):
    url = urls(tmp_path)[number]
    with Runtime.open(url) as rt:
        rt.run(WF, run_id="one")
        artifact = rt.artifact_store.store(b"text", run_id="one").artifact_id
    with Runtime.open(url) as rt:
        assert rt.get_state("one").status is RunStatus.COMPLETED
        assert rt.artifact_store.load(artifact).content == b"text"


def test_the_artifacts_of_a_database_stand_beside_it(tmp_path):
    with Runtime.open(f"sqlite:///{tmp_path}/runs.db") as rt:
        rt.artifact_store.store(b"text", run_id="one")
    assert (tmp_path / "runs.db.artifacts").is_dir()


def test_a_path_is_relative_with_three_slashes_and_absolute_with_four(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Runtime.open("sqlite:///here.db") as rt:
        rt.run(WF)
    with Runtime.open("files:./data") as rt:
        rt.run(WF)
    with Runtime.open(f"sqlite:///{tmp_path}/there.db") as rt:
        rt.run(WF)
    assert {"here.db", "data", "there.db"} <= {path.name for path in tmp_path.iterdir()}


def test_closing_closes_what_was_opened(tmp_path):
    rt = Runtime.open(f"sqlite:///{tmp_path}/runs.db")
    rt.run(WF)
    rt.close()
    with pytest.raises(StoreClosed):
        rt.run_store.load("one")


def test_options_are_those_of_the_runtime_and_win(tmp_path):
    with Runtime.open("memory:", artifact_store=None, quarantine_after=3) as rt:
        assert rt.artifact_store is None


@pytest.mark.parametrize("url", NO_URLS)
def test_a_url_of_nothing_says_what_is_expected(url):
    with pytest.raises(ValueError, match=r'expected "memory:", "sqlite:///runs\.db" or "files:\./data"'):
        open_stores(url)
    with pytest.raises(TypeError, match="found int"):
        open_stores(5)  # type: ignore[arg-type]
