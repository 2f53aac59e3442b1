"""A process that stores artifacts, or collects garbage, in a folder, until it is killed or its work is done.

python -m tests.artifact_worker store FOLDER NAME ROUNDS    tells each id that was acknowledged, and its content
python -m tests.artifact_worker gc FOLDER                   collects until its input ends
"""

from __future__ import annotations

import itertools
import random
import sys
import threading

from abstractruntime import FileArtifactStore

#: what all writers store and delete again and again, so that each is garbage at times and wanted again soon
CONTENTS = [bytes([number]) * (number * 3000 + 1) for number in range(6)]

#: stands for a content of the artifact's own
OWN = len(CONTENTS)


def content_of(artifact_id: str, number: int) -> bytes:
    """The content that is told by its number."""
    return artifact_id.encode() * 100 if number == OWN else CONTENTS[number]


def store(folder: str, name: str, rounds: int) -> None:
    """Store contents and look whether they are there; shared ones are deleted then. Rounds of 0 never end."""
    artifacts, chance = FileArtifactStore(folder), random.Random(name)
    for turn in itertools.count() if not rounds else range(rounds):
        number, artifact_id = chance.randrange(OWN + 1), f"{name}-{turn}"
        content = content_of(artifact_id, number)
        if chance.random() < 0.5:
            artifacts.store(content, artifact_id=artifact_id, run_id=name)
        else:
            artifacts.store_stream([content[:10], content[10:]], artifact_id=artifact_id, run_id=name)
        print(artifact_id, number, flush=True)
        found = artifacts.load(artifact_id)
        assert found is not None
        assert found.content == content
        if chance.random() < 0.2:
            assert artifact_id in {meta.artifact_id for meta in artifacts.list_by_run(name)}
        if number != OWN:
            print(artifact_id, "deleting", flush=True)
            artifacts.delete(artifact_id)


def gc(folder: str) -> None:
    """Collect without grace, as often as it goes; tell how often, and how many contents went."""
    artifacts, ended = FileArtifactStore(folder), threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    rounds = deleted = 0
    while not ended.is_set():
        report = artifacts.gc(dry_run=False, grace_s=0)
        assert report["errors"] == [], report
        rounds, deleted = rounds + 1, deleted + report["blobs_deleted"]
    print(rounds, deleted, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "store":
        store(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        gc(sys.argv[2])
