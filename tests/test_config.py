"""The limits of a run: defaults, status, warnings, updates."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime.core.config import (
    DEFAULT_MAX_ITERATIONS,
    DEFAULT_MAX_TOKENS,
    LimitWarning,
    RuntimeConfig,
    apply_limit_updates,
    limit_status,
    limit_warnings,
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(RuntimeConfig().to_limits_dict())


def test_a_config_without_arguments_has_the_documented_defaults():
    assert RuntimeConfig().to_limits_dict() == {
        "max_iterations": DEFAULT_MAX_ITERATIONS,
        "current_iteration": 0,
        "max_tokens": DEFAULT_MAX_TOKENS,
        "max_output_tokens": None,
        "max_input_tokens": None,
        "estimated_tokens_used": 0,
        "max_history_messages": -1,
        "warn_iterations_pct": 80,
        "warn_tokens_pct": 80,
    }


def test_a_config_is_positional_and_frozen():
    config = RuntimeConfig(3, 90)
    assert (config.max_iterations, config.warn_iterations_pct) == (3, 90)
    with pytest.raises(AttributeError):
        config.max_iterations = 4  # type: ignore[misc]


def test_token_limits_fall_back_to_the_models_capabilities():
    config = RuntimeConfig(model_capabilities={"max_tokens": 8000, "max_output_tokens": 1000})
    limits = config.to_limits_dict()
    assert (limits["max_tokens"], limits["max_output_tokens"]) == (8000, 1000)
    own = msgspec.structs.replace(config, max_tokens=500).to_limits_dict()
    assert own["max_tokens"] == 500


def test_capabilities_that_are_no_numbers_count_as_unknown():
    limits = RuntimeConfig(model_capabilities={"max_tokens": "many", "max_output_tokens": True}).to_limits_dict()
    assert (limits["max_tokens"], limits["max_output_tokens"]) == (DEFAULT_MAX_TOKENS, None)


@pytest.mark.parametrize(
    ("entry", "output", "expected"),
    [(None, 1000, None), (5000, None, 5000), (5000, 1000, 5000), (9000, 1000, 8744), (9000, 10_000, 0)],
)
def test_an_explicit_input_limit_is_cut_to_what_the_window_leaves(entry, output, expected):
    config = RuntimeConfig(max_tokens=10_000, max_output_tokens=output, max_input_tokens=entry)
    assert config.to_limits_dict()["max_input_tokens"] == expected


def test_capabilities_are_replaced_in_a_new_config():
    old = RuntimeConfig(max_iterations=3, model_capabilities={"max_tokens": 1})
    new = old.with_capabilities({"max_output_tokens": 2})
    assert (new.max_iterations, new.model_capabilities) == (3, {"max_output_tokens": 2})
    assert old.model_capabilities == {"max_tokens": 1}


def test_the_status_says_how_far_each_limit_is_used():
    limits = {**RuntimeConfig(max_iterations=3, max_tokens=1000).to_limits_dict(), "current_iteration": 2}
    limits["estimated_tokens_used"] = 800
    assert limit_status(limits) == {
        "iterations": {"current": 2, "max": 3, "pct": 66.7, "warning": False},
        "tokens": {
            "estimated_used": 800,
            "max": 1000,
            "max_input_tokens": None,
            "max_output_tokens": None,
            "pct": 80.0,
            "warning": True,
        },
        "history": {"max_messages": -1},
    }


@pytest.mark.parametrize(
    ("current", "maximum", "expected"),
    [
        (7, 10, []),
        (8, 10, [LimitWarning("iterations", "warning", 8, 10)]),
        (10, 10, [LimitWarning("iterations", "exceeded", 10, 10)]),
        (11, 10, [LimitWarning("iterations", "exceeded", 11, 10)]),
        (0, 0, [LimitWarning("iterations", "exceeded", 0, 0)]),
        (99, -1, []),
    ],
)
def test_iterations_warn_when_near_and_when_reached(current, maximum, expected):
    assert limit_warnings({"current_iteration": current, "max_iterations": maximum}) == expected


@pytest.mark.parametrize(
    ("used", "maximum", "statuses"), [(0, 0, []), (79, 100, []), (80, 100, ["warning"]), (100, 100, ["exceeded"])]
)
def test_tokens_warn_once_some_are_used(used, maximum, statuses):
    warnings = limit_warnings({"estimated_tokens_used": used, "max_tokens": maximum})
    assert [(w.limit_type, w.status) for w in warnings] == [("tokens", status) for status in statuses]


def test_a_warning_computes_its_percentage_from_the_numbers():
    assert LimitWarning("tokens", "warning", 2, 3, 5.0).pct == 66.7
    assert LimitWarning("tokens", "warning", 2, 0, 5.0).pct == 5.0


@given(limits=ANYTHING | st.dictionaries(st.sampled_from(KEYS), ANYTHING))
def test_malformed_limits_are_read_as_missing_and_never_raise(limits):
    status = limit_status(limits)
    assert all(type(status["iterations"][name]) is int for name in ("current", "max"))
    limit_warnings(limits)


def test_limits_that_are_no_dict_read_as_the_defaults():
    assert limit_status("broken") == limit_status(RuntimeConfig().to_limits_dict())
    assert limit_status({"max_iterations": "ten", "current_iteration": 2.0})["iterations"] == {
        "current": 2,
        "max": DEFAULT_MAX_ITERATIONS,
        "pct": 4.0,
        "warning": False,
    }


def test_updates_write_the_documented_keys_into_a_copy_and_ignore_others():
    limits: dict[str, Any] = {"max_iterations": 5, "own": 1}
    new = apply_limit_updates(limits, {"max_iterations": 9, "estimated_tokens_used": 3, "unknown": 1})
    assert new == {"max_iterations": 9, "own": 1, "estimated_tokens_used": 3}
    assert limits == {"max_iterations": 5, "own": 1}
    assert apply_limit_updates(None, {"max_tokens": 1}) == {"max_tokens": 1}
