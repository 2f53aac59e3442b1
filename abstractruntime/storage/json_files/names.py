"""File names of ids: readable, safe on every file system, and never a path.

The ids of the published layout (letters, digits, `_`, `.` and `-`) stand as they are; every other character is written
as the `%XX` of its UTF-8 bytes. What gets too long for a file system is cut and ends in `%=` and a hash. Names that
differ only in case are one file where a file system thinks so; whoever reads a file therefore looks at the id inside.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote

from ...core.ids import check_text

_LONGEST = 200
_KEPT = 120
_RUN = re.compile(r"run_(.+)\.json")


def run_file(run_id: str) -> str:
    """The name of the file of a run's state."""
    return f"run_{_encoded(run_id)}.json"


def ledger_file(run_id: str) -> str:
    """The name of the file of a run's ledger."""
    return f"ledger_{_encoded(run_id)}.jsonl"


def messages_file(stream: str) -> str:
    """The name of the file of a stream's messages."""
    return f"messages_{_encoded(stream)}.jsonl"


def id_of_run_file(name: str) -> str | None:
    """The id that the name of a run's file says, as far as it does; None for the name of something else."""
    found = _RUN.fullmatch(name)
    return unquote(found[1]) if found else None


def _encoded(run_id: str) -> str:
    name = quote(check_text(run_id, "run_id"), safe="").replace("~", "%7E")
    if len(name) <= _LONGEST:
        return name
    return f"{name[:_KEPT]}%={hashlib.sha256(run_id.encode()).hexdigest()[:40]}"
