"""Policies: attempts, backoff, idempotency keys, unknown outcomes."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime.core.errors import UnsafeValue
from abstractruntime.core.models import Effect, EffectType, RunState
from abstractruntime.core.policy import (
    DefaultEffectPolicy,
    EffectPolicy,
    NoRetryPolicy,
    RetryPolicy,
    compute_idempotency_key,
    has_default_keys,
    unknown_rule,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="ascii"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
LLM, TOOLS, ASK, OWN = (Effect(name) for name in ("llm_call", "tool_calls", "ask_user", "send_mail"))


def run_with(vars: dict[str, Any]) -> RunState:
    return RunState.new(workflow_id="w", entry_node="a", vars=vars, run_id="r")


def key(effect: Effect, **others: Any) -> str:
    return compute_idempotency_key(**{"run_id": "r", "node_id": "n", "effect": effect, **others})


class Documented:
    """A policy with the three documented methods only."""

    def max_attempts(self, effect: Effect) -> int:
        return 1

    def backoff_seconds(self, *, effect: Effect, attempt: int) -> float:
        return 0.0

    def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
        return f"{run.run_id}:{effect.payload['order']}"


@dataclass
class Deciding(Documented):
    """A policy that says what becomes of effects whose performer died."""

    rule: Any = "ask"
    asked: list[str] = field(default_factory=list)

    def on_unknown(self, effect: Effect) -> Any:
        self.asked.append(effect.type)
        return self.rule


@pytest.mark.parametrize(
    ("policy", "attempts"),
    [
        (DefaultEffectPolicy(), [1, 1, 1, 1]),
        (DefaultEffectPolicy(4, effect_max_attempts={"llm_call": 2, "send_mail": 5}), [2, 4, 4, 5]),
        (DefaultEffectPolicy(0), [1, 1, 1, 1]),
        (RetryPolicy(), [3, 2, 1, 1]),
        (RetryPolicy(llm_max_attempts=7, tool_max_attempts=1), [7, 1, 1, 1]),
        (NoRetryPolicy(), [1, 1, 1, 1]),
    ],
)
def test_the_number_of_attempts_goes_by_the_type_of_the_effect(policy, attempts):
    assert [policy.max_attempts(effect) for effect in (LLM, TOOLS, ASK, OWN)] == attempts


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (DefaultEffectPolicy(), [1, 2, 4, 8, 16, 32, 60, 60]),
        (RetryPolicy(), [1, 2, 4, 8, 16, 30, 30, 30]),
        (RetryPolicy(backoff_base=0.5, backoff_max=3.0), [0.5, 1, 2, 3, 3, 3, 3, 3]),
    ],
)
def test_the_wait_doubles_with_each_attempt_up_to_its_maximum(policy, waits):
    assert [policy.backoff_seconds(effect=LLM, attempt=attempt) for attempt in range(1, 9)] == waits


@given(attempt=st.integers(-10, 10**12), base=st.floats(0, 1e308), most=st.floats(0, 1e6))
def test_no_attempt_number_makes_the_wait_longer_than_its_maximum(attempt, base, most):
    policy = DefaultEffectPolicy(default_backoff_base=base, default_backoff_max=most)
    assert 0 <= policy.backoff_seconds(effect=OWN, attempt=attempt) <= most


@given(payload=st.dictionaries(st.text(max_size=4), JSON, max_size=4), seq=st.integers(0, 10**6))
def test_a_key_is_the_hash_of_run_node_effect_and_counter_as_canonical_json(payload, seq):
    described = {
        "run_id": "r",
        "node_id": "n",
        "effect_type": "send_mail",
        "effect_payload": payload,
        "effect_seq": seq,
    }
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    expected = hashlib.sha256(text.encode()).hexdigest()[:32]
    assert key(Effect("send_mail", payload), effect_seq=seq) == expected


def test_a_key_does_not_depend_on_the_order_of_the_payload():
    assert key(Effect("x", {"a": 1, "b": {"c": 1, "d": 2}})) == key(Effect("x", {"b": {"d": 2, "c": 1}, "a": 1}))


@pytest.mark.parametrize(
    "other",
    [
        {"run_id": "other"},
        {"node_id": "other"},
        {"effect_seq": 1},
        {"effect": Effect("y", {"a": 1})},
        {"effect": Effect("x", {"a": 2})},
    ],
)
def test_a_key_differs_with_everything_that_names_the_effect(other):
    effect = Effect("x", {"a": 1})
    assert key(**{"effect": effect, **other}) != key(effect)


def test_the_result_key_of_an_effect_does_not_count():
    assert key(Effect("x", {}, "one")) == key(Effect("x", {}, "two"))


def tools(*calls: Any, **others: Any) -> Effect:
    return Effect(EffectType.TOOL_CALLS, {"tool_calls": list(calls), **others})


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"name": "x", "arguments": {"a": 1}, "call_id": "1", "id": "2"}, {"name": " x ", "arguments": {"a": 1}}),
        ({"name": "x", "arguments": '{"a": 1}'}, {"name": "x", "arguments": {"a": 1}, "runtime_call_id": "9"}),
        ({"name": "x", "arguments": "no json"}, {"name": "x", "arguments": {}, "model_call_id": "m"}),
        ({"name": "x", "arguments": "\ud800"}, {"name": "x", "arguments": {}, "idempotency_key": "k"}),
        (
            {"function": {"name": "x ", "arguments": '{"a":1}'}, "id": "1"},
            {"function": {"name": "x", "arguments": {"a": 1}, "id": "2"}},
        ),
    ],
)
def test_the_same_tool_call_spelled_differently_has_the_same_key(one, same):
    assert key(tools(one)) == key(tools(same))


def test_different_tool_calls_have_different_keys():
    calls = [
        tools({"name": "x", "arguments": {"a": 1}}),
        tools({"name": "x", "arguments": {"a": 2}}),
        tools({"name": "y", "arguments": {"a": 1}}),
        tools({"name": "x", "arguments": {"a": 1}}, {"name": "x", "arguments": {"a": 1}}),
        tools("x"),
        tools(allowed_tools=["a"]),
    ]
    assert len({key(call) for call in calls}) == len(calls)


def test_the_order_of_allowed_tools_does_not_count():
    assert key(tools(allowed_tools=["b", " a", "a", "", 3])) == key(tools(allowed_tools=["a", "b"]))


def test_ids_count_outside_of_tool_calls():
    assert key(Effect("x", {"tool_calls": [{"id": "1"}]})) != key(Effect("x", {"tool_calls": [{"id": "2"}]}))


def test_computing_a_key_leaves_the_payload_alone():
    effect = tools(
        {"name": " x ", "arguments": '{"a": 1}', "id": "1", "function": {"id": "2"}}, allowed_tools=["b", "a"]
    )
    before = copy.deepcopy(effect.payload)
    key(effect)
    assert effect.payload == before


def test_a_payload_that_is_no_json_is_an_error_that_names_the_path():
    with pytest.raises(UnsafeValue, match=r"payload of x\.when\[0\]: a value of type object"):
        key(Effect("x", {"when": [object()]}))


def test_a_payload_with_number_keys_has_the_key_of_its_json_form():
    assert key(Effect("x", {"a": {1: "one"}})) == key(Effect("x", {"a": {"1": "one"}}))


@pytest.mark.parametrize(
    ("vars", "seq"),
    [
        ({"_runtime": {"effect_seq": 7}}, 7),
        ({"_runtime": {}}, 0),
        ({}, 0),
        ({"_runtime": "broken"}, 0),
        ({"_runtime": {"effect_seq": "7"}}, 0),
        ({"_runtime": {"effect_seq": True}}, 0),
    ],
)
def test_the_default_key_holds_the_runs_counter_of_effects(vars, seq):
    effect = Effect("x", {"a": 1})
    found = DefaultEffectPolicy().idempotency_key(run=run_with(vars), node_id="n", effect=effect)
    assert found == key(effect, effect_seq=seq)


def test_an_effect_whose_performer_died_is_performed_again_unless_a_rule_says_otherwise():
    policy = RetryPolicy(unknown_rules={"tool_calls": "ask", "send_mail": "fail"})
    assert [unknown_rule(policy, effect) for effect in (LLM, TOOLS, ASK, OWN)] == ["again", "ask", "again", "fail"]
    assert unknown_rule(NoRetryPolicy(unknown_rules={"llm_call": "fail"}), LLM) == "fail"


def test_a_policy_of_three_methods_performs_again():
    policy: EffectPolicy = Documented()
    assert unknown_rule(policy, OWN) == "again"


def test_a_policy_with_a_rule_of_its_own_is_asked():
    policy = Deciding("ask")
    assert unknown_rule(policy, OWN) == "ask"
    assert policy.asked == ["send_mail"]


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"Deciding\.on_unknown says 'retry'; expected one of again, fail, ask"):
        unknown_rule(Deciding("retry"), OWN)
    with pytest.raises(ValueError, match=r"unknown_rules\['llm_call'\] says 'retry'"):
        DefaultEffectPolicy(unknown_rules={"llm_call": "retry"})  # type: ignore[dict-item]


def test_keys_are_ours_only_while_nobody_overrides_them():
    class Patient(RetryPolicy):
        def max_attempts(self, effect: Effect) -> int:
            return 9

    class ByOrder(DefaultEffectPolicy):
        def idempotency_key(self, *, run: RunState, node_id: str, effect: Effect) -> str:
            return "order"

    patched = DefaultEffectPolicy()
    patched.idempotency_key = Documented().idempotency_key  # type: ignore[method-assign]
    ours: list[EffectPolicy] = [DefaultEffectPolicy(), RetryPolicy(), NoRetryPolicy(), Patient()]
    theirs: list[EffectPolicy] = [Documented(), ByOrder(), patched]
    assert [has_default_keys(policy) for policy in ours] == [True] * 4
    assert [has_default_keys(policy) for policy in theirs] == [False] * 3
