"""What an error says about another attempt, and how long the wait before it is."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from abstractruntime import DefaultEffectPolicy, Effect, RetryPolicy
from abstractruntime.core.classify import is_retryable, retry_after
from abstractruntime.core.policy import LONGEST_PAUSE, pause_before_retry

NOW = datetime(2026, 1, 31, 9, tzinfo=UTC)
EFFECT = Effect("host")


class HttpError(Exception):
    """An error as HTTP clients raise it."""

    def __init__(self, status: int, headers: dict[str, str] | None = None, *, on_response: bool = True) -> None:
        super().__init__(f"status {status}")
        if on_response:
            self.response = SimpleNamespace(status_code=status, headers=headers or {})
        else:
            self.status_code = status


class Said(Exception):
    def __init__(self, **said: Any) -> None:
        super().__init__("no")
        self.__dict__.update(said)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (ConnectionError("reset"), True),
        (OSError("no route"), True),
        (RuntimeError("flaky"), True),
        (ValueError("perhaps"), True),
        (TypeError("no such argument"), False),
        (AttributeError("x"), False),
        (NameError("x"), False),
        (ImportError("x"), False),
        (NotImplementedError(), False),
        (HttpError(500), True),
        (HttpError(503, on_response=False), True),
        (HttpError(429), True),
        (HttpError(408), True),
        (HttpError(400), False),
        (HttpError(401, on_response=False), False),
        (Said(retryable=False), False),
        (Said(retryable=True, status_code=400), True),
        (Said(status_code="400"), True),
    ],
    ids=repr,
)
def test_an_error_says_whether_another_attempt_can_help(error: BaseException, expected: bool):
    assert is_retryable(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(), None),
        (Said(retry_after=7), 7.0),
        (Said(retry_after=-1), 0.0),
        (Said(retry_after=float("nan")), None),
        (HttpError(429, {"Retry-After": "120"}), 120.0),
        (HttpError(429, {"retry-after": "Sat, 31 Jan 2026 09:01:30 GMT"}), 90.0),
        (HttpError(429, {"retry-after": "Sat, 31 Jan 2026 08:00:00 GMT"}), 0.0),
        (HttpError(429, {"retry-after": "Sat, 31 Feb 2026 08:00:00 GMT"}), None),
        (HttpError(429, {"retry-after": "Sat, 31 Foo 2026 08:00:00 GMT"}), None),
        (HttpError(429, {"retry-after": "soon"}), None),
        (HttpError(429, {"retry-after": ""}), None),
    ],
    ids=repr,
)
def test_an_error_says_how_long_to_wait(error: BaseException, expected: float | None):
    assert retry_after(error, NOW) == expected


def pause(policy: Any, failures: int = 1, key: str = "k", retry_after: float | None = None) -> float | None:
    return pause_before_retry(policy, effect=EFFECT, key=key, failures=failures, retry_after=retry_after)


def test_the_pause_doubles_up_to_its_bound_and_ends_with_the_attempts():
    policy = DefaultEffectPolicy(5, default_backoff_base=1.0, default_backoff_max=3.0)
    assert [pause(policy, failures) for failures in range(1, 7)] == [1.0, 2.0, 3.0, 3.0, None, None]


def test_the_pause_is_at_least_what_the_server_asks_for():
    policy = DefaultEffectPolicy(3)
    assert pause(policy, retry_after=30.0) == 30.0
    assert pause(policy, retry_after=0.5) == 1.0
    assert pause(policy, retry_after=1e12) == LONGEST_PAUSE


def test_jitter_shortens_by_a_fraction_that_the_key_and_the_attempt_decide():
    policy = DefaultEffectPolicy(9, default_backoff_base=100.0, default_backoff_max=100.0, jitter=0.5)
    found = {pause(policy, failures, f"key{key}") for key in range(200) for failures in (1, 2)}
    assert len(found) == 400
    assert all(50.0 < seconds <= 100.0 for seconds in found if seconds is not None)
    assert pause(policy, 1, "key7") == pause(policy, 1, "key7"), "the same effect waits as long again"
    spread = sorted(seconds for seconds in found if seconds is not None)
    assert spread[40] < 60.0 < 90.0 < spread[-40], "spread over the whole range"


def test_jitter_must_be_a_fraction():
    with pytest.raises(ValueError, match=r"jitter must be a number from 0 to 1, found 2"):
        RetryPolicy(jitter=2)


def test_a_policy_without_jitter_waits_exactly_as_documented():
    assert pause(RetryPolicy(llm_max_attempts=3), key="a") is None
    assert pause_before_retry(RetryPolicy(), effect=Effect("llm_call"), key="a", failures=1) == 1.0
