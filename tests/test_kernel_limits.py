"""The kernel as a table: limits that are near, reached, enforced, raised; and what is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from abstractruntime.core import kernel
from abstractruntime.core.codec import encode_records, encode_run, json_safe, record_dict
from abstractruntime.core.config import RuntimeConfig, is_far_from_limits, limit_warnings, limits_reached
from abstractruntime.core.errors import InvalidAnswer
from abstractruntime.core.models import RunState, RunStatus, StepPlan, WaitReason, WaitState

from .states import BEFORE, NOW, STAMP, brief, do, running, waiting

HUMAN = {"role": "user", "content": "hello"}
SYSTEM = {"role": "system", "content": "be brief"}


def limited(messages: list[Any] | None = None, **limits: Any) -> RunState:
    """A running run with these limits."""
    vars = {**running().vars, "_limits": {**RuntimeConfig(10, max_tokens=100).to_limits_dict(), **limits}}
    return running(vars=vars if messages is None else {**vars, "context": {"messages": messages}})


def reached(run: RunState) -> list[tuple[str, int, int]]:
    return [(one.limit_type, one.current, one.maximum) for one in limits_reached(run.vars)]


REACHED: list[tuple[RunState, list[tuple[str, int, int]]]] = [
    (limited(), []),
    (limited(current_iteration=9), []),
    (limited(current_iteration=10), [("iterations", 10, 10)]),
    (limited(current_iteration=11), [("iterations", 11, 10)]),
    (limited(current_iteration=11, max_iterations=-1), []),
    (limited(max_iterations=0), [("iterations", 0, 0)]),
    (limited(estimated_tokens_used=99), []),
    (limited(estimated_tokens_used=100), [("tokens", 100, 100)]),
    (limited(estimated_tokens_used=0, max_tokens=0), []),
    (limited(estimated_tokens_used=5, max_tokens=0), [("tokens", 5, 0)]),
    (limited([HUMAN] * 3, max_history_messages=-1), []),
    (limited([HUMAN] * 3, max_history_messages=3), []),
    (limited([HUMAN] * 4, max_history_messages=3), [("history", 4, 3)]),
    (limited([SYSTEM, *[HUMAN] * 3], max_history_messages=3), []),
    (limited([HUMAN], max_history_messages=0), [("history", 1, 0)]),
    (limited(["text", None], max_history_messages=1), [("history", 2, 1)]),
    (limited([HUMAN] * 4, max_history_messages="3"), []),
    (limited(current_iteration="ten"), []),
    (limited(current_iteration=10, estimated_tokens_used=100), [("iterations", 10, 10), ("tokens", 100, 100)]),
    (running(vars={"_limits": "none", "context": None}), []),
    (running(vars={}), []),
]


@pytest.mark.parametrize(("run", "expected"), REACHED)
def test_what_stops_a_run_whose_limits_are_enforced(run: RunState, expected: list[tuple[str, int, int]]):
    assert reached(run) == expected
    assert kernel.at_limit(run, None, STAMP) is None
    for mode in ("fail", "ask"):
        assert (kernel.at_limit(run, mode, STAMP) is None) == (not expected)


KEYS = [("iterations", "max_iterations"), ("tokens", "max_tokens"), ("history", "max_history_messages")]
AT: dict[str, RunState] = {
    "iterations": limited(current_iteration=10),
    "tokens": limited(estimated_tokens_used=120),
    "history": limited([HUMAN] * 8, max_history_messages=4),
}
NUMBERS = {"iterations": (10, 10, 15), "tokens": (120, 100, 170), "history": (8, 4, 10)}


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_a_run_at_a_limit_fails_with_an_error_that_names_it(name: str, key: str):
    current, maximum, _ = NUMBERS[name]
    commit = do(kernel.at_limit, quiet(AT[name]), "fail", STAMP)
    assert commit.run.status is RunStatus.FAILED
    assert commit.run.error == (
        f"The limit of {name} is reached at node 'here': {current}, with {key} {maximum}. "
        f"Raise {key} with update_limits(), then call retry_run()."
    )
    assert [step[:2] for step in brief(commit)] == [("owner.7:limit", "failed"), ("owner.7:status", "completed")]
    assert commit.records[0].effect == {
        "type": "limit",
        "payload": {"limit_type": name, "current": current, "maximum": maximum},
        "result_key": None,
    }


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_a_run_at_a_limit_waits_for_a_person(name: str, key: str):
    current, maximum, raised = NUMBERS[name]
    commit = do(kernel.at_limit, quiet(AT[name]), "ask", STAMP)
    wait = commit.run.waiting
    assert wait is not None
    assert (commit.run.status, wait.reason, wait.resume_to_node) == (RunStatus.WAITING, WaitReason.USER, "here")
    assert wait.prompt == (
        f"The limit of {name} is reached at node 'here': {current}, with {key} {maximum}. "
        f"Go on with a maximum of {raised}?"
    )
    assert (wait.choices, wait.allow_free_text) == (["raise and go on", "stop"], False)
    assert wait.details is not None
    assert {k: wait.details[k] for k in ("kind", "limit", "value", "maximum", "raised")} == {
        "kind": "limit",
        "limit": name,
        "value": current,
        "maximum": maximum,
        "raised": raised,
    }
    assert [step[:2] for step in brief(commit)] == [("owner.7:limit", "waiting")]
    assert kernel.is_limit_wait(commit.run)


@pytest.mark.parametrize(("name", "key"), KEYS)
@pytest.mark.parametrize(
    ("payload", "maximum"),
    [
        ("raise and go on", None),
        ({"choice": "raise and go on"}, None),
        ({"text": "raise and go on", "maximum": 999}, 999),
    ],
)
def test_a_person_lets_it_go_on(name: str, key: str, payload: Any, maximum: int | None):
    asked = asking(name)
    commit = do(kernel.answered, asked, None, payload, STAMP, actor_id="bob", lookup_key="resume:1")
    new, wanted = commit.run, maximum or NUMBERS[name][2]
    assert (new.status, new.waiting, new.current_node) == (RunStatus.RUNNING, None, "here")
    assert new.vars["_limits"] == {**asked.vars["_limits"], key: wanted}
    assert {k: v for k, v in new.vars.items() if k != "_limits"} == {
        k: v for k, v in asked.vars.items() if k != "_limits"
    }
    assert limits_reached(new.vars) == []
    record = commit.records[0]
    assert record.result == {"resumed": True, "decision": "raise and go on", "maximum": wanted}
    assert (record.actor_id, record.idempotency_key, commit.lookup_key) == ("bob", "resume:1", "resume:1")


def test_a_person_stops_it():
    commit = do(kernel.answered, asking("tokens"), None, {"choice": "stop"}, STAMP, actor_id=None, lookup_key=None)
    assert (commit.run.status, commit.run.waiting) == (RunStatus.FAILED, None)
    assert commit.run.error == "Stopped: The limit of tokens is reached at node 'here': 120, with max_tokens 100."
    assert brief(commit)[-1][0] == "owner.7:status"
    assert commit.records[0].result == {"resumed": True, "decision": "stop"}


@pytest.mark.parametrize("maximum", [0, 120, "many", None, True, 130.5, [1]])
def test_a_maximum_that_would_not_help_is_refused(maximum: Any):
    asked = asking("tokens")
    with pytest.raises(InvalidAnswer, match="limit of tokens is reached there too"):
        kernel.answered(
            asked, None, {"choice": "raise and go on", "maximum": maximum}, STAMP, actor_id=None, lookup_key=None
        )


def test_an_answer_that_is_no_choice_is_refused():
    with pytest.raises(InvalidAnswer):
        kernel.answered(asking("tokens"), None, "perhaps", STAMP, actor_id=None, lookup_key=None)


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_raising_the_limit_lets_the_run_go_on(name: str, key: str):
    asked = asking(name)
    limits = asked.vars["_limits"]
    still = do(kernel.set_limits, asked, {**limits, "warn_tokens_pct": 70}, STAMP)
    assert (still.run.status, still.run.updated_at) == (RunStatus.WAITING, asked.updated_at)
    freed = do(kernel.set_limits, asked, {**limits, key: 500}, STAMP)
    assert (freed.run.status, freed.run.waiting, freed.run.current_node) == (RunStatus.RUNNING, None, "here")
    assert freed.run.vars["_limits"] == {**limits, key: 500}
    assert [record.result for record in freed.records] == [{"resumed": True, "by": "update_limits"}]


def test_a_question_of_a_node_is_no_limit_whatever_it_calls_itself():
    wait = WaitState(WaitReason.USER, "user:r:1", resume_to_node="there", details={"kind": "limit", "limit": "tokens"})
    run = replace(limited(estimated_tokens_used=120), status=RunStatus.WAITING, waiting=wait)
    assert not kernel.is_limit_wait(run)
    assert kernel.set_limits(run, {"max_tokens": 500}, STAMP).run.status is RunStatus.WAITING
    assert not kernel.is_limit_wait(waiting(wait))
    assert not kernel.is_limit_wait(running())


def quiet(run: RunState) -> RunState:
    """The run as it is when its ledger has told of its limits."""
    return replace(run, warned={one.limit_type: one.status for one in limit_warnings(run.vars.get("_limits"))})


def asking(name: str) -> RunState:
    commit = kernel.at_limit(quiet(AT[name]), "ask", STAMP)
    assert commit is not None
    return commit.run


# -- what the ledger says


def stepped(run: RunState, **limits: Any) -> RunState:
    """The run after a step whose node set these limits."""
    run.vars = {**run.vars, "_limits": {**run.vars["_limits"], **limits}}
    return run


def told(run: RunState) -> tuple[RunState, list[tuple[str, str]]]:
    """The run after a step, and the limits that the step's records tell of."""
    commit = kernel.move(run, StepPlan("here", next_node="here"), STAMP)
    assert commit.run.records == run.records + len(commit.records)
    payloads = [(record.effect or {})["payload"] for record in commit.records]
    return commit.run, [(payload["limit_type"], payload["status"]) for payload in payloads]


ITERATIONS: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"current_iteration": 7}, []),
    ({"current_iteration": 8}, [("iterations", "warning")]),
    ({"current_iteration": 9}, []),
    ({"current_iteration": 10}, [("iterations", "exceeded")]),
    ({"current_iteration": 11}, []),
    ({"max_iterations": 13}, []),  # near again: nothing that its ledger does not say
    ({"max_iterations": 100}, []),
    ({"current_iteration": 80}, [("iterations", "warning")]),
    ({"estimated_tokens_used": 100}, [("tokens", "exceeded")]),
    ({"estimated_tokens_used": 3}, []),
    ({"estimated_tokens_used": 85, "current_iteration": 100}, [("iterations", "exceeded"), ("tokens", "warning")]),
]


def test_each_crossing_is_told_once():
    run = limited()
    for change, expected in ITERATIONS:
        run, found = told(stepped(run, **change))
        assert found == expected, change
    run.vars["_limits"] = "damaged"
    run, found = told(run)
    assert (found, run.warned) == ([], {})


def test_a_warning_says_how_near_the_limit_is():
    commit = kernel.move(limited(current_iteration=8), StepPlan("here", next_node="there"), STAMP)
    (record,) = commit.records
    assert record.effect == {
        "type": "limit_warning",
        "payload": {"limit_type": "iterations", "status": "warning", "current": 8, "maximum": 10, "pct": 80.0},
        "result_key": None,
    }
    assert (record.step_id, record.commit_id) == ("owner.7:limit_warning:iterations", "owner.7")
    assert (record.started_at, record.ended_at) == (NOW, NOW)


def test_the_end_of_a_run_stays_its_last_record():
    plan = StepPlan("here", complete_output={})
    records = kernel.complete(limited(current_iteration=10), plan, STAMP).records
    assert [record.step_id for record in records] == [
        "owner.7:completed",
        "owner.7:limit_warning:iterations",
        "owner.7:status",
    ]


def test_limits_that_are_set_below_what_is_used_are_told_by_the_next_step():
    run = limited(current_iteration=5)
    commit = do(kernel.set_limits, run, {**run.vars["_limits"], "max_iterations": 4}, STAMP)
    assert (commit.run.updated_at, commit.records, commit.run.warned) == (BEFORE, (), {})
    run, found = told(commit.run)
    assert found == [("iterations", "exceeded")]
    assert told(do(kernel.set_limits, run, {**run.vars["_limits"], "max_iterations": 100}, STAMP).run)[0].warned == {}


@pytest.mark.parametrize("value", [2**64 - 1, 10**300, 1e308, -1e308, 2.0**63, 1e18])
@pytest.mark.parametrize("key", sorted(RuntimeConfig().to_limits_dict()))
def test_what_is_told_of_any_numbers_can_be_stored(key: str, value: Any):
    run = limited(**{"current_iteration": 9, "estimated_tokens_used": 90, key: value})
    commit = kernel.move(run, StepPlan("here", next_node="here"), STAMP)
    assert json_safe(list(map(record_dict, commit.records)), "records")
    for mode in ("fail", "ask"):
        stopped = kernel.at_limit(run, mode, STAMP)
        assert stopped is None or (encode_run(stopped.run) and encode_records(stopped.records))


def test_an_author_may_imitate_the_question():
    details = {"kind": "limit", "limit": "tokens"}
    wait = WaitState(WaitReason.USER, "user:r:1", choices=["raise and go on", "stop"], details=details)
    run = replace(limited(estimated_tokens_used=120), status=RunStatus.WAITING, waiting=wait)
    with pytest.raises(InvalidAnswer):
        kernel.answered(run, None, "raise and go on", STAMP, actor_id=None, lookup_key=None)
    stopped = kernel.answered(run, None, "stop", STAMP, actor_id=None, lookup_key=None)
    assert stopped.run.status is RunStatus.FAILED
    assert not kernel.is_limit_wait(waiting(replace(wait, details={"kind": "limit", "limit": [1]})))


NUMBER = st.integers(-3, 300) | st.floats() | st.none() | st.booleans() | st.text(max_size=2) | st.just(10**40)


@given(st.fixed_dictionaries({}, optional={key: NUMBER for key in RuntimeConfig().to_limits_dict()}))
def test_what_looks_far_from_its_limits_has_no_warnings(limits: dict[str, Any]):
    if is_far_from_limits(limits):
        assert limit_warnings(limits) == []


def test_a_percentage_that_is_rounded_up_to_the_threshold_is_near():
    limits = {**RuntimeConfig(100_000).to_limits_dict(), "current_iteration": 79_960}
    assert [(one.status, one.pct) for one in limit_warnings(limits)] == [("warning", 80.0)]
    assert not is_far_from_limits(limits)


@pytest.mark.parametrize("limits", [None, [], "x", 5, {}, {"current_iteration": 1}])
def test_what_is_no_limits_is_not_far_from_them_for_sure(limits: Any):
    assert not is_far_from_limits(limits)


def test_the_limits_of_a_fresh_run_are_far():
    assert is_far_from_limits(RuntimeConfig().to_limits_dict())
