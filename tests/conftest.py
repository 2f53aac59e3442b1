"""What every test gets: a guard against blocking the event loop, and a seed that a failing test shows."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

from .scale import scaled

settings.register_profile("abstractruntime", max_examples=scaled(100, 5_000), deadline=None, print_blob=True)
settings.load_profile("abstractruntime")


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """A blocking call in an event loop, made by the package or by what it calls there, raises `BlockingError`.

    A test that blocks on purpose asks for this fixture and calls `blockbuster.deactivate()`.
    """
    with blockbuster_ctx("abstractruntime") as guard:
        yield guard


@pytest.fixture(autouse=True)
def root_level() -> Iterator[None]:
    """AbstractCore, where a test imports it by itself, raises the level of the root logger for all that come after."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def seed() -> int:
    """A fresh random seed, or the one in `ABSTRACTRUNTIME_SEED`; printed, so that a failing test's report shows it."""
    number = int(os.environ.get("ABSTRACTRUNTIME_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {number} (again with ABSTRACTRUNTIME_SEED={number})")
    return number
