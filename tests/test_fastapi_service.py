"""The service of `examples/fastapi_service.py` as its users meet it: over HTTP, run by uvicorn, stopped and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from abstractruntime import AsyncRuntime, Runtime

from .outside import performances
from .scale import scaled
from .service_worker import SLOW, service

ROOT = Path(__file__).parent.parent
CLIENTS = 8
QUESTIONS = scaled(5, 100)

#: seconds; far more than anything here takes
PATIENCE = 60

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")


def until(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
    """What the condition gives as soon as it gives something."""
    pause = threading.Event()
    for _ in range(PATIENCE * 100):
        if found := condition():
            return found
        assert process is None or process.poll() is None, "the server is gone"
        pause.wait(0.01)
    raise TimeoutError


class Server:
    """A uvicorn process on the database of a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.log = folder, folder / f"log-{len(list(folder.glob('log-*')))}"
        command = [sys.executable, "-W", "error", "-m", "uvicorn", "tests.service_worker:app", "--port", "0", *options]
        world = {"WORLD": str(folder / "world"), "GATE": str(folder / "gate")}
        environment = {**os.environ, **world, "RUNS_URL": f"sqlite:///{folder / 'runs.db'}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        found = until(lambda: re.search(r"running on (http://\S+)", self.said), self.process)
        self.client = httpx.Client(base_url=found[1], timeout=PATIENCE)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def ask(self, method: str, path: str, expected: int = 200, /, **options: Any) -> Any:
        answer = self.client.request(method, path, **options)
        assert answer.status_code == expected, answer.text
        return answer.json()

    def start(self, run_id: str, amount: float = 12, **options: Any) -> dict[str, Any]:
        """A run of which a question will be in the inbox."""
        body = {"run_id": run_id, "vars": {"order": run_id, "amount": amount}, "session_id": "shop", **options}
        started: dict[str, Any] = self.ask("POST", "/runs", 201, json=body)
        return started

    def questions(self) -> dict[str, str]:
        """The ids of what is asked, by run; all pages of the inbox."""
        found: dict[str, str] = {}
        cursor = None
        while True:
            page = self.ask("GET", "/inbox", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
            found |= {row["run_id"]: row["wait_id"] for row in page["questions"]}
            cursor = page["cursor"]
            if cursor is None:
                return found

    def answer(self, run_id: str, choice: str = "yes", **options: Any) -> int:
        """Answer the question of a run, which will come; the status."""
        wait_id = until(lambda: self.questions().get(run_id))
        body = {"wait_id": wait_id, "payload": {"choice": choice}, **options}
        return self.client.post(f"/runs/{run_id}/answer", json=body).status_code

    def settle(self, event_id: str = "settled-1") -> None:
        body = {"name": "settled", "payload": {}, "event_id": event_id}
        self.ask("POST", "/sessions/shop/events", 202, json=body)

    def listen(self, run_id: str, after: int | None = None) -> Generator[tuple[str, int, Any], None, None]:
        """What a stream of the run says, as kind, id and data."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self.client.stream("GET", f"/runs/{run_id}/events", headers=headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            said: dict[str, str] = {}
            for line in response.iter_lines():
                if line.startswith(":"):  # a ping
                    continue
                if line:
                    name, _, value = line.partition(": ")
                    said[name] = value
                elif said:
                    yield said.get("event", "message"), int(said.get("id", 0)), json.loads(said["data"])
                    said = {}


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers in one folder."""
    started: list[Server] = []

    def begin(*options: str) -> Server:
        started.append(Server(tmp_path, *options))
        return started[-1]

    yield begin
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    server = Server(tmp_path_factory.mktemp("shared"))
    yield server
    server.close()


def ledger_of(folder: Path, run_id: str) -> list[dict[str, Any]]:
    with Runtime.open(f"sqlite:///{folder / 'runs.db'}") as rt:
        return rt.get_ledger(run_id)


def test_a_run_is_started_asked_answered_and_followed_to_its_end(shared):
    assert shared.ask("GET", "/health")["driving"] is True
    assert shared.start("book", actor_id="ann")["status"] == "running"
    assert shared.start("book", actor_id="ann")["run_id"] == "book", "the same request is the same run"
    state = shared.ask("POST", "/runs/book/tick")
    assert (state["status"], state["node"], state["waiting"]) == ("waiting", "ask", "user")
    page = shared.ask("GET", "/inbox", params={"actor_id": "ann"})
    [question] = page["questions"]
    assert (question["prompt"], question["choices"], page["cursor"]) == ("Refund 12 EUR for book?", ["yes", "no"], None)
    assert shared.ask("GET", "/inbox", params={"actor_id": "bob"})["questions"] == []

    assert shared.answer("book", answer_id="click") == 200
    body = {"wait_id": question["wait_id"], "payload": {"choice": "yes"}, "answer_id": "click"}
    assert shared.ask("POST", "/runs/book/answer", json=body)["run_id"] == "book", "sent again, it counts once"
    shared.settle()
    said = list(shared.listen("book"))
    *records, (kind, _, ended) = said
    assert [(kind, number) for kind, number, _ in records] == [("message", n) for n in range(1, len(said))]
    assert [record for _, _, record in records] == ledger_of(shared.folder, "book")
    assert kind == "end"
    assert ended == shared.ask("GET", "/runs/book")
    assert ended["status"] == "completed"
    assert ended["output"]["receipt"].startswith("receipt")
    assert [effect for _, _, record in records if (effect := (record["effect"] or {}).get("type"))].count("pay") == 2


def test_what_a_client_does_wrong_is_told_to_it(shared):
    shared.start("lamp")
    shared.ask("POST", "/runs/lamp/tick")
    question = {"wait_id": shared.questions()["lamp"], "payload": {"choice": "yes"}}
    run = {"order": "x", "amount": 1}
    for code, method, path, options in (
        (404, "GET", "/runs/nobody", {}),
        (404, "GET", "/runs/nobody/events", {}),
        (404, "POST", "/runs/nobody/tick", {}),
        (404, "POST", "/runs/nobody/answer", {"json": question}),
        (404, "POST", "/runs", {"json": {"workflow_id": "nothing", "vars": run}}),
        (409, "POST", "/runs", {"json": {"run_id": "lamp", "vars": run}}),
        (409, "POST", "/runs/lamp/answer", {"json": {**question, "wait_id": "another"}}),
        (422, "POST", "/runs/lamp/answer", {"json": {**question, "payload": {"choice": "perhaps"}}}),
        (422, "POST", "/runs/lamp/answer", {"json": {**question, "payload": "\ud800"}}),
        (422, "POST", "/runs/lamp/answer", {"json": {"wait_id": question["wait_id"]}}),
        (422, "POST", "/runs", {"json": {"vars": {"order": "x"}}}),
        (422, "POST", "/runs", {"json": {"vars": {"order": "x", "amount": "much"}}}),
        (422, "POST", "/runs", {"json": {"run_id": "../x", "vars": run}}),
        (422, "POST", "/runs", {"json": {"session_id": "\ud800", "vars": run}}),
        (422, "POST", "/runs", {"content": '{"vars": {"order": "x", "amount": NaN}}'}),
        (422, "POST", "/runs", {"content": "{"}),
        (422, "POST", "/sessions/shop/events", {"json": {"name": ""}}),
        (422, "GET", "/inbox", {"params": {"cursor": "page 2"}}),
        (422, "GET", "/inbox", {"params": {"limit": 10**30}}),
        (422, "GET", "/runs/lamp/events", {"headers": {"Last-Event-ID": "the last"}}),
        (422, "GET", "/runs/lamp/events", {"headers": {"Last-Event-ID": "-1"}}),
    ):
        if "json" in options:  # httpx cannot send a lone surrogate
            options = {"content": json.dumps(options["json"])}
        answer = shared.client.request(method, path, **{"headers": {"content-type": "application/json"}, **options})
        assert answer.status_code == code, f"{method} {path} {options}: {answer.text}"
        assert answer.json()["detail"]
    assert shared.questions()["lamp"] == question["wait_id"], "it waits as before"


def test_a_stream_that_is_cut_goes_on_behind_its_last_record_without_gap_or_repeat(shared):
    shared.start("desk")
    seen: list[tuple[int, Any]] = []

    def read(records: int) -> None:
        """Some of the stream; then the client goes away."""
        stream = shared.listen("desk", after=seen[-1][0] if seen else None)
        for _, number, record in stream:
            seen.append((number, record))
            records -= 1
            if not records:
                break
        stream.close()

    read(1)
    read(1)
    assert shared.answer("desk") == 200
    read(2)
    shared.settle("settled-2")
    said = list(shared.listen("desk", after=seen[-1][0]))
    assert said[-1][0] == "end"
    seen += [(number, record) for _, number, record in said[:-1]]
    assert seen == list(enumerate(ledger_of(shared.folder, "desk"), 1))
    for behind in (len(seen), 10**30):
        assert [kind for kind, _, _ in shared.listen("desk", after=behind)] == ["end"], "nothing is left to tell"


async def test_a_stream_that_is_cut_before_its_last_record_tells_no_end():
    workflow = service.REGISTRY.get_or_raise("refund")
    async with AsyncRuntime.open("memory:") as rt:
        state = await rt.run(workflow, vars={"order": "x", "amount": 1})
        state = await rt.resume(workflow=workflow, run_id=state.run_id, wait_key=None, payload={"choice": "no"})
        stream = service.events(state, rt)
        assert (await anext(stream)).id == "1"
        rt.stop_following()
        assert [event async for event in stream] == []
        assert [event.event async for event in service.events(state, rt, state.records)] == ["end"]


def test_of_many_clients_that_answer_one_question_one_wins(shared):
    runs = [f"many-{number}" for number in range(QUESTIONS)]
    for run_id in runs:
        shared.start(run_id)
    until(lambda: set(runs) <= set(shared.questions()))
    questions = shared.questions()
    ready = threading.Barrier(CLIENTS)

    def answer(client: int) -> list[int]:
        with httpx.Client(base_url=shared.client.base_url, timeout=PATIENCE) as one:
            ready.wait()
            body = {"payload": {"choice": "yes"}, "actor_id": f"client {client}"}
            bodies = ((run_id, {**body, "wait_id": questions[run_id]}) for run_id in runs)
            return [one.post(f"/runs/{run_id}/answer", json=body).status_code for run_id, body in bodies]

    with ThreadPoolExecutor(CLIENTS) as pool:
        codes = list(pool.map(answer, range(CLIENTS)))
    assert [sorted(of_one) for of_one in zip(*codes, strict=True)] == [[200] + [409] * (CLIENTS - 1)] * QUESTIONS
    shared.settle("settled-3")
    for run_id in runs:
        assert list(shared.listen(run_id))[-1][2]["status"] == "completed"
        resumed = [one for one in ledger_of(shared.folder, run_id) if (one["effect"] or {}).get("type") == "resume"]
        assert len([one for one in resumed if one["node_id"] == "ask"]) == 1


def test_sigterm_ends_streams_lets_effects_finish_and_hands_back_the_others(servers, tmp_path):
    (tmp_path / "gate").touch()
    first = servers("--timeout-graceful-shutdown", "1")
    for run_id, amount in (("waits", 12), ("hangs", SLOW), ("paid", 12)):
        first.start(run_id, amount)
    for run_id in ("hangs", "paid"):
        assert first.answer(run_id) == 200
    until(lambda: first.ask("GET", "/runs/paid")["node"] == "settle")
    until(lambda: len(performances(tmp_path / "world")) == 2)

    sent = threading.Event()

    def trace(step: str, info: Any) -> None:
        if step == "http11.send_request_body.complete":
            sent.set()

    with ThreadPoolExecutor() as pool:
        ticked = pool.submit(first.client.post, "/runs/hangs/tick", extensions={"trace": trace})
        assert sent.wait(PATIENCE)
        streams = {run_id: pool.submit(lambda name: list(first.listen(name)), run_id) for run_id in ("waits", "hangs")}
        until(lambda: first.said.count("/events HTTP") == 2)
        first.process.send_signal(signal.SIGTERM)
        for run_id, stream in streams.items():
            said = stream.result(PATIENCE)
            assert [number for _, number, _ in said] == list(range(1, len(said) + 1)), f"{run_id}: no end was told"
        assert first.process.wait(PATIENCE) in (0, -signal.SIGTERM)
        assert ticked.result(PATIENCE).status_code == 500, "its time was up; a client asks again"
    assert "Application shutdown complete" in first.said
    last = [record["status"] for record in ledger_of(tmp_path, "hangs") if record["effect"]["type"] == "pay"]
    assert last == ["started", "cancelled"], "handed back"

    (tmp_path / "gate").unlink()
    second = servers()
    second.settle()
    assert list(second.listen("hangs"))[-1][2]["output"]["paid"] is True
    assert list(second.listen("paid"))[-1][2]["output"]["paid"] is True
    assert set(second.questions()) == {"waits"}
    assert sorted(Counter(done.key for done in performances(tmp_path / "world")).values()) == [1, 2]


def test_an_effect_that_finishes_in_time_is_not_handed_back(servers, tmp_path):
    (tmp_path / "gate").touch()
    server = servers()
    server.start("hangs", SLOW)
    assert server.answer("hangs") == 200
    until(lambda: performances(tmp_path / "world"))
    server.process.send_signal(signal.SIGTERM)
    until(lambda: "Waiting for application shutdown" in server.said)
    (tmp_path / "gate").unlink()
    assert server.process.wait(PATIENCE) in (0, -signal.SIGTERM)
    last = [record["status"] for record in ledger_of(tmp_path, "hangs") if record["effect"]["type"] == "pay"]
    assert last == ["started", "completed"]
    assert len(performances(tmp_path / "world")) == 1


def test_after_sigkill_in_an_effect_nothing_is_lost_and_only_that_effect_is_done_again(servers, tmp_path):
    (tmp_path / "gate").touch()
    first = servers()
    for run_id, amount in (("waits", 12), ("hangs", SLOW), ("paid", 12), ("no", 12)):
        first.start(run_id, amount)
    assert first.answer("no", "no") == 200
    assert first.answer("paid") == 200
    until(lambda: first.ask("GET", "/runs/paid")["node"] == "settle")
    assert first.answer("hangs") == 200
    until(lambda: len(performances(tmp_path / "world")) == 2)
    first.settle()  # also for those that do not wait for it yet
    seen = list(first.listen("no"))
    stream = first.listen("hangs")
    begun = [next(stream) for _ in range(4)]
    first.process.kill()
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        list(stream)
    first.process.wait()

    (tmp_path / "gate").unlink()
    second = servers()
    rest = list(second.listen("hangs", after=begun[-1][1]))
    assert [number for _, number, _ in (*begun, *rest[:-1])] == list(range(1, len(begun) + len(rest)))
    assert rest[-1][2]["output"]["paid"] is True
    assert list(second.listen("paid"))[-1][2]["output"]["paid"] is True
    assert list(second.listen("no")) == seen
    assert second.answer("waits") == 200
    assert list(second.listen("waits"))[-1][2]["output"]["paid"] is True, "the event was kept for it"

    done = performances(tmp_path / "world")
    assert [one.attempt for one in done] == [1, 1, 2, 1]
    again = [key for key, times in Counter(one.key for one in done).items() if times > 1]
    attempts = [one for one in ledger_of(tmp_path, "hangs") if (one["effect"] or {}).get("type") == "pay"]
    assert [(one["attempt"], one["status"]) for one in attempts] == [
        (1, "started"),
        (1, "failed"),  # outcome unknown: the kill fell in between
        (2, "started"),
        (2, "completed"),
    ]
    assert {one["idempotency_key"] for one in attempts} == set(again)


def test_two_processes_serve_one_file(servers, tmp_path):
    first, second = servers(), servers()
    runs = [f"run-{number}" for number in range(2 * QUESTIONS)]
    for number, run_id in enumerate(runs):
        (first, second)[number % 2].start(run_id)
    until(lambda: set(first.questions()) == set(runs) == set(second.questions()))
    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(lambda name: list(second.listen(name)), run_id) for run_id in runs[:2]]
        for run_id in runs:
            wait_id = first.questions()[run_id]
            body = {"wait_id": wait_id, "payload": {"choice": "yes"}}
            told = [
                pool.submit(server.client.post, f"/runs/{run_id}/answer", json=body)
                for server in (first, second)
                for _ in range(2)
            ]
            assert sorted(one.result(PATIENCE).status_code for one in told) == [200, 409, 409, 409]
        second.settle()
        first.settle()  # the same event twice is one
        for stream in streams:
            assert stream.result(PATIENCE)[-1][2]["status"] == "completed"
    for run_id in runs:
        ends = [list(server.listen(run_id)) for server in (first, second)]
        assert ends[0] == ends[1]
        assert ends[0][-1][2]["output"]["paid"] is True
    assert set(Counter(one.key for one in performances(tmp_path / "world")).values()) == {1}
    assert len(performances(tmp_path / "world")) == len(runs)
    assert "ERROR" not in "".join(chain(first.said, second.said))
