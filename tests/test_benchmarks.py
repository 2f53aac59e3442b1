"""The benchmark runs and fills its table. What it measures is not judged here: that would be a test of the machine."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import driving

ROOT = Path(__file__).parent.parent


def test_a_quick_benchmark_fills_every_row_with_figure_baseline_and_ratio(tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--verbose", "--folder", tmp_path, "--json", found]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    table = json.loads(found.read_bytes())
    assert {"machine", "system", "python", "packages"} <= table["machine"].keys()
    for row in table["rows"]:
        assert row["figure"] > 0, row
        assert row["baseline"] > 0, row
        assert row["ratio"] > 0, row
        assert (row["met"] != "") == (row["aim"] != ""), row
        assert row["what"] in run.stdout
    assert len({row["what"] for row in table["rows"]}) == len(table["rows"]) == 55


def test_wakes_can_be_measured_again_on_the_same_database(tmp_path):
    """A full benchmark measures the crowd several times."""
    for _ in range(2):
        p50, p99 = asyncio.run(driving.wakes(tmp_path / "wakes.db", 3))
        assert 0 < p50 <= p99
