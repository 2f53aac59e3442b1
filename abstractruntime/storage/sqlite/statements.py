"""The SQL of the package, read once from its `.sql` files: queries by name, migrations by number."""

from __future__ import annotations

import re
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "sql"
_ROW = re.compile(r"VALUES\s*(\([^)]*\))")

#: rows of one statement; larger ones are not faster, and each size is a prepared statement that is kept
MOST_ROWS = 64

#: sizes of statements that are filled up to the next of them
_SIZES = tuple(sorted({*(2**n for n in range(10)), *(3 * 2**n for n in range(1, 8))}))

#: rows that `write_filled` takes
MOST_FILLED = _SIZES[-1]


def _read_queries() -> dict[str, str]:
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(_FOLDER.glob("*.sql")))
    _, *named = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    queries: dict[str, str] = {}
    for name, text in zip(named[::2], named[1::2], strict=True):
        lines = (line for line in text.splitlines() if not line.startswith("--"))
        queries[name] = " ".join("\n".join(lines).split()).rstrip(";")
    return queries


#: every query of the `.sql` files of the folder: its name and its text
QUERIES = _read_queries()


def migrations() -> list[tuple[int, str]]:
    """Number and text of every migration, in order."""
    files = sorted((_FOLDER / "migrations").glob("*.sql"))
    return [(int(file.name.partition("_")[0]), file.read_text(encoding="utf-8")) for file in files]


def statements_of(script: str) -> Iterator[str]:
    """The single statements of a script. `executescript` would commit the transaction that it is run in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@lru_cache(maxsize=256)
def _for_rows(query: str, count: int) -> str:
    return _ROW.sub(lambda found: "VALUES " + ", ".join([found[1]] * count), query)


def write_rows(connection: sqlite3.Connection, query: str, rows: Sequence[Sequence[Any]]) -> int:
    """Run a query that has one row of VALUES with all of these rows; how many it inserted or updated.

    Unlike `executemany` it takes many rows per statement, so the interpreter's lock is given up and asked for again
    twice per 64 rows and not twice per row. Next to a busy event loop that is the difference between milliseconds
    and seconds. The sizes are powers of two, so that few statements are prepared.
    """
    done, start = 0, 0
    while start < len(rows):
        count = min(MOST_ROWS, 1 << (len(rows) - start).bit_length() - 1)
        values = list(chain.from_iterable(rows[start : start + count]))
        done += connection.execute(_for_rows(query, count), values).rowcount
        start += count
    return done


def write_filled(connection: sqlite3.Connection, query: str, values: list[Any], count: int) -> None:
    """Run a query that has one row of VALUES with `count` rows, given flat, as a single statement.

    Rows of zeros fill it up, so that few sizes are prepared; the query must pass over them. Bind `bytearray` and not
    `bytes`, and anything but None: sqlite3 looks for an adapter of those first, which costs more than the binding.
    """
    size = _SIZES[bisect_left(_SIZES, count)]
    values += (0,) * ((size - count) * (len(values) // count))
    connection.execute(_for_rows(query, size), values)


def first(connection: sqlite3.Connection, query: str, parameters: Iterable[Any] = ()) -> Any:
    """The first column of the first row, or None."""
    row = connection.execute(query, tuple(parameters)).fetchone()
    return None if row is None else row[0]
