"""Processes of `tests.process_worker` for tests: started, talked to line by line, stopped, and gone in the end."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .scale import scaled

ROOT = Path(__file__).parent.parent


class Worker:
    """A process of `tests.process_worker`, one line of talk at a time."""

    def __init__(self, folder: Path, mode: str, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.process_worker", mode, folder / "runs.db", folder / "world", *arguments]
        self._errors = (folder / f"errors-{'-'.join(map(str, arguments))}").open("w+")
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        # A worker that hangs must fail its test and not hang it: readline() then finds the end of the talk.
        self._watch = threading.Timer(scaled(60, 600), self.process.kill)
        self._watch.start()

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended with code {self.process.wait()}: {self.errors()}"
        return line.strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """It ends by itself, with code 0."""
        assert self.process.wait() == 0, self.errors()

    def close(self) -> None:
        self._watch.cancel()
        self.process.kill()
        self.process.communicate()
        self._errors.close()


Start = Callable[..., Worker]


@pytest.fixture
def start_in() -> Iterator[Callable[[Path], Start]]:
    """Start workers in any folder; all are gone when the test ends."""
    workers: list[Worker] = []

    def start_in(folder: Path) -> Start:
        def start(mode: str, *arguments: object) -> Worker:
            workers.append(Worker(folder, mode, *arguments))
            return workers[-1]

        return start

    yield start_in
    for worker in workers:
        worker.close()


@pytest.fixture
def start(start_in: Callable[[Path], Start], tmp_path: Path) -> Start:
    """Start a worker in the folder of the test."""
    return start_in(tmp_path)


def stop(owner: Worker, database: Path) -> None:
    """Stop the process, but not in the middle of a write: it would keep the file locked and nobody could go on."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        os.kill(owner.process.pid, signal.SIGSTOP)
        os.waitpid(owner.process.pid, os.WUNTRACED)
        connection.execute("ROLLBACK")


def stopped(process: subprocess.Popen[str], database: Path) -> bool:
    """Stop the process wherever it is, unless that is in the middle of a write: then it goes on. Whether it stopped.

    ProcessLookupError when it has ended already.
    """
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if found is None or found.si_code != os.CLD_STOPPED:
        raise ProcessLookupError(pid)
    with closing(sqlite3.connect(database, isolation_level=None, timeout=0.05)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            return False
        connection.execute("ROLLBACK")
    return True
