"""Whole stores, and stores of which something else is declared than they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abstractruntime import InMemoryLedgerStore, InMemoryRunStore
from abstractruntime.storage.artifacts import InMemoryArtifactStore
from abstractruntime.storage.snapshots import InMemorySnapshotStore
from abstractruntime.testing.conformance import (
    ArtifactStoreConformance,
    Capability,
    LedgerStoreConformance,
    PairConformance,
    RunStoreConformance,
    SnapshotStoreConformance,
)

from .breaking import OURS, broken
from .dict_stores import DictLedgerStore, DictRunStore

# What is whole passes


def pair(folder: Path) -> Any:
    return InMemoryRunStore(), InMemoryLedgerStore()


broken("whole_runs", RunStoreConformance, None, lambda folder: InMemoryRunStore())
broken("whole_ledgers", LedgerStoreConformance, None, lambda folder: InMemoryLedgerStore())
broken("whole_pair", PairConformance, None, pair)
broken("whole_dicts", PairConformance, None, lambda folder: (DictRunStore(), DictLedgerStore()), ())
broken("whole_artifacts", ArtifactStoreConformance, None, lambda folder: InMemoryArtifactStore())
broken("whole_snapshots", SnapshotStoreConformance, None, lambda folder: InMemorySnapshotStore())

# What is declared and not there, or there and not declared

DECLARED = "test_what_is_declared_is_what_the_store_has"
RESTART = "test_a_restart_keeps_all_or_nothing"
for part in (Capability.QUERY, Capability.INDEX, Capability.FIND, Capability.DELETE, Capability.CREATE_IF_ABSENT):
    broken(f"{part.label}_hidden", RunStoreConformance, DECLARED, lambda folder: InMemoryRunStore(), OURS - {part})
    broken(f"{part.label}_missing", RunStoreConformance, DECLARED, lambda folder: DictRunStore(), {part})
for part in (Capability.LIST_AFTER, Capability.COUNT, Capability.COUNT_MANY, Capability.METRICS, Capability.DELETE):
    broken(f"{part.label}s_hidden", LedgerStoreConformance, DECLARED, lambda _: InMemoryLedgerStore(), OURS - {part})
    broken(f"{part.label}s_missing", LedgerStoreConformance, DECLARED, lambda folder: DictLedgerStore(), {part})
REVISIONS = "test_revisions_are_kept_or_not_at_all"
broken("revisions_hidden", RunStoreConformance, REVISIONS, lambda _: InMemoryRunStore(), OURS - {Capability.REVISIONS})
broken("revisions_missing", RunStoreConformance, REVISIONS, lambda folder: DictRunStore(), {Capability.REVISIONS})
broken("restart_loses_runs", RunStoreConformance, RESTART, lambda folder: DictRunStore(), {Capability.PERSISTENT})
broken("restart_loses_records", LedgerStoreConformance, RESTART, lambda _: DictLedgerStore(), {Capability.PERSISTENT})
CHAINED = "test_records_are_chained_or_not_at_all"
broken("chain_missing", LedgerStoreConformance, CHAINED, lambda folder: DictLedgerStore(), {Capability.CHAIN})
JOINS = "test_the_pair_joins_or_not_as_declared"
broken("joint_hidden", PairConformance, JOINS, pair, ())
broken("joint_missing", PairConformance, JOINS, lambda _: (DictRunStore(), DictLedgerStore()), {Capability.JOINT})
OPTIONAL = "test_optional_methods_are_there_as_declared"
for part in (Capability.UPDATE, Capability.ACCESS, Capability.COLLECT):
    without = OURS - {part}
    broken(f"{part.label}_hidden", ArtifactStoreConformance, OPTIONAL, lambda _: InMemoryArtifactStore(), without)
for suite, whole in (
    (PairConformance, pair),
    (ArtifactStoreConformance, lambda folder: InMemoryArtifactStore()),
    (SnapshotStoreConformance, lambda folder: InMemorySnapshotStore()),
):
    broken(f"foreign_{suite.__name__}", suite, DECLARED, whole, OURS | {Capability.CHAIN})
