"""Random workflows in random hands: after every action the real run is what the plain model in `tests.model` says."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from abstractruntime import (
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    RunState,
    StepPlan,
    WaitReason,
    WaitState,
    WorkflowSpec,
)
from abstractruntime.core.errors import RevisionConflict
from abstractruntime.core.models import wait_record
from abstractruntime.core.outcomes import Change

from .checks import check_on_the_way, told_by
from .model import ATTEMPTS, BACKOFF, CHOICES, ENDED, FAILURES, Model, Node, Refused, instant
from .scale import scaled
from .worlds import World

RUN = "r"

#: vars that no result writes to
NOT_RESULTS = ("given", "visits", "host", "log")


class Stubborn(DefaultEffectPolicy):
    """Every effect is tried as often, and with the same pause, as the model tries it."""

    def max_attempts(self, effect: Effect) -> int:
        return ATTEMPTS

    def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
        return BACKOFF


class Real:
    """The model's run as a real one, and all that happens outside of it."""

    def __init__(self, facade: str, kind: str, folder: Path, nodes: dict[str, Node]) -> None:
        self.world = World(facade, kind, folder, synchronous="NORMAL")
        self.nodes = nodes
        self.asked: Counter[str] = Counter()
        self.performed: list[tuple[str, int, int]] = []
        self.effect_keys: dict[int, set[str]] = {}
        #: by number of the wait: its own key and its identity
        self.wait_keys: list[tuple[str, str]] = []
        self.kept: RunState | None = None
        self.workflow: Any = WorkflowSpec(
            "random", "n0", {name: self._node(name, node) for name, node in nodes.items()}
        )
        self.open()

    def open(self) -> None:
        self.runs, ledgers = self.world.stores()
        self.rt = self.world.runtime(
            {f"act_{name}": self._handler(name, node) for name, node in self.nodes.items() if node.way != "nobody"},
            stores=(self.runs, ledgers),
            effect_policy=Stubborn(),
            max_inline_backoff=0.0,
        )

    async def store(self, method: str, *args: Any) -> Any:
        """Call a store, be it a blocking one."""
        called = getattr(self.runs, method)
        return await (asyncio.to_thread(called, *args) if self.world.facade == "sync" else called(*args))

    def key(self, key: Any) -> str | None:
        """The real key that the model means."""
        if key is None:
            return None
        kind, number = key
        return "nobody's" if number is None else self.wait_keys[number][kind == "identity"]

    def _node(self, name: str, node: Node) -> Any:
        def asked(run: RunState, ctx: Any) -> Any:
            self.asked[name] += 1
            run.vars["_runtime"]["effect_seq"] = 99  # which is not a node's to change
            visits = run.vars.setdefault("visits", {})
            visit = visits[name] = visits.get(name, 0) + 1
            if node.kind == "trouble" and self.asked[name] <= node.times:
                return _trouble(run, name, node.error)
            if node.kind == "end":
                return StepPlan(name, complete_output={k: v for k, v in run.vars.items() if not k.startswith("_")})
            then = node.targets[min(visit, len(node.targets)) - 1] if node.targets else None
            return StepPlan(name, _effect(name, node), then)

        return asked

    def _handler(self, name: str, node: Node) -> Any:
        def outcome(call: EffectCall) -> Any:
            seq = int(call.step_id.rpartition(":")[2].partition(".")[0])
            self.performed.append((name, seq, call.attempt))
            self.effect_keys.setdefault(seq, set()).add(call.key)
            return _outcome(node, call, name, seq)

        async def outcome_later(call: EffectCall) -> Any:
            await asyncio.sleep(0)
            return outcome(call)

        return outcome if node.way == "sync" else outcome_later


def _trouble(run: RunState, name: str, error: str) -> Any:
    if error == "RuntimeError":
        raise RuntimeError("the node has trouble")
    if error == "UnsafeValue":
        run.vars["bad"] = float("nan")
    next_node = {"UnknownNode": "nowhere", "InvalidPlan": None}.get(error, "end")
    return StepPlan(name, next_node=next_node)


def _effect(name: str, node: Node) -> Effect | None:
    payload: dict[str, Any] = {}
    if node.kind in ("ask", "listen"):
        payload = {"wait_key": node.wait_key, "name": node.name, "timeout_s": node.timeout}
        payload |= {"until": None if node.until is None else instant(node.until)}
        payload |= {"choices": CHOICES if node.choices else None, "allow_free_text": not node.binding}
        payload |= {"prompt": "Well?"} if node.kind == "ask" else {}
        kind = "ask_user" if node.kind == "ask" else "wait_event"
    elif node.kind == "sleep":
        kind, payload = "wait_until", {"until": "garbage" if node.broken else instant(node.until or 0.0)}
    elif node.kind == "say":
        kind, payload = "answer_user", {} if node.broken else {"message": "hello"}
    elif node.kind == "look":
        kind, payload = "vars_query", {"path": "visits"}
    elif node.kind == "act":
        kind = f"act_{name}"
    else:
        return None
    return Effect(kind, payload, node.key)


def _outcome(node: Node, call: EffectCall, name: str, seq: int) -> Any:
    result = {"attempt": call.attempt, "of": name}
    match node.outcomes[min(call.attempt, len(node.outcomes)) - 1]:
        case "ok":
            return EffectOutcome.completed(result)
        case "log":
            return EffectOutcome.completed(result, changes=(Change(path="log", value=seq, op="append"),))
        case "nothing":
            return EffectOutcome.completed()
        case "wait":
            wait = WaitState(WaitReason.JOB, "job", resume_to_node=call.next_node, result_key=call.effect.result_key)
            return EffectOutcome.waiting(wait)
        case "fail":
            return EffectOutcome.failed("not now")
        case "fatal":
            return EffectOutcome.failed("never", retryable=False)
        case "unsafe":
            return EffectOutcome.completed(float("inf"))
        case "give up":
            return EffectOutcome.cancelled()
        case "odd":
            return 7
    raise RuntimeError("broken")


class Life:
    """One run in both worlds. An action does the same to both and says what error each raised."""

    def __init__(self, facade: str, kind: str, folder: Path, nodes: dict[str, Node]) -> None:
        self.model, self.real = Model(nodes), Real(facade, kind, folder, nodes)

    async def begin(self) -> None:
        await self.real.rt.start(workflow=self.real.workflow, run_id=RUN, vars={"given": 1})
        await self.compare()

    async def act(self, kind: str, *arguments: Any) -> None:
        if kind == "go_on":
            await self.go_on(*arguments)
            return
        expected = found = None
        try:
            getattr(self, f"model_{kind}", lambda *_: None)(*arguments)
        except Refused as refused:
            expected = str(refused)
        try:
            await getattr(self, f"real_{kind}", self.nothing)(*arguments)
        except Exception as error:
            found = type(error).__name__
            if found != expected:
                raise
        assert found == expected
        await self.compare()

    async def nothing(self, *arguments: Any) -> None:
        """Time passes in the model's world by an action of its own."""

    async def compare(self) -> None:
        model, real = self.model, self.real
        state, ledger = await real.rt.get_state(RUN), await real.rt.get_ledger(RUN)
        self.note_waits(state, ledger)
        assert shown(state) == model.shown()
        assert (model.error is None) == (state.error is None)
        assert model.error is None or model.error in state.error
        assert real.performed == model.performed
        assert all(len(keys) == 1 for keys in real.effect_keys.values()), "an effect had two keys"
        assert len(set.union(set(), *real.effect_keys.values())) == len(real.effect_keys), "two effects had one key"
        assert real.asked == model.asked
        assert await real.store("load", RUN) == state
        check_on_the_way(state, ledger)
        told = told_by(ledger)
        assert told.status == (model.status if model.status in ENDED else "waiting" if model.wait else "running")
        assert told.landed == model.seq
        assert heard(told.output) == model.output
        assert heard(told.written) == {k: v for k, v in model.vars.items() if k not in NOT_RESULTS}
        assert model.status != "failed" or told.error in state.error
        assert len([r for r in ledger if r["step_id"].endswith(":node_failed")]) == model.raised

    def note_waits(self, state: RunState, ledger: list[dict[str, Any]]) -> None:
        """Keep the keys of each wait there was, and hold them to what identities promise."""
        waits = [record["result"]["wait"] for record in ledger if record["status"] == "waiting"]
        identities = [(wait["details"] or {}).get("wait_id") or wait["wait_key"] for wait in waits]
        assert len(set(identities)) == len(identities), "two waits had one identity"
        known, own = self.real.wait_keys, [wait["wait_key"] for wait in waits]
        self.real.wait_keys = [(key or identity, identity) for key, identity in zip(own, identities, strict=True)]
        assert self.real.wait_keys[: len(known)] == known
        assert len(waits) == len(self.model.waits)
        if self.model.wait is not None and state.waiting is not None:
            assert wait_record(state.waiting) == waits[-1]

    # What can be done

    async def go_on(self, steps: int) -> None:
        """Whatever it takes for the run to move."""
        model, wait = self.model, self.model.wait
        if model.paused:
            await self.act("unpause")
        elif wait is not None and wait.until is None:
            await self.act("resume", "own current", {"choice": "yes"}, None, steps)
            return
        until = wait.until if wait is not None else model.pending.due if model.pending is not None else None
        if until is not None and until > model.now:
            await self.act("pass", until - model.now)
        await self.act("tick", steps)

    def model_tick(self, steps: int) -> None:
        self.model.tick(steps)

    async def real_tick(self, steps: int) -> None:
        await self.real.rt.tick(workflow=self.real.workflow, run_id=RUN, max_steps=steps)

    def which(self, key: str) -> Any:
        """The key of the wait that stands, of the first one there was, of nobody, or none."""
        waits, kind = self.model.waits, "identity" if key.startswith("identity") else "own"
        numbers = {"current": len(waits) - 1, "first": 0}
        if key == "any":
            return None
        return kind, numbers.get(key.rpartition(" ")[2]) if waits else None

    def model_resume(self, key: str, payload: Any, resume_id: str | None, steps: int) -> None:
        self.key = self.which(key)
        self.model.resume(self.key, payload, resume_id, steps)

    async def real_resume(self, key: str, payload: Any, resume_id: str | None, steps: int) -> None:
        await self.real.rt.resume(
            workflow=self.real.workflow,
            run_id=RUN,
            wait_key=self.real.key(self.key),
            payload=payload,
            resume_id=resume_id,
            max_steps=steps,
        )

    def model_emit(self, name: str, event_id: str) -> None:
        self.model.emit(name, event_id)

    async def real_emit(self, name: str, event_id: str) -> None:
        await self.real.rt.emit_event(name=name, session_id=RUN, event_id=event_id)

    def model_cancel(self, reason: str | None) -> None:
        self.model.cancel(reason)

    async def real_cancel(self, reason: str | None) -> None:
        await self.real.rt.cancel_run(RUN, reason=reason)

    def model_pause(self) -> None:
        self.model.pause()

    async def real_pause(self) -> None:
        await self.real.rt.pause_run(RUN)

    def model_unpause(self) -> None:
        self.model.unpause()

    async def real_unpause(self) -> None:
        await self.real.rt.resume_run(RUN)

    def model_limit(self, iterations: int) -> None:
        self.model.limit(iterations)

    async def real_limit(self, iterations: int) -> None:
        await self.real.rt.update_limits(RUN, {"max_iterations": iterations, "unknown": 1})

    def model_start(self, given: int) -> None:
        self.model.start_again(given)

    async def real_start(self, given: int) -> None:
        await self.real.rt.start(workflow=self.real.workflow, run_id=RUN, vars={"given": given})

    def model_pass(self, seconds: float) -> None:
        self.model.now += seconds
        self.real.world.clock.advance(seconds)

    async def real_reopen(self) -> None:
        """Go on as another process would."""
        await self.real.world.close()
        self.real.open()

    async def real_keep(self) -> None:
        """Load the run, to save it later."""
        self.real.kept = await self.real.store("load", RUN)

    async def real_save(self, value: int) -> None:
        """Save what was kept, with a change: refused exactly when the run has moved on since."""
        kept, now = self.real.kept, await self.real.store("load", RUN)
        if kept is None:
            return
        kept.vars["host"] = value
        try:
            await self.real.store("save", kept)
        except RevisionConflict:
            assert kept.revision != now.revision
            return
        assert kept.revision == now.revision + 1
        self.model.save("host", value)


#: what the envelope of an event holds and the model does not know
UNMODELLED = {"scope", "session_id", "payload", "emitter"}


def heard(value: Any) -> Any:
    """A value whose envelopes of events hold only what the model knows of them, and what was put into them later."""
    if not isinstance(value, dict):
        return value
    hidden = UNMODELLED if "emitter" in value else set[str]()
    return {name: heard(inner) for name, inner in value.items() if name not in hidden}


def shown(state: RunState) -> dict[str, Any]:
    wait = state.waiting
    return {
        "status": str(state.status),
        "node": state.current_node,
        "vars": {name: heard(value) for name, value in state.vars.items() if not name.startswith("_")},
        "wait": None if wait is None else (str(wait.reason), wait.prompt, wait.choices, wait.resume_to_node),
        "until": None if wait is None else wait.until,
        "paused": state.paused,
        "output": heard(state.output),
        "effect_seq": state.vars["_runtime"].get("effect_seq", 0),
        "limits": {"max_iterations": state.vars["_limits"]["max_iterations"]},
        "trying": None if state.intent is None else (state.intent.seq, state.intent.attempt),
    }


keys = st.sampled_from([None, "a", "a.b", "b.c.d"])
seconds = st.sampled_from([10.0, 60.0, 3600.0])
steps = st.sampled_from([100, 100, 0, 1, 2])
payloads = st.sampled_from([{"choice": "yes"}, {"text": "no"}, "yes", {"text": "maybe"}, None, ["x"], {"x": {"y": 1}}])
troubles = st.sampled_from(["RuntimeError", "UnsafeValue", "InvalidPlan", "UnknownNode"])
attempts = st.lists(st.sampled_from(["ok", "log", "nothing", "wait", *FAILURES]), min_size=1, max_size=3).map(tuple)
endings = st.sampled_from(
    [("ok",), ("log",), ("nothing",), ("wait",), ("fail", "raise", "ok"), ("fail", "log"), ("raise", "wait"), ("fail",)]
)
rarely = st.sampled_from([False] * 15 + [True])
waits: dict[str, Any] = {
    "wait_key": st.sampled_from([None, None, "door"]),
    "timeout": st.sampled_from([None, None, 30.0]),
    "choices": st.booleans(),
    "binding": st.booleans(),
}
KINDS: dict[str, st.SearchStrategy[Node]] = {
    "move": st.just(Node("move")),
    "trouble": st.builds(Node, st.just("trouble"), times=st.integers(1, 2), error=troubles),
    "say": st.builds(Node, st.just("say"), key=keys, broken=rarely),
    "look": st.builds(Node, st.just("look"), key=keys),
    "act": st.builds(Node, st.just("act"), key=keys, outcomes=endings, way=st.sampled_from(["async", "sync"])),
    "act oddly": st.builds(Node, st.just("act"), key=keys, outcomes=attempts, way=st.sampled_from(["async", "nobody"])),
    "ask": st.builds(Node, st.just("ask"), key=keys, **waits),
    "sleep": st.builds(
        Node, st.just("sleep"), key=keys, until=st.sampled_from([0.0, 60.0, 5000.0, 9000.0]), broken=rarely
    ),
    "listen": st.builds(Node, st.just("listen"), key=keys, **{**waits, "wait_key": st.just("door")}),
    "hear": st.builds(Node, st.just("listen"), key=keys, name=st.just("bell"), until=st.sampled_from([None, 5000.0])),
}
COMMON = [kind for kind in KINDS if kind != "act oddly"]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Node]:
    """Some nodes that go anywhere at their first visits and forward then, so that every run can end."""
    names = [f"n{number}" for number in range(draw(st.integers(2, 6)))]
    nodes = {}
    for number, name in enumerate(names):
        node = draw(KINDS[draw(st.sampled_from([*COMMON, *COMMON, "act", "act", "act oddly"]))])
        anywhere = draw(st.lists(st.sampled_from([*names, *names, "end"]), max_size=2))
        forward: list[str | None] = [*names[number + 1 :], "end"]
        if node.kind not in ("move", "trouble"):
            forward.append(None)
        nodes[name] = Node(**{**vars(node), "targets": (*anywhere, draw(st.sampled_from(forward)))})
    return {**nodes, "end": Node("end")}


ACTIONS: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
    "go_on": (14, (steps,)),
    "tick": (6, (steps,)),
    "resume": (
        8,
        (
            st.sampled_from(["own current", "any", "identity current", "own first", "identity first", "nobody's"]),
            payloads,
            st.sampled_from([None, None, "one", "two"]),
            steps,
        ),
    ),
    "pass": (3, (seconds,)),
    "emit": (4, (st.sampled_from(["bell", "bell", "gong"]), st.sampled_from(["e1", "e2", "e3", "e4"]))),
    "pause": (3, ()),
    "unpause": (3, ()),
    "reopen": (2, ()),
    "keep": (2, ()),
    "save": (3, (st.integers(1, 9),)),
    "limit": (1, (st.integers(1, 9),)),
    "start": (1, (st.integers(1, 2),)),
    "cancel": (1, (st.sampled_from([None, "enough"]),)),
}
WEIGHTED = [name for name, (weight, _) in ACTIONS.items() for _ in range(weight)]


@st.composite
def an_action(draw: st.DrawFn) -> tuple[Any, ...]:
    name = draw(st.sampled_from(WEIGHTED))
    return name, *(draw(argument) for argument in ACTIONS[name][1])


lives = st.lists(an_action(), min_size=5, max_size=40)


def live(facade: str, kind: str, nodes: dict[str, Node], actions: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        life = Life(facade, kind, Path(folder), nodes)
        try:
            await life.begin()
            for action in actions:
                await life.act(*action)
        finally:
            await life.real.world.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play())


@settings(max_examples=scaled(250, 20_000))
@given(nodes=graphs(), actions=lives)
def test_in_memory_every_run_does_what_the_model_says(nodes: dict[str, Node], actions: list[tuple[Any, ...]]) -> None:
    live("async", "memory", nodes, actions)


@settings(max_examples=scaled(30, 3_000))
@given(facade=st.sampled_from(["async", "sync"]), nodes=graphs(), actions=lives)
def test_on_sqlite_every_run_does_what_the_model_says(
    facade: str, nodes: dict[str, Node], actions: list[tuple[Any, ...]]
) -> None:
    live(facade, "sqlite", nodes, actions)


@settings(max_examples=scaled(30, 2_000))
@given(nodes=graphs(), actions=lives)
def test_under_the_blocking_runtime_every_run_does_what_the_model_says(
    nodes: dict[str, Node], actions: list[tuple[Any, ...]]
) -> None:
    live("sync", "memory", nodes, actions)
