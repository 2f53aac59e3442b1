"""The one place where values become bytes, and where it is decided which values may.

JSON safety is a round trip: encode, decode, compare. Equal means that memory always equals a reload. Where they
differ, one walk finds out why: tuples and non-string keys become what the standard `json` module makes of them;
anything else that JSON cannot carry (NaN, bytes, sets, dates, cycles, lone surrogates, objects) is an `UnsafeValue`
that names the path.

What is stored begins with a checksum of the rest, `{"crc":"1c291ca3",...` (CRC-32 as `zlib.crc32` has it, in hex), so
that a bit which flipped on the disk is found when it is read and not believed. Bytes without one are read as they are:
older versions, and people, wrote none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar
from zlib import crc32

import msgspec

from .errors import StoreCorrupt, UnsafeValue
from .models import RunState, StepRecord, StepStatus

_T = TypeVar("_T")

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode
_canonical = msgspec.json.Encoder(order="deterministic").encode
_decode_run = msgspec.json.Decoder(RunState).decode
_decode_records = msgspec.json.Decoder(list[StepRecord]).decode

#: what encoding, decoding or comparing a bad value may raise
REFUSALS = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)

#: how many lists and dicts may be inside one another. JSON has no bound, but what reads it takes of the caller's stack
#: for each: deeper values could be written here and not be read by somebody who has less of it left.
DEEPEST = 260
#: the same for what is put into the vars of a run, where it stands deeper
DEEPEST_GIVEN = 200

_OTHERS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ALIKE = bytes.maketrans(b"{}", b"[]")


def json_safe(value: Any, path: str, *, deepest: int = DEEPEST) -> Any:
    """A copy of `value` as JSON reads it back; `UnsafeValue` naming the path where that would be something else.

    The copy is what a reload gives, and is aliased with nothing that the caller holds.

    >>> json_safe({"a": (1, 2), 3: None}, "vars")
    {'a': [1, 2], '3': None}
    """
    try:
        data = encode(value)
        back = decode(data)
        if back == value and not is_deeper(data, deepest):
            return back
    except REFUSALS:
        pass  # the walk below says where and why
    try:
        normal = _normal(value, path, (), deepest)
    except RecursionError as error:
        raise UnsafeValue(path, "nested too deeply for what is left of the stack here") from error
    try:
        back = decode(encode(normal))
        if back == normal:
            return back
    except REFUSALS as error:
        raise UnsafeValue(path, f"cannot be written as JSON ({error})") from error
    raise UnsafeValue(path, "reads back from JSON as something else")


def is_deeper(data: bytes, most: int) -> bool:
    """Whether there may be more than `most` lists and dicts inside one another; brackets in texts may look like it."""
    if len(data) <= 2 * most or data.count(b"[") + data.count(b"{") <= most:
        return False
    brackets = data.translate(_ALIKE, _OTHERS)
    for _ in range(most):  # each time without the innermost ones
        brackets, before = brackets.replace(b"[]", b""), len(brackets)
        if len(brackets) == before:
            break
    return bool(brackets)


def canonical(value: Any) -> bytes:
    """The form that is hashed: compact, keys sorted, UTF-8."""
    return _canonical(value)


def digest(value: Any) -> str:
    """SHA-256 of the canonical form, in hex."""
    return hashlib.sha256(_canonical(value)).hexdigest()


def copy_of(value: Any) -> Any:
    """A deep copy of a JSON value."""
    return decode(encode(value))


def copy_of_run(run: RunState) -> RunState:
    """A deep copy of a run, without its unsaved attributes."""
    return _decode_run(encode(run))


def encode_run(run: RunState) -> bytes:
    """A run as stored."""
    return b'{"crc":"%08x"' % crc32(rest := b"," + encode(run)[1:]) + rest


def decode_run(data: bytes, run_id: str) -> RunState:
    """A stored run; `StoreCorrupt` names the run whose bytes are damaged."""
    try:
        check_sum(data)
        return _read(_decode_run, data)
    except REFUSALS as error:
        raise StoreCorrupt(
            f"The stored state of run {run_id!r} cannot be read: {error}. Restore it from a backup."
        ) from error


def check_sum(data: bytes | str) -> None:
    """Raise ValueError for bytes that do not have the checksum they begin with; text is what SQL makes of them."""
    if isinstance(data, str):
        data = data.encode()
    start = 1 if data[:1] == b"[" else 0
    if data[start : start + 8] == b'{"crc":"' and int(data[start + 8 : start + 16], 16) != crc32(
        memoryview(data)[start + 17 :]
    ):
        raise ValueError(
            "its checksum is another, so it was damaged, or changed by hand; what was changed on purpose is accepted "
            "without its crc member"
        )


def _read(decoder: Callable[[bytes], _T], data: bytes) -> _T:
    """Decode, on a stack of its own where the caller has too little left: that is no fault of the bytes."""
    with suppress(RecursionError):
        return decoder(data)
    read: list[_T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            read.append(decoder(data))
        except REFUSALS as error:
            failed.append(error)

    thread = Thread(target=run, name="abstractruntime-decode", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return read[0]


def encode_records(records: Sequence[StepRecord]) -> bytes:
    """The records of one commit as stored: a JSON array, the first of which has the checksum of all."""
    if not records:
        return b"[]"
    return b'[{"crc":"%08x"' % crc32(rest := b"," + encode(records)[2:]) + rest


def decode_records(data: bytes, run_id: str) -> list[StepRecord]:
    """The records of one commit; `StoreCorrupt` names the run whose ledger is damaged."""
    try:
        check_sum(data)
        records = [record for stored in _read(_decode_records, data) for record in stored.unfolded()]
    except REFUSALS as error:
        raise StoreCorrupt(
            f"The ledger of run {run_id!r} cannot be read: {error}. Restore it from a backup."
        ) from error
    for record in records:
        if record.run_id != run_id:
            raise StoreCorrupt(
                f"The ledger of run {run_id!r} holds a record of run {record.run_id!r}. Restore it from a backup."
            )
    return records


def fill(records: Sequence[StepRecord], earlier: Callable[[], Iterable[StepRecord]]) -> None:
    """Give every slim record the effect of the STARTED record of its step.

    That is among `records`, before it, or among the earlier ones, which are asked for only then, newest first.
    """
    started: dict[str, Any] = {}
    missing: dict[str, StepRecord] = {}
    for record in records:
        if record.status is StepStatus.STARTED:
            started[record.step_id] = record.effect
        elif record.slim and record.step_id in started:
            _fill_one(record, started[record.step_id])
        elif record.slim:
            missing[record.step_id] = record
    if not missing:
        return
    for record in earlier():
        if record.status is StepStatus.STARTED and record.step_id in missing:
            _fill_one(missing.pop(record.step_id), record.effect)
            if not missing:
                return


def _fill_one(record: StepRecord, effect: Any) -> None:
    record.effect, record.slim = copy_of(effect), False


def record_dict(record: StepRecord) -> dict[str, Any]:
    """A record as `get_ledger` shows it: every field but how it is stored, plain JSON."""
    shown = {**msgspec.structs.asdict(record), "status": str(record.status)}
    del shown["folded"], shown["slim"]
    shown.pop("changes") if not record.changes else shown.update(changes=msgspec.to_builtins(record.changes))
    return shown


def _normal(value: Any, path: str, parents: tuple[int, ...], deepest: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)  # of a subclass, only the number is kept
    if isinstance(value, str):
        return _normal_text(value, path)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnsafeValue(path, f"{value} is no JSON number")
        return float(value)
    if id(value) in parents:
        raise UnsafeValue(path, "the value contains itself")
    if len(parents) == deepest:
        raise UnsafeValue(path, f"nested too deeply: there are {deepest} lists and dicts around it")
    inside = (*parents, id(value))
    if isinstance(value, list | tuple):
        return [_normal(item, f"{path}[{index}]", inside, deepest) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return _normal_dict(value, path, inside, deepest)
    raise UnsafeValue(path, f"a value of type {type(value).__qualname__} is not JSON")


def _normal_dict(value: dict[Any, Any], path: str, inside: tuple[int, ...], deepest: int) -> dict[str, Any]:
    normal: dict[str, Any] = {}
    for key, item in value.items():
        name = _key(key, path)
        if name in normal:
            raise UnsafeValue(path, f"two keys become {name!r} in JSON")
        normal[name] = _normal(item, f"{path}.{name}", inside, deepest)
    return normal


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return _normal_text(key, f"{path} (a key)")
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, int):
        return int.__repr__(key)  # an enum's own repr is no number
    if isinstance(key, float) and math.isfinite(key):
        return float.__repr__(key)
    raise UnsafeValue(path, f"a key of type {type(key).__qualname__} is not JSON")


def _normal_text(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnsafeValue(path, f"the text has a lone surrogate at position {error.start}") from error
    return str.__str__(text)  # of a subclass, only the text is kept
