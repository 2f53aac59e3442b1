"""What a run store and a ledger store must do together: carry runs through waits, failures and restarts."""

from __future__ import annotations

import shutil
from functools import cached_property
from typing import Any, ClassVar

from ...core.models import Effect, RunState, RunStatus, StepPlan
from ...core.outcomes import EffectCall, EffectOutcome
from ...core.spec import WorkflowSpec
from ...runtime import AsyncRuntime
from .capabilities import Capability
from .together import TogetherTests

EFFECT = "conformance_effect"


def _work(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("work", Effect(EFFECT, {"amount": 5}, "worked"), "ask")


def _ask(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("ask", Effect("ask_user", {"prompt": "Go on?"}, "answer"), "again")


def _again(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("again", Effect(EFFECT, {"amount": 6}, "worked_again"), "end")


def _end(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={name: run.vars.get(name) for name in ("worked", "answer", "worked_again")})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec(
    "conformance", "work", {"work": _work, "ask": _ask, "again": _again, "end": _end}
)
#: how often the effect is begun and done
STEPS = ["started", "completed"] * 2


def _steps(ledger: list[dict[str, Any]]) -> list[str]:
    """What the records of the effect say."""
    return [row["status"] for row in ledger if (row["effect"] or {}).get("type") == EFFECT]


class PairConformance(TogetherTests):
    """The suite of a run store with a ledger store. `make` returns `(run_store, ledger_store)`.

    A pair commits together (`Capability.JOINT`) when the run store has `join(ledger_store)` and returns a
    `core.backend.Backend`; that is then tested too. Any other pair works as well, with a weaker promise: an effect
    whose end was recorded is not performed again, and only one process may drive a run.
    """

    known: ClassVar = frozenset({Capability.JOINT, Capability.PERSISTENT})

    @cached_property
    def performed(self) -> list[int]:
        """The amounts that the effects of this test were performed with, in order."""
        return []

    def runtime(self) -> AsyncRuntime:
        """A runtime on the stores as they are now."""

        def perform(run: RunState, effect: Effect, default_next_node: str | None) -> EffectOutcome:
            self.performed.append(effect.payload["amount"])
            return EffectOutcome.completed({"paid": effect.payload["amount"]})

        runs, ledgers = self.store
        return AsyncRuntime(run_store=runs, ledger_store=ledgers, effect_handlers={EFFECT: perform})

    def test_a_workflow_runs_to_its_end(self) -> None:
        run_id = self.do(self._to_the_question)
        run = self.do(self._answered, run_id)
        self._is_done(run)

    def test_a_workflow_goes_on_after_a_restart(self) -> None:
        run_id = self.do(self._to_the_question)
        if self.has(Capability.PERSISTENT):
            self.reopened()
        assert self.performed == [5]
        run = self.do(self._answered, run_id)
        self._is_done(run)

    async def _to_the_question(self) -> str:
        async with self.runtime() as rt:
            run_id = await rt.start(workflow=WORKFLOW, vars={"list": [1]})
            run = await rt.tick(workflow=WORKFLOW, run_id=run_id)
            assert run.status is RunStatus.WAITING
            assert run.vars["list"] == [1]
            assert run.vars["worked"] == {"paid": 5}
            return run_id

    async def _answered(self, run_id: str) -> RunState:
        async with self.runtime() as rt:
            waiting = await rt.get_state(run_id)
            assert waiting.waiting is not None
            run = await rt.resume(
                workflow=WORKFLOW, run_id=run_id, wait_key=waiting.waiting.wait_key, payload={"text": "yes"}
            )
            assert _steps(await rt.get_ledger(run_id)) == STEPS
            return run

    def _is_done(self, run: RunState) -> None:
        output = {"worked": {"paid": 5}, "answer": {"text": "yes"}, "worked_again": {"paid": 6}}
        assert (run.status, run.output) == (RunStatus.COMPLETED, output)
        assert self.performed == [5, 6]
        runs, ledgers = self.store
        stored = self.do(runs.load, run.run_id)
        assert (stored.status, stored.output, stored.vars["list"]) == (RunStatus.COMPLETED, output, [1])
        assert _steps(self.do(ledgers.list, run.run_id)) == STEPS

    def test_an_effect_whose_process_died_is_performed_again_with_the_same_key(self) -> None:
        """While it is performed, the folder is copied: what the copy holds is what a killed process leaves behind."""
        self.needs(Capability.PERSISTENT)
        left_behind = self.folder.parent / f"{self.folder.name}-left-behind"
        keys: list[str] = []

        def die(call: EffectCall) -> EffectOutcome:
            keys.append(call.key)
            if len(keys) == 1:
                shutil.copytree(self.folder, left_behind)
            return EffectOutcome.completed({"paid": 5})

        async def ticked(run_id: str | None) -> Any:
            runs, ledgers = self.store
            async with AsyncRuntime(run_store=runs, ledger_store=ledgers, effect_handlers={EFFECT: die}) as rt:
                run_id = run_id or await rt.start(workflow=WORKFLOW)
                run = await rt.tick(workflow=WORKFLOW, run_id=run_id)
                return run, await rt.get_ledger(run_id)

        run, _ = self.do(ticked, None)
        self.folder = left_behind
        self.reopened()
        run, ledger = self.do(ticked, run.run_id)
        assert (run.status, run.vars["worked"]) == (RunStatus.WAITING, {"paid": 5})
        assert keys == [keys[0]] * 2
        assert _steps(ledger)[-1] == "completed"

    def test_a_failing_effect_fails_the_run_and_both_stores_say_so(self) -> None:
        async def failed() -> RunState:
            runs, ledgers = self.store
            async with AsyncRuntime(
                run_store=runs,
                ledger_store=ledgers,
                effect_handlers={EFFECT: lambda run, effect, then: EffectOutcome.failed("no money")},
            ) as rt:
                return await rt.tick(workflow=WORKFLOW, run_id=await rt.start(workflow=WORKFLOW))

        run = self.do(failed)
        stored = self.do(self.store[0].load, run.run_id)
        assert (run.status, stored.status) == (RunStatus.FAILED, RunStatus.FAILED)
        assert "no money" in stored.error
        assert _steps(self.do(self.store[1].list, run.run_id))[-1] == "failed"

    def test_a_cancelled_run_stays_cancelled(self) -> None:
        run_id = self.do(self._to_the_question)

        async def cancelled() -> RunState:
            async with self.runtime() as rt:
                await rt.cancel_run(run_id)
                return await rt.tick(workflow=WORKFLOW, run_id=run_id)

        assert self.do(cancelled).status is RunStatus.CANCELLED
        assert self.do(self.store[0].load, run_id).status is RunStatus.CANCELLED

    def test_what_a_host_saves_between_ticks_counts(self) -> None:
        run_id = self.do(self._to_the_question)
        runs, _ = self.store
        run = self.do(runs.load, run_id)
        run.vars["list"].append("of the host")
        self.do(runs.save, run)
        done = self.do(self._answered, run_id)
        assert (done.status, done.vars["list"]) == (RunStatus.COMPLETED, [1, "of the host"])
