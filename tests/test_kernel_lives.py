"""Whole lives of a run: any events in any order, and what holds all the time."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from abstractruntime.core import kernel
from abstractruntime.core.codec import decode_run, encode_run
from abstractruntime.core.errors import InvalidAnswer
from abstractruntime.core.kernel import Stamp
from abstractruntime.core.models import (
    TERMINAL,
    Commit,
    Effect,
    Intent,
    Request,
    RunState,
    RunStatus,
    StepPlan,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
)
from abstractruntime.core.outcomes import Change, EffectOutcome

from .states import (
    CANCEL,
    CHOICES,
    PAUSE,
    unfolded,
)

OUTCOMES = st.sampled_from(
    [
        EffectOutcome.completed({"ok": 1}),
        EffectOutcome.completed(None),
        EffectOutcome.completed([1], changes=(Change(path="log", value=1, op="append"),)),
        EffectOutcome.failed("no"),
        EffectOutcome.waiting(WaitState(WaitReason.EVENT, "door", None, "next", "opened")),
        EffectOutcome.waiting(WaitState(WaitReason.EVENT, None, "2026-01-31T09:00:30.000000+00:00", "next")),
        EffectOutcome.waiting(WaitState(WaitReason.UNTIL, None, "2026-01-31T09:00:30.000000+00:00")),
        EffectOutcome.waiting(CHOICES),
    ]
)
NEXT_NODES = st.sampled_from(["here", "next", "next", None])


class RunLives(RuleBasedStateMachine):
    """One run, its ledger, whoever performs its effects, and the world around it, in any order of events."""

    @initialize()
    def is_born(self) -> None:
        self.time = 0
        self.landings = 0
        self.held: Intent | None = None
        self.late: Intent | None = None
        self.ledger: list[StepRecord] = []
        run = RunState.new(workflow_id="w", entry_node="here", run_id="r", vars={"mine": [1]})
        self.run = kernel.create(run, self.stamp()).run
        self.final: RunState | None = None

    def stamp(self) -> Stamp:
        self.time += 1
        return Stamp(f"2026-01-31T09:{self.time // 60 % 60:02}:{self.time % 60:02}.000000+00:00", f"owner.{self.time}")

    def apply(self, commit: Commit | None, *, lands: bool = False) -> None:
        if commit is None:
            return
        commit = unfolded(commit)
        assert commit.before is self.run
        assert commit.run.revision == self.run.revision + 1
        assert commit.run.records == self.run.records + len(commit.records)
        self.run = commit.run
        self.ledger += commit.records
        self.landings += lands
        if self.held is not None and self.run.intent is None:  # withdrawn by a cancel, or settled
            self.late = self.held if not lands else None
            self.held = None

    @property
    def move(self) -> kernel.Move:
        at = f"2026-01-31T09:{self.time // 60 % 60:02}:{self.time % 60:02}.000000+00:00"
        return kernel.next_move(self.run, now=at, held=self.held is not None)

    @precondition(lambda self: isinstance(self.move, kernel.Ask))
    @rule(next_node=NEXT_NODES)
    def the_node_only_moves_or_ends(self, next_node: str | None) -> None:
        if next_node is None:
            self.apply(kernel.complete(self.run, StepPlan(self.run.current_node, complete_output={}), self.stamp()))
        else:
            self.apply(kernel.move(self.run, StepPlan(self.run.current_node, next_node=next_node), self.stamp()))

    @precondition(lambda self: isinstance(self.move, kernel.Ask))
    @rule()
    def the_node_raises(self) -> None:
        self.apply(kernel.node_failed(self.run, self.run.current_node, "ValueError: no", self.stamp()))

    @precondition(lambda self: isinstance(self.move, kernel.Ask))
    @rule(outcome=OUTCOMES, next_node=NEXT_NODES)
    def the_node_asks_for_an_inside_effect(self, outcome: EffectOutcome, next_node: str | None) -> None:
        stamp = self.stamp()
        self.apply(kernel.inside(self.run, self.promised(next_node, stamp), outcome, stamp), lands=True)

    @precondition(lambda self: isinstance(self.move, kernel.Ask))
    @rule(next_node=NEXT_NODES)
    def the_node_asks_for_an_outside_effect(self, next_node: str | None) -> None:
        stamp = self.stamp()
        self.apply(kernel.promise(self.run, self.promised(next_node, stamp), "owner", stamp))
        self.held = self.run.intent

    def promised(self, next_node: str | None, stamp: Stamp) -> Intent:
        effect = Effect("pay", {}, "paid")
        asked = StepPlan(self.run.current_node, effect, next_node)
        return kernel.intent_of(self.run, asked, effect, f"key{kernel.seq_of(self.run.vars)}", stamp)

    @precondition(lambda self: self.held is not None)
    @rule(outcome=OUTCOMES)
    def the_effect_ends(self, outcome: EffectOutcome) -> None:
        self.apply(kernel.settle(self.run, outcome, self.stamp()), lands=True)

    @precondition(lambda self: self.held is not None)
    @rule(seconds=st.integers(0, 5))
    def the_attempt_fails(self, seconds: int) -> None:
        due = f"2026-01-31T09:{(self.time + seconds) // 60 % 60:02}:{(self.time + seconds) % 60:02}.000000+00:00"
        self.held = None
        self.apply(kernel.retry(self.run, EffectOutcome.failed("no"), due, self.stamp()))

    @precondition(lambda self: self.held is not None)
    @rule()
    def the_effect_is_handed_back(self) -> None:
        self.held = None
        self.apply(kernel.hand_back(self.run, self.stamp()))

    @precondition(lambda self: self.held is not None)
    @rule()
    def the_performer_dies(self) -> None:
        self.held = None

    @precondition(lambda self: isinstance(self.move, kernel.Perform))
    @rule(rule_=st.sampled_from(["again", "again", "fail", "ask"]))
    def the_effect_is_taken_over(self, rule_: str) -> None:
        move = self.move
        assert isinstance(move, kernel.Perform)
        if move.lost and rule_ == "fail":
            self.apply(kernel.lost(self.run, self.stamp()), lands=True)
        elif move.lost and rule_ == "ask":
            self.apply(kernel.ask_unknown(self.run, self.stamp()))
        else:
            self.apply(kernel.claim(self.run, "owner", self.stamp()))
            self.held = self.run.intent

    @precondition(lambda self: self.late is not None)
    @rule(outcome=OUTCOMES)
    def an_outcome_comes_late(self, outcome: EffectOutcome) -> None:
        intent, self.late = self.late, None
        assert intent is not None
        self.apply(kernel.late(self.run, intent, outcome, self.stamp()))

    @precondition(lambda self: self.run.status is RunStatus.WAITING and not self.run.paused)
    @rule(answer=st.sampled_from([None, "yes", "maybe", {"choice": "no"}, "perform again", "fail the run"]))
    def somebody_answers(self, answer: Any) -> None:
        wait = kernel.wait_of(self.run, None)
        try:
            kernel.check_answer(wait, answer)
        except InvalidAnswer:
            return
        if self.run.intent is not None:
            fails = answer == "fail the run"
            self.apply(kernel.decide_unknown(self.run, answer, self.stamp(), actor_id="bob"), lands=fails)
        else:
            self.apply(kernel.resume(self.run, wait.wait_key, answer, self.stamp(), actor_id=None, lookup_key=None))

    @precondition(lambda self: isinstance(self.move, kernel.Wake))
    @rule()
    def time_passes_over_a_wait(self) -> None:
        self.apply(kernel.expire(self.run, self.stamp()))

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.time += seconds

    @rule()
    def somebody_pauses(self) -> None:
        self.apply(kernel.pause(self.run, "lunch", self.stamp()))

    @rule()
    def somebody_goes_on(self) -> None:
        self.apply(kernel.unpause(self.run, self.stamp()))

    @rule(requests=st.sampled_from([(PAUSE,), (PAUSE, CANCEL)]), seldom=st.integers(0, 3))
    def another_asks(self, requests: tuple[Request, ...], seldom: int) -> None:
        if seldom == 0 and self.run.status not in TERMINAL:
            self.apply(kernel.answer(self.run, requests, self.stamp()))

    @rule(seldom=st.integers(0, 9))
    def somebody_cancels(self, seldom: int) -> None:
        if seldom == 0:
            self.apply(kernel.cancel(self.run, None, "api", self.stamp()))

    @rule(tokens=st.integers(0, 9))
    def limits_change(self, tokens: int) -> None:
        self.apply(kernel.set_limits(self.run, {"max_tokens": tokens}, self.stamp()))

    @precondition(lambda self: self.run.status not in TERMINAL)
    @rule()
    def the_graph_changes(self) -> None:
        self.apply(kernel.adopt(self.run, f"graph{self.time}", None, self.stamp()))

    @invariant()
    def the_state_is_sound(self) -> None:
        run = self.run
        assert run.records == len(self.ledger)
        assert (run.status is RunStatus.WAITING) == (run.waiting is not None)
        assert kernel.seq_of(run.vars) == self.landings
        assert run.intent is None or run.intent.seq == self.landings
        assert run.vars["mine"] == [1]
        assert decode_run(encode_run(run), "r") == run

    @invariant()
    def every_promise_ends_exactly_once(self) -> None:
        started = [record.step_id for record in self.ledger if record.status is StepStatus.STARTED]
        assert len(started) == len(set(started)), "two promises share a step id"
        ended = Counter(
            record.step_id
            for record in self.ledger
            if record.status is not StepStatus.STARTED
            and not (isinstance(record.result, dict) and record.result.get("late"))
        )
        open_steps = [step_id for step_id in started if not ended[step_id]]
        assert all(ended[step_id] <= 1 for step_id in started)
        claimed = self.run.intent is not None and self.run.intent.token is not None
        assert open_steps == ([self.run.intent.step_id] if claimed and self.run.intent else [])

    @invariant()
    def an_end_is_final(self) -> None:
        run = self.run
        if run.status not in TERMINAL:
            assert self.final is None
            return
        self.final = self.final or run
        assert (run.intent, run.waiting, run.owner) == (None, None, None)
        for name in ("status", "output", "error", "current_node"):
            assert getattr(run, name) == getattr(self.final, name)
        ends = [r for r in self.ledger if (r.idempotency_key or "").startswith("system:terminal_status:")]
        assert [r.idempotency_key for r in ends] == [f"system:terminal_status:{run.status}"]


TestRunLives = RunLives.TestCase
