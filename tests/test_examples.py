"""Every example runs as a program and says what it should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .scale import scaled

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

#: lines that each example must print, in this order, as regular expressions
SAYS = {
    "pause_resume.py": [
        r"waiting: Continue\?",
        r"completed: \{'answer': 'yes'\}",
        r"  ask +started +ask_user",
        r"  ask +waiting +ask_user",
        r"  ask +completed +resume",
        r"  done +completed +complete",
        r"  done +completed +emit_event",
    ],
    "many_runs.py": [
        r"runs: \{'completed': 200\}",
        r"calls: \{'fetch': 200, 'send': 200\}, most in flight together: 200",
        r"ledger: 1200 records, 6 per run",
    ],
    "inbox.py": [
        r"page: \['payment-3: Pay 300 EUR\?', 'payment-2: Pay 200 EUR\?'\]",
        r"page: \['payment-1: Pay 100 EUR\?'\]",
        r"payment-3: \{'paid': True\}",
        r"payment-2: \{'paid': False\}",
        r"page: \['payment-1: Pay 100 EUR\?'\]",
        r"  1 ask +started +ask_user",
        r"  2 ask +waiting +ask_user",
        r"  3 ask +completed +resume",
        r"  4 decide +completed +None",
        r"  5 decide +completed +emit_event",
        r"ended: \['payment-3', 'payment-2'\]",
    ],
    "parallel_effects.py": [
        r"process 1 \| north: attempt 1, key \w+",
        r"process 1 \| south: attempt 1, key \w+",
        r"process 1 \| the others have landed, west still thinks",
        r"process 1 > killed with SIGKILL",
        r"process 2 \| west: attempt 2, key \w+",
        r"process 2 \| completed: \{'shop': 'south', 'price': 39\}",
    ],
    "scheduled.py": [
        r"the scales are asked, attempt 1",
        r"the scales are asked, attempt 2",
        r"waiting: Send 420 g\?",
        r"completed: \{'sent': True\}",
    ],
    "fan_out.py": [
        r"completed: \{'found': \['all about durability', None, 'all about leases', 'all about streams'\], "
        r"'mirror': 'all about mirror awake'\}",
        r"most at once: 2",
        r"  durability      completed",
        r"  unicorns        failed     nothing is known about unicorns",
        r"  leases          completed",
        r"  streams         completed",
        r"  mirror asleep   cancelled  The parent run does not wait for it any more",
        r"  mirror awake    completed",
    ],
    "snapshots.py": [
        r"Publish\? -> no: completed \{'draft': 'draft 1', 'published': False\}",
        r"restored to 'before the answer': waiting, Publish\?",
        r"the old question is void: wait_key mismatch: .*",
        r"Publish\? -> yes: completed \{'draft': 'draft 1', 'published': True\}",
        r"fork: Publish\? -> yes: completed \{'draft': 'another draft', 'published': True\}",
        r"drafts written: 1",
        r"  changed /output/draft: 'draft 1' -> 'another draft'",
        r"  changed /vars/draft: 'draft 1' -> 'another draft'",
        r"  1 fork of essay at record 4",
        r"deleted: 1 run with 11 records and 2 snapshots",
    ],
    "backup.py": [
        r"copied: runs\.db, while 10 effects are in flight",
        r"the database: 10 runs completed, attempt 1",
        r"the copy: 10 runs completed, attempt 2",
    ],
    "long_conversation.py": [
        r"conversation_span: 16 messages",
        r"memory_note: After turn 20 nobody was tired\.",
        r"conversation_span: 20 messages",
        r"memory_note: After turn 40 nobody was tired\.",
        r"40 turns were said, 10 messages are active:",
        r"  system: \[CONVERSATION HISTORY SUMMARY span_id=<1>\]: 16 messages, from Oslo to Narvik",
        *(rf"  (user|assistant): Turn {turn}: we talk about Oslo\." for turn in (1, 2, 3, 4)),
        r"  system: \[CONVERSATION HISTORY SUMMARY span_id=<3>\]: 20 messages, from Tromso to Umea",
        *(rf"  (user|assistant): Turn {turn}: we talk about Turku\." for turn in (37, 38, 39, 40)),
    ],
    "audit_trail.py": [
        r"  \w{8} after nothing: started",
        *(rf"  \w{{8}} after \w{{8}}: {status}" for status in ("waiting", "completed", "started", *["completed"] * 3)),
        r"as it was written: 7 records, intact",
        r"with another amount: 7 records, record_hash_mismatch at 4",
        r"  it says now: \{'paid': 999\}",
        r"without its end: 5 records, count_mismatch at 5, head_mismatch at 4",
    ],
    "approval_by_event.py": [
        r"reached: counter, waits",
        r"sent again: reached 0",
        r"waits completed: \{'order': 'books', 'told': 1\}",
        r"late completed: \{'order': 'lamp', 'told': 0\}",
        r"counter completed: \{'closed': \['books', 'lamp'\]\}",
    ],
    "approval_by_hand.py": [
        r"Pay 100 EUR\? \['approve', 'reject'\]",
        r"refused: 'maybe' is not one of the choices .*",
        r"completed: \{'decision': 'approve', 'by_silence': False\}",
        r"completed: \{'decision': 'reject', 'by_silence': True\}",
    ],
    "approvals.py": [
        r"process 1 \| fine read_file \{'path': 'notes.txt'\}",
        r"process 1 \| ask  write_file \{'path': '/etc/motd', 'text': 'hello'\}",
        r"process 1 \| ask  delete_file \{'path': 'notes.txt'\}",
        r"process 1 \| a second decision: Run 'chat' waits for no decision: it is running\.",
        r"process 1 \| decided: running, and no tool has run",
        r"process 1 > killed with SIGKILL",
        r"process 2 \| performs read_file \{'path': 'notes.txt'\}",
        r"process 2 \| performs write_file \{'path': 'motd', 'text': 'hello'\}",
        r"process 2 \| read_file: read_file is done",
        r"process 2 \| write_file: write_file is done",
        r"process 2 \| delete_file: keep it",
    ],
    "artifacts.py": [
        r"completed: the run holds a ref of \d\d characters",
        r"found: a report of 5200000 bytes, text/plain",
        r"read: 200000 lines",
        r"deleted: 1 artifact of the run",
        r"collected: 5200000 bytes",
    ],
}

#: what a reader of the demo must see, among other lines
DEMO_SAYS = [
    r"\[1/4\] .*killed inside an effect",
    r"  process 1 > killed with SIGKILL",
    r"\[2/4\] .*killed while it waits for the user",
    r"  process 2 \| desk: attempt 2, key \w+: had been shipped",
    r"  process 2 > killed with SIGKILL",
    r"\[3/4\] .*",
    r"  process 3 < yes",
    r"  process 3 \| completed: \{'shipped': \['lamp', 'desk', 'chair'\], 'invoice': 'yes'\}",
    r"\[4/4\] .*",
    r"  process 4 \| pack +ship +attempt 1 +failed .* outcome unknown",
    r"  process 4 \| ok   records: the state counts 13, the ledger has 13",
    r"  process 4 \| ok   5 promises, 5 ends, one each",
    r"  process 4 \| ok   3 parcels shipped by the carrier, each key once",
    r"  process 4 \| ok   4 calls to the carrier, 4 attempts in the ledger",
    r"  process 4 \| ok   kill 1 cost 1 attempt, made again with the same key: attempts 2, shipped 1",
    r"  process 4 \| ok   kill 2 cost nothing: asked 1 time, answered 1 time",
    r"Killed twice: nothing lost, nothing done twice\.",
]


#: what the fleet says behind its progress
FLEET = scaled(120, 5_000)
LEADS = -(-FLEET // 50)
FLEET_SAYS = [
    rf"{FLEET} agents, {FLEET} helpers and {LEADS} leads in .* s: \d+ runs/s, \d+ records/s",
    rf"ok   {2 * FLEET + LEADS} of {2 * FLEET + LEADS} runs completed",
    rf"ok   {FLEET} agents have what their own helper found",
    rf"ok   {FLEET} agents heard their lead",
    rf"ok   {FLEET} agents were heard by their lead, each once",
    rf"ok   {2 * FLEET} calls of handlers, each key once",
    rf"ok   {2 * FLEET} promises and {2 * FLEET} ends of these effects",
    r"ok   (\d+) records, and the states count \1",
]


def run(example: str, folder: Path, *arguments: str) -> list[str]:
    """The lines that the example prints. It runs elsewhere, and leaves nothing there."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=scaled(60, 600),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert list(folder.iterdir()) == []
    return done.stdout.splitlines()


def test_every_example_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *SAYS,
        *(
            "demo.py",
            "fastapi_service.py",
            "fleet.py",
            "react_agent.py",
            "react_fleet.py",
        ),  # these have tests of their own
    }


@pytest.mark.parametrize("example", SAYS)
def test_an_example_says_what_it_should(example, tmp_path):
    lines = run(example, tmp_path)
    assert len(lines) == len(SAYS[example]), lines
    for expected, line in zip(SAYS[example], lines, strict=True):
        assert re.fullmatch(expected, line), lines


def test_the_demo_survives_two_kills_and_proves_it(tmp_path):
    lines = run("demo.py", tmp_path)
    rest = iter(lines)
    for expected in DEMO_SAYS:
        assert any(re.fullmatch(expected, line) for line in rest), f"{expected!r} is missing in {lines}"
    assert not [line for line in lines if "FAIL" in line]


def test_the_demo_fails_when_what_it_shows_is_wrong(tmp_path):
    source = (EXAMPLES / "demo.py").read_text()
    wrong = "key not in {call["
    assert source.count(wrong) == 1
    (tmp_path / "forgetful.py").write_text(source.replace(wrong, "True or key not in {call["))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "forgetful.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "FAIL 4 parcels shipped by the carrier, each key once" in done.stdout
    assert done.stderr == "FAILED: process 4 ended with code 1\n"


def test_the_fleet_ends_and_proves_it(tmp_path):
    lines = run("fleet.py", tmp_path, str(FLEET))
    progress, told = lines[: -len(FLEET_SAYS)], lines[-len(FLEET_SAYS) :]
    for expected, line in zip(FLEET_SAYS, told, strict=True):
        assert re.fullmatch(expected, line), lines
    assert progress
    for line in progress:
        assert re.fullmatch(r" *[\d.]+ s +\d+ waiting +\d+ ended +\d+ records", line), lines


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("all about {call", "nothing about {call", "5 agents have what their own helper found"),
        ("self.calls[call.key] += 1", "self.calls[call.key] += 2", "20 calls of handlers, each key once"),
        ('run.vars["help"]["output"]["found"]', 'run.vars["nothing"]', "6 of 11 runs completed"),
    ],
)
def test_the_fleet_fails_when_what_it_shows_is_wrong(right, wrong, told, tmp_path):
    source = (EXAMPLES / "fleet.py").read_text()
    assert right in source
    (tmp_path / "wrong.py").write_text(source.replace(right, wrong))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "wrong.py"), "5"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"FAIL {told}" in done.stdout, done.stdout + done.stderr
