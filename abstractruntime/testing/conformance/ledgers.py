"""What a ledger store must do: keep each run's records whole, in the order in which they came, and never lose one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from ...core.chain import verify_ledger_chain
from ...core.models import StepRecord, StepStatus
from . import values
from .capabilities import Capability
from .suite import Suite, Work


class LedgerStoreConformance(Suite):
    """The suite of ledger stores: see `storage.base.LedgerStore`. `make` returns the store."""

    known: ClassVar = frozenset(
        {
            Capability.LIST_AFTER,
            Capability.COUNT,
            Capability.COUNT_MANY,
            Capability.METRICS,
            Capability.DELETE,
            Capability.CHAIN,
            Capability.PERSISTENT,
        }
    )

    def append(self, *records: StepRecord) -> None:
        """Append records, one after the other."""
        for record in records:
            self.do(self.store.append, record)

    def listed(self, run_id: str) -> list[dict[str, Any]]:
        """List a ledger."""
        found: list[dict[str, Any]] = self.do(self.store.list, run_id)
        return found

    def kept_fields(self) -> tuple[str, ...]:
        """The fields of a record that come back as they were given."""
        chained = values.CHAINED_FIELDS if self.has(Capability.CHAIN) else ()
        return tuple(name for name in values.RECORD_FIELDS if name not in chained)

    def test_an_unknown_run_has_no_records(self) -> None:
        self.append(values.record("known"))
        for run_id in ("unknown", "know", "KNOWN", "*", "%"):
            assert self.listed(run_id) == [], run_id

    def test_every_field_comes_back(self) -> None:
        names = self.kept_fields()
        for record in (values.full_record(), StepRecord("bare", "s", "n", StepStatus.STARTED)):
            given = values.fields_of(record, names)
            self.append(record)
            (row,) = self.listed(record.run_id)
            assert isinstance(row, dict)
            for name, value in given.items():
                assert values.plain(row.get(name)) == value, f"{record.run_id}.{name}"

    def test_what_is_listed_is_plain_json(self) -> None:
        for n, status in enumerate(StepStatus):
            self.append(values.record("r", n, status=status))
        rows = self.listed("r")
        assert json.loads(json.dumps(rows)) == rows
        assert [row["status"] for row in rows] == [str(status) for status in StepStatus]

    def test_records_come_in_the_order_in_which_they_were_appended(self) -> None:
        order = [5, 1, 4, 1, 5, 9, 2, 6, 11, 10]
        for number in order:
            self.append(values.record("r", number))
        assert values.numbers(self.listed("r")) == order

    def test_the_two_records_of_a_step_are_both_kept(self) -> None:
        record = values.record("r", 1, status=StepStatus.STARTED, result=None)
        self.append(record)
        self.append(record.finish_success({"n": 1}))
        assert [(row["status"], row["result"]) for row in self.listed("r")] == [
            ("started", None),
            ("completed", {"n": 1}),
        ]

    def test_ledgers_of_several_runs_do_not_mix(self) -> None:
        for number in range(6):
            self.append(values.record("ab"[number % 2], number))
        assert values.numbers(self.listed("a")) == [0, 2, 4]
        assert values.numbers(self.listed("b")) == [1, 3, 5]

    def test_what_was_appended_is_not_aliased_with_what_is_stored(self) -> None:
        record = values.record("r", 1, effect={"type": "pay", "payload": {"list": [1]}, "result_key": None})
        self.append(record)
        record.result["n"], record.status = 2, StepStatus.FAILED
        record.effect["payload"]["list"].append(2)  # type: ignore[index]
        (row,) = self.listed("r")
        assert (row["result"], row["status"], row["effect"]["payload"]) == ({"n": 1}, "completed", {"list": [1]})

    def test_what_was_listed_is_not_aliased_with_what_is_stored(self) -> None:
        self.append(values.record("r", 1), values.record("r", 2))
        rows = self.listed("r")
        rows[0]["result"]["n"], rows[0]["status"] = "changed", "changed"
        rows.pop()
        assert values.numbers(self.listed("r")) == [1, 2]
        assert self.listed("r")[0]["status"] == "completed"

    def test_unsaved_attributes_are_taken_and_not_stored(self) -> None:
        record = values.record("r", 1)
        record.mine = object()  # type: ignore[attr-defined]
        self.append(record)
        assert "mine" not in self.listed("r")[0]

    def test_odd_ids_are_ids_like_any_other(self) -> None:
        for n, run_id in enumerate(values.ODD_IDS):
            self.append(values.record(run_id, n))
        assert [values.numbers(self.listed(run_id)) for run_id in values.ODD_IDS] == [
            [n] for n in range(len(values.ODD_IDS))
        ]

    def test_an_id_is_never_a_path(self) -> None:
        before = {path for path in self.folder.parent.iterdir()}
        for run_id in values.PATHS:
            if not self.refuses(self.store.append, values.record(run_id, 1)):
                assert values.numbers(self.listed(run_id)) == [1], run_id
        assert {path for path in self.folder.parent.iterdir()} == before, "something was written outside of the folder"

    def test_bad_values_are_refused_or_kept_and_lose_nothing(self) -> None:
        for name, value in values.BAD_VALUES.items():
            self.append(values.record(name, 1))
            bad = values.record(name, 2, result={"n": 2, "v": [value]})
            kept = not self.refuses(self.store.append, bad)
            self.append(values.record(name, 3))
            rows = self.listed(name)
            assert values.numbers(rows) == ([1, 2, 3] if kept else [1, 3]), name
            if kept:
                assert repr(rows[1]["result"]["v"]) == repr([value]), name

    def test_what_is_no_json_is_refused_and_loses_nothing(self) -> None:
        cycle: dict[str, Any] = {}
        cycle["self"] = cycle
        self.append(values.record("r", 1))
        for bad in (cycle, {"o": object()}, {"s": {1}}, {"b": b"x"}):
            refused = self.refuses(self.store.append, values.record("r", 2, result=bad))
            assert refused, f"{bad} is no JSON: it cannot be the same after a restart"
        self.append(values.record("r", 3))
        assert values.numbers(self.listed("r")) == [1, 3]

    def test_list_after_reads_on_from_a_number(self) -> None:
        self.needs(Capability.LIST_AFTER)
        self.append(*(values.record("r", number) for number in range(1, 8)))
        everything = self.listed("r")
        for after in range(-1, 10):
            for limit in (1, 3, 7, 100):
                start = max(0, after)
                expected = everything[start : start + limit]
                found = self.do(self.store.list_after, run_id="r", after=after, limit=limit)
                assert (found[0], found[1]) == (expected, start + len(expected)), (after, limit)

    def test_list_after_pages_to_the_end_and_finds_what_comes_later(self) -> None:
        self.needs(Capability.LIST_AFTER)
        self.append(*(values.record("r", number) for number in range(1, 6)))
        seen: list[int] = []
        cursor = 0
        for expected in ([1, 2], [3, 4], [5], []):
            rows, cursor = self.do(self.store.list_after, run_id="r", after=cursor, limit=2)
            assert values.numbers(rows) == expected
            seen += values.numbers(rows)
        self.append(values.record("r", 6))
        rows, cursor = self.do(self.store.list_after, run_id="r", after=cursor)
        assert (values.numbers(rows), cursor) == ([6], 6)
        rows, cursor = self.do(self.store.list_after, run_id="unknown", after=0)
        assert (rows, cursor) == ([], 0)

    def test_counts_are_those_of_the_list(self) -> None:
        self.needs(Capability.COUNT)
        expected = {"a": 3, "b": 1, "unknown": 0}
        for run_id, count in expected.items():
            self.append(*(values.record(run_id, number) for number in range(count)))
        assert {run_id: self.do(self.store.count, run_id) for run_id in expected} == expected
        assert {run_id: len(self.listed(run_id)) for run_id in expected} == expected

    def test_counts_of_many_are_those_of_the_lists(self) -> None:
        self.needs(Capability.COUNT_MANY)
        self.append(values.record("a", 1), values.record("b", 1), values.record("a", 2))
        assert self.do(self.store.count_many, iter(["a", "b", "unknown"])) == {"a": 2, "b": 1, "unknown": 0}
        assert self.do(self.store.count_many, []) == {}

    def test_metrics_are_those_of_completed_records(self) -> None:
        self.needs(Capability.METRICS)
        usage = {"usage": {"input_tokens": 3, "output_tokens": 4}}
        calls: dict[str, Any] = {"type": "tool_calls", "payload": {"tool_calls": [{}, {}]}, "result_key": None}
        llm: dict[str, Any] = {"type": "llm_call", "payload": {}, "result_key": None}
        self.append(
            values.record("r", 1, status=StepStatus.STARTED, effect=llm, result=None),
            values.record("r", 1, effect=llm, result=usage),
            values.record("r", 2, status=StepStatus.FAILED, effect=llm, result=usage),
            values.record("r", 3, effect=calls),
        )
        found = self.do(self.store.metrics_many, ["r", "unknown"])
        assert found["r"] == {"steps": 2, "llm_calls": 1, "tool_calls": 2, "tokens_total": 7}
        assert set(found["unknown"].values()) == {0}

    def test_delete_forgets_one_ledger(self) -> None:
        self.needs(Capability.DELETE)
        self.append(values.record("a", 1), values.record("b", 1), values.record("a", 2))
        assert self.do(self.store.delete, "a") == 2
        assert self.do(self.store.delete, "a") == 0
        assert (self.listed("a"), values.numbers(self.listed("b"))) == ([], [1])
        self.append(values.record("a", 7))
        assert values.numbers(self.listed("a")) == [7]
        if self.has(Capability.COUNT):
            assert self.do(self.store.count, "a") == 1

    def test_records_are_chained_or_not_at_all(self) -> None:
        self.append(*(values.record("r", number) for number in range(4)), values.record("other", 1))
        rows: list[Mapping[str, Any]] = [*self.listed("r")]
        self.agrees(Capability.CHAIN, any(row.get("record_hash") for row in rows))
        if self.has(Capability.CHAIN):
            assert verify_ledger_chain(rows)["ok"], verify_ledger_chain(rows)
            assert rows[0]["prev_hash"] is None
            assert not verify_ledger_chain([*rows[:1], *rows[2:]])["ok"]
            assert self.listed("other")[0]["prev_hash"] is None, "each run has a chain of its own"

    def test_a_restart_keeps_all_or_nothing(self) -> None:
        self.append(*(values.record("r", number) for number in range(3)), values.full_record())
        self.append(*(values.record(run_id, 1) for run_id in values.ODD_IDS))
        ids = ("r", "full", *values.ODD_IDS)
        before = [self.listed(run_id) for run_id in ids]
        self.reopened()
        after = [self.listed(run_id) for run_id in ids]
        assert after == before or not any(after), "a part of the records is gone after a restart"
        self.agrees(Capability.PERSISTENT, after == before)
        self.append(values.record("r", 3))
        assert values.numbers(self.listed("r")) == ([0, 1, 2, 3] if after == before else [3])
        if self.has(Capability.CHAIN):
            assert verify_ledger_chain(self.listed("r"))["ok"]

    def test_several_writers_at_once_lose_nothing(self) -> None:
        """Every store is called from several threads; each writer's records stay in its order."""

        def work(writer: int) -> Work:
            for n in range(15):
                yield self.store.append, values.record("r", writer * 100 + n)

        self.at_once(self.store.append, *(work(writer) for writer in range(4)))
        found = values.numbers(self.listed("r"))
        assert sorted(found) == [writer * 100 + n for writer in range(4) for n in range(15)]
        for writer in range(4):
            own = [number for number in found if number // 100 == writer]
            assert own == sorted(own)
        if self.has(Capability.CHAIN):
            assert verify_ledger_chain(self.listed("r"))["ok"]
