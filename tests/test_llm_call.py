"""LLM_CALL through a runtime: what goes to the model, what comes back, and what is asked for once more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from abstractruntime import AsyncRuntime, InMemoryLedgerStore, InMemoryRunStore, RetryPolicy, RuntimeConfig
from abstractruntime.integrations.abstractcore import Delta, build_effect_handlers

from .bridge_fixtures import asking, client_of
from .bridge_fixtures import home as home
from .scripted_servers import ScriptedServer

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
USED = {"prompt_tokens": 10, "completion_tokens": 8, "total_tokens": 18}


async def run_with(llm: Any, payload: dict[str, Any], *, vars: dict[str, Any] | None = None, **options: Any):
    on_delta = options.pop("on_delta", None)
    handlers = build_effect_handlers(llm=llm, on_delta=on_delta)
    async with AsyncRuntime(
        run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore(), effect_handlers=handlers, **options
    ) as rt:
        return await rt.run(asking(payload), vars=vars, session_id="s1")


async def asked(
    payload: dict[str, Any], script: Any = (), *, kind="openai-compatible", model="qwen3-4b", **options: Any
):
    """The run and the requests that the server saw."""
    with ScriptedServer(script) as server:
        async with client_of(server, kind, model) as client:
            state = await run_with(client, payload, **options)
        return state, [seen.json for seen in server.asked]


class FakeClient:
    """A user's own client: sync, with answers from a list; what is no dict is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers: list[Any] = list(answers)
        self.seen: list[dict[str, Any]] = []

    def generate(self, **given: Any) -> Any:
        self.seen.append(given)
        answer = self.answers.pop(0) if self.answers else {"content": "ok"}
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_answer_lands_at_its_result_key_with_its_tokens_counted():
    state, seen = await asked({"prompt": "hello"}, [{"content": "hi", "usage": USED}])
    answer = state.output["answer"]
    assert answer["content"] == "hi"
    assert state.vars["_limits"]["estimated_tokens_used"] == 10
    assert state.tokens == 18
    assert seen[0]["messages"] == [{"role": "user", "content": "hello"}]


async def test_nothing_of_ours_is_put_into_a_prompt():
    payload = {"prompt": "hello", "system_prompt": "be kind", "messages": [{"role": "user", "content": "before"}]}
    _, seen = await asked(payload)
    assert seen[0]["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "before"},
        {"role": "user", "content": "hello"},
    ]


@pytest.mark.parametrize("payload", [{}, {"prompt": ""}, {"prompt": "x", "params": 3}, {"messages": "x"}])
async def test_a_payload_that_cannot_be_sent_fails_the_effect_and_asks_nobody(payload):
    client = FakeClient()
    state = await run_with(client, payload, effect_policy=RetryPolicy(llm_max_attempts=3))
    assert state.status.value == "failed"
    assert "llm_call" in state.error
    assert client.seen == []


@pytest.mark.parametrize("params", [{"timeout_s": "soon"}, {"timeout_s": -1}, {"base_url": 3}, {"api_key": ["k"]}])
async def test_a_parameter_that_makes_no_sense_fails_at_once(params):
    policy = RetryPolicy(llm_max_attempts=3, backoff_base=0.001)
    state, seen = await asked({"prompt": "hi", "params": params}, effect_policy=policy)
    assert state.status.value == "failed"
    assert "cannot be made" in state.error or "redacted" in state.error
    assert seen == []


async def test_aliases_and_budgets_are_read_as_documented():
    client = FakeClient()
    await run_with(client, {"text": "hi", "max_out_tokens": 7, "provider": "p", "model": "m"})
    params = client.seen[0]["params"]
    assert (client.seen[0]["prompt"], params["max_output_tokens"]) == ("hi", 7)
    assert (params["_provider"], params["_model"]) == ("p", "m")
    trace = params["trace_metadata"]
    assert trace["session_id"] == "s1"
    assert trace["node_id"] == "ask"
    assert trace["attempt"] == 1
    await run_with(client, {"prompt": "hi"}, config=RuntimeConfig(max_output_tokens=99))
    assert client.seen[1]["params"]["max_output_tokens"] == 99


async def test_old_messages_are_left_out_beyond_the_input_limit_and_calls_stay_with_their_answers():
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}, "call_id": "c1"}]}
    messages = [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "x" * 4000},
        call,
        {"role": "tool", "tool_call_id": "c1", "content": "y" * 4000},
        {"role": "user", "content": "now"},
    ]
    client = FakeClient()
    state = await run_with(client, {"messages": messages, "max_input_tokens": 100})
    assert [message["content"] for message in client.seen[0]["messages"]] == ["rules", "now"]
    assert state.output["answer"]["metadata"]["_messages_left_out"] == 3


async def test_context_is_sent_and_remembered_when_asked_for():
    context = {"messages": [{"role": "user", "content": "I am Ann", "timestamp": "t"}]}
    state, seen = await asked({"prompt": "who am I?", "include_context": True}, ["Ann"], vars={"context": context})
    assert [message["content"] for message in seen[0]["messages"]] == ["I am Ann", "who am I?"]
    remembered = state.vars["context"]["messages"][1:]
    assert [(message["role"], message["content"]) for message in remembered] == [
        ("user", "who am I?"),
        ("assistant", "Ann"),
    ]
    assert remembered[0]["metadata"] == {"kind": "llm_turn", "node_id": "ask"}


@pytest.mark.parametrize(("kind", "model"), [("openai-compatible", "qwen3-4b"), ("ollama", "qwen3:4b")])
async def test_an_answer_is_data_that_fits_its_schema_by_the_servers_own_means(kind, model):
    state, seen = await asked({"prompt": "n?", "response_schema": SCHEMA}, kind=kind, model=model)
    assert state.output["answer"]["data"] == {"n": 1}
    assert state.output["answer"]["usage"]["total_tokens"] > 0
    assert "schema" not in json.dumps(seen[0]["messages"])


async def test_a_model_that_cannot_be_held_to_a_schema_is_told_of_it():
    state, seen = await asked(
        {"prompt": "n?", "response_schema": SCHEMA}, ['```json\n{"n": 4}\n```'], model="scripted-model"
    )
    assert state.output["answer"]["data"] == {"n": 4}
    assert "JSON schema" in seen[0]["messages"][0]["content"]


async def test_an_answer_that_does_not_fit_is_repaired_once_and_all_tokens_count():
    script = [{"content": '{"n": "four"}', "usage": USED}, {"content": '{"n": 4}', "usage": USED}]
    state, seen = await asked({"prompt": "n?", "response_schema": SCHEMA}, script)
    answer = state.output["answer"]
    assert answer["data"] == {"n": 4}
    assert answer["metadata"]["_structured_output_repaired"] is True
    assert "$.n: 'four' is not of type 'integer'" in seen[1]["messages"][-1]["content"]
    assert state.tokens == 36
    assert state.vars["_limits"]["estimated_tokens_used"] == 10


async def test_an_answer_that_does_not_fit_after_its_repair_fails_the_effect_or_is_taken_as_text():
    script = ["no", "still no"]
    state, seen = await asked({"prompt": "n?", "response_schema": SCHEMA}, script)
    assert state.status.value == "failed"
    assert "does not fit" in state.error
    assert len(seen) == 2
    payload = {"prompt": "n?", "response_schema": SCHEMA, "structured_output_fallback": True}
    state, _ = await asked(payload, script)
    assert state.output["answer"]["content"] == "still no"
    assert state.output["answer"]["metadata"]["_structured_output_fallback"] is True


async def test_tokens_of_attempts_that_failed_count_too():
    script = [{"content": "no", "usage": USED}] * 4
    policy = RetryPolicy(llm_max_attempts=2, backoff_base=0.001)
    state, seen = await asked({"prompt": "n?", "response_schema": SCHEMA}, script, effect_policy=policy)
    assert state.status.value == "failed"
    assert len(seen) == 4
    assert state.tokens == 4 * 18


async def test_an_answer_with_a_schema_comes_whole_whatever_the_model():
    told: list[Delta] = []
    payload = {"prompt": "n?", "response_schema": SCHEMA}
    state, _ = await asked(payload, [{"content": '{"n": 4}'}], model="scripted-model", on_delta=told.append)
    assert state.output["answer"]["data"] == {"n": 4}
    assert told == []


async def test_the_schema_is_kept_in_the_payload_and_may_be_an_example():
    state, _ = await asked({"prompt": "n?", "response_schema": {"city": "Paris", "people": 2}})
    assert state.output["answer"]["data"] == {"city": "text", "people": 1}


async def test_a_retry_that_cannot_change_anything_is_not_made():
    """A12: the same budget again would cut off the same answer, and cost the same."""
    cut = {"content": "cut", "finish_reason": "length", "usage": USED}
    payload = {"prompt": "hi", "max_output_tokens": 1000, "max_output_tokens_cap": 1000}
    state, seen = await asked(payload, [cut, cut, cut])
    assert state.status.value == "failed"
    assert "cut off at 1000 tokens, after 1 request" in state.error
    assert len(seen) == 1


async def test_an_answer_that_was_cut_off_is_asked_for_with_more_room():
    cut = {"content": "cut", "finish_reason": "length", "usage": USED}
    payload = {"prompt": "hi", "max_output_tokens": 8, "max_output_tokens_cap": 20}
    state, seen = await asked(payload, [cut, cut, "whole"])
    assert [request["max_tokens"] for request in seen] == [8, 16, 20]
    assert state.output["answer"]["content"] == "whole"
    assert state.output["answer"]["metadata"]["_truncation"] == {"attempts": 3, "resolved": True}
    state, seen = await asked({**payload, "allow_truncated": True, "retry_on_truncation": False}, [cut])
    assert state.output["answer"]["metadata"]["_truncation"] == {"attempts": 1, "resolved": False}
    assert len(seen) == 1


async def test_a_call_of_a_tool_that_cannot_be_read_is_no_answer():
    script = [{"tool_calls": [{"name": "wipe", "arguments": '{"path": '}]}] * 2
    payload = {"prompt": "do", "tools": [{"name": "wipe", "description": "Wipe.", "parameters": {}}]}
    state, seen = await asked(payload, script)
    assert "'wipe' with arguments that are no JSON" in state.error
    assert len(seen) == 1


async def test_calls_without_an_id_get_one_that_stays_the_same():
    found = []
    for _ in range(2):
        client = FakeClient({"content": "", "tool_calls": [{"name": "a", "arguments": "{}"}, {"name": "b"}]})
        handlers = build_effect_handlers(llm=client)
        async with AsyncRuntime(
            run_store=InMemoryRunStore(), ledger_store=InMemoryLedgerStore(), effect_handlers=handlers
        ) as rt:
            state = await rt.run(asking({"prompt": "x"}), run_id="same")
        found.append([call["call_id"] for call in state.output["answer"]["tool_calls"]])
    assert found[0] == found[1]
    assert len(set(found[0])) == 2


async def test_pieces_are_told_with_where_they_belong_and_are_not_journaled():
    told: list[Delta] = []
    state, _ = await asked({"prompt": "hi"}, [{"chunks": ["a ", "b"]}], model="scripted-model", on_delta=told.append)
    assert [(delta.index, delta.text, delta.request) for delta in told] == [(0, "a ", 1), (1, "b", 1)]
    assert {delta.run_id for delta in told} == {state.run_id}
    assert state.output["answer"]["content"] == "a b"


async def test_a_subscriber_that_raises_harms_no_call():
    def broken(delta: Delta) -> None:
        raise RuntimeError("no")

    state, _ = await asked({"prompt": "hi"}, [{"chunks": ["a ", "b"]}], model="scripted-model", on_delta=broken)
    assert state.output["answer"]["content"] == "a b"


@pytest.mark.parametrize("reply", [{"status": 500}, {"drop": True}, {"content": ""}, {"raw": "{"}])
@pytest.mark.parametrize("kind", ["openai-compatible", "ollama"])
async def test_retry_storm_across_layers(reply, kind):
    """Requests upstream are the attempts of our policy, and no layer below adds any."""
    policy = RetryPolicy(llm_max_attempts=3, backoff_base=0.001)
    state, seen = await asked({"prompt": "hi"}, [reply] * 10, kind=kind, effect_policy=policy)
    assert state.status.value == "failed"
    assert len(seen) == 3


async def test_what_cannot_succeed_is_not_tried_again():
    state, seen = await asked({"prompt": "hi"}, [{"status": 401}], effect_policy=RetryPolicy(llm_max_attempts=3))
    assert state.status.value == "failed"
    assert len(seen) == 1


async def test_a_users_own_client_may_be_sync_or_async_and_raise_what_it_likes():
    class Later:
        async def generate(self, **given: Any) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"content": "later"}

    assert (await run_with(Later(), {"prompt": "x"})).output["answer"]["content"] == "later"
    failed = await run_with(FakeClient(RuntimeError("out of order")), {"prompt": "x"})
    assert "out of order" in failed.error
    assert "not a dict" in (await run_with(FakeClient("text"), {"prompt": "x"})).error


async def test_media_that_lie_ready_go_along_once(tmp_path):
    (tmp_path / "note.txt").write_text("the note")
    client = FakeClient()
    vars = {"_runtime": {"pending_media": [str(tmp_path / "note.txt")]}}
    state = await run_with(client, {"prompt": "read it"}, vars=vars)
    assert client.seen[0]["media"] == [str(tmp_path / "note.txt")]
    assert state.vars["_runtime"]["pending_media"] == []
