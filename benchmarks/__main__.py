"""`python -m benchmarks`: measures, and prints one table."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

from . import crowd, driving, facade, imports, lives, long_runs, models, recovery, steps, stores, table, tools

#: the size of a quick benchmark, relative to a full one
_QUICK = 0.02


def main(arguments: list[str] | None = None) -> None:
    """Measure as the command line says, and print the table."""
    options = _options(arguments)
    rounds = options.rounds or (1 if options.quick else 5)
    print(f"Measuring, {rounds} rounds", file=sys.stderr, flush=True)
    logging.getLogger("abstractruntime").setLevel(logging.ERROR)  # performers die in here by the thousand
    rows = list(_rows(options.folder, rounds, _QUICK if options.quick else 1.0))
    facts = table.machine(options.folder)
    facts["abstractcore"] = models.installed()
    facts["rounds"] = f"{rounds}, medians" + (", quick: the figures mean little" if options.quick else "")
    print(table.text(facts, rows))
    if options.verbose:
        print("\nThe most costly imports:", *imports.most_costly(), sep="\n")
    if options.json is not None:
        options.json.write_bytes(table.as_json(facts, rows))


def _rows(folder: Path, rounds: int, scale: float) -> Iterator[table.Row]:
    yield from steps.rows(folder, rounds=rounds, scale=scale)
    yield from stores.rows(folder, rounds=rounds, scale=scale)
    yield from lives.rows(folder, rounds=rounds, scale=scale)
    yield from long_runs.rows(folder, rounds=rounds, scale=scale)
    yield from recovery.rows(folder, rounds=rounds, scale=scale)
    yield from driving.rows(folder, rounds=rounds, scale=scale)
    yield from crowd.rows(folder, rounds=rounds, scale=scale)
    yield from facade.rows(rounds=rounds, scale=scale)
    yield from models.rows(rounds=rounds, scale=scale)
    yield from tools.rows(rounds=rounds)
    yield from imports.rows(rounds=rounds)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and print one table.")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that everything runs")
    parser.add_argument("--rounds", type=int, help="how often each pair is measured (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file too")
    parser.add_argument("--verbose", action="store_true", help="list the most costly imports too")
    parser.add_argument(
        "--folder", type=Path, default=Path(gettempdir()), help="where the databases are made: a folder on a real disk"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
