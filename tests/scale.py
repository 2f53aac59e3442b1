"""How large the tests are: small for every day, large under `make soak`."""

from __future__ import annotations

import os

SOAK = os.environ.get("ABSTRACTRUNTIME_SOAK") == "1"


def scaled(normal: int, soak: int) -> int:
    """`normal`, or `soak` when the environment has `ABSTRACTRUNTIME_SOAK=1`."""
    return soak if SOAK else normal
