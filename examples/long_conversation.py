"""A conversation that is longer than a model can read: old turns are compacted, and come back when they are needed.

    python examples/long_conversation.py

Forty turns about a journey. Twice the older ones become a summary and a span that keeps them word for word; a note is
kept beside them. In the end somebody asks about the beginning: the span is found by a word that only it has, and its
messages are put back into the conversation.
"""

from __future__ import annotations

from typing import Any

from abstractruntime import (
    Effect,
    InMemoryArtifactStore,
    InMemoryLedgerStore,
    InMemoryRunStore,
    RunState,
    Runtime,
    StepPlan,
    WorkflowSpec,
)

CITIES = ["Oslo", "Bergen", "Bodo", "Narvik", "Tromso", "Alta", "Vardo", "Kiruna", "Umea", "Turku"]


def summarize(messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Stands for a model: it counts, and names the first and the last city."""
    places = [city for message in messages for city in CITIES if city in message["content"]]
    return {"summary": f"{len(messages)} messages, from {places[0]} to {places[-1]}", "key_points": sorted(set(places))}


def talk(run: RunState, ctx: Any) -> StepPlan:
    turn = run.vars["turn"] = run.vars.get("turn", 0) + 1
    city = CITIES[(turn - 1) // 4 % len(CITIES)]
    messages = run.vars.setdefault("context", {}).setdefault("messages", [])
    role = "user" if turn % 2 else "assistant"
    messages.append({"role": role, "content": f"Turn {turn}: we talk about {city}."})
    return StepPlan("talk", next_node="compact" if turn % 20 == 0 else "talk")


def compact(run: RunState, ctx: Any) -> StepPlan:
    payload = {"preserve_recent": 4, "focus": "cities"}
    return StepPlan("compact", Effect("memory_compact", payload, "compacted"), "note")


def note(run: RunState, ctx: Any) -> StepPlan:
    payload = {"note": f"After turn {run.vars['turn']} nobody was tired.", "tags": {"topic": "mood"}}
    return StepPlan("note", Effect("memory_note", payload, "noted"), "talk" if run.vars["turn"] < 40 else "ask")


def ask(run: RunState, ctx: Any) -> StepPlan:
    payload = {"query": "turn 3:", "deep": True, "return": "meta"}
    return StepPlan("ask", Effect("memory_query", payload, "found"), "recall")


def recall(run: RunState, ctx: Any) -> StepPlan:
    matches = run.vars["found"]["results"][0]["meta"]["matches"]
    payload = {"span_ids": [match["span_id"] for match in matches], "max_messages": 4}
    return StepPlan("recall", Effect("memory_rehydrate", payload, "recalled"), "done")


def done(run: RunState, ctx: Any) -> StepPlan:
    return StepPlan("done", complete_output={"recalled": run.vars["recalled"]["inserted"]})


WORKFLOW: WorkflowSpec[Any] = WorkflowSpec(
    "conversation", "talk", {"talk": talk, "compact": compact, "note": note, "ask": ask, "recall": recall, "done": done}
)


def main() -> None:
    with Runtime(
        run_store=InMemoryRunStore(),
        ledger_store=InMemoryLedgerStore(),
        artifact_store=InMemoryArtifactStore(),
        chat_summarizer=summarize,
    ) as rt:
        state = rt.run(WORKFLOW)
        spans = state.vars["_runtime"]["memory_spans"]
        for span in spans:
            told = span.get("note_preview") or f"{span['message_count']} messages"
            print(f"{span['kind']}: {told}")
        active = state.vars["context"]["messages"]
        print(f"{state.vars['turn']} turns were said, {len(active)} messages are active:")
        for message in active:
            line = message["content"].splitlines()[0]
            for number, span in enumerate(spans, 1):
                line = line.replace(span["artifact_id"], f"<{number}>")
            print(f"  {message['role']}: {line}")


if __name__ == "__main__":
    main()
