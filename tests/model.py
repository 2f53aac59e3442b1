"""A run as the documentation tells it, in plain Python: what the real one is held to by `test_model`.

Nothing of the package is imported here. There are no stores, no commits and no ledger: a run is a few variables, a
tick is a loop, and time is a number of seconds. What is refused raises `Refused` with the name of the error expected.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 1, 31, 9, tzinfo=UTC)
ENDED = ("completed", "failed", "cancelled")

#: how often an outside effect is tried, and the seconds between two tries
ATTEMPTS, BACKOFF = 3, 10.0

CHOICES = ["yes", "no"]

#: how an attempt at an outside effect may fail: the error, and whether it may be tried again
FAILURES = {
    "fail": ("not now", True),
    "raise": ("Effect handler raised exception: broken", True),
    "fatal": ("never", False),
    "odd": ("The effect handler's outcome was refused: expected an EffectOutcome", False),
    "unsafe": ("The effect handler's outcome was refused: result", False),
    "give up": ("Effect cancelled", False),
}


def instant(seconds: float) -> str:
    """So many seconds after the start, as the runtime writes instants."""
    return (START + timedelta(seconds=seconds)).isoformat(timespec="microseconds")


@dataclass(frozen=True)
class Node:
    """What a node does each time it is asked, and where it goes: at its n-th visit to the n-th target, then the last.

    Every node counts its visits in `vars["visits"]`. `end` returns the author's vars, `trouble` raises as often as
    `times` says and then moves on, and the others ask for an effect whose result goes to `key`.
    """

    kind: str
    targets: tuple[str | None, ...] = ()
    key: str | None = None
    times: int = 0
    error: str = "RuntimeError"
    #: of `act`: how its attempts end
    outcomes: tuple[str, ...] = ("ok",)
    way: str = "async"
    #: of waits: the key that the author gives, the deadline, what may be answered
    wait_key: str | None = None
    name: str | None = None
    until: float | None = None
    timeout: float | None = None
    choices: bool = False
    binding: bool = False
    #: of `say` and `sleep`: a payload that the effect cannot work with
    broken: bool = False


class Refused(Exception):
    """An error of this name is raised."""


@dataclass
class Wait:
    number: int
    reason: str
    then: str | None
    key: str | None
    author_key: str | None = None
    until: float | None = None
    prompt: str | None = None
    choices: list[str] | None = None
    binding: bool = False
    #: the name of the event that ends it
    name: str | None = None


@dataclass
class Pending:
    """An outside effect that was promised and has not landed."""

    node: str
    then: str | None
    seq: int
    attempt: int = 1
    due: float = 0.0


@dataclass
class Model:
    """One run."""

    nodes: dict[str, Node]
    node: str = "n0"
    now: float = 0.0
    status: str = "running"
    paused: bool = False
    vars: dict[str, Any] = field(default_factory=lambda: {"given": 1})
    limits: dict[str, Any] = field(default_factory=lambda: {"max_iterations": 50})
    wait: Wait | None = None
    pending: Pending | None = None
    output: Any = None
    error: str | None = None
    #: effects that landed, attempts in order as (node, effect, attempt), and all waits there were
    seq: int = 0
    performed: list[tuple[str, int, int]] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    #: how often each node was asked, also in vain, and how often a node raised
    asked: dict[str, int] = field(default_factory=dict)
    raised: int = 0
    answers: dict[str, Any] = field(default_factory=dict)
    #: events that were sent and not heard: when, and what a listener gets
    unheard: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)

    # What a host does

    def tick(self, steps: int = 100) -> None:
        while steps > 0 and self.status not in ENDED and not self.paused:
            if self.wait is not None:
                if self._hear(self.wait):
                    continue
                if self.wait.until is None or self.wait.until > self.now:
                    return
                self._ring(self.wait)
                continue
            if self.pending is not None and self.pending.due > self.now:
                return
            steps -= 1
            if self.pending is not None:
                self._perform(self.pending)
            else:
                self._ask()

    def resume(self, key: Any, payload: Any, resume_id: str | None, steps: int) -> None:
        if resume_id is not None and resume_id in self.answers:
            if self.answers[resume_id] != payload:
                raise Refused("StaleResumeError")
        else:
            self._answer(key, payload)
            if resume_id is not None:
                self.answers[resume_id] = payload
        self.tick(steps)

    def emit(self, name: str, event_id: str) -> None:
        """The same id is the same event. Whose next event is of this instant moves, and runs at its next tick."""
        if event_id not in self.sent:
            self.sent.add(event_id)
            self.unheard.append((self.now, {"name": name, "event_id": event_id, "emitted_at": instant(self.now)}))
        if self.wait is not None and not self.paused:
            wait = self.wait
            at = next((at for at, event in self.unheard if event["name"] == wait.name), None)
            if at is not None and at >= self.now:
                self._hear(wait)

    def cancel(self, reason: str | None) -> None:
        if self.status not in ENDED:
            self._end("cancelled", error=reason or "Cancelled")
            self.paused = False

    def pause(self) -> None:
        for_a_person = self.wait is not None and self.wait.reason == "user"
        if self.status not in ENDED and not for_a_person:
            self.paused = True

    def unpause(self) -> None:
        self.paused = False

    def limit(self, iterations: int) -> None:
        self.limits = {"max_iterations": iterations}

    def save(self, name: str, value: Any) -> None:
        self.vars = {**self.vars, name: value}

    def start_again(self, given: int) -> None:
        if given != 1:
            raise Refused("RunIdentityConflict")

    def shown(self) -> dict[str, Any]:
        """What of a run must equal the real one's."""
        wait = None if self.wait is None else (self.wait.reason, self.wait.prompt, self.wait.choices, self.wait.then)
        if self.paused and wait is None:
            wait = ("user", "Paused", None, self.node)
        until = None if self.wait is None or self.wait.until is None else instant(self.wait.until)
        return {
            "status": "waiting" if wait else self.status,
            "node": self.node,
            "vars": self.vars,
            "wait": wait,
            "until": until,
            "paused": self.paused,
            "output": self.output,
            "effect_seq": self.seq,
            "limits": self.limits,
            "trying": None if self.pending is None else (self.pending.seq, self.pending.attempt),
        }

    # What a node asks for

    def _ask(self) -> None:
        name, node = self.node, self.nodes[self.node]
        self.asked[name] = self.asked.get(name, 0) + 1
        if node.kind == "trouble" and self.asked[name] <= node.times:
            self.raised += 1
            raise Refused(node.error)
        visits = self.vars.get("visits", {})
        visit = visits.get(name, 0) + 1
        self.vars = {**self.vars, "visits": {**visits, name: visit}}
        then = node.targets[min(visit, len(node.targets)) - 1] if node.targets else None
        if node.kind in ("move", "trouble"):
            assert then is not None
            self.node = then
        elif node.kind == "end":
            self._end("completed", output=deepcopy(self.vars))
        elif node.kind == "act":
            if node.way == "nobody":
                self._fail(f"No effect handler registered for act_{name}")
            else:
                self._perform(Pending(name, then, self.seq))
        else:
            self._inside(node, then)

    def _inside(self, node: Node, then: str | None) -> None:
        if node.broken:
            self._fail({"say": "answer_user requires payload.message"}.get(node.kind, "invalid payload"))
        elif node.kind == "say":
            self._land(self.node, then, {"message": "hello", "level": "message"})
        elif node.kind == "look":
            self._land(self.node, then, self._looked())
        elif node.kind == "sleep":
            assert node.until is not None
            if node.until <= self.now:
                self._land(self.node, then, {"until": instant(node.until), "ready": True})
            else:
                self._wait("until", then, node, until=node.until)
        else:
            until = node.until if node.timeout is None else self.now + node.timeout
            author_key = node.wait_key or (f"the event {node.name}" if node.name else None)
            reason = "user" if node.kind == "ask" else "event"
            self._wait(reason, then, node, until=until, author_key=author_key)

    def _looked(self) -> dict[str, Any]:
        described = {"path": "visits", "type": "dict", "value": self.vars["visits"]}
        output = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False)
        result = {"call_id": "vars", "name": "inspect_vars", "success": True, "output": output, "error": None}
        return {"mode": "executed", "results": [result]}

    def _perform(self, effect: Pending) -> None:
        node = self.nodes[effect.node]
        self.performed.append((effect.node, effect.seq, effect.attempt))
        outcome = node.outcomes[min(effect.attempt, len(node.outcomes)) - 1]
        if outcome in FAILURES:
            error, again = FAILURES[outcome]
            if again and effect.attempt < ATTEMPTS:
                effect.due, effect.attempt = self.now + BACKOFF, effect.attempt + 1
                self.pending = effect
                return
            self._fail(error if effect.attempt == 1 else f"Effect failed after {effect.attempt} attempts: {error}")
        elif outcome == "wait":
            self._wait("job", effect.then, node, author_key="the job")
        else:
            if outcome == "log":
                self.vars = {**self.vars, "log": [*self.vars.get("log", []), effect.seq]}
            result = None if outcome == "nothing" else {"attempt": effect.attempt, "of": effect.node}
            self._land(effect.node, effect.then, result)

    # How an effect lands, and how a wait ends

    def _land(self, name: str, then: str | None, result: Any) -> None:
        self.seq += 1
        self.pending = None
        self._write(self.nodes[name].key, result)
        self._go_on(then, result)

    def _fail(self, error: str) -> None:
        self.seq += 1
        self._end("failed", error=error)

    def _wait(
        self, reason: str, then: str | None, node: Node, *, until: float | None = None, author_key: str | None = None
    ) -> None:
        self.seq += 1
        self.pending = None
        prompt = "Well?" if node.kind == "ask" else None
        choices = CHOICES if node.choices and node.kind in ("ask", "listen") else None
        binding = node.binding and choices is not None
        name = node.name if node.kind == "listen" and node.wait_key is None else None
        self.wait = Wait(len(self.waits), reason, then, node.key, author_key, until, prompt, choices, binding, name)
        self.waits.append(self.wait)

    def _ring(self, wait: Wait) -> None:
        assert wait.until is not None
        news = {"ready": True} if wait.reason == "until" else {"timed_out": True}
        self._wake(wait, {"until": instant(wait.until), **news})

    def _hear(self, wait: Wait) -> bool:
        """The first event of that name that was not heard ends the wait, if it was sent before the deadline."""
        found = next((event for event in self.unheard if event[1]["name"] == wait.name), None)
        if found is None or (wait.until is not None and found[0] > wait.until):
            return False
        self.unheard.remove(found)
        self._wake(wait, found[1])
        return True

    def _answer(self, key: Any, payload: Any) -> None:
        if self.paused:
            raise Refused("RunPaused")
        if self.wait is None or not self._is_key(self.wait, key):
            raise Refused("StaleResumeError")
        if self.wait.binding and _said(payload) not in CHOICES:
            raise Refused("InvalidAnswer")
        self._wake(self.wait, payload)

    def _is_key(self, wait: Wait, key: Any) -> bool:
        """A key is None (whatever waits), nobody's, or the own key or the identity of a wait by its number."""
        if key is None:
            return True
        kind, number = key
        if kind == "own" and wait.author_key is not None and number is not None:
            return bool(self.waits[number].author_key == wait.author_key)
        return bool(number == wait.number)

    def _wake(self, wait: Wait, payload: Any) -> None:
        self.wait = None
        self._write(wait.key, payload)
        self._go_on(wait.then, payload)

    def _go_on(self, then: str | None, result: Any) -> None:
        if then is None:
            self._end("completed", output={"success": True, "result": result})
        else:
            self.node = then

    def _end(self, status: str, *, output: Any = None, error: str | None = None) -> None:
        self.status, self.output, self.error = status, output, error
        self.wait = self.pending = None

    def _write(self, path: str | None, value: Any) -> None:
        if path is not None and value is not None:
            self.vars = written(self.vars, path, value)


def written(vars: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Vars with a value at a dotted path; what is no dict on the way is replaced by one."""
    first, _, rest = path.partition(".")
    if not rest:
        return {**vars, first: value}
    below = vars.get(first)
    return {**vars, first: written(below if isinstance(below, dict) else {}, rest, value)}


def _said(payload: Any) -> Any:
    """What an answer chooses."""
    if isinstance(payload, dict):
        for name in ("choice", "text", "response", "value"):
            if name in payload:
                return payload[name]
    return payload
