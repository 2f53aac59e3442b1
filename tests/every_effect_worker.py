"""A process that lives the life of `test_every_effect`: `python -m tests.every_effect_worker KIND FOLDER [check]`.

It says `ready` when it begins, and with `check` prints how everything ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from abstractruntime import FileArtifactStore

from .test_every_effect import end_of, live
from .worlds import World


async def main(kind: str, folder: Path, check: bool) -> None:
    world, artifacts = World("async", kind, folder), FileArtifactStore(folder)
    print("ready", flush=True)
    await live(world, artifacts)
    if check:
        print(json.dumps(await end_of(world, artifacts), default=str, sort_keys=True))
    await world.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), "check" in sys.argv))
