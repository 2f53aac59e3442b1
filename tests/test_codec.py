"""The border where values become bytes: what JSON carries unchanged, what it changes as documented, what is refused."""

from __future__ import annotations

import collections
import enum
import hashlib
import inspect
import itertools
import json
import math
import re
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime.core.codec import (
    DEEPEST,
    canonical,
    copy_of,
    copy_of_run,
    decode_records,
    decode_run,
    digest,
    encode,
    encode_records,
    encode_run,
    json_safe,
    record_dict,
)
from abstractruntime.core.errors import StoreCorrupt, UnsafeValue
from abstractruntime.core.models import (
    Effect,
    EffectType,
    Intent,
    RunState,
    RunStatus,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)


class Colour(enum.IntEnum):
    RED = 1


class Mood(enum.StrEnum):
    GOOD = "good"


class Pair(NamedTuple):
    x: int
    y: int


@dataclass
class Point:
    x: int


class Shape(msgspec.Struct):
    x: int


UNCHANGED: list[Any] = [
    {},
    {"a": None, "b": True, "c": False, "d": 0, "e": -0.0, "f": 1.5, "g": 1e300, "h": "", "i": [], "j": {}},
    {"a": [[1, [2, {"b": [3]}]]]},
    {"emoji": "😀", "é": "combining e\u0301", "nul": "a\x00b", "line": "\u2028\n\r\t", "": "an empty key"},
    {"max": 2**63 - 1, "min": -(2**63), "unsigned": 2**64 - 1, "more": 2**64, "many": 10**300, "less": -(10**300)},
    {"tiny": 5e-324, "big": 1.7976931348623157e308, "third": 1 / 3},
    [1, "two", None],
    "text",
    7,
    None,
    collections.OrderedDict(a=1),
    {"mood": Mood.GOOD, "colour": Colour.RED},
]


@pytest.mark.parametrize("value", UNCHANGED, ids=range(len(UNCHANGED)))
def test_what_json_carries_is_returned_itself(value: Any):
    assert json_safe(value, "vars") == value
    assert copy_of(value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2), [1, 2]),
        ({"a": (1, (2,)), "b": [(3,)]}, {"a": [1, [2]], "b": [[3]]}),
        ({1: "a", -2: "b", 2**70: "c"}, {"1": "a", "-2": "b", str(2**70): "c"}),
        ({True: "a", False: "b", None: "c", 1.5: "d"}, {"true": "a", "false": "b", "null": "c", "1.5": "d"}),
        ({"a": [{2: {3: (4,)}}]}, {"a": [{"2": {"3": [4]}}]}),
        (Pair(1, 2), [1, 2]),
        ({Colour.RED: 1}, {"1": 1}),
        ({Mood.GOOD: (1,)}, {"good": [1]}),
    ],
    ids=str,
)
def test_tuples_and_keys_become_what_the_standard_library_makes_of_them(value: Any, expected: Any):
    found = json_safe(value, "vars")
    assert found == expected
    assert found == json.loads(json.dumps(value))


def test_what_has_to_change_is_changed_in_a_copy():
    kept = [1, 2]
    value = {"tuple": (kept,), "list": kept}
    found = json_safe(value, "vars")
    assert value == {"tuple": ([1, 2],), "list": [1, 2]}
    found["tuple"][0].append(3)
    assert kept == [1, 2]


def cycle() -> Any:
    inner: list[Any] = []
    inner.append({"again": inner})
    return inner


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


REFUSED: dict[str, tuple[Any, str, str]] = {
    "nan": ({"a": [0, math.nan]}, "vars.a[1]", "nan is no JSON number"),
    "infinity": ({"a": {"b": math.inf}}, "vars.a.b", "inf is no JSON number"),
    "minus infinity": (-math.inf, "vars", "-inf is no JSON number"),
    "a nan in a tuple": ({"a": (1, (math.nan,))}, "vars.a[1][0]", "nan"),
    "bytes": ({"a": b"x"}, "vars.a", "type bytes"),
    "bytearray": ({"a": bytearray(b"x")}, "vars.a", "type bytearray"),
    "memoryview": ({"a": memoryview(b"x")}, "vars.a", "type memoryview"),
    "a set": ({"a": [{1}]}, "vars.a[0]", "type set"),
    "a frozenset": ({"a": frozenset()}, "vars.a", "type frozenset"),
    "a datetime": ({"a": datetime(2026, 1, 31, tzinfo=UTC)}, "vars.a", "type datetime"),
    "a date": ({"a": date(2026, 1, 31)}, "vars.a", "type date"),
    "a uuid": ({"a": uuid.UUID(int=1)}, "vars.a", "type UUID"),
    "a decimal": ({"a": Decimal(1)}, "vars.a", "type Decimal"),
    "a complex number": ({"a": 1j}, "vars.a", "type complex"),
    "a dataclass": ({"a": Point(1)}, "vars.a", "type Point"),
    "a struct": ({"a": Shape(1)}, "vars.a", "type Shape"),
    "raw json": ({"a": msgspec.Raw(b"1")}, "vars.a", "type Raw"),
    "a function": ({"a": print}, "vars.a", "type builtin_function_or_method"),
    "an object": ({"a": object()}, "vars.a", "type object"),
    "a lone surrogate": ({"a": ["ok", "x\ud800"]}, "vars.a[1]", "lone surrogate at position 1"),
    "a lone surrogate in a key": ({"a": {"\udfff": 1}}, "vars.a (a key)", "lone surrogate at position 0"),
    "a key of bytes": ({"a": {b"k": 1}}, "vars.a", "a key of type bytes"),
    "a key of a tuple": ({"a": {(1, 2): 1}}, "vars.a", "a key of type tuple"),
    "a key of a date": ({"a": {date(2026, 1, 31): 1}}, "vars.a", "a key of type date"),
    "a key of infinity": ({"a": {math.inf: 1}}, "vars.a", "a key of type float"),
    "two keys that become one number": ({"a": {1: "x", "1": "y"}}, "vars.a", "two keys become '1'"),
    "two keys that become true": ({"a": {True: "x", "true": "y"}}, "vars.a", "two keys become 'true'"),
    "two keys that become null": ({"a": {None: "x", "null": "y"}}, "vars.a", "two keys become 'null'"),
    "a list in itself": ({"a": cycle()}, "vars.a[0].again", "contains itself"),
    "too deep": ({"a": nested(100_000)}, "vars.a[0][0]", "nested too deeply"),
    "an endless number": ({"a": {"b": 10**5000}}, "vars", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_json_cannot_carry_is_refused_and_the_error_names_the_path(case: str):
    value, path, problem = REFUSED[case]
    with pytest.raises(UnsafeValue) as caught:
        json_safe(value, "vars")
    assert caught.value.path.startswith(path)
    assert problem in caught.value.problem
    assert str(caught.value).startswith(caught.value.path)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


def test_a_dict_in_itself_is_refused():
    value: dict[str, Any] = {"a": {}}
    value["a"]["back"] = value
    with pytest.raises(UnsafeValue, match=r"vars\.a\.back: the value contains itself"):
        json_safe(value, "vars")


def test_the_same_list_twice_is_no_cycle():
    shared = [1]
    value = {"a": shared, "b": [shared, shared]}
    assert json_safe(value, "vars") == value


def test_a_refused_value_is_left_as_it_was():
    value = {"a": (1, {2: math.nan})}
    with pytest.raises(UnsafeValue):
        json_safe(value, "vars")
    assert list(value) == ["a"]
    assert value["a"][0] == 1


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, categories=None), max_size=5)
    | st.binary(max_size=2)
    | st.dates()
    | st.sampled_from([Colour.RED, Mood.GOOD])
)
KEYS = (
    st.text(max_size=3)
    | st.integers(-3, 3)
    | st.booleans()
    | st.none()
    | st.floats(-2, 2)
    | st.sampled_from(["1", "true"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.frozensets(st.integers(), max_size=2)
    ),
    max_leaves=8,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(ANYTHING)
def test_whatever_is_admitted_reads_back_as_it_is_in_memory(value: Any):
    try:
        admitted = json_safe(value, "vars")
    except UnsafeValue as error:
        refused_at = error.path
    else:
        assert copy_of(admitted) == admitted
        assert json_safe(admitted, "vars") == admitted
        assert admitted == json.loads(json.dumps(value))
        return
    assert refused_at.startswith("vars")


@given(JSON)
def test_every_json_value_is_admitted_as_it_is(value: Any):
    assert json_safe(value, "vars") == value


@given(JSON)
def test_a_copy_shares_nothing_with_its_original(value: Any):
    copied = copy_of([value, {"v": value}])
    assert copied == [value, {"v": value}]
    assert copied[0] is not value or not isinstance(value, list | dict)
    assert copied[0] is not copied[1]["v"] or not isinstance(value, list | dict)


# -- hashes


@pytest.mark.parametrize(
    ("value", "text", "sha256"),
    [
        (
            {"b": 1, "a": [1, 2.5, "é", None, True]},
            '{"a":[1,2.5,"é",null,true],"b":1}',
            "d3e9c94cf3142b4d474f4f1468363aee932cf33c7d928ba9140afd6f1b1ac0da",
        ),
        ({}, "{}", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
        (
            {"é": {"z": '\x00\n"\\/', "a": -1e-7}, "Z": [], "_": 10**20},
            '{"Z":[],"_":100000000000000000000,"é":{"a":-1e-7,"z":"\\u0000\\n\\"\\\\/"}}',
            "e395b247c257cb1c50fcbff5a9689f10993f70128737b9066bf3f065a7a557c5",
        ),
    ],
    ids=["plain", "empty", "odd"],
)
def test_the_canonical_form_and_its_digest_never_change(value: Any, text: str, sha256: str):
    assert canonical(value) == text.encode()
    assert digest(value) == sha256
    assert hashlib.sha256(text.encode()).hexdigest() == sha256


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=5), st.randoms(use_true_random=False))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any], random: Any):
    items = list(value.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(value)


@given(JSON, JSON)
def test_different_json_has_different_canonical_forms(one: Any, other: Any):
    if encode(one) != encode(other) and copy_of(one) != copy_of(other):
        assert canonical(one) != canonical(other)


# -- runs and records


def a_run() -> RunState:
    return RunState(
        run_id="r",
        workflow_id="w",
        status=RunStatus.WAITING,
        current_node="n",
        vars={"a": [1, {"b": None}], "_runtime": {"effect_seq": 3}},
        waiting=WaitState(WaitReason.EVENT, "door", None, "next", "opened", choices=["a"], details={"wait_id": "x"}),
        output=None,
        created_at="2026-01-31T09:00:00.000000+00:00",
        updated_at="2026-01-31T09:00:00.000000+00:00",
        revision=7,
        commit_id="c",
        records=4,
        intent=Intent(
            step_id="r:3.1",
            seq=3,
            node_id="n",
            effect=Effect("llm_call", {"q": [1]}, "a.b"),
            key="k",
            started_at="2026-01-31T09:00:00.000000+00:00",
        ),
        owner="o",
    )


def a_record() -> StepRecord:
    return StepRecord(
        "r",
        "r:3.1",
        "n",
        StepStatus.WAITING,
        {"type": "ask_user", "payload": {"a": 1}, "result_key": None},
        {"wait": {"reason": "user"}},
        started_at="2026-01-31T09:00:00.000000+00:00",
    )


def test_a_stored_run_reads_back_equal_with_its_types():
    run = a_run()
    found = decode_run(encode_run(run), "r")
    assert found == run
    assert type(found.status) is RunStatus
    assert found.waiting is not None
    assert type(found.waiting.reason) is WaitReason
    assert found.intent is not None
    assert found.intent.effect.type is EffectType.LLM_CALL


def test_a_copied_run_shares_nothing_and_leaves_unsaved_attributes_behind():
    run = a_run()
    run._unsaved = 1  # type: ignore[attr-defined]
    copied = copy_of_run(run)
    assert copied == run
    assert copied.vars["a"] is not run.vars["a"]
    assert copied.__dict__ == {}


def test_stored_records_read_back_equal_and_in_order():
    records = [a_record(), StepRecord.start(run=a_run(), node_id="n", effect=None)]
    assert decode_records(encode_records(records), "r") == records


def test_a_record_that_stands_for_two_reads_back_as_both():
    ended = a_record()
    ended.folded = True
    started, end = decode_records(encode_records([ended]), "r")
    assert (started.status, started.result, started.error, started.ended_at) == (StepStatus.STARTED, None, None, None)
    assert (started.step_id, started.effect, started.started_at) == (end.step_id, end.effect, end.started_at)
    assert (end.status, end.result, end.ended_at) == (ended.status, ended.result, ended.ended_at)
    assert not started.folded
    assert not end.folded


def test_a_record_is_shown_with_every_field_as_plain_json():
    shown = record_dict(a_record())
    assert list(shown) == [name for name in StepRecord.__struct_fields__ if name not in ("changes", "folded", "slim")]
    assert type(shown["status"]) is str
    assert json.loads(json.dumps(shown)) == shown


def test_fields_of_a_later_version_are_passed_over():
    stored = json.loads(encode_run(a_run()))
    del stored["crc"]
    assert decode_run(encode({**stored, "invented_later": {"x": 1}}), "r") == a_run()


def test_every_flipped_bit_of_what_is_stored_is_found():
    """In the name or the digits of the checksum too; a name that is none any more is a field that is passed over."""
    run, records = a_run(), [StepRecord("r", "r:1.1", "n", StepStatus.COMPLETED, result={"a": [1, "ä"]})]
    for data, decoded, same in (
        (encode_run(run), decode_run, run),
        (encode_records(records), decode_records, records),
    ):
        for position, bit in itertools.product(range(len(data)), range(8)):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                found: Any = decoded(bytes(flipped), "r")
            except StoreCorrupt:
                continue
            assert found == same, f"bit {bit} of byte {position}"
            assert position < 17


def test_what_was_stored_without_a_checksum_is_read():
    plain = re.sub(rb'"crc":"\w{8}",', b"", encode_run(a_run()))
    assert b"crc" not in plain
    assert decode_run(plain, "r") == a_run()


def test_a_run_of_the_thirteen_documented_fields_reads_back_with_defaults_for_the_rest():
    plain = {
        "run_id": "r",
        "workflow_id": "w",
        "status": "waiting",
        "current_node": "n",
        "vars": {"a": 1},
        "waiting": {"reason": "until", "until": "2026-01-31T09:00:00+00:00", "wait_key": None},
        "output": None,
        "error": None,
        "created_at": "2026-01-31T09:00:00+00:00",
        "updated_at": "2026-01-31T09:00:00+00:00",
        "actor_id": None,
        "session_id": "s",
        "parent_run_id": None,
    }
    run = decode_run(json.dumps(plain, indent=2).encode(), "r")
    assert (run.status, run.vars, run.session_id) == (RunStatus.WAITING, {"a": 1}, "s")
    assert (run.revision, run.records, run.intent, run.commit_id) == (0, 0, None, None)


DAMAGED = [b"", b"{", b"null", b"[]", b'"r"', b"{}", b"\xff\xfe", b'{"run_id": 5}', b"\x00" * 40]


@pytest.mark.parametrize("data", [*DAMAGED, b"[" * 100_000, encode_run(a_run())[:-1], encode_run(a_run()) + b"x"])
def test_damaged_bytes_of_a_run_are_told_as_such_with_its_id(data: bytes):
    with pytest.raises(StoreCorrupt, match=r"state of run 'the-run' cannot be read.*backup") as caught:
        decode_run(data, "the-run")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("field", ["status", "waiting", "intent", "vars", "revision"])
def test_a_run_with_a_field_of_another_type_is_damaged(field: str):
    data = encode({**json.loads(encode_run(a_run())), field: "nonsense"})
    with pytest.raises(StoreCorrupt, match="'the-run'"):
        decode_run(data, "the-run")


@pytest.mark.parametrize("data", [b"", b"[", b"{}", b"null", b"[1]", b"[{}]", b"\xff", b'[{"run_id":"r"}]'])
def test_damaged_bytes_of_a_ledger_are_told_as_such_with_the_id_of_its_run(data: bytes):
    with pytest.raises(StoreCorrupt, match=r"ledger of run 'the-run' cannot be read.*backup"):
        decode_records(data, "the-run")


@given(st.integers(0, len(encode_run(a_run())) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_any_damage_gives_a_run_or_a_clear_error_and_nothing_else(at: int, inserted: bytes, lost: int):
    data = encode_run(a_run())
    try:
        found = decode_run(data[:at] + inserted + data[at + lost :], "the-run")
    except StoreCorrupt as error:
        told = str(error)
    else:
        assert isinstance(found, RunState)
        return
    assert "'the-run'" in told


def test_as_deep_as_may_be_is_kept_and_one_deeper_is_refused():
    kept = {"a": nested(DEEPEST - 1)}
    assert json_safe(kept, "vars") == kept
    for deeper_one in ({"a": nested(DEEPEST)}, nested(DEEPEST + 1), {"a": [{"b": nested(DEEPEST - 2)}]}):
        with pytest.raises(UnsafeValue, match="nested too deeply"):
            json_safe(deeper_one, "vars")


@pytest.mark.parametrize("text", ["[" * 1000, "]{" * 1000, "[{" * 999 + '"', "\\[" * 1000])
def test_brackets_in_texts_are_no_depth(text: str):
    value = {"a": [text, {"b": text}], text: 1}
    assert json_safe(value, "vars") == value


def test_wide_is_not_deep():
    value: Any = {"a": [{"b": [], "c": {}} for _ in range(1000)]}
    assert json_safe(value, "vars") == value


def deeper(levels: int, function: Any) -> Any:
    return function() if levels == 0 else deeper(levels - 1, function)


@pytest.mark.parametrize("levels", [0, 300, 600, 800])
def test_what_could_be_written_can_be_read_however_little_of_the_stack_is_left(levels: int):
    """A healthy state was called corrupt when somebody deep in calls of his own read it."""
    run = RunState.new(workflow_id="w", entry_node="a", vars={"a": nested(DEEPEST - 1)})
    record = StepRecord(
        run_id=run.run_id, step_id="s", node_id="a", status=StepStatus.COMPLETED, result={"a": nested(50)}
    )
    data, records = encode_run(run), encode_records([record])
    left = sys.getrecursionlimit() - len(inspect.stack(0))
    levels = min(levels, left - 60)
    assert deeper(levels, lambda: decode_run(data, run.run_id)).vars == run.vars
    assert deeper(levels, lambda: decode_records(records, run.run_id))[0].result == record.result


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"vars":' * 50_000])
def test_bytes_that_nobody_wrote_are_corrupt_however_deep(data: bytes):
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        decode_run(data, "r")
