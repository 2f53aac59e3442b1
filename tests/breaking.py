"""How stores are remembered that do one thing wrong each, with the test that must notice.

`test_conformance_catches.py` runs the suites over them, in a pytest of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from msgspec import Struct

from abstractruntime.testing.conformance import Capability
from abstractruntime.testing.conformance.suite import Suite

#: what all stores in memory have
OURS = frozenset(Capability) - {Capability.CHAIN, Capability.PERSISTENT}


class Broken(Struct, frozen=True):
    """A test class over a broken store, and the test in it that must fail; None where all must pass."""

    suite: type[Suite]
    caught_by: str | None


BROKEN: dict[str, Broken] = {}


def broken(
    name: str,
    suite: type[Suite],
    caught_by: str | None,
    make: Callable[[Path], Any],
    capabilities: Collection[Capability] = OURS,
) -> None:
    """Remember what `make(folder)` gives as broken; of what all have, the suite is told what it knows."""
    members = {
        "capabilities": frozenset(capabilities) - (OURS - frozenset(suite.known)),
        "make": lambda self, folder: make(folder),
        "__module__": __name__,
    }
    BROKEN[name] = Broken(type(f"Test_{name}", (suite,), members), caught_by)


def each_in(suite: type[Suite]) -> Callable[..., Callable[[type], type]]:
    """A decorator that remembers a class of broken stores of one kind: it takes the test and the capabilities."""

    def caught_by(test: str, capabilities: Collection[Capability] = OURS) -> Callable[[type], type]:
        def remember(cls: type) -> type:
            broken(cls.__name__, suite, test, lambda folder: cls(), capabilities)
            return cls

        return remember

    return caught_by
