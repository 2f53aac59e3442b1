"""`examples/fastapi_service.py` with a bank that can be watched: `uvicorn tests.service_worker:app`.

Each payment is a line in the file `$WORLD`. A payment whose amount is 666 then hangs while the file `$GATE` is there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from abstractruntime import EffectCall, EffectOutcome
from abstractruntime.core.clock import SYSTEM_CLOCK

from .outside import perform

EXAMPLE = Path(__file__).parent.parent / "examples" / "fastapi_service.py"
SLOW = 666

spec = importlib.util.spec_from_file_location("fastapi_service", EXAMPLE)
assert spec is not None
assert spec.loader is not None
service = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = service  # where FastAPI looks up what annotations mean
spec.loader.exec_module(service)


async def pay(call: EffectCall) -> EffectOutcome:
    perform(Path(os.environ["WORLD"]), call)
    while call.payload["amount"] == SLOW and os.path.exists(os.environ["GATE"]):  # noqa: ASYNC240 - a quick look
        await SYSTEM_CLOCK.sleep(0.01)
    return EffectOutcome.completed(f"receipt {call.key}")


service.HANDLERS["pay"] = pay
app = service.app
