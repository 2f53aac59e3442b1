"""The one table: rows of figure, baseline, ratio and aim, below what they were measured on."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

import abstractruntime

_PACKAGES = ("anyio", "aiosqlite", "aiofiles", "msgspec")
_HEADINGS = ("what", "figure", "", "baseline", "which is", "ratio", "aim", "")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line: medians over the rounds of figure, baseline and `ratio`. An aim bounds the ratio or the figure."""

    what: str
    unit: str
    figure: float
    baseline: float
    baseline_is: str
    ratio: float
    least_ratio: float | None = None
    most_ratio: float | None = None
    most: float | None = None

    @property
    def aim(self) -> str:
        """The aim in words; empty without one."""
        if self.least_ratio is not None:
            return f"ratio >= {self.least_ratio:g}"
        if self.most_ratio is not None:
            return f"ratio <= {self.most_ratio:g}"
        return "" if self.most is None else f"figure <= {self.most:g}"

    @property
    def met(self) -> str:
        """Whether the aim was met, in words; empty without one."""
        if self.least_ratio is not None:
            return "met" if self.ratio >= self.least_ratio else "missed"
        if self.most_ratio is not None:
            return "met" if self.ratio <= self.most_ratio else "missed"
        return "" if self.most is None else "met" if self.figure <= self.most else "missed"


def row(
    what: str,
    unit: str,
    rounds: Sequence[tuple[float, float]],
    baseline_is: str,
    *,
    least_ratio: float | None = None,
    most_ratio: float | None = None,
    most: float | None = None,
) -> Row:
    """A row of (figure, baseline) per round."""
    return Row(
        what=what,
        unit=unit,
        figure=median(figure for figure, _ in rounds),
        baseline=median(baseline for _, baseline in rounds),
        baseline_is=baseline_is,
        ratio=median(figure / baseline for figure, baseline in rounds),  # pairs: a slow moment slows both
        least_ratio=least_ratio,
        most_ratio=most_ratio,
        most=most,
    )


def machine(folder: Path) -> dict[str, str]:
    """What the rows were measured on."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "packages": f"abstractruntime {abstractruntime.__version__}, {packages}",
        "files in": str(folder),
    }


def text(facts: dict[str, str], rows: Sequence[Row]) -> str:
    """The table as it is printed."""
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    rights = {1, 3, 5}
    lines = [f"{name + ':':<10} {value}" for name, value in facts.items()] + [""]
    for number, line in enumerate(cells):
        padded = (
            cell.rjust(width) if column in rights else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join(padded).rstrip())
        if number == 0:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def as_json(facts: dict[str, str], rows: Sequence[Row]) -> bytes:
    """The same as JSON: `{"machine": {...}, "rows": [...]}`."""
    found: dict[str, Any] = {
        "machine": facts,
        "rows": [{**msgspec.structs.asdict(row), "aim": row.aim, "met": row.met} for row in rows],
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        _number(row.figure),
        row.unit,
        _number(row.baseline),
        row.baseline_is,
        f"{row.ratio:.2f}",
        row.aim,
        row.met,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
