"""Reads what the published package wrote, folders of JSON files and SQLite files, and writes nothing there."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from ..core.codec import REFUSALS, decode_run
from ..core.errors import StoreCorrupt, StoreError
from ..core.models import RunState, StepRecord
from .json_files.folder import Folder
from .json_files.names import ledger_file, run_file
from .sqlite.failures import FROM_SQLITE


class Found(Struct, frozen=True, kw_only=True):
    """A run of the source with its ledger, or a ledger whose run is not there."""

    run_id: str
    run: RunState | None
    records: list[StepRecord]
    #: what of it was left out, and why
    problem: str = ""


class Source(Protocol):
    """Where runs are read from. Blocks: not for the event loop."""

    def names(self) -> list[str]:
        """A name of each run there, oldest first."""

    def file(self, name: str) -> str:
        """The file it is in."""

    def read(self, name: str) -> Found:
        """The run. Raises StoreCorrupt."""

    def close(self) -> None:
        """Let go of the files."""


def open_source(path: Path) -> Source:
    """The source at this path. Raises StoreError when there is none."""
    path = path.expanduser()
    if path.is_dir():
        return JsonSource(path)
    if path.is_file():
        return SqliteSource(path)
    raise StoreError(f"{path}: there is no folder and no file to import from. Check the path.")


class JsonSource:
    """A folder of `run_<id>.json` and `ledger_<id>.jsonl`. Reads what JSON stores of this package wrote, too."""

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, Folder(path)
        self._files: dict[str, Path] = {}

    def names(self) -> list[str]:
        with self._folder as folder:
            index = folder.runs()
            found = [run_id for _, run_id, _ in reversed(index.in_order())]
            damaged = sorted(index.damaged)
        self._files = {run_id: self._path / run_file(run_id) for run_id in found}
        self._files |= {name: self._path / name for name in damaged}
        known = {ledger_file(run_id) for run_id in found}
        known |= {f"ledger_{name[len('run_') : -len('.json')]}.jsonl" for name in damaged}
        alone = sorted(path for path in self._path.glob("ledger_*.jsonl") if path.name not in known)
        self._files |= {path.name: path for path in alone}
        return list(self._files)

    def file(self, name: str) -> str:
        return str(self._files[name])

    def read(self, name: str) -> Found:
        path = self._files[name]
        if path.suffix == ".jsonl":
            records, problem = _lines(path)
            run_id = records[0].run_id if records else name
            return Found(run_id=run_id, run=None, records=records, problem=problem)
        with self._folder as folder:
            if name in folder.runs().damaged:
                raise folder.runs().damaged[name]
            run = folder.state(name)
            assert run is not None
            row = folder.runs().rows.get(name)
            if row is None or row.beside.number is not None:  # ours: files may have what belongs to others
                ledger = folder.ledger(name)
                return Found(run_id=name, run=run, records=ledger.records(), problem=ledger.torn)
        records, problem = _lines(self._path / ledger_file(name))
        return Found(run_id=name, run=run, records=records, problem=problem)

    def close(self) -> None:
        """Nothing is held open."""


class SqliteSource:
    """A SQLite file with the published tables `runs` and `ledger`."""

    def __init__(self, path: Path) -> None:
        self._path, self._copy = path, None
        logs = [Path(f"{path}{suffix}") for suffix in ("-wal", "-journal")]
        logs = [log for log in logs if log.exists() and log.stat().st_size]
        if logs:  # they belong to the file, and to read them SQLite must write beside it
            self._copy = tempfile.TemporaryDirectory(prefix="abstractruntime-import-")
            for file in (path, *logs):
                shutil.copyfile(file, Path(self._copy.name) / file.name)
            uri = (Path(self._copy.name) / path.name).absolute().as_uri()
        else:
            uri = f"{path.absolute().as_uri()}?immutable=1"
        self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        try:
            tables = {name for (name,) in self._rows("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            columns = {row[1] for row in self._rows("PRAGMA table_info(runs)")}
            if not {"runs", "ledger"} <= tables or "run_json" not in columns:
                raise StoreError(
                    f"{path}: this database has no runs and ledgers of the published package. A file that "
                    "SqliteDatabase wrote needs no import: open it, or copy it with backup()."
                )
        except StoreError:
            self.close()
            raise

    def names(self) -> list[str]:
        runs = [str(run_id) for (run_id,) in self._rows("SELECT run_id FROM runs ORDER BY created_at, run_id")]
        ledgers = self._rows("SELECT DISTINCT run_id FROM ledger ORDER BY run_id")
        known = set(runs)
        return runs + [str(run_id) for (run_id,) in ledgers if run_id not in known]

    def file(self, name: str) -> str:
        return str(self._path)

    def read(self, name: str) -> Found:
        stored = self._rows("SELECT run_json FROM runs WHERE run_id = ?", name)
        rows = self._rows("SELECT seq, record_json FROM ledger WHERE run_id = ? ORDER BY seq", name)
        run = decode_run(_bytes(stored[0][0]), name) if stored else None
        if run is not None and run.run_id != name:
            raise StoreCorrupt(f"The row of run {name!r} holds run {run.run_id!r}.")
        records = [_record(_bytes(text), f"{self._path}: record {seq} of run {name!r}") for seq, text in rows]
        return Found(run_id=name, run=run, records=records)

    def close(self) -> None:
        self._connection.close()
        if self._copy is not None:
            self._copy.cleanup()

    def _rows(self, query: str, *parameters: Any) -> list[Any]:
        try:
            return self._connection.execute(query, parameters).fetchall()
        except FROM_SQLITE as error:
            raise StoreCorrupt(f"{self._path}: it cannot be read as a SQLite database ({error}).") from error


def _lines(path: Path) -> tuple[list[StepRecord], str]:
    """The records of a file of lines, which may hold several each; and what was cut off at its end."""
    data = path.read_bytes() if path.exists() else b""
    whole, _, rest = data.rpartition(b"\n")
    records = [
        _record(text, f"{path}, line {number}")
        for number, line in enumerate(whole.split(b"\n"), 1)
        for text in _objects(line, f"{path}, line {number}")
    ]
    if not rest.strip():
        return records, ""
    try:
        return records + [_record(text, f"{path}, last line") for text in _objects(rest, f"{path}, last line")], ""
    except StoreCorrupt:
        return records, f"its last {len(rest)} bytes are what a crash left of a record; they were left out"


def _objects(line: bytes, where: str) -> Iterator[bytes]:
    """The JSON objects of a line, one behind the other."""
    try:
        text = line.decode().strip()
        while text:
            _, end = json.JSONDecoder().raw_decode(text)
            yield text[:end].encode()
            text = text[end:].lstrip()
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{where} is no JSON ({error}).") from error


def _record(text: bytes, where: str) -> StepRecord:
    try:
        return msgspec.json.decode(text, type=StepRecord)
    except REFUSALS as error:
        raise StoreCorrupt(f"{where} is no record ({error}).") from error


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
