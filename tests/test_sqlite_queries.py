"""The queries of SQLite, held to the meaning that `storage.base` gives them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from abstractruntime.core.models import RunState, RunStatus, WaitReason, WaitState
from abstractruntime.storage.base import due_first, index_row, newest_first, run_filter
from abstractruntime.storage.sqlite import SqliteDatabase, SqliteRunStore

IDS = st.sampled_from(["a", "b", "c", "d", "e", "f", "ä"])
INSTANTS = st.integers(0, 5).map(lambda minute: f"2026-01-31T09:0{minute}:00.000000+00:00")
WAITS = st.builds(
    WaitState, reason=st.sampled_from(WaitReason), wait_key=st.none() | st.just("k"), until=st.none() | INSTANTS
)


@st.composite
def stored(draw: st.DrawFn) -> RunState:
    status = draw(st.sampled_from([RunStatus.RUNNING, RunStatus.WAITING, RunStatus.WAITING, RunStatus.FAILED]))
    return RunState(
        run_id=draw(IDS),
        workflow_id=draw(st.sampled_from(["w1", "w2"])),
        status=status,
        current_node="n",
        vars=draw(st.sampled_from([{}, {"_runtime": {"control": {"paused": True}}}, {"_run_lifecycle": {"a": 1}}])),
        waiting=draw(WAITS) if status is RunStatus.WAITING else None,
        created_at=draw(INSTANTS),
        updated_at=draw(INSTANTS),
        session_id=draw(st.sampled_from([None, "s"])),
        parent_run_id=draw(st.sampled_from([None, "a", "b"])),
    )


@given(
    states=st.lists(stored(), max_size=12),
    status=st.none() | st.sampled_from(RunStatus),
    wait_reason=st.none() | st.sampled_from(WaitReason),
    workflow_id=st.sampled_from([None, "w1", "w3"]),
    session_id=st.sampled_from([None, "s", "t"]),
    root_only=st.booleans(),
    now=INSTANTS,
    limit=st.sampled_from([-1, 0, 1, 2, 100]),
)
def test_every_query_means_what_the_contract_says(
    states, status, wait_reason, workflow_id, session_id, root_only, now, limit
):
    with SqliteDatabase(":memory:") as database:
        store = SqliteRunStore(database)
        held: dict[str, RunState] = {}
        for state in states:  # the same id again is a save over the one before
            store.save(state, overwrite=True)
            loaded = store.load(state.run_id)
            assert loaded is not None
            held[state.run_id] = loaded
        everything, count = list(held.values()), max(1, limit) if limit else 100
        matches = run_filter(status=status, wait_reason=wait_reason, workflow_id=workflow_id)
        found = store.list_runs(status=status, wait_reason=wait_reason, workflow_id=workflow_id, limit=limit)
        assert found == newest_first(filter(matches, everything))[:count]
        assert store.list_due_wait_until(now_iso=now, limit=limit) == due_first(everything, now)[:count]
        matches = run_filter(status=status, workflow_id=workflow_id)
        wanted = [
            index_row(one)
            for one in newest_first(filter(matches, everything))
            if (session_id is None or one.session_id == session_id) and not (root_only and one.parent_run_id)
        ]
        rows = store.list_run_index(
            status=status, workflow_id=workflow_id, session_id=session_id, root_only=root_only, limit=limit
        )
        assert rows == wanted[:count]
        for parent in ("a", "b", "nobody"):
            children = [one for one in everything if one.parent_run_id == parent and (status in (None, one.status))]
            listed = store.list_children(parent_run_id=parent, status=status)
            assert sorted(one.run_id for one in listed) == sorted(one.run_id for one in children)
            assert [one.created_at for one in listed] == sorted(one.created_at for one in children)
