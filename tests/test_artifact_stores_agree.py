"""Artifact stores in memory and in files agree: the same operations, in any order, give the same answers and errors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from abstractruntime import AbstractRuntimeError, ArtifactStore, FileArtifactStore, InMemoryArtifactStore

from .clocks import StillClock
from .scale import scaled

CONTENTS = st.sampled_from([b"", b"a", b"b", b"ab" * 50])
IDS = st.sampled_from(["one", "two", "three", "no id!"])
RUNS = st.sampled_from([None, "r", "s"])
TAGS = st.none() | st.dictionaries(st.sampled_from(["kind", "x", "node_id"]), st.sampled_from(["1", "2"]), max_size=2)
TYPES = st.sampled_from(["application/octet-stream", "text/plain", "application/json"])
DETAILS = st.sampled_from([None, {"m": 1}, {"m": {"n": [2]}}, {"k": "v"}, {"bad": float("nan")}])
DESCRIPTORS = st.sampled_from([None, {"task": "t"}, {"session_id": "s", "producer": {"p": 1}}, {"semantic_kind": "k"}])
ORDERS = st.sampled_from(["asc", "desc", "up"])
INSTANTS = st.integers(0, 9).map(lambda minute: f"2100-01-01T00:0{minute}:00Z")
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "run_id": RUNS,
        "content_type": TYPES,
        "tags": TAGS,
        "semantic_kind": st.sampled_from(["1", "k"]),
        "render_kind": st.sampled_from(["text", "json", "binary"]),
        "session_id": st.just("s"),
        "node_id": st.just("1"),
        "created_after": INSTANTS,
        "created_before": INSTANTS,
    },
)
ABOUT = st.fixed_dictionaries(
    {},
    optional={
        "run_id": RUNS,
        "content_type": TYPES,
        "tags": TAGS,
        "metadata": DETAILS,
        "descriptor": DESCRIPTORS,
        "artifact_id": IDS,
    },
)


class Agreement(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.clock = StillClock(datetime(2100, 1, 1, tzinfo=UTC))
        self.folder = tempfile.TemporaryDirectory()
        self.memory: ArtifactStore = InMemoryArtifactStore(clock=self.clock)
        self.files: ArtifactStore = FileArtifactStore(self.folder.name, durability="none", clock=self.clock)
        self.known = ["one", "nobody"]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def both(self, call: Callable[[ArtifactStore], Any]) -> Any:
        """What both stores answer, which must be the same; an error by its type."""
        answers = []
        for store in (self.memory, self.files):
            try:
                answers.append(call(store))
            except (AbstractRuntimeError, ValueError) as error:
                answers.append(type(error))
        assert answers[0] == answers[1]
        return answers[0]

    @rule(content=CONTENTS, about=ABOUT, streamed=st.booleans())
    def store(self, content: bytes, about: dict[str, Any], streamed: bool) -> None:
        pieces = [content[:1], content[1:]]
        found = self.both(lambda s: s.store_stream(pieces, **about) if streamed else s.store(content, **about))
        if not isinstance(found, type):
            self.known.append(found.artifact_id)

    @rule(minutes=st.integers(0, 3))
    def wait(self, minutes: int) -> None:
        self.clock.advance(60 * minutes)

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        artifact_id = data.draw(st.sampled_from(self.known))
        self.both(lambda s: s.load(artifact_id))
        self.both(lambda s: (s.get_metadata(artifact_id), s.exists(artifact_id)))
        self.both(lambda s: list(s.iter_content(artifact_id, chunk_size=3)))

    @rule(data=st.data(), tags=TAGS, details=DETAILS, descriptor=DESCRIPTORS, replace=st.booleans())
    def update(self, data: st.DataObject, tags: Any, details: Any, descriptor: Any, replace: bool) -> None:
        artifact_id = data.draw(st.sampled_from(self.known))
        options = {"tags": tags, "metadata": details, "descriptor": descriptor}
        self.both(lambda s: s.update_metadata(artifact_id, **options, replace_tags=replace, replace_metadata=replace))

    @rule(data=st.data(), action=st.sampled_from(["content", "download", "shown"]), actor=RUNS)
    def access(self, data: st.DataObject, action: str, actor: str | None) -> None:
        artifact_id = data.draw(st.sampled_from(self.known))
        self.both(lambda s: s.record_access(artifact_id, action=action, actor_id=actor))

    @rule(
        filters=FILTERS,
        order=st.sampled_from(["asc", "desc", "up"]),
        offset=st.integers(0, 2),
        limit=st.integers(-1, 3),
    )
    def search(self, filters: dict[str, Any], order: str, offset: int, limit: int) -> None:
        self.both(lambda s: s.search(**filters, order=order, offset=offset, limit=limit))
        self.both(lambda s: s.count(**filters))
        self.both(lambda s: {**s.stats(**filters), "source": None})
        self.both(lambda s: list(s.facet_counts("tags.x", **filters).items()))
        self.both(lambda s: s.list_all(limit=limit))
        self.both(lambda s: s.list_by_run("r"))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        artifact_id = data.draw(st.sampled_from(self.known))
        self.both(lambda s: s.delete(artifact_id))

    @rule(run_id=st.sampled_from(["r", "s"]))
    def delete_run(self, run_id: str) -> None:
        self.both(lambda s: s.delete_by_run(run_id))

    @rule(dry_run=st.booleans())
    def collect(self, dry_run: bool) -> None:
        self.both(lambda s: s.gc(dry_run=dry_run, grace_s=0))

    @rule()
    def reopen(self) -> None:
        self.files = FileArtifactStore(self.folder.name, durability="none", clock=self.clock)


TestAgreement = Agreement.TestCase
TestAgreement.settings = settings(max_examples=scaled(40, 2_000), stateful_step_count=30, deadline=None)
