"""What stands in the files: JSON that people can read and edit, with a checksum that shows what was done to it.

The checksum is the last member, `crc`: the CRC-32 of the text before it. A text without one is taken as it is, so a
file written by others, or edited by hand and its `crc` deleted, can be read.
"""

from __future__ import annotations

import re
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct

from ...core.codec import REFUSALS, decode, encode, record_dict
from ...core.errors import StoreCorrupt
from ...core.models import Message, Request, RunState, StepRecord, WaitState

_CRC_OF_FILE = re.compile(rb',\s*"crc": "([0-9a-f]{8})"\s*\}\s*\Z')
_CRC_OF_LINE = re.compile(rb',"crc":"([0-9a-f]{8})"\}\Z')

#: the documented fields, which are always written, as readers of the plain JSON expect it
_FIELDS = dict.fromkeys(RunState.__struct_fields__[:13])
_WAIT_FIELDS = {**dict.fromkeys(WaitState.__struct_fields__), "allow_free_text": True}


class Addressed(Struct, frozen=True):
    """A request on its way to another run: to the very run that was created under that number."""

    request: Request
    number: int


class Placed(Struct, frozen=True):
    """A message on its way to its stream, where it has a place already: so it is put there once, whoever does it."""

    message: Message
    position: int


class Pending(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the commit of a run's file writes elsewhere: records, requests, other runs, messages."""

    records: tuple[StepRecord, ...] = ()
    lookup_key: str | None = None
    requests: tuple[Addressed, ...] = ()
    #: other runs as the commit leaves them
    also: tuple[RunState, ...] = ()
    messages: tuple[Placed, ...] = ()
    #: of the commit, for requests are answered once
    commit_id: str | None = None


class Beside(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run's file holds beside the run, under `store`."""

    #: given at its creation, raised with the time; what listings sort by
    number: int | None = None
    #: how many records the run had with this commit, and the hash of the last one if they are chained
    records: int | None = None
    chain_head: str | None = None
    requests: tuple[Request, ...] = ()
    #: the requests of others that came in so far
    asked: tuple[str, ...] = ()
    pending: Pending | None = None


class _Document(Struct):
    store: Beside = Beside()
    crc: str | None = None


class Line(Struct):
    """What a ledger's line holds beside its record."""

    run_id: str
    #: the key that its commit is found by
    lookup: str | None = None
    #: of the records of a commit that count together or not at all: which one it is, of how many
    part: tuple[int, int] | None = None
    crc: str | None = None


_decode_run = msgspec.json.Decoder(RunState).decode
_decode_document = msgspec.json.Decoder(_Document).decode
_decode_record = msgspec.json.Decoder(StepRecord).decode
_decode_line = msgspec.json.Decoder(Line).decode


def run_text(data: bytes, beside: Beside) -> bytes:
    """The text of a run's file: the encoded run, all that stands beside it, and the checksum."""
    run = {**_FIELDS, "vars": {}, **decode(data)}
    run.pop("crc", None)  # of the bytes, which are not those of the text
    if run["waiting"] is not None:
        run["waiting"] = {**_WAIT_FIELDS, **run["waiting"]}
    body = msgspec.json.format(encode({**run, "store": beside}), indent=2)[:-2]
    return body + b',\n  "crc": "%08x"\n}\n' % crc32(body)


def read_run(text: bytes, where: object) -> tuple[RunState, Beside]:
    """A run and what stands beside it. Raises StoreCorrupt naming the file."""
    found = _CRC_OF_FILE.search(text)
    if found is not None and crc32(text[: found.start()]) != int(found[1], 16):
        raise StoreCorrupt(
            f'{where}: its text does not fit its checksum, the last member "crc": it was damaged, or edited by hand. '
            'Restore it from a backup, or delete the member "crc" to accept the text as it is.'
        )
    try:
        run, document = _decode_run(text), _decode_document(text)
    except REFUSALS as error:
        raise StoreCorrupt(f"{where}: this is no stored run ({error}). Restore it from a backup.") from error
    if document.crc is not None and found is None:
        raise StoreCorrupt(
            f'{where}: its checksum is not where it was written, so the text cannot be checked. Delete the member "crc"'
            " to accept it as it is, or restore it from a backup."
        )
    return run, document.store


def line_text(record: StepRecord, lookup: str | None, part: tuple[int, int] | None = None) -> bytes:
    """The line of a record, with its end."""
    line: dict[str, Any] = record_dict(record)
    if record.slim:
        line["slim"] = True
    if lookup is not None:
        line["lookup"] = lookup
    if part is not None:
        line["part"] = part
    body = encode(line)[:-1]
    return body + b',"crc":"%08x"}\n' % crc32(body)


def lines_of(records: tuple[StepRecord, ...], lookup: str | None, *, together: bool = False) -> list[bytes]:
    """The lines of the records of a commit; with `together` they count all or not at all."""
    several = together and len(records) > 1
    return [
        line_text(record, lookup, (number, len(records)) if several else None)
        for number, record in enumerate(records, 1)
    ]


def read_line(text: bytes) -> tuple[StepRecord, Line]:
    """The record of a line, without its end. Raises ValueError that says what is wrong."""
    found = _CRC_OF_LINE.search(text)
    if found is not None and crc32(text[: found.start()]) != int(found[1], 16):
        raise ValueError('the text does not fit its checksum; delete the member "crc" if it was edited on purpose')
    try:
        record, line = _decode_record(text), _decode_line(text)
    except REFUSALS as error:
        raise ValueError(f"this is no record ({error})") from error
    if line.crc is not None and found is None:
        raise ValueError('the checksum is not at its end; delete the member "crc" if it was edited on purpose')
    return record, line
