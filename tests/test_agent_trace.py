"""Node traces as Markdown: everything that happened, in order, whatever the values hold."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abstractruntime import EffectOutcome
from abstractruntime.rendering import AgentTraceConfig, render_agent_trace_markdown
from abstractruntime.rendering.markdown import code

from . import worlds

world = worlds.world

NOTHING = "# Agent trace\n\n*There are no node traces here.*\n"


def step(kind: str = "pay", payload: Any = None, **fields: Any) -> dict[str, Any]:
    return {"ts": at(0), "status": "completed", "effect": {"type": kind, "payload": payload}, **fields}


def at(second: int) -> str:
    return f"2026-01-31T09:00:{second:02}.000000+00:00"


def trace(*steps: Any, node: str = "n") -> dict[str, Any]:
    return {"node_traces": {node: {"node_id": node, "steps": list(steps)}}}


def blocks(markdown: str) -> list[tuple[str, str]]:
    """The fenced blocks of a document as CommonMark reads them: language and content."""
    found: list[tuple[str, str]] = []
    fence, language, lines = "", "", [""]
    for line in markdown.split("\n"):
        if fence:
            closing = re.fullmatch(r" {0,3}(`{3,})[ \t]*", line)
            if closing and len(closing[1]) >= len(fence):
                found.append((language, "\n".join(lines)))
                fence = ""
            else:
                lines.append(line)
        elif opening := re.fullmatch(r" {0,3}(`{3,})([^`]*)", line):
            fence, language, lines = opening[1], opening[2], []
    assert not fence, "a fence is open at the end"
    return found


def outside(markdown: str) -> str:
    """The document without what stands in fences."""
    return re.sub(r"^(`{3,})[a-z]+\n.*?\n\1$", "", markdown, flags=re.S | re.M)


def test_a_report_tells_of_every_step_in_the_order_of_time():
    report = render_agent_trace_markdown(
        {
            "sub_run_id": "child-1",
            "workflow_id": "agent",
            "node_traces": {
                "b": {"node_id": "b", "steps": [step("late", ts=at(5)), step("no_time", ts=None)]},
                "a": {"node_id": "a", "steps": [step("early", ts=at(1)), step("last", ts=at(9))]},
            },
        }
    )
    assert report.startswith("# Agent trace\n\n- Sub-run: `child-1`\n- Workflow: `agent`\n\n## Timeline\n\n")
    assert re.findall(r"^### (.*)$", report, re.M) == [
        "1. `early` at `a`: `completed`",
        "2. `late` at `b`: `completed`",
        "3. `no_time` at `b`: `completed`",
        "4. `last` at `a`: `completed`",
    ]


def test_instants_are_compared_and_not_their_texts():
    report = render_agent_trace_markdown(
        trace(step("second", ts="2026-01-31T10:30:00+02:00"), step("first", ts="2026-01-31T08:00:00Z"))
    )
    assert report.index("`first`") < report.index("`second`")


def test_a_model_call_shows_what_it_answered_and_which_tools_it_wants():
    calls = [{"name": "web_search", "call_id": "c1", "arguments": {"query": "tea"}}]
    result = {"content": "Let me look.", "reasoning": "Hm.", "tool_calls": calls}
    payload = {"provider": "p", "model": "m", "prompt": "hidden"}
    report = render_agent_trace_markdown(
        trace(step("llm_call", payload, result=result, duration_ms=1234.5, reused_prior_result=True))
    )
    assert "`2026-01-31T09:00:00.000000+00:00`, 1,234 ms, an earlier result was taken again" in report
    assert re.findall(r"^\*\*(.*)\*\*$", report, re.M) == [
        "Model `p` `m`",
        "Reasoning",
        "Answer",
        "Requested tool `web_search` (call `c1`)",
    ]
    assert blocks(report) == [("text", "Hm."), ("text", "Let me look."), ("json", '{\n  "query": "tea"\n}')]


def test_a_model_call_of_another_shape_is_shown_as_it_is():
    report = render_agent_trace_markdown(trace(step("llm_call", None, result={"$artifact": "x"})))
    assert blocks(report) == [("json", '{\n  "$artifact": "x"\n}')]


def test_tools_are_shown_with_their_arguments_and_with_the_result_that_has_their_id():
    payload = {
        "tool_calls": [
            {"name": "a", "call_id": "1", "arguments": {"x": 1}},
            {"name": "b", "call_id": "2", "arguments": '{"y": 2}'},
            {"name": "c", "arguments": {}},
            {"function": {"name": "d", "arguments": "{}"}, "id": "4"},
        ]
    }
    results = [
        {"call_id": "2", "name": "b", "success": False, "output": None, "error": "denied"},
        {"call_id": "1", "name": "a", "success": True, "output": "fine", "error": None},
        {"name": "c", "success": True, "output": None, "error": None},
        {"call_id": "9", "name": "stray", "success": True, "output": "left over"},
    ]
    report = render_agent_trace_markdown(trace(step("tool_calls", payload, result={"results": results})))
    labels = re.findall(r"^\*\*(.*)\*\*$", report, re.M)
    assert labels == [
        "Tool `a` (call `1`)",
        "Result",
        "Tool `b` (call `2`)",
        "Failed",
        "Tool `c`",
        "Result",
        "Tool `d` (call `4`)",
        "Result of `stray` (call `9`)",
    ]
    shown = [content for _, content in blocks(report)]
    assert shown[:6] == ['{\n  "x": 1\n}', "fine", '{\n  "y": 2\n}', "denied", "{}", "(no output)"]
    assert json.loads(shown[7]) == results[3]


def test_equal_results_of_two_calls_are_shown_twice():
    call, result = {"name": "a", "arguments": {}}, {"name": "a", "success": True, "output": "same"}
    report = render_agent_trace_markdown(
        trace(step("tool_calls", {"tool_calls": [call, call]}, result={"results": [result, dict(result)]}))
    )
    assert [content for _, content in blocks(report)].count("same") == 2


def test_a_failed_tool_that_gave_something_shows_all_of_it():
    results = [{"success": False, "output": {"stdout": "half"}, "error": "exit 1"}]
    report = render_agent_trace_markdown(
        trace(step("tool_calls", {"tool_calls": [{"name": "a"}]}, result={"results": results}))
    )
    assert json.loads(blocks(report)[-1][1]) == results[0]


def test_errors_waits_and_other_effects_are_shown():
    wait = {"reason": "user", "wait_key": "k", "until": None}
    report = render_agent_trace_markdown(
        trace(step(payload={"n": 1}, error="it broke"), step("ask_user", {"prompt": "?"}, wait=wait))
    )
    assert [content for _, content in blocks(report)] == [
        '{\n  "n": 1\n}',
        "it broke",
        '{\n  "prompt": "?"\n}',
        '{\n  "reason": "user",\n  "wait_key": "k"\n}',
    ]


@pytest.mark.parametrize("nothing", [None, {}, [], "text", 5, {"node_traces": None}, {"context": {"task": "x"}}])
def test_where_nothing_is_a_trace_the_report_says_so(nothing):
    assert render_agent_trace_markdown(nothing) == NOTHING


@pytest.mark.parametrize("empty", [{"node_traces": {}}, {"steps": []}, trace(), {"node_traces": {"n": {}}}])
def test_where_no_step_was_recorded_the_report_says_so(empty):
    assert render_agent_trace_markdown(empty) == "# Agent trace\n\n*No steps were recorded.*\n"


@pytest.mark.parametrize(
    "given",
    [
        trace(step())["node_traces"],
        trace(step())["node_traces"]["n"],
        {"_runtime": trace(step()), "scratchpad": {}},
        {"node_traces": [{"node_id": "n", "steps": [step()]}]},
    ],
    ids=["traces", "one trace", "vars of an old run", "a list"],
)
def test_traces_are_found_in_every_shape_they_come_in(given):
    assert render_agent_trace_markdown(given) == render_agent_trace_markdown(trace(step()))


@pytest.mark.parametrize("node", ["steps", "node_traces", "_runtime", "sub_run_id"])
def test_a_node_may_have_any_name(node):
    traces = trace(step(), node=node)["node_traces"]
    assert f"### 1. `pay` at `{node}`: `completed`" in render_agent_trace_markdown(traces)


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"effect": None},
        {"effect": {"type": ["llm_call"]}},
        step("tool_calls", {"tool_calls": [None, 5, {}]}, result={"results": [None, 5, {}, "x"]}),
        step("tool_calls", None, result=None),
        step("tool_calls", {"tool_calls": [{"name": "a"}]}, result="no list"),
        step("llm_call", "text", result=["x"]),
        step("llm_call", {}, result={"tool_calls": [None, "x"], "content": {"parts": []}}),
        step(ts=5, duration_ms="long", status=None, node_id=7, wait="soon"),
        "a text",
        None,
    ],
)
def test_an_odd_step_is_shown_as_it_is_and_the_others_are_shown_too(odd):
    report = render_agent_trace_markdown(trace(odd, step("after")))
    assert len(re.findall("^### ", report, re.M)) == 2
    assert "`after`" in report
    blocks(report)


def test_a_trace_of_another_shape_is_shown_as_it_is():
    report = render_agent_trace_markdown({"node_traces": {"n": {"steps": "gone"}, "m": "gone"}})
    assert [json.loads(content) for language, content in blocks(report) if language == "json"] == [{"steps": "gone"}]
    assert ("text", "gone") in blocks(report)


PIECES = ("```", "`", "``````", "\n", "\r", "\n# ", "\n```\n", "|", " ", "-", "**", "<b>", "a", "{", "[")
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20)


@given(text=HOSTILE, name=HOSTILE, extra=st.lists(HOSTILE, max_size=3))
def test_no_value_ends_its_block_or_begins_another(text, name, extra):
    calls = [{"name": name, "call_id": name, "arguments": extra}]
    report = render_agent_trace_markdown(
        {
            "workflow_id": name,
            **trace(
                step("llm_call", {"model": name}, result={"content": text, "tool_calls": calls}, node_id=name),
                step("tool_calls", {"tool_calls": calls}, result={"results": [{"call_id": name, "output": extra}]}),
                step(name, None, error=text, status=name),
            ),
        }
    )
    found = blocks(report)
    shown = text.replace("\r\n", "\n").replace("\r", "\n")
    if text and text.lstrip()[:1] not in ("{", "["):
        assert [content for _, content in found].count(shown) >= 2
    assert [json.loads(content) for language, content in found if language == "json"].count(extra) >= 3
    headings = re.findall("^#.*", outside(report), re.M)
    assert [heading.split(" ")[0] for heading in headings] == ["#", "##", "###", "###", "###"]


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("plain | text", "`plain | text`"),
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("`a", "`` `a ``"),
        (" two\n\n# lines ", "`two # lines`"),
        ("", "(empty)"),
        (" \n ", "(empty)"),
        (["a", None], '`["a", null]`'),
        ("x" * 201, f"`{'x' * 200}...`"),
    ],
)
def test_a_short_value_is_one_code_span_in_one_line(value, span):
    assert code(value) == span


def test_a_huge_value_is_cut_and_the_report_says_by_how_much():
    report = render_agent_trace_markdown(trace(step(error="x" * 1_000_000)))
    assert len(report) < 30_000
    assert "*980,000 more characters are left out.*" in report
    whole = render_agent_trace_markdown(
        trace(step(error="x" * 1_000_000)), config=AgentTraceConfig(heading=" All\nof it ", max_value_chars=None)
    )
    assert whole.startswith("# All of it\n")
    assert "x" * 1_000_000 in whole


def test_a_report_can_be_written_to_a_file_whatever_the_values_are():
    report = render_agent_trace_markdown(trace(step("\ud800", {"\ud800": "\ud800"}, error="\ud800 naïve 🎈")))
    assert "naïve 🎈" in report.encode().decode()


async def test_the_traces_of_a_run_are_rendered(world):
    async def pay(call: Any) -> EffectOutcome:
        return EffectOutcome.completed({"paid": call.payload["amount"]})

    rt = world.runtime({"pay": pay})
    state = await rt.run(worlds.one("pay", {"amount": 5}))
    report = render_agent_trace_markdown({"node_traces": await rt.get_node_traces(state.run_id)})
    assert "### 1. `pay` at `work`: `completed`" in report
    assert [content for _, content in blocks(report)] == ['{\n  "amount": 5\n}', '{\n  "paid": 5\n}']
