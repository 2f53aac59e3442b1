"""An audit trail: every record is chained to the one before it, so nobody changes the past unseen.

    python examples/audit_trail.py

A payment is approved and made. Then somebody opens the database and changes the amount in the ledger, and somebody
else cuts off its end. Both are found, the second because the run's checkpoint holds the hash of the last record.
"""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from abstractruntime import (
    Effect,
    EffectCall,
    EffectOutcome,
    HashChainedLedgerStore,
    RunState,
    Runtime,
    SqliteDatabase,
    SqliteLedgerStore,
    SqliteRunStore,
    StepPlan,
    WorkflowSpec,
)


def ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect("ask_user", {"prompt": "Pay 100 EUR?"}, "answer"), "pay")


def pay(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("pay", Effect("pay", {"amount": 100}, "receipt"), "done")


def done(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output={"receipt": run.vars["receipt"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec("payment", "ask", {"ask": ask, "pay": pay, "done": done})


def transfer(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.completed({"paid": call.payload["amount"]})


def tell(rt: Runtime, when: str) -> None:
    report = rt.verify_ledger("payment-1")
    found = [f"{error['type']} at {error['index']}" for error in report["errors"]]
    print(f"{when}: {report['count']} records, {'intact' if report['ok'] else ', '.join(found)}")


def main(folder: Path) -> None:
    database = SqliteDatabase(folder / "runs.db")
    ledger = HashChainedLedgerStore(SqliteLedgerStore(database))
    with (
        database,
        Runtime(run_store=SqliteRunStore(database), ledger_store=ledger, effect_handlers={"pay": transfer}) as rt,
    ):
        rt.start(workflow=WORKFLOW, run_id="payment-1")
        wait = rt.tick(workflow=WORKFLOW, run_id="payment-1").waiting
        assert wait is not None
        rt.resume(
            workflow=WORKFLOW, run_id="payment-1", wait_key=wait.wait_key, payload={"text": "yes"}, actor_id="ann"
        )
        for record in rt.get_ledger("payment-1"):
            print(f"  {record['record_hash'][:8]} after {(record['prev_hash'] or 'nothing')[:8]}: {record['status']}")
        tell(rt, "as it was written")

        with closing(database.connection()) as sql:
            rows = sql.execute("SELECT id, data FROM ledger ORDER BY id").fetchall()
            row, data = next((row, data) for row, data in rows if b'"paid":100' in data)
            bare = re.sub(rb'"crc":"\w+",', b"", data)  # without the checksum of the bytes
            forged = bare.replace(b'"paid":100', b'"paid":999')
            sql.execute("UPDATE ledger SET data = ? WHERE id = ?", (forged, row))
            tell(rt, "with another amount")
            print(f"  it says now: {json.loads(forged)[-1]['result']}")
            sql.execute("UPDATE ledger SET data = ? WHERE id = ?", (data, row))
            sql.execute("DELETE FROM ledger WHERE id = ?", (rows[-1]["id"],))
            tell(rt, "without its end")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
