"""What memory must not lose: what others write meanwhile, what is no message, what comes back in pieces."""

from __future__ import annotations

import asyncio
import copy
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime import (
    ActiveContextPolicy,
    Effect,
    EffectOutcome,
    InMemoryArtifactStore,
    RunState,
    RunStatus,
    StepPlan,
)
from abstractruntime.core.changes import changed, revision
from abstractruntime.memory.filters import filter_of
from abstractruntime.memory.recall import LEVELS, Effort, effort_of
from abstractruntime.memory.spans import newest_first, resolve, spans_of

from . import worlds
from .worlds import World, flow, one

async_world = worlds.async_world


class Summarizer:
    """Says how many messages it got; `meanwhile` happens before it answers."""

    def __init__(self, meanwhile: Any = None, **answer: Any) -> None:
        self._meanwhile, self._answer = meanwhile, answer

    async def summarize_chat_history(self, messages: list[Any], **options: Any) -> dict[str, Any]:
        if self._meanwhile is not None:
            await self._meanwhile()
        return {"summary": f"{len(messages)} messages", "key_points": [], "confidence": 0.5, **self._answer}


def made(world: World, artifacts: Any = None, **options: Any) -> Any:
    return world.runtime(artifact_store=artifacts or InMemoryArtifactStore(), **options)


async def do(rt: Any, kind: str, payload: dict[str, Any], *, vars: dict[str, Any] | None = None, **who: Any) -> Any:
    """The end of a run of one memory effect."""
    return await rt.run(one(kind, payload), vars=vars, **who)


def entry(state: RunState, key: str = "result") -> dict[str, Any]:
    assert state.status is RunStatus.COMPLETED, state.error
    (found,) = state.output[key]["results"]
    assert isinstance(found, dict)
    return found


def said(*texts: str) -> dict[str, Any]:
    return {"context": {"messages": [{"role": "user", "content": text} for text in texts]}}


def contents(state: RunState) -> list[Any]:
    return [one["content"] if isinstance(one, dict) else one for one in state.vars["context"]["messages"]]


# -- others write meanwhile


async def test_what_another_run_says_while_it_is_compacted_is_not_lost(async_world: World):
    """The target goes on while the summary is made: its new message stays."""

    def listen(run: RunState, ctx: Any) -> StepPlan:
        return StepPlan("listen", Effect("ask_user", {"prompt": "?"}, "answer"), "say")

    def say(run: RunState, ctx: Any) -> StepPlan:
        run.vars["context"]["messages"].append({"role": "user", "content": run.vars["answer"]["text"]})
        return StepPlan("say", next_node="listen")

    workflow = flow("listen", listen=listen, say=say)

    async def meanwhile() -> None:
        await rt.resume(workflow=workflow, run_id="target", wait_key=None, payload={"text": "new"})

    rt = made(async_world, chat_summarizer=Summarizer(meanwhile))
    await rt.run(workflow, run_id="target", vars=said("a", "b", "c"))
    entry(await do(rt, "memory_compact", {"preserve_recent": 1, "target_run_id": "target"}))
    found = contents(await rt.get_state("target"))
    assert found[-2:] == ["c", "new"]
    assert found[0].endswith("2 messages")
    assert len(found) == 3


async def test_notes_of_one_step_all_stay_in_the_conversation(async_world: World):
    def both(run: RunState, ctx: Any) -> StepPlan:
        notes = [Effect("memory_note", {"note": text, "keep_in_context": True}, text) for text in ("one", "two")]
        return StepPlan("both", effects=notes, next_node="end")

    rt = made(async_world)
    state = await rt.run(flow("both", both=both), vars=said("hello"))
    assert len(spans_of(state.vars)) == 2
    assert sorted(contents(state)) == ["[MEMORY NOTE]\none", "[MEMORY NOTE]\ntwo", "hello"]


async def test_tags_of_one_step_all_stay(async_world: World):
    def tag(run: RunState, ctx: Any) -> StepPlan:
        tags = [Effect("memory_tag", {"span_id": 1, "tags": {name: "x"}}, name) for name in ("a", "b")]
        return StepPlan("tag", effects=tags, next_node="end")

    rt = made(async_world)
    work = worlds.ask("work", "memory_note", {"note": "n"}, "note", "tag")
    state = await rt.run(flow("work", work=work, tag=tag))
    assert spans_of(state.vars)[0]["tags"] == {"a": "x", "b": "x"}


async def test_tags_of_many_runs_at_once_all_stay(async_world: World):
    rt = made(async_world)
    span_id = entry(await do(rt, "memory_note", {"note": "n", "scope": "session"}, session_id="s"))["meta"]["span_id"]
    await asyncio.gather(
        *(
            do(rt, "memory_tag", {"span_id": span_id, "scope": "session", "tags": {f"t{n}": "x"}}, session_id="s")
            for n in range(10)
        )
    )
    owner = await rt.get_state("session_memory_s")
    assert spans_of(owner.vars)[0]["tags"] == {f"t{n}": "x" for n in range(10)}


# -- numbers


async def test_the_number_a_query_shows_is_the_number_other_effects_take(async_world: World):
    """A number in the text of a query that left out newer spans must not name another span elsewhere."""
    rt = made(async_world)
    ids = []
    for text in ("older", "newer"):
        state = await do(rt, "memory_note", {"note": text, "scope": "session"}, session_id="s")
        ids.append(entry(state)["meta"]["span_id"])
        async_world.clock.advance(60)
    state = await do(rt, "memory_query", {"query": "older", "scope": "session"}, session_id="s")
    output = entry(state)["output"]
    assert ids[0] in output
    assert "[1]" not in output


async def test_a_limit_of_zero_finds_none(async_world: World):
    state = await do(made(async_world), "memory_note", {"note": "n"})
    found = ActiveContextPolicy.filter_spans_from_run(state, artifact_store=None, limit=0)
    assert found == []


# -- odd content


@pytest.mark.parametrize(
    "content",
    [{"messages": None}, {"messages": 5}, {"messages": "text"}, {"messages": [None, 3]}, {"note": 7}, [], 3, None],
)
async def test_an_artifact_that_is_no_memory_fails_no_query(async_world: World, content):
    artifacts = InMemoryArtifactStore()
    artifact_id = artifacts.store_json(content).artifact_id
    rt = made(async_world, artifacts)
    assert entry(await do(rt, "memory_query", {"span_id": artifact_id}))["success"]
    spans = [{"kind": "conversation_span", "artifact_id": artifact_id, "created_at": "2026-01-01T00:00:00+00:00"}]
    vars = {"_runtime": {"memory_spans": spans}}
    assert entry(await do(rt, "memory_query", {"query": "zzz", "deep": True}, vars=vars))["success"]
    state = await do(rt, "memory_rehydrate", {"span_ids": [artifact_id]}, vars=vars)
    assert state.status is RunStatus.COMPLETED, state.error
    assert state.output["result"]["inserted"] == 0 or content == {"messages": [None, 3]}


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("memory_note", {"note": "n", "keep_in_context": True}),
        ("memory_compact", {"preserve_recent": 1}),
    ],
)
async def test_what_is_no_message_is_not_lost(async_world: World, kind, payload):
    rt = made(async_world, chat_summarizer=Summarizer())
    vars = said("a", "b")
    vars["context"]["messages"].insert(0, "a bare text")
    state = await do(rt, kind, payload, vars=vars)
    assert state.status is RunStatus.COMPLETED, state.error
    assert "a bare text" in contents(state)


@pytest.mark.parametrize(
    "answer",
    [
        {"confidence": float("inf")},
        {"confidence": float("nan")},
        {"confidence": 10**400},
        {"confidence": True},
        {"confidence": "high"},
        {"key_points": "one"},
        {"key_points": [None, 3, "x"]},
    ],
)
async def test_an_odd_answer_of_a_summarizer_loses_no_summary(async_world: World, answer):
    rt = made(async_world, chat_summarizer=Summarizer(**answer))
    state = await do(rt, "memory_compact", {"preserve_recent": 1}, vars=said("a", "b"))
    assert entry(state)["success"]
    assert entry(state)["meta"]["confidence"] in (None, 0.5)


async def test_a_deep_answer_of_a_model_is_a_summary_as_it_is(async_world: World):
    text = "[" * 100_000
    rt = made(async_world, handlers={"llm_call": lambda run, effect: EffectOutcome.completed({"content": text})})
    state = await do(rt, "memory_compact", {"preserve_recent": 1}, vars=said("a", "b"))
    assert entry(state)["success"]
    assert contents(state)[0].endswith(text)


async def test_the_session_of_a_long_name_remembers(async_world: World):
    rt = made(async_world)
    for length in (200, 255, 256):
        session = "s" * length
        state = await do(rt, "memory_note", {"note": "n", "scope": "session"}, session_id=session)
        assert state.status is RunStatus.COMPLETED, (length, state.error)


# -- what comes back


async def compacted(rt: Any, world: World) -> RunState:
    """A run whose messages a, b, c, d are one span and e, f another; g is active."""

    def more(run: RunState, ctx: Any) -> StepPlan:
        run.vars["context"]["messages"] += said("e", "f", "g")["context"]["messages"]
        world.clock.advance(60)
        return StepPlan("more", Effect("memory_compact", {"preserve_recent": 1}, "second"), "end")

    first = worlds.ask("work", "memory_compact", {"preserve_recent": 0}, "first", "more")
    state: RunState = await rt.run(flow("work", work=first, more=more), vars=said("a", "b", "c", "d"))
    return state


async def test_a_span_comes_back_in_pieces(async_world: World):
    artifacts = InMemoryArtifactStore()
    rt = made(async_world, artifacts, chat_summarizer=Summarizer())
    state = await compacted(rt, async_world)
    old = state.output["first"]["results"][0]["meta"]["span_id"]
    for number in (3, 1, 0):
        back = (
            await do(rt, "memory_rehydrate", {"target_run_id": state.run_id, "span_ids": [old], "max_messages": 3})
        ).output["result"]
        assert back["inserted"] == number
    texts = contents(await rt.get_state(state.run_id))
    assert sorted(text for text in texts if len(text) == 1) == ["a", "b", "c", "d", "g"]


@pytest.mark.parametrize("placement", ["after_summary", "after_system", "end"])
async def test_spans_come_back_in_the_order_they_are_named(async_world: World, placement):
    artifacts = InMemoryArtifactStore()
    rt = made(async_world, artifacts, chat_summarizer=Summarizer())
    state = await compacted(rt, async_world)
    old, new = (state.output[key]["results"][0]["meta"]["span_id"] for key in ("first", "second"))
    await do(rt, "memory_rehydrate", {"target_run_id": state.run_id, "span_ids": [old, new], "placement": placement})
    texts = [text for text in contents(await rt.get_state(state.run_id)) if len(text) == 1]
    assert [text for text in texts if text != "g"] == ["a", "b", "c", "d", "e", "f"]


async def test_the_same_words_said_twice_come_back_twice(async_world: World):
    """Messages without ids that say the same in two spans are two messages."""

    def again(run: RunState, ctx: Any) -> StepPlan:
        run.vars["context"]["messages"] = said("yes", "no")["context"]["messages"]
        async_world.clock.advance(60)
        return StepPlan("again", Effect("memory_compact", {"preserve_recent": 0}, "second"), "back")

    back = worlds.ask("back", "memory_rehydrate", {"span_ids": [1, 2]}, "back")
    first = worlds.ask("work", "memory_compact", {"preserve_recent": 0}, "first", "again")
    rt = made(async_world, chat_summarizer=Summarizer())
    state = await rt.run(flow("work", work=first, again=again, back=back), vars=said("yes", "no"))
    assert state.output["back"]["inserted"] == 4
    assert sorted(text for text in contents(state) if len(text) < 4) == ["no", "no", "yes", "yes"]


def test_the_policy_brings_all_back_without_a_limit_below_zero():
    artifacts = InMemoryArtifactStore()
    artifacts.store_json({"note": "tea"}, artifact_id="n1")
    run = RunState("r", "w", RunStatus.RUNNING, "n", vars={"_runtime": {"memory_spans": []}})
    run.vars["_runtime"]["memory_spans"].append({"kind": "memory_note", "artifact_id": "n1", "created_at": "1"})
    policy = ActiveContextPolicy
    found = policy.rehydrate_into_context_from_run(run, artifact_store=artifacts, span_ids=[1], max_messages=-1)
    assert found["inserted"] == 1


# -- words


async def test_a_standard_query_for_words_looks_into_messages(async_world: World):
    """Deep is what a query for words is, and the standard level allows it."""
    rt = made(async_world, chat_summarizer=Summarizer())
    compact = worlds.ask("work", "memory_compact", {"preserve_recent": 0}, "first", "look")
    payload = {"query": "needle", "recall_level": "standard", "return": "both"}
    look = worlds.ask("look", "memory_query", payload, "found")
    state = await rt.run(flow("work", work=compact, look=look), vars=said("a needle in hay", "b"))
    assert len(entry(state, "found")["meta"]["matches"]) == 1


# -- how much a query may do, and what a number names


@given(
    level=st.sampled_from([None, *LEVELS]),
    payload=st.fixed_dictionaries(
        {},
        optional={
            "query": st.sampled_from(["", "words"]),
            "deep": st.booleans(),
            "connected": st.booleans(),
            **dict.fromkeys(
                (
                    "limit_spans",
                    "deep_limit_spans",
                    "deep_limit_messages_per_span",
                    "neighbor_hops",
                    "max_messages",
                ),
                st.integers(-5, 2000),
            ),
        },
    ),
)
def test_no_query_does_more_than_its_level_and_each_cut_is_told(level, payload):
    effort, warnings = effort_of(payload, level)
    assert effort.limit_spans >= 1
    if level is None:
        assert not warnings
        return
    most = LEVELS[level].most
    for name in Effort.__struct_fields__:
        assert getattr(effort, name) <= getattr(most, name), name
    assert effort.max_messages >= 0
    cut = {name for name in payload if name != "query" and _beyond(name, payload[name], getattr(most, name))}
    assert {warning.split(" allows ")[1].split("=")[0] for warning in warnings} == cut


def _beyond(name: str, asked: int, most: int) -> bool:
    return asked > most or (name == "max_messages" and asked < 0)


@given(
    st.lists(st.tuples(st.sampled_from(["2026-01-01", "2026-01-02", None]), st.text("ab", min_size=1)), max_size=8),
    st.randoms(use_true_random=False),
)
def test_a_number_names_the_same_span_in_whatever_order_spans_are_listed(listed, random):
    """Numbers count from the newest; spans of one instant go by id."""
    spans = [{"artifact_id": name, "created_at": at} for name, at in {name: at for at, name in listed}.items()]
    shuffled = random.sample(spans, len(spans))
    numbers = list(range(1, len(spans) + 1))
    assert resolve(numbers, spans) == resolve([str(number) for number in numbers], shuffled)
    ordered = newest_first(shuffled)
    keys = [(span["created_at"] or "") for span in ordered]
    assert keys == sorted(keys, reverse=True)
    for first, second in itertools.pairwise(ordered):
        assert first["created_at"] != second["created_at"] or first["artifact_id"] < second["artifact_id"]


@pytest.mark.parametrize(
    ("since", "until", "found"),
    [
        (None, None, True),
        ("2026-01-03T00:00:00Z", None, True),
        ("2026-01-03T00:00:01Z", None, False),
        (None, "2026-01-01T00:00:00Z", True),
        (None, "2025-12-31T23:59:59Z", False),
        ("2026-01-03T01:00:00+01:00", None, True),
        ("2026-01-03T00:00:01+00:00", "2026-01-09T00:00:00Z", False),
        ("2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z", True),
    ],
)
def test_a_span_is_in_a_time_that_touches_it(since, until, found):
    span = {"artifact_id": "a", "from_timestamp": "2026-01-01T00:00:00+00:00", "to_timestamp": "2026-01-03T00:00:00Z"}
    wanted = filter_of({"since": since, "until": until})
    assert wanted.matches(span) is found
    assert wanted.matches({"artifact_id": "b"}) is (since is until is None)


# -- the change that makes it so


@given(
    read=st.lists(st.sampled_from("abcde"), max_size=6),
    others=st.lists(st.tuples(st.integers(0, 8), st.sampled_from("vwxyz")), max_size=4),
    gone=st.sets(st.integers(0, 5)),
    dropped=st.sets(st.integers(0, 5)),
    added=st.lists(st.integers(0, 6), max_size=3),
)
def test_an_edit_of_a_list_lands_whatever_others_did_to_it(read, others, gone, dropped, added):
    """Of what was read exactly that goes which one of the two removed; what either added is there, once, in order."""
    items = [[number, text] for number, text in enumerate(read)]
    new: list[Any] = [item for item in items if item[0] not in dropped]
    for place in added:
        new.insert(place, ["mine"])
    now: list[Any] = [item for item in items if item[0] not in gone]
    for place, text in others:
        now.insert(place, ["theirs", text])
    before = copy.deepcopy(now)
    landed = changed({"list": now}, [revision("list", items, new)])["list"]
    assert now == before
    assert [item for item in landed if len(item) == 2 and item[0] != "theirs"] == [
        item for item in items if item[0] not in gone | dropped
    ]
    assert landed.count(["mine"]) == len(added)
    assert [item for item in landed if item[0] == "theirs"] == [item for item in now if item[0] == "theirs"]
    if not others and not gone:
        assert landed == new


def test_equal_items_of_a_list_are_as_many_as_they_were():
    first, second = {"content": "yes"}, {"content": "yes"}
    edit = revision("list", [first, second], [second])
    assert changed({"list": [dict(first), dict(second)]}, [edit]) == {"list": [second]}
    assert changed({"list": [dict(first), dict(second), dict(first)]}, [edit]) == {"list": [second, first]}
