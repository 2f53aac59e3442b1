"""The secrets border: what never reaches a checkpoint, a ledger, a trace, a log, an error text or a file."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime import (
    AsyncInMemoryLedgerStore,
    AsyncInMemoryRunStore,
    AsyncRuntime,
    AsyncSqliteLedgerStore,
    AsyncSqliteRunStore,
    DefaultEffectPolicy,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    RunState,
    RunStatus,
    SqliteDatabase,
    StepPlan,
    StepRecord,
    StepStatus,
    WaitReason,
    WaitState,
    WorkflowSpec,
)
from abstractruntime.core.errors import InvalidPlan, SecretUnavailable, UnsafeValue
from abstractruntime.core.outcomes import Change
from abstractruntime.core.secrets import SECRET_KEYS, Secrets, admit, admit_both, reveal, scrub

RAW = "sk-live-0123456789"


def redact(value: Any) -> Any:
    return admit(value, "value")


# -- which keys


@pytest.mark.parametrize("key", sorted(SECRET_KEYS))
@pytest.mark.parametrize("spelled", [str, str.upper, str.title, lambda key: key.replace("_", "-")])
def test_a_known_key_is_redacted_in_any_case_and_with_dashes(key: str, spelled: Callable[[str], str]):
    name = spelled(key)
    assert redact({name: RAW, "other": 1}) == {name: {"$redacted": name}, "other": 1}


@pytest.mark.parametrize("key", ["X-Api-Key", "Authorization", "OPENAI_API_KEY", "apiKey", "Client-Secret"])
def test_the_usual_spellings_of_headers_and_settings_are_known(key: str):
    assert redact({key: RAW}) == {key: {"$redacted": key}}


@pytest.mark.parametrize(
    "key",
    [
        "max_tokens",
        "max_output_tokens",
        "tokens",
        "token",
        "token_count",
        "key",
        "keys",
        "result_key",
        "wait_key",
        "idempotency_key",
        "api_keys",
        "my_api_key_name",
        "monkey",
        "secret",
        "$secret",
        "secrets",
        "password_hint",
        "passwords",
        "authorization_url",
        "author",
        "public_key",
    ],
)
def test_a_key_that_only_looks_like_a_known_one_is_left_alone(key: str):
    value = {key: "plain", "nested": [{key: 5}]}
    assert redact(value) == value
    assert admit(value, "vars") == value


def test_a_secret_is_found_at_any_depth_and_the_original_stays():
    value = {"a": [{"headers": {"Authorization": f"Bearer {RAW}", "Accept": "*"}}], "b": [1], "c": {"password": RAW}}
    was = json.dumps(value)
    found = redact(value)
    assert found == {
        "a": [{"headers": {"Authorization": {"$redacted": "Authorization"}, "Accept": "*"}}],
        "b": [1],
        "c": {"password": {"$redacted": "password"}},
    }
    assert json.dumps(value) == was
    assert found["b"] == value["b"]


@pytest.mark.parametrize("secret", [RAW, 12345, [RAW], {"user": RAW}, {"$secret": "a", "extra": RAW}, True])
def test_a_value_of_any_shape_under_a_known_key_is_redacted_whole(secret: Any):
    assert redact({"api_key": secret}) == {"api_key": {"$redacted": "api_key"}}


@pytest.mark.parametrize("nothing", [None, "", 0, False, [], {}])
def test_nothing_under_a_known_key_is_no_secret(nothing: Any):
    value = {"api_key": nothing}
    assert redact(value) == value


@pytest.mark.parametrize("marker", [{"$secret": "openai"}, {"$redacted": "api_key"}])
def test_a_marker_is_left_as_it_is(marker: dict[str, str]):
    value = {"api_key": marker, "elsewhere": marker}
    assert redact(value) == value
    assert admit(value, "vars") == value


def test_what_was_redacted_once_stays_the_same():
    once = redact({"api_key": RAW, "list": [{"password": RAW}]})
    assert redact(once) == once


def test_the_border_makes_json_of_tuples_and_still_finds_the_secrets_in_them():
    assert admit({"a": ({"api_key": RAW},), 5: 1}, "vars") == {"a": [{"api_key": {"$redacted": "api_key"}}], "5": 1}


def test_the_border_hands_on_the_raw_value_beside_what_may_be_stored():
    given = {"api_key": RAW, "pair": (1, 2)}
    raw, stored = admit_both(given, "payload")
    assert raw == {"api_key": RAW, "pair": [1, 2]}
    assert stored == {"api_key": {"$redacted": "api_key"}, "pair": [1, 2]}
    plain = {"max_tokens": 5}
    assert admit_both(plain, "payload") == (plain, plain)
    assert admit_both(plain, "payload")[0] is not plain  # a copy: what its owner does later changes nothing


def test_the_border_refuses_what_json_cannot_carry_without_showing_a_secret():
    with pytest.raises(UnsafeValue, match=r"vars\.x") as caught:
        admit({"api_key": RAW, "x": math.nan}, "vars")
    assert RAW not in str(caught.value)


def test_bytes_under_a_known_key_are_refused_without_being_shown():
    with pytest.raises(UnsafeValue, match=r"vars\.api_key") as caught:
        admit({"api_key": RAW.encode()}, "vars")
    assert RAW not in str(caught.value)


PLAIN = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SECRETIVE = st.recursive(
    st.dictionaries(st.sampled_from(sorted(SECRET_KEYS)), st.just(RAW), min_size=1, max_size=2),
    lambda inner: st.lists(inner | PLAIN, max_size=3) | st.dictionaries(st.text(max_size=4), inner | PLAIN, max_size=3),
    max_leaves=6,
)


@given(SECRETIVE)
def test_what_is_redacted_holds_no_secret_and_is_revealed_by_the_raw_value_alone(value: Any):
    payload = {"payload": value}
    persisted = redact(payload)
    assert RAW not in json.dumps(persisted)
    revealed, hidden = reveal(persisted, payload, None)
    assert revealed == payload
    assert set(hidden) <= {RAW}


# -- putting them back


def test_a_payload_without_secrets_is_revealed_as_a_fresh_copy():
    payload = {"a": [1]}
    revealed, hidden = reveal(payload, None, None)
    assert (revealed, hidden) == (payload, [])
    assert revealed["a"] is not payload["a"]


@pytest.mark.parametrize("secrets", [{"openai": RAW}, {"openai": RAW}.get], ids=["mapping", "function"])
def test_a_named_secret_is_resolved_wherever_it_stands(secrets: Secrets):
    payload = {"api_key": {"$secret": "openai"}, "list": [1, {"header": {"$secret": "openai"}}]}
    revealed, hidden = reveal(payload, payload, secrets)
    assert revealed == {"api_key": RAW, "list": [1, {"header": RAW}]}
    assert set(hidden) == {RAW}
    assert payload["api_key"] == {"$secret": "openai"}


@pytest.mark.parametrize("secrets", [None, {}, {"other": RAW}, lambda name: None])
def test_a_named_secret_that_is_missing_is_told_with_its_path_and_name(secrets: Secrets | None):
    with pytest.raises(SecretUnavailable, match=r"payload\.a\[1\]\.api_key: no secret named 'openai'") as caught:
        reveal({"a": [0, {"api_key": {"$secret": "openai"}}]}, None, secrets)
    assert isinstance(caught.value, LookupError)
    assert "secrets=" in str(caught.value)


@pytest.mark.parametrize("name", [5, None, ["openai"], {"x": 1}])
def test_a_secret_whose_name_is_no_text_is_missing(name: Any):
    with pytest.raises(SecretUnavailable, match="no secret named"):
        reveal({"api_key": {"$secret": name}}, None, {"openai": RAW})


def test_a_raw_value_that_this_process_does_not_have_is_told_with_its_path_and_key():
    persisted = redact({"params": [{"api_key": RAW}]})
    with pytest.raises(SecretUnavailable, match=r"payload\.params\[0\]\.api_key: the raw value of 'api_key'") as caught:
        reveal(persisted, None, {"openai": RAW})
    assert "$secret" in str(caught.value)


def test_every_text_of_a_revealed_value_is_kept_from_leaking():
    raw = {"password": {"user": "somebody", "parts": ["part-one", 5]}}
    _, hidden = reveal(redact(raw), raw, None)
    assert sorted(hidden) == ["part-one", "somebody"]


# -- keeping them from coming back


def test_a_secret_is_scrubbed_from_texts_results_and_keys():
    value = {"text": f"a {RAW} b {RAW}", RAW: [RAW, (RAW, 1)], "n": 5, "none": None}
    assert scrub(value, [RAW]) == {
        "text": "a [redacted] b [redacted]",
        "[redacted]": ["[redacted]", ["[redacted]", 1]],
        "n": 5,
        "none": None,
    }


def test_with_nothing_to_hide_a_value_is_returned_itself():
    value = {"a": (1, 2)}
    assert scrub(value, []) is value


@pytest.mark.parametrize("hidden", [["sk-live", RAW], [RAW, "sk-live"]])
def test_a_secret_that_begins_with_another_one_is_scrubbed_whole(hidden: list[str]):
    assert scrub(f"key {RAW}", hidden) == "key [redacted]"


def test_very_short_secrets_do_not_tear_words_apart():
    _, hidden = reveal(redact({"password": "abc"}), {"password": "abc"}, None)
    assert hidden == []


# -- the whole way


class Watch:
    """A runtime on one kind of store, and everything about its runs that somebody could read."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.database = SqliteDatabase(folder / "runs.db") if kind == "sqlite" else None
        self.stores: tuple[Any, Any] = (
            (AsyncSqliteRunStore(self.database), AsyncSqliteLedgerStore(self.database))
            if self.database
            else (AsyncInMemoryRunStore(), AsyncInMemoryLedgerStore())
        )
        self.published: list[dict[str, Any]] = []

    def runtime(self, **options: Any) -> AsyncRuntime:
        rt = AsyncRuntime(run_store=self.stores[0], ledger_store=self.stores[1], **options)
        rt.subscribe_ledger(self.published.append)
        return rt

    async def readable(self, rt: AsyncRuntime, run_id: str) -> str:
        """All that can be read of a run, as one text."""
        state = await rt.get_state(run_id)
        seen = [
            repr(state),
            str(state.error),
            json.dumps(await rt.get_ledger(run_id)),
            json.dumps(await rt.get_node_traces(run_id)),
            json.dumps(self.published),
        ]
        seen += [path.read_bytes().decode("latin-1") for path in self.folder.rglob("*") if path.is_file()]
        return "\n".join(seen)

    async def close(self) -> None:
        if self.database:
            await self.database.aclose()


@pytest.fixture(params=["memory", "sqlite"])
async def watch(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Watch]:
    watch = Watch(request.param, tmp_path)
    yield watch
    await watch.close()


def one(payload: dict[str, Any], next_node: str | None = None, kind: str = "call") -> WorkflowSpec[Any]:
    """A workflow of one effect with this payload."""

    def call(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("call", Effect(kind, payload, "result"), next_node)

    def end(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("end", complete_output={"ended": True})

    return WorkflowSpec("one", "call", {"call": call, "end": end})


SECRET_PAYLOAD = {"params": {"api_key": RAW, "max_tokens": 5}, "headers": [{"Authorization": f"Bearer {RAW}"}]}


async def test_a_raw_secret_reaches_the_handler_and_nothing_that_is_kept(
    watch: Watch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []

    def handler(call: EffectCall) -> EffectOutcome:
        seen.append(call.payload)
        told = {"echo": f"used {RAW}", RAW: [RAW], "headers": {"Authorization": call.payload["headers"][0]}}
        return EffectOutcome.completed(told, changes=(Change(path="log", value=f"with {RAW}", op="append"),))

    rt = watch.runtime(effect_handlers={"call": handler})
    state = await rt.run(one(SECRET_PAYLOAD, "end"), run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert seen == [SECRET_PAYLOAD]
    assert state.vars["result"]["echo"] == "used [redacted]"
    assert state.vars["log"] == ["with [redacted]"]
    started = (await rt.get_ledger("r"))[0]
    assert started["effect"]["payload"]["params"] == {"api_key": {"$redacted": "api_key"}, "max_tokens": 5}
    everything = await watch.readable(rt, "r") + repr(state) + caplog.text
    await rt.aclose()
    await watch.close()
    assert RAW not in everything
    assert all(RAW.encode() not in path.read_bytes() for path in watch.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("secrets", [{"openai": RAW}, lambda name: RAW if name == "openai" else None])
async def test_a_named_secret_reaches_the_handler_and_nothing_that_is_kept(
    watch: Watch, caplog: pytest.LogCaptureFixture, secrets: Secrets
):
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []

    async def handler(call: EffectCall) -> EffectOutcome:
        seen.append(call.payload)
        return EffectOutcome.completed({"echo": RAW})

    rt = watch.runtime(effect_handlers={"call": handler}, secrets=secrets)
    state = await rt.run(one({"key": {"$secret": "openai"}}), run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert seen == [{"key": RAW}]
    assert state.output == {"success": True, "result": {"echo": "[redacted]"}}
    assert (await rt.get_ledger("r"))[0]["effect"]["payload"] == {"key": {"$secret": "openai"}}
    assert RAW not in await watch.readable(rt, "r") + caplog.text


def raises(call: EffectCall) -> EffectOutcome:
    raise PermissionError(f"401 for {RAW}")


def fails(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.failed(f"401 for {RAW}", retryable=False)


def fails_with_an_exception(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.failed(PermissionError(f"401 for {RAW}"), retryable=False)  # type: ignore[arg-type]


def fails_with_a_result(call: EffectCall) -> EffectOutcome:
    return EffectOutcome("failed", {"request": {"key": RAW}}, error="401", retryable=False)


def waits(call: EffectCall) -> EffectOutcome:
    details = {"request": f"key {RAW}", "headers": {"Authorization": RAW}}
    return EffectOutcome.waiting(
        WaitState(WaitReason.JOB, "job-1", prompt=f"Waiting with {RAW}", choices=[RAW], details=details)
    )


def answers_with_something_unsafe(call: EffectCall) -> EffectOutcome:
    return EffectOutcome.completed({RAW: {RAW: object()}})


def answers_with_no_outcome(call: EffectCall) -> Any:
    return {"key": RAW}


@pytest.mark.parametrize(
    "handler",
    [
        raises,
        fails,
        fails_with_an_exception,
        fails_with_a_result,
        waits,
        answers_with_something_unsafe,
        answers_with_no_outcome,
    ],
)
async def test_however_an_effect_ends_its_secret_stays_out_of_what_is_told(
    watch: Watch, caplog: pytest.LogCaptureFixture, handler: Callable[[EffectCall], Any]
):
    caplog.set_level(logging.DEBUG)
    rt = watch.runtime(effect_handlers={"call": handler})
    state = await rt.run(one(SECRET_PAYLOAD), run_id="r")
    assert state.status in (RunStatus.FAILED, RunStatus.WAITING)
    assert RAW not in await watch.readable(rt, "r") + repr(state) + caplog.text


async def test_secrets_given_from_outside_are_redacted_before_they_are_kept(watch: Watch):
    def ask(run: RunState, ctx: Any) -> StepPlan:
        assert run.vars["creds"] == {"password": {"$redacted": "password"}}
        run.vars["header"] = {"Authorization": RAW}
        payload = {"prompt": "Password?", "api_key": RAW}
        return StepPlan("ask", Effect(EffectType.ASK_USER, payload, "answer"), "end")

    def end(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("end", complete_output={"api_key": RAW, "answer": run.vars["answer"]})

    workflow: WorkflowSpec[Any] = WorkflowSpec("w", "ask", {"ask": ask, "end": end})
    rt = watch.runtime()
    await rt.start(workflow=workflow, vars={"creds": {"password": RAW}}, run_id="r")
    await rt.tick(workflow=workflow, run_id="r")
    state = await rt.resume(workflow=workflow, run_id="r", wait_key=None, payload={"password": RAW, "user": "ann"})
    assert state.output == {
        "api_key": {"$redacted": "api_key"},
        "answer": {"password": {"$redacted": "password"}, "user": "ann"},
    }
    assert RAW not in await watch.readable(rt, "r")


async def test_a_host_that_saves_or_appends_cannot_store_a_secret(watch: Watch):
    runs, ledgers = watch.stores
    run = RunState.new(workflow_id="w", entry_node="call", run_id="r", vars={"api_key": RAW})
    await runs.save(run)
    record = StepRecord("r", "own", "call", StepStatus.COMPLETED, {"type": "x", "payload": {"password": RAW}})
    record.result = {"access_token": RAW}
    await ledgers.append(record)
    assert RAW not in await watch.readable(watch.runtime(), "r")


async def test_a_plan_that_is_refused_does_not_show_its_payload(watch: Watch):
    def call(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("call", Effect("call", [{"api_key": RAW}], "result"))  # type: ignore[arg-type]

    workflow: WorkflowSpec[Any] = WorkflowSpec("w", "call", {"call": call})
    rt = watch.runtime()
    await rt.start(workflow=workflow, run_id="r")
    with pytest.raises(InvalidPlan) as caught:
        await rt.tick(workflow=workflow, run_id="r")
    assert RAW not in await watch.readable(rt, "r") + str(caught.value)


async def interrupted(rt: AsyncRuntime, workflow: WorkflowSpec[Any], begun: asyncio.Event) -> None:
    """Start a run and cancel its tick in the middle of the effect."""
    await rt.start(workflow=workflow, run_id="r")
    tick = asyncio.create_task(rt.tick(workflow=workflow, run_id="r"))
    await begun.wait()
    tick.cancel()
    with pytest.raises(asyncio.CancelledError):
        await tick


class Slow:
    """A handler that never ends in its first call and answers in the next."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.payloads: list[Any] = []

    async def __call__(self, call: EffectCall) -> EffectOutcome:
        self.payloads.append(call.payload)
        if len(self.payloads) == 1:
            self.begun.set()
            await asyncio.Event().wait()
        return EffectOutcome.completed("done")


async def test_recovery_without_the_raw_value_fails_the_run_and_names_the_key(watch: Watch):
    slow, workflow = Slow(), one(SECRET_PAYLOAD)
    rt = watch.runtime(effect_handlers={"call": slow})
    await interrupted(rt, workflow, slow.begun)
    state = await watch.runtime(effect_handlers={"call": slow}).tick(workflow=workflow, run_id="r")
    assert state.status is RunStatus.FAILED
    assert "payload.params.api_key" in (state.error or "")
    assert "'api_key'" in (state.error or "")
    assert len(slow.payloads) == 1
    assert RAW not in await watch.readable(rt, "r")


async def test_recovery_resolves_a_named_secret_again(watch: Watch):
    slow, workflow = Slow(), one({"key": {"$secret": "openai"}})
    rt = watch.runtime(effect_handlers={"call": slow}, secrets={"openai": RAW})
    await interrupted(rt, workflow, slow.begun)
    other = watch.runtime(effect_handlers={"call": slow}, secrets={"openai": "another-key-now"})
    state = await other.tick(workflow=workflow, run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert slow.payloads == [{"key": RAW}, {"key": "another-key-now"}]


async def test_every_attempt_resolves_a_named_secret_and_no_error_shows_it(watch: Watch):
    def handler(call: EffectCall) -> EffectOutcome:
        return EffectOutcome.failed(f"401 with {call.payload['key']}")

    policy = DefaultEffectPolicy(default_max_attempts=3, default_backoff_base=0.0)
    rt = watch.runtime(effect_handlers={"call": handler}, secrets={"openai": RAW}, effect_policy=policy)
    state = await rt.run(one({"key": {"$secret": "openai"}}), run_id="r")
    assert state.error == "Effect failed after 3 attempts: 401 with [redacted]"
    assert RAW not in await watch.readable(rt, "r")


async def test_a_missing_secret_fails_the_effect_before_its_handler_is_called(watch: Watch):
    called: list[Any] = []
    rt = watch.runtime(effect_handlers={"call": called.append}, secrets={})
    state = await rt.run(one({"deep": [{"key": {"$secret": "openai"}}]}), run_id="r")
    assert state.status is RunStatus.FAILED
    assert state.error is not None
    assert state.error.startswith("payload.deep[0].key: no secret named 'openai'")
    assert called == []


async def test_a_raw_secret_is_there_for_the_next_attempt_in_the_same_process(watch: Watch):
    seen: list[Any] = []

    def handler(call: EffectCall) -> EffectOutcome:
        seen.append(call.payload["api_key"])
        return EffectOutcome.completed("ok") if call.attempt == 2 else EffectOutcome.failed("try again")

    policy = DefaultEffectPolicy(default_max_attempts=2, default_backoff_base=0.0)
    rt = watch.runtime(effect_handlers={"call": handler}, effect_policy=policy)
    state = await rt.run(one({"api_key": RAW}), run_id="r")
    assert state.status is RunStatus.COMPLETED
    assert seen == [RAW, RAW]
    assert RAW not in await watch.readable(rt, "r")
