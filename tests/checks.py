"""What must hold of a run and its ledger, whatever happened to the processes that moved it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from abstractruntime import RunState
from abstractruntime.core import kernel

from .model import written

Ledger = list[dict[str, Any]]


def check_ledger(state: RunState, ledger: Ledger) -> None:
    """The ledger proves the state: every promise ended, every effect landed once, the last record is the end."""
    assert len(ledger) == state.records
    started = [record["step_id"] for record in ledger if record["status"] == "started"]
    assert len(started) == len(set(started)), "two STARTED records share a step id"
    ended = Counter(r["step_id"] for r in ledger if r["status"] != "started" and r["step_id"] in set(started))
    assert set(ended) == set(started), "a promise without an end"
    assert set(ended.values()) <= {1}, "a step ended twice"
    landed = Counter(
        record["step_id"].rpartition(":")[2].partition(".")[0]
        for record in ledger
        if record["status"] in ("completed", "waiting") and record["step_id"] in set(started) - asked_by(ledger)
    )
    assert set(landed.values()) <= {1}, "an effect landed twice"
    assert state.vars["_runtime"].get("effect_seq", 0) == len(landed)
    assert ledger[-1]["idempotency_key"] == f"system:terminal_status:{state.status}"


def asked_by(ledger: Ledger) -> set[str]:
    """The steps that ended with a question about their own effect, which is answered: the effect goes on in another."""
    answers = (record["result"] for record in ledger if (record["effect"] or {}).get("type") == "resume")
    return {answer["about"]["step_id"] for answer in answers if "about" in answer}


def check_on_the_way(state: RunState, ledger: Ledger) -> None:
    """At any moment: the state counts its records, and the only promises without an end are the effects in flight."""
    assert len(ledger) == state.records
    started = Counter(record["step_id"] for record in ledger if record["status"] == "started")
    ended = Counter(r["step_id"] for r in ledger if r["status"] != "started" and r["step_id"] in started)
    claimed = kernel.is_open(state)
    in_flight = {attempt.step_id for attempt in kernel.in_flight(state.intent)} if claimed and state.intent else set()
    assert set((started - ended).elements()) == in_flight
    assert not ended - started, "a step ended twice"


def attempts_of(ledger: Ledger) -> Counter[str]:
    """How many attempts at each effect the ledger knows, by idempotency key."""
    return Counter(record["idempotency_key"] for record in ledger if record["status"] == "started")


def lost_attempts_of(ledger: Ledger) -> Counter[str]:
    """How many of them ended with an unknown outcome, because their process died or lost its lease."""
    return Counter(record["idempotency_key"] for record in ledger if (record["result"] or {}) == {"outcome": "unknown"})


def shape(ledger: Ledger) -> list[tuple[Any, ...]]:
    """What of a ledger must not depend on faults: what landed, in order, with its result."""
    return [
        (r["node_id"], r["status"], r["idempotency_key"] if r["effect"] else None)
        for r in ledger
        if r["status"] in ("completed", "waiting")
    ]


@dataclass
class Told:
    """What a ledger alone tells of its run."""

    #: as far as the run's own steps go: a pause writes no record
    status: str = "running"
    output: Any = None
    error: str | None = None
    #: what results and answers wrote to vars, and how many effects landed
    written: dict[str, Any] = field(default_factory=dict)
    landed: int = 0

    def write(self, key: str | None, value: Any) -> None:
        if key is not None and value is not None:
            self.written = written(self.written, key, value)


def told_by(ledger: Ledger) -> Told:
    """Fold the records, in order, into what they tell."""
    told, promised = Told(), dict[str, Any]()
    for record in ledger:
        effect, key = record["effect"] or {}, record["idempotency_key"] or ""
        if record["status"] == "started":
            promised[record["step_id"]] = effect
        elif key.startswith("system:terminal_status:"):
            told.status = record["result"]["payload"]["text"]
            told.landed += told.status == "failed"
        elif key.startswith("system:completion:"):
            told.output = record["result"]["output"]
        elif effect.get("type") == "resume":
            told.status = "running"
            told.write(effect["payload"]["result_key"], effect["payload"]["payload"])
        elif record["step_id"] in promised:
            told.landed += record["status"] in ("completed", "waiting")
            if record["status"] == "completed":
                told.write(promised[record["step_id"]]["result_key"], record["result"])
            told.status = "waiting" if record["status"] == "waiting" else "running"
            told.error = record["error"]
    return told
