"""The message files of a folder: what crashes, full disks and damage do to them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from abstractruntime import AsyncJsonFileRunStore, AsyncJsonlLedgerStore, AsyncRuntime, RunStatus, StoreCorrupt
from abstractruntime.storage.json_files.files import Files
from abstractruntime.storage.json_files.folder import Folder

from .clocks import StillClock
from .worlds import ask, flow, one

SINCE = "2026-01-01T00:00:00.000000+00:00"
LISTENER = one("wait_event", {"name": "paid", "scope": "global"}, "got")
SENDER = flow(
    "emit",
    workflow_id="sender",
    emit=ask("emit", "emit_event", {"name": "paid", "scope": "global", "payload": {"n": 1}}, "told", "then"),
    then=ask("then", "answer_user", {"message": "sent"}, "said"),
)


class Died(BaseException):
    """Stands for SIGKILL."""


class Desk:
    """A folder and a runtime on it; `restart` is what a new process finds."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, StillClock()
        self.file = path / "messages_global%3Aglobal.jsonl"
        self.runs = AsyncJsonFileRunStore(path)
        registry = {workflow.workflow_id: workflow for workflow in (LISTENER, SENDER)}
        self.rt = AsyncRuntime(
            run_store=self.runs,
            ledger_store=AsyncJsonlLedgerStore(path),
            clock=self.clock,
            workflow_registry=registry,
        )

    @property
    def folder(self) -> Folder:
        folder = self.rt._backend._folder  # type: ignore[attr-defined]
        assert isinstance(folder, Folder)
        return folder

    def restart(self) -> None:
        self.folder._lock.let_go()
        self.folder.begin()

    async def emit(self, number: int) -> dict[str, Any]:
        return await self.rt.emit_event(name="paid", scope="global", payload={"n": number})

    async def heard(self) -> list[int]:
        """Every message of the stream, as a reader gets them."""
        found, read = [], {"": 0}
        while unread := await self.rt._backend.next_message("global:global", "paid", read, SINCE):
            found.append(unread.message.data["payload"]["n"])
            read = {"": unread.position}
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "runs")


async def test_a_message_is_a_line_that_people_can_read(desk: Desk) -> None:
    await desk.emit(1)
    await desk.emit(2)
    lines = [json.loads(line) for line in desk.file.read_text().splitlines()]
    assert [line["position"] for line in lines] == [1, 2]
    assert lines[1]["message"]["data"]["payload"] == {"n": 2}


@pytest.mark.parametrize("torn", [b'{"position":3,"mess', b"\0" * 40, b'{"position":3}'])
async def test_what_a_crash_left_of_an_append_is_no_message(desk: Desk, torn: bytes) -> None:
    await desk.emit(1)
    await desk.emit(2)
    whole = desk.file.read_bytes()
    desk.file.write_bytes(whole + torn)
    desk.restart()
    assert await desk.heard() == [1, 2]
    await desk.emit(3)
    assert desk.file.read_bytes().startswith(whole + b'{"position":3,')
    desk.restart()
    assert await desk.heard() == [1, 2, 3]


async def test_damage_is_told_and_stops_nobody_else(desk: Desk) -> None:
    await desk.rt.run(LISTENER, run_id="r")
    await desk.emit(1)
    await desk.emit(2)
    damaged = desk.file.read_bytes().replace(b'"n":1', b'"n":7')
    desk.file.write_bytes(damaged)
    desk.restart()
    with pytest.raises(StoreCorrupt, match=r"messages_global.*line 1.*Restore"):
        await desk.emit(3)
    assert desk.file.read_bytes() == damaged
    await desk.rt.emit_event(name="paid", scope="run", run_id="x")
    assert (await desk.rt.run(one("answer_user", {"message": "hello"}), run_id="s")).status is RunStatus.COMPLETED
    state = await desk.rt.run(LISTENER, run_id="r")
    assert state.status is RunStatus.COMPLETED, "it had taken in what it waited for"


@pytest.mark.parametrize("hole", [b"\0" * 10, b"x" * 10])
async def test_a_hole_with_good_lines_behind_it_is_damage_and_not_cut_off(desk: Desk, hole: bytes) -> None:
    for number in range(3):
        await desk.emit(number)
    lines = desk.file.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + hole + lines[1][10:] + lines[2]
    desk.file.write_bytes(damaged)
    desk.restart()
    with pytest.raises(StoreCorrupt, match="line 2"):
        await desk.emit(3)
    assert desk.file.read_bytes() == damaged


async def test_a_crash_between_commit_and_append_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.rt.run(LISTENER, run_id="r")
    append = Files.append

    def dies(self: Files, path: Path, at: int, data: bytes) -> None:
        if path == desk.file:
            raise Died
        append(self, path, at, data)

    await desk.rt.start(workflow=SENDER, run_id="e")
    with monkeypatch.context() as patch:
        patch.setattr(Files, "append", dies)
        with pytest.raises(Died):
            await desk.rt.tick(workflow=SENDER, run_id="e")
    assert not desk.file.exists()
    desk.restart()
    state = await desk.rt.tick(workflow=LISTENER, run_id="r")  # a reader is the first in the new process
    assert state.output["got"]["payload"] == {"n": 1}
    await desk.rt.tick(workflow=SENDER, run_id="e")
    desk.restart()
    assert await desk.heard() == [1]


async def test_a_full_disk_keeps_the_message_in_the_run_until_there_is_room(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.rt.run(LISTENER, run_id="r")
    await desk.rt.start(workflow=SENDER, run_id="e")
    opens = Files.open

    def full(self: Files, path: Path, flags: int) -> int:
        if path == desk.file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opens(self, path, flags)

    with monkeypatch.context() as patch:
        patch.setattr(Files, "open", full)
        state = await desk.rt.tick(workflow=SENDER, run_id="e", max_steps=1)
    assert state.current_node == "then", "the commit landed"
    assert (await desk.rt.get_state("r")).status is RunStatus.WAITING
    state = await desk.rt.tick(workflow=LISTENER, run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert await desk.heard() == [1]


async def test_a_flush_that_fails_is_unclear_and_sending_again_is_the_same_message(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.rt.run(LISTENER, run_id="r")
    await desk.emit(0)
    fsync = Files.fsync
    failed: list[int] = []

    def fails(self: Files, descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(desk.file) and not failed:
            failed.append(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(self, descriptor)

    monkeypatch.setattr(Files, "fsync", fails)
    await desk.emit(1)
    assert failed
    assert await desk.heard() == [0, 1]
    desk.restart()
    assert await desk.heard() == [0, 1]


async def test_another_process_reads_what_the_one_that_writes_has_written(desk: Desk) -> None:
    await desk.rt.run(LISTENER, run_id="r")
    await desk.rt.pause_run("r")
    await desk.emit(1)
    await desk.rt.resume_run("r")

    def look() -> tuple[Any, list[str], bool]:
        with Folder(desk.path) as other:
            found = other.unread("global:global", "paid", {}, SINCE)
            return found and found.message.data["payload"], other.nudged(None, SINCE, 5), other._owning

    assert await asyncio.to_thread(look) == ({"n": 1}, ["r"], False)
