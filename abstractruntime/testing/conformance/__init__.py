"""Suites that hold a store of your own to what the runtime and its users rely on.

They need pytest, which the extra `testing` brings, and no plugin of it.

Subclass a suite in a test module, say how the store is made and which optional parts it has, and run pytest:

    from abstractruntime.testing.conformance import Capability, RunStoreConformance

    class TestMyRuns(RunStoreConformance):
        capabilities = {Capability.QUERY, Capability.PERSISTENT}

        def make(self, folder):
            return MyRunStore(folder / "runs")

        def close(self, store):
            store.close()

| suite | of what | `make` returns |
|---|---|---|
| `RunStoreConformance` | a run store | the store |
| `LedgerStoreConformance` | a ledger store | the store |
| `PairConformance` | the two under `AsyncRuntime`, and a backend of theirs | `(run_store, ledger_store)` |
| `ArtifactStoreConformance` | an artifact store | the store |
| `SnapshotStoreConformance` | a store of snapshots | the store |

Methods of stores may be sync or async. What is declared must be there, and what is there must be declared: either way
a test fails, so no suite is passed by declaring nothing. A test of a part that is not declared is skipped with that
reason. No suite sleeps or measures time.

Every test has a folder and stores of its own.
"""

try:
    import pytest
except ImportError as error:  # the base install has no test tools
    raise ImportError('The conformance suites run under pytest: pip install "abstractruntime[testing]"') from error

# Asserts of test modules explain themselves; these are in modules of the package, so it has to be asked for.
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{name}"
        for name in ["suite", "runs", "queries", "ledgers", "pairs", "backends", "together", "artifacts", "snapshots"]
    )
)

# Imported here and not above: only what is imported after the line before has its asserts rewritten.
from .artifacts import ArtifactStoreConformance  # noqa: E402
from .capabilities import Capability  # noqa: E402
from .ledgers import LedgerStoreConformance  # noqa: E402
from .pairs import PairConformance  # noqa: E402
from .runs import RunStoreConformance  # noqa: E402
from .snapshots import SnapshotStoreConformance  # noqa: E402

__all__ = [
    "ArtifactStoreConformance",
    "Capability",
    "LedgerStoreConformance",
    "PairConformance",
    "RunStoreConformance",
    "SnapshotStoreConformance",
]
