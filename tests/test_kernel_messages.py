"""Tables of what messages mean: who hears which, how far somebody has read, what was missed, who wins."""

from __future__ import annotations

from typing import Any

import pytest

from abstractruntime import EffectCall, EffectOutcome, Message, RunState, RunStatus, WaitReason, WaitState
from abstractruntime.core import kernel
from abstractruntime.core.event_keys import LISTENS, listens_to, read_event_key
from abstractruntime.core.models import Request
from abstractruntime.core.streams import Unread, missed_of, read_on, surplus

from . import worlds
from .worlds import World, one

async_world = worlds.async_world

AT = "2026-01-31T09:00:00.000000+00:00"
LATER = "2026-01-31T09:00:01.000000+00:00"
STAMP = kernel.Stamp(LATER, "c1")


def message(name: str = "paid", at: str = AT, data: dict[str, Any] | None = None) -> Message:
    return Message(stream="session:s", name=name, message_id="m", at=at, data=data or {"name": name})


def unread(position: int = 1, begin: int = 1, missed: int = 0, **fields: Any) -> Unread:
    return Unread(position=position, message=message(**fields), begin=begin, missed=missed)


def waiting(**fields: Any) -> RunState:
    wait = {"reason": WaitReason.EVENT, "wait_key": "evt:session:s:paid", "resume_to_node": "n", "result_key": "got"}
    run = RunState("r", "w", RunStatus.WAITING, "wait", waiting=WaitState(**{**wait, **fields}))
    run.revision = 1
    return run


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("evt:session:s:paid", ("session:s", "paid")),
        ("evt:session:s:order:paid", ("session:s", "order:paid")),
        ("evt:global:global:*", ("global:global", "*")),
        ("evt:session:s", None),
        ("evt:session::paid", None),
        ("evt:galaxy:s:paid", None),
        ("EVT:session:s:paid", None),
        ("door", None),
        ("", None),
        (None, None),
    ],
)
def test_a_key_says_what_it_listens_to(key: str | None, address: tuple[str, str] | None) -> None:
    assert read_event_key(key) == address


def test_who_listens() -> None:
    assert listens_to(waiting()) == ("session:s", "paid")
    split = waiting(wait_key="evt:session:a:b:c", details={LISTENS: ["session:a:b", "c"]})
    assert listens_to(split) == ("session:a:b", "c")
    lies = waiting(details={LISTENS: ["session:t", "x"]})
    assert listens_to(lies) == ("session:s", "paid"), "an author's details cannot change what the key says"
    assert listens_to(waiting(reason=WaitReason.USER)) is None
    paused = waiting()
    paused.vars = {"_runtime": {"control": {"paused": True}}}
    assert listens_to(paused) is None
    running = waiting()
    running.status = RunStatus.RUNNING
    assert listens_to(running) is None


@pytest.mark.parametrize(
    ("read", "found", "wildcard", "after"),
    [
        ({}, unread(1), False, {"": 1}),
        ({}, unread(7, begin=5), False, {"": 4, "paid": 7}),
        ({}, unread(7, begin=7), True, {"": 7}),
        ({"": 4, "paid": 7}, unread(5, begin=5, name="billed"), False, {"": 5, "paid": 7}),
        ({"": 5, "paid": 7}, unread(6, begin=6, name="billed"), False, {"": 7}),
        ({"": 4, "paid": 7}, unread(9, begin=5), False, {"": 4, "paid": 9}),
        ({"": 4, "paid": 7}, unread(5, begin=5, name="billed"), True, {"": 5, "paid": 7}),
        ({"": 4, "old": 6, "paid": 30}, unread(31, begin=20), False, {"": 19, "paid": 31}),
    ],
)
def test_how_far_somebody_has_read(read: dict[str, int], found: Unread, wildcard: bool, after: dict[str, int]) -> None:
    assert read_on(read, found, wildcard=wildcard) == after


@pytest.mark.parametrize(
    ("read", "name", "first", "begin", "missed"),
    [
        ({}, "paid", 1, 1, 0),
        ({}, "paid", 5, 9, 0),
        ({}, "paid", 5, 5, 1),
        ({"": 4}, "paid", 5, 5, 0),
        ({"": 4}, "*", 10, 10, 5),
        ({"": 4, "paid": 8}, "paid", 10, 10, 1),
        ({"": 4, "paid": 20}, "paid", 10, 10, 0),
    ],
)
def test_what_somebody_has_missed(read: dict[str, int], name: str, first: int, begin: int, missed: int) -> None:
    assert missed_of(read, name, first, begin) == missed


@pytest.mark.parametrize(
    ("first", "last", "keep", "gone"),
    [(1, 10, 10, 0), (1, 11, 10, 0), (1, 12, 10, 2), (5, 5, 1, 0), (5, 6, 1, 1), (5, 6, 0, 1), (5, 7, -3, 2)],
)
def test_what_goes_when_there_is_too_much(first: int, last: int, keep: int, gone: int) -> None:
    assert surplus(first, last, keep) == gone


@pytest.mark.parametrize(
    ("until", "at", "now", "move"),
    [
        (None, AT, LATER, kernel.Deliver),
        (AT, AT, LATER, kernel.Deliver),
        (AT, LATER, LATER, kernel.Wake),
        (AT, None, AT, kernel.Wake),
        (LATER, None, AT, kernel.Rest),
        (LATER, AT, AT, kernel.Deliver),
    ],
)
def test_the_deadline_or_the_message(until: str | None, at: str | None, now: str, move: type) -> None:
    found = None if at is None else unread(at=at)
    assert isinstance(kernel.next_move(waiting(until=until), now=now, unread=found), move)


def test_a_request_and_a_pause_come_first() -> None:
    request = Request(run_id="r", kind="cancel", by="x", at=AT)
    assert isinstance(kernel.next_move(waiting(), now=AT, requests=(request,), unread=unread()), kernel.Answer)
    paused = waiting()
    paused.vars = {"_runtime": {"control": {"paused": True}}}
    assert isinstance(kernel.next_move(paused, now=AT, unread=unread()), kernel.Rest)


def test_a_delivery_is_one_commit_of_the_reader() -> None:
    commit = kernel.deliver(waiting(), unread(3, begin=2, missed=4), STAMP)
    run = commit.run
    assert (run.status, run.current_node, run.waiting) == (RunStatus.RUNNING, "n", None)
    assert run.vars["got"] == {"name": "paid", "missed": 4}
    assert run.read == {"session:s": {"": 1, "paid": 3}}
    assert [record.result for record in commit.records] == [{"resumed": True, "by": "event"}]
    assert (commit.messages, commit.requests, commit.also) == ((), (), ())


def test_a_wait_without_a_way_on_ends_the_run() -> None:
    run = kernel.deliver(waiting(resume_to_node=None), unread(), STAMP).run
    assert (run.status, run.output) == (RunStatus.COMPLETED, {"success": True, "result": {"name": "paid"}})


# -- messages of a host's own handlers


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": "nowhere"},
        {"stream": "galaxy:x"},
        {"stream": "session:"},
        {"name": ""},
        {"name": "*"},
        {"message_id": ""},
        {"at": "yesterday"},
        {"data": {"n": float("nan")}},
    ],
)
async def test_a_handler_that_sends_what_nobody_could_hear_fails_its_effect(
    async_world: World, fields: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"stream": "session:s", "name": "paid", "message_id": "m", "at": AT, **fields}
    rt = async_world.runtime({"host": lambda call: EffectOutcome.completed(1, messages=(Message(**given),))})
    state = await rt.run(one("host"))
    assert state.status is RunStatus.FAILED
    assert "refused" in state.error


async def test_a_handler_of_a_host_may_send_with_its_result(async_world: World) -> None:
    listener = one("wait_event", {"name": "paid", "scope": "global"}, "got")

    def host(call: EffectCall) -> EffectOutcome:
        sent = Message(stream="global:global", name="paid", message_id=call.key, at="2026-01-31T10:00:00+01:00")
        return EffectOutcome.completed(1, messages=(sent,))

    rt = async_world.runtime({"host": host})
    await rt.run(listener, run_id="r")
    await rt.run(one("host"))
    assert (await rt.get_state("r")).status is RunStatus.RUNNING, "it was moved by the tick of the sender"
    found = await rt._backend.next_message("global:global", "paid", {}, AT)
    assert found.message.at == AT, "instants are stored as UTC text"
