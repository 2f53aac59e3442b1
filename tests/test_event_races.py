"""Emit, wait, deadline and cancel in random interleavings, on the kernel and the structures in memory alone.

No event loop and no store: who acts is a generator that stops between looking and writing, and a commit lands only on
the revision that it was computed from.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from datetime import timedelta
from typing import Any

from abstractruntime import Effect, EffectOutcome, RunState, RunStatus, StepPlan, StepStatus, WaitReason, WaitState
from abstractruntime.core import kernel
from abstractruntime.core.clock import iso
from abstractruntime.core.event_keys import event_key, listens_to
from abstractruntime.core.models import Commit, Message, StepRecord
from abstractruntime.core.streams import Unread, since_of
from abstractruntime.storage.streams import Streams, hearing_of

from .clocks import StillClock
from .scale import scaled

STREAM = "session:s"
NAMES = ("red", "blue")

Steps = Generator[None, None, None]


class Race:
    """Two runs that listen to one stream, whoever ticks them, who emits, who cancels, and the clock."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.clock = rng, StillClock()
        self.streams = Streams()
        self.runs: dict[str, RunState] = {}
        self.records: dict[str, list[StepRecord]] = {"a": [], "b": []}
        #: of each run, the waits it will ask for: a name, and seconds until the deadline
        self.plans = {
            run_id: [(rng.choice((*NAMES, "*")), rng.choice((None, None, 2, 5))) for _ in range(rng.randint(1, 5))]
            for run_id in self.records
        }
        self.sent: list[Message] = []
        self.count = 0

    def stamp(self) -> kernel.Stamp:
        self.count += 1
        return kernel.Stamp(iso(self.clock.now()), f"c{self.count}")

    def land(self, commit: Commit) -> bool:
        """The guard of every store: what was computed from another revision does not land."""
        run_id, before = commit.run.run_id, commit.before
        stored = self.runs.get(run_id)
        if (stored.revision if stored else None) != (before.revision if before else None):
            return False
        self.runs[run_id] = commit.run
        self.records[run_id] += commit.records
        self.streams.take(run_id, hearing_of(commit.run))
        for message in commit.messages:
            self.streams.add(message)
        self.check_nudges()
        return True

    def unread(self, run: RunState) -> Unread | None:
        address = listens_to(run)
        if address is None:
            return None
        stream, name = address
        return self.streams.stream(stream).unread(stream, name, run.read.get(stream, {}), since_of(run))

    def check_nudges(self) -> None:
        due = [run_id for run_id, run in self.runs.items() if self.unread(run) is not None]
        assert sorted(self.streams.nudged(None, 9)) == sorted(due)

    # -- who acts

    def tick(self, run_id: str) -> Steps:
        """Drive the run as far as it goes; every look and every write may be far apart."""
        while True:
            run = self.runs[run_id]
            yield
            stamp = self.stamp()
            unread = self.unread(run)
            yield
            match kernel.next_move(run, now=stamp.at, unread=unread):
                case kernel.Deliver(found=found):
                    self.land(kernel.deliver(run, found, stamp))
                case kernel.Wake():
                    self.land(kernel.expire(run, stamp))
                case kernel.Ask():
                    self.land(self.asked(run, stamp))
                case _:
                    return
            yield

    def asked(self, run: RunState, stamp: kernel.Stamp) -> Commit:
        number = kernel.seq_of(run.vars)
        if number == len(self.plans[run.run_id]):
            return kernel.complete(run, StepPlan("wait", complete_output={}), stamp)
        name, seconds = self.plans[run.run_id][number]
        until = None if seconds is None else iso(self.clock.now() + timedelta(seconds=seconds))
        plan = StepPlan("wait", Effect("wait_event", {"name": name}, f"got{number}"), "wait")
        assert plan.effect is not None
        intent = kernel.intent_of(run, plan, plan.effect, f"k{number}", stamp)
        wait = WaitState(WaitReason.EVENT, event_key(STREAM, name), until, "wait", f"got{number}")
        return kernel.inside(run, intent, EffectOutcome.waiting(wait), stamp)

    def emit(self, number: int) -> Steps:
        """Send a message, now and then twice; between its making and its landing others may act."""
        name, at = self.rng.choice(NAMES), iso(self.clock.now())
        message = Message(stream=STREAM, name=name, message_id=f"m{number}", at=at, data={"n": number})
        yield
        for _ in range(self.rng.choice((1, 1, 2))):
            if self.streams.add(message):
                self.sent.append(message)
            self.check_nudges()
            yield

    def cancel(self, run_id: str) -> Steps:
        for _ in range(self.rng.randint(0, 12)):
            yield
        while True:
            commit = kernel.cancel(self.runs[run_id], "enough", "test", self.stamp())
            yield
            if commit is None or self.land(commit):
                return

    def pass_time(self) -> Steps:
        for _ in range(self.rng.randint(0, 8)):
            self.clock.advance(self.rng.choice((0.5, 1, 3)))
            yield

    def run(self) -> None:
        for run_id in self.records:
            run = RunState.new(workflow_id="w", entry_node="wait", session_id="s", run_id=run_id)
            assert self.land(kernel.create(run, self.stamp()))
        actors: list[Steps] = [self.tick(run_id) for run_id in "aabb"]
        actors += [self.emit(number) for number in range(self.rng.randint(0, 6))]
        actors += [self.pass_time(), *([self.cancel("a")] if self.rng.random() < 0.3 else [])]
        while actors:
            actor = self.rng.choice(actors)
            if next(actor, self) is self:
                actors.remove(actor)
                if self.rng.random() < 0.3:
                    actors.append(self.tick(self.rng.choice("ab")))
        for run_id in self.records:
            for _ in self.tick(run_id):
                pass
        for run_id in self.records:
            self.check(run_id)

    # -- what must be true in the end

    def check(self, run_id: str) -> None:
        run, plan = self.runs[run_id], self.plans[run_id]
        ends = [record for record in self.records[run_id] if record.effect and record.effect["type"] == "resume"]
        waits = [record.result["wait"] for record in self.records[run_id] if record.status is StepStatus.WAITING]
        asked = kernel.seq_of(run.vars)
        assert asked == len(waits)
        open_wait = run.status is RunStatus.WAITING
        cancelled = run.status is RunStatus.CANCELLED
        assert asked - open_wait - cancelled <= len(ends) <= asked - open_wait, "a wait has one winner"
        left = list(self.sent)  # in the order of the stream
        for number, record in enumerate(ends):
            assert record.effect is not None
            payload = record.effect["payload"]["payload"]
            name, _ = plan[number]
            assert run.vars[f"got{number}"] == payload
            if record.result["by"] == "timer":
                assert payload["timed_out"] is True
                continue
            first = next(message for message in left if name in ("*", message.name))
            assert payload == first.data, "not the next one: lost, twice, or out of order"
            until = waits[number]["until"]
            assert until is None or first.at <= until, "it came too late and won all the same"
            left.remove(first)
        if open_wait:
            assert run.waiting is not None
            name, until = plan[asked - 1][0], run.waiting.until
            in_time = [m for m in left if name in ("*", m.name)][:1]
            assert not in_time or (until is not None and in_time[0].at > until), "it lies there and nobody took it in"


def test_whatever_the_order_each_wait_has_one_winner_and_no_event_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    for number in range(scaled(2_000, 100_000)):
        state = rng.getstate()
        try:
            Race(rng).run()
        except AssertionError:
            print(f"interleaving {number}")
            rng.setstate(state)
            raise


def test_the_race_is_a_race(seed: int) -> None:
    """Events, deadlines, cancels and conflicts all happen; else the test above proves nothing."""
    rng, seen, lost = random.Random(seed), set[Any](), 0
    for _ in range(200):
        race = Race(rng)
        before = race.land

        def land(commit: Commit, before: Any = before) -> bool:
            nonlocal lost
            landed: bool = before(commit)
            lost += not landed
            return landed

        race.land = land  # type: ignore[method-assign]
        race.run()
        seen |= {run.status for run in race.runs.values()}
        seen |= {record.result.get("by") for records in race.records.values() for record in records if record.result}
    assert {"event", "timer", "test", RunStatus.WAITING, RunStatus.CANCELLED, RunStatus.COMPLETED} <= seen
    assert lost > 20
