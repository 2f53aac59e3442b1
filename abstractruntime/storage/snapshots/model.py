"""A snapshot: a run as it stood at one moment, with a name, and where its ledger stood then."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict, replace

from ...core.clock import iso, parse_instant, utc_now_iso
from ...core.codec import REFUSALS, check_sum, encode
from ...core.errors import InvalidId, InvalidSnapshot, StoreCorrupt, UnsafeValue
from ...core.ids import check_id
from ...core.models import RunState, RunStatus, wait_record
from ...core.secrets import admit

#: the fields of a run that every `run_state` has; the engine's others only where they say something
_DOCUMENTED = RunState.__struct_fields__[:13]
_ENGINE = RunState.__struct_fields__[13:]

_ADVICE = "Restore it from a backup, or delete it."


class Snapshot(Struct, dict=True):
    """A bookmark of a run.

    `run_state` is the run as plain JSON, its statuses texts: the documented fields of `RunState` always, the engine's
    where they are set. `position` is the number of records that its ledger had, `chain_head` the hash of the last one
    where the ledger is chained.

    >>> run = RunState.new(workflow_id="w", entry_node="ask", run_id="r")
    >>> Snapshot.from_run(run=run, name="before the answer").run_state["status"]
    'running'
    """

    snapshot_id: str
    run_id: str
    step_id: str | None = None
    name: str = ""
    description: str | None = None
    tags: list[str] = []
    created_at: str = field(default_factory=utc_now_iso)
    updated_at: str = field(default_factory=utc_now_iso)
    run_state: dict[str, Any] = {}
    position: int = 0
    chain_head: str | None = None

    @classmethod
    def from_run(
        cls,
        *,
        run: RunState,
        name: str,
        description: str | None = None,
        tags: Iterable[str] | None = None,
        step_id: str | None = None,
    ) -> Snapshot:
        """A snapshot of this run under a fresh id. Raises `UnsafeValue` for what JSON cannot carry."""
        if isinstance(tags, str):
            raise UnsafeValue("tags", f"expected a list of texts, found the text {tags!r:.80}")
        at = utc_now_iso()
        return cls(
            snapshot_id=str(uuid.uuid4()),
            run_id=run.run_id,
            step_id=step_id,
            name=name,
            description=description,
            tags=list(tags or ()),
            created_at=at,
            updated_at=at,
            run_state=_state_of(run),
            position=run.records,
            chain_head=run.chain_head,
        )

    def as_run(self) -> RunState:
        """The run that it holds, as a value of its own. Raises `InvalidSnapshot` when that is none."""
        where = f"Snapshot {self.snapshot_id!r}"
        try:
            run = msgspec.convert(admit(self.run_state, "run_state"), RunState)
            if run.waiting is not None and run.waiting.until is not None:
                run.waiting.until = iso(parse_instant(run.waiting.until))
        except REFUSALS as error:
            raise InvalidSnapshot(f"{where} holds no run: {error}. {_ADVICE}") from error
        if run.run_id != self.run_id:
            raise InvalidSnapshot(f"{where} is of run {self.run_id!r}, but holds the state of run {run.run_id!r}.")
        if run.status is RunStatus.WAITING and run.waiting is None:
            raise InvalidSnapshot(f"{where} holds a run that waits for nothing. {_ADVICE}")
        return run


class StoredSnapshot(Struct, frozen=True, kw_only=True):
    """A snapshot as bytes: what a list is filtered by, and the state, which may be large; with checksums of both."""

    about: bytes
    data: bytes

    def told(self) -> Snapshot:
        """The snapshot without its state. Raises StoreCorrupt."""
        try:
            check_sum(self.about)
            return _decode(self.about)
        except REFUSALS as error:
            raise StoreCorrupt(f"A stored snapshot cannot be read: {error}. {_ADVICE}") from error

    def whole(self) -> Snapshot:
        """The snapshot. Raises StoreCorrupt."""
        told = self.told()
        try:
            wanted = _decode_sums(self.about).state_crc
            if wanted is not None and wanted != crc32(self.data):
                raise ValueError("its checksum is another, so it was damaged")
            return replace(told, run_state=_decode_state(self.data))
        except REFUSALS as error:
            raise StoreCorrupt(
                f"The state of snapshot {told.snapshot_id!r} cannot be read: {error}. {_ADVICE}"
            ) from error


class _Sums(Struct):
    """What `about` says of the bytes of the state."""

    state_crc: int | None = None


_decode = msgspec.json.Decoder(Snapshot).decode
_decode_sums = msgspec.json.Decoder(_Sums).decode
_decode_state = msgspec.json.Decoder(dict[str, Any]).decode


def stored(snapshot: Snapshot) -> StoredSnapshot:
    """A snapshot as it is kept; `updated_at` is now.

    Raises `InvalidId` for ids that could be none, `UnsafeValue` for what JSON cannot carry or a field cannot be.
    """
    clean = admitted(snapshot)
    data = encode(clean.run_state)
    about = {**asdict(replace(clean, run_state={})), "state_crc": crc32(data)}
    return StoredSnapshot(about=with_sum(about), data=data)


def with_sum(value: dict[str, Any]) -> bytes:
    """A dict that is not empty as JSON that begins with a checksum of the rest; see `core.codec.check_sum`."""
    rest = b"," + encode(value)[1:]
    return b'{"crc":"%08x"' % crc32(rest) + rest


def admitted(snapshot: Snapshot) -> Snapshot:
    """A copy of a snapshot as it may be persisted, updated now; see `stored`."""
    if not isinstance(snapshot, Snapshot):
        raise TypeError(f"expected a Snapshot, found a {type(snapshot).__name__}")
    check_snapshot_id(snapshot.snapshot_id)
    check_id(snapshot.run_id, "run_id of a snapshot")
    fields = {name: admit(getattr(snapshot, name), f"snapshot.{name}") for name in Snapshot.__struct_fields__}
    try:
        return msgspec.convert({**fields, "updated_at": utc_now_iso()}, Snapshot)
    except msgspec.ValidationError as error:
        raise UnsafeValue(f"snapshot {snapshot.snapshot_id!r}", f"{error}") from error


def check_snapshot_id(value: Any) -> str:
    """`value` if it can be the id of a snapshot, which also names a file. Raises `InvalidId`."""
    text = check_id(value, "snapshot_id")
    if not all(sign.isascii() and (sign.isalnum() or sign in "_-.:") for sign in text):
        raise InvalidId(f"snapshot_id may hold letters, digits and _ - . : only, found {text!r}.")
    return text


def decode_snapshot(data: bytes, snapshot_id: str, where: str) -> Snapshot:
    """A whole snapshot as a file holds it. Raises StoreCorrupt naming the place."""
    try:
        found = _decode(data)
    except REFUSALS as error:
        raise StoreCorrupt(f"{where}: the snapshot cannot be read: {error}. {_ADVICE}") from error
    if found.snapshot_id != snapshot_id:
        raise StoreCorrupt(f"{where} holds the snapshot {found.snapshot_id!r}. Give the file back its name.")
    return found


def _state_of(run: RunState) -> dict[str, Any]:
    state = {name: getattr(run, name) for name in _DOCUMENTED}
    state["status"] = str(run.status)
    state["waiting"] = None if run.waiting is None else wait_record(run.waiting)
    defaults = RunState(run.run_id, run.workflow_id, run.status, run.current_node)
    for name in _ENGINE:
        value = getattr(run, name)
        if value != getattr(defaults, name):
            state[name] = msgspec.to_builtins(value)
    clean: dict[str, Any] = admit(state, "run_state")
    return clean
