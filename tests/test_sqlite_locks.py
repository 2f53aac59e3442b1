"""Who lives: a lease that runs on and a lock that the kernel drops with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from abstractruntime.core.errors import InvalidId, StoreError
from abstractruntime.storage.sqlite import SqliteDatabase
from abstractruntime.storage.sqlite import locks as locks_module
from abstractruntime.storage.sqlite.locks import OwnerLocks

ROOT = Path(__file__).parent.parent

#: renews the lease of the owner "them" far into the future, says so, and stays until it is killed
HOLDER = """
import asyncio, sys
from abstractruntime.storage.sqlite import SqliteDatabase
async def main():
    database = SqliteDatabase(sys.argv[1])
    await database.backend.renew("them", 2**60)
    print("held", flush=True)
    if sys.argv[2] == "release":
        sys.stdin.readline()
        await database.backend.release("them")
        print("released", flush=True)
    sys.stdin.readline()
asyncio.run(main())
"""

#: the same, and forks a child that outlives it
FORKER = """
import asyncio, os, sys
from abstractruntime.storage.sqlite import SqliteDatabase
database = SqliteDatabase(sys.argv[1])
asyncio.run(database.backend.renew("them", 2**60))
read_end, write_end = os.pipe()
if os.fork() == 0:
    os.write(write_end, b"here")
    sys.stdin.readline()
    os._exit(0)
os.read(read_end, 4)
print("held", flush=True)
sys.stdin.readline()
"""


@contextmanager
def child(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


async def test_an_owner_lives_while_its_lease_runs_on(tmp_path):
    async with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        backend = database.backend
        assert not await backend.alive("me", 0)
        await backend.renew("me", 1_000)
        assert await backend.alive("me", 999)
        assert not await backend.alive("me", 1_000)
        await backend.renew("me", 2_000)
        assert await backend.alive("me", 1_000)
        await backend.release("me")
        assert not await backend.alive("me", 0)
        await backend.release("me")
        assert os.listdir(f"{database.path}-owners") == []


async def test_another_database_of_the_same_process_sees_who_lives(tmp_path):
    path = tmp_path / "x.sqlite3"
    async with SqliteDatabase(path) as mine, SqliteDatabase(path) as other:
        await mine.backend.renew("me", 1_000)
        assert await other.backend.alive("me", 0)
        await mine.backend.release("me")
        assert not await other.backend.alive("me", 0)


async def test_in_memory_the_lease_alone_tells(tmp_path):
    async with SqliteDatabase(":memory:") as database:
        await database.backend.renew("me", 1_000)
        assert await database.backend.alive("me", 999)
        assert not await database.backend.alive("me", 1_000)
        await database.backend.release("me")
        assert not await database.backend.alive("me", 0)


async def test_without_file_locks_the_lease_alone_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(locks_module, "HAVE_LOCKS", False)
    async with SqliteDatabase(tmp_path / "x.sqlite3") as database:
        await database.backend.renew("me", 1_000)
        assert await database.backend.alive("me", 999)
        assert not await database.backend.alive("me", 1_000)
        await database.backend.release("me")
    assert os.listdir(tmp_path) == ["x.sqlite3"]


async def test_a_killed_process_is_dead_at_once_and_what_is_left_of_it_is_removed(tmp_path, blockbuster):
    blockbuster.deactivate()
    path = tmp_path / "x.sqlite3"
    async with SqliteDatabase(path) as database:
        with child(HOLDER, str(path), "stay") as process:
            assert await database.backend.alive("them", 0)
            assert os.listdir(f"{path}-owners") == ["them"]
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            assert not await database.backend.alive("them", 0)
        assert os.listdir(f"{path}-owners") == []
        leases = "SELECT count(*) FROM leases"
        assert await database.backend.read(lambda connection: connection.execute(leases).fetchone()) == (0,)


async def test_a_process_that_released_its_lease_is_not_alive(tmp_path, blockbuster):
    blockbuster.deactivate()
    path = tmp_path / "x.sqlite3"
    async with SqliteDatabase(path) as database:
        with child(HOLDER, str(path), "release") as process:
            assert await database.backend.alive("them", 0)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "released\n"
            assert not await database.backend.alive("them", 0)


async def test_the_lock_dies_with_the_parent_though_a_forked_child_lives_on(tmp_path, blockbuster):
    blockbuster.deactivate()
    path = tmp_path / "x.sqlite3"
    async with SqliteDatabase(path) as database:
        with child(FORKER, str(path)) as process:
            assert await database.backend.alive("them", 0)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            assert not await database.backend.alive("them", 0)
            assert process.stdin is not None
            process.stdin.close()  # the forked child reads the end of its input and leaves


def test_two_owners_of_one_id_are_told_apart(tmp_path, monkeypatch):
    locks = OwnerLocks(tmp_path)
    locks.take("me")
    locks.take("me")
    assert locks.is_held("me")
    with monkeypatch.context() as patch:
        patch.setattr(locks_module, "_HELD", {})  # as another process sees it
        assert locks.is_held("me")
        with pytest.raises(StoreError, match="Owners must have unique ids"):
            locks.take("me")
    locks.release("me")
    assert not locks.is_held("me")


def test_an_owner_id_is_no_path(tmp_path):
    with pytest.raises(InvalidId):
        OwnerLocks(tmp_path).take("../escape")
