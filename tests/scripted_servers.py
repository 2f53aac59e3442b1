"""A model server for tests: OpenAI-compatible and Ollama on one loopback port, in one thread, on the standard library.

Give a real client `server.openai_url` or `server.url` (Ollama). Every request to a model takes the next reply of the
script; when it is used up, the server answers by itself: it echoes the last message, a user's `CALL name {json}` gives
a call of that tool, and a JSON schema in the request gives an object that fits it.

    with ScriptedServer(["hello", {"status": 429, "headers": {"Retry-After": "1"}}, {"drop": True}]) as server:
        llm = create_llm("openai-compatible", model="qwen3-4b", base_url=server.openai_url)

A reply of the script is a text, a function from the request to a reply, or a dict of

    content, reasoning, finish_reason, usage   of the answer; an empty content is an empty reply
    tool_calls        [{"name", "arguments": dict, or a text that is sent as it is, "id"?}]
    status, headers, body                      of a failure; body is JSON or, as a text, sent as it is
    raw               the text that is sent as the body of a success: for malformed JSON
    drop              close the connection without an answer; in a stream, after so many chunks
    latency           seconds before the answer, instead of the server's
    hold              never answer
    chunks, pause     what a stream is cut into, and the seconds between two
    endless           repeat the chunks for ever

With `gate=200` nothing is answered before 200 requests are under way at once.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

#: the smallest picture there is
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SOUND = b"RIFF$\x00\x00\x00WAVEfmt "

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass
class Seen:
    """A request as it came in; header names are lower-case."""

    method: str
    path: str
    headers: dict[str, str]
    json: Any = None
    query: str = ""


@dataclass
class Answer:
    """What a model says."""

    content: str = ""
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"
    usage: dict[str, int] = field(default_factory=dict)
    chunks: list[str] = field(default_factory=list)
    pause: float = 0.0
    endless: bool = False
    drop: int | None = None


class ScriptedServer:
    """A model server that does what a test says; a context manager. Its counters may be read at any time."""

    def __init__(
        self,
        script: Iterable[Any] = (),
        *,
        latency: float = 0.0,
        gate: int = 0,
        models: tuple[str, ...] = ("qwen3-4b", "qwen3:4b", "scripted-model"),
    ) -> None:
        self.script = deque(script)
        self.latency, self.gate, self.models = latency, gate, models
        self.requests: list[Seen] = []
        self.inflight = self.max_inflight = self.aborted = self.connections = self.closed = 0
        self.failure: Exception | None = None
        #: of Ollama: the models in memory
        self.resident: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="scripted-server", daemon=True)
        self._port = 0

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        if self.failure is not None:
            raise self.failure

    @property
    def url(self) -> str:
        """The root, which is what Ollama clients want."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def openai_url(self) -> str:
        """The root of the OpenAI-compatible part."""
        return f"{self.url}/v1"

    @property
    def asked(self) -> list[Seen]:
        """The requests that asked a model for something: all that take from the script."""
        return [seen for seen in list(self.requests) if seen.path in _GENERATING]

    def wait_until(self, holds: Callable[[ScriptedServer], bool], seconds: float = 10.0) -> None:
        """Block this thread until `holds(self)`; an AssertionError when it takes longer."""
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), seconds), f"{self.requests}, aborted {self.aborted}"

    async def until(self, holds: Callable[[ScriptedServer], bool], seconds: float = 10.0) -> None:
        """The same without blocking the loop."""
        await asyncio.to_thread(self.wait_until, holds, seconds)

    # -- inside, in the server's thread

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._open: set[_Connection] = set()
        self._full = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=1024)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.sleep(0)  # they hear of it in the next round of the loop

    def note(self, **changes: int) -> None:
        """Change counters, and tell those who wait."""
        with self._changed:
            for name, by in changes.items():
                setattr(self, name, getattr(self, name) + by)
            self.max_inflight = max(self.max_inflight, self.inflight)
            if self.max_inflight >= self.gate:
                self._full.set()
            self._changed.notify_all()

    async def answer(self, seen: Seen, out: _Connection) -> None:
        """Answer one request."""
        self.requests.append(seen)
        self.note(inflight=1)
        try:
            if seen.path in _GENERATING and not _is_residency(seen):
                reply = self.script.popleft() if self.script else None
                await self._reply(seen, reply(seen) if callable(reply) else reply, out)
            else:
                status, body = self._facts(seen)
                out.send(status, body)
        except asyncio.CancelledError:
            if not self._stop.is_set():
                self.note(aborted=1)
            raise
        except Exception as error:  # the test must hear of it, and the client must not wait
            self.failure = error
            out.transport.abort()
        finally:
            self.note(inflight=-1)

    async def _reply(self, seen: Seen, reply: Any, out: _Connection) -> None:
        given: dict[str, Any] = {"content": reply} if isinstance(reply, str) else dict(reply or {})
        await asyncio.sleep(given.get("latency", self.latency))
        await self._full.wait()
        if given.get("hold"):
            await asyncio.Event().wait()
        streams = bool((seen.json or {}).get("stream"))
        if given.get("drop") is not None and not (streams and given.get("chunks")):
            out.transport.abort()
        elif "status" in given:
            body = given.get("body", {"error": {"message": f"scripted {given['status']}", "type": "scripted"}})
            out.send(given["status"], body, given.get("headers"))
        elif "raw" in given:
            out.send(200, given["raw"])
        elif seen.path == "/v1/images/generations":
            out.send(200, {"created": 1, "data": [{"b64_json": base64.b64encode(PIXEL).decode()}]})
        elif seen.path == "/v1/audio/speech":
            out.send(200, SOUND, {"Content-Type": "audio/wav"})
        elif seen.path == "/v1/embeddings":
            texts = seen.json["input"] if isinstance(seen.json["input"], list) else [seen.json["input"]]
            data = [{"index": i, "embedding": [float(len(text)), 1.0]} for i, text in enumerate(texts)]
            out.send(200, {"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})
        else:
            await self._say(seen, _answer(seen, given), streams, out)

    async def _say(self, seen: Seen, answer: Answer, streams: bool, out: _Connection) -> None:
        ollama = seen.path.startswith("/api/")
        if not streams:
            out.send(200, _ollama(seen, answer) if ollama else _openai(seen, answer))
            return
        lines = _ollama_stream(seen, answer) if ollama else _openai_stream(seen, answer)
        out.begin("application/x-ndjson" if ollama else "text/event-stream")
        count = 0
        async for line in lines:
            if answer.drop is not None and count >= answer.drop:
                out.transport.abort()
                return
            out.chunk(line)
            count += 1
        out.chunk("")

    def _facts(self, seen: Seen) -> tuple[int, Any]:
        body = seen.json or {}
        match seen.path:
            case "/v1/models":
                return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            case "/api/tags":
                return 200, {"models": [{"name": name, "model": name, "size": 1} for name in self.models]}
            case "/api/ps":
                return 200, {"models": [{"name": name, "model": name, "size": 1} for name in self.resident]}
            case "/api/version":
                return 200, {"version": "0.9.0"}
            case "/api/show":
                return 200, {"details": {"family": "qwen3"}, "model_info": {}}
            case "/api/generate" | "/api/chat":  # without a prompt: load, or with keep_alive 0 unload
                name, keep = body.get("model", ""), body.get("keep_alive")
                if name not in self.models:
                    return 404, {"error": f"model '{name}' not found"}
                if keep in (0, "0", "0s"):
                    self.resident.pop(name, None)
                else:
                    self.resident[name] = keep
                return 200, {"model": name, "response": "", "done": True, "done_reason": "load"}
        return 404, {"error": {"message": f"no {seen.path} here"}}


_GENERATING = {
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/images/generations",
    "/v1/audio/speech",
    "/api/chat",
    "/api/generate",
}


def _is_residency(seen: Seen) -> bool:
    body = seen.json or {}
    return seen.path.startswith("/api/") and not body.get("prompt") and not body.get("messages")


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as far as a client of a model speaks it: one request after the other, kept alive, chunked answers."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server, self.buffer, self.more = server, bytearray(), asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.note(connections=1)
        self.task = asyncio.get_running_loop().create_task(self._serve())
        self.server._open.add(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server._open.discard(self)
        self.server.note(closed=1)
        self.task.cancel()

    async def _serve(self) -> None:
        while True:
            head = await self._take_until(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            headers = {name.strip().lower(): value.strip() for name, _, value in (li.partition(":") for li in lines)}
            body = await self._take(int(headers.get("content-length", "0")))
            path, _, query = target.partition("?")
            await self.server.answer(Seen(method, path, headers, json.loads(body) if body else None, query), self)

    async def _take_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            await self._wait()
        return (await self._take(self.buffer.index(mark) + len(mark)))[: -len(mark)]

    async def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            await self._wait()
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    async def _wait(self) -> None:
        self.more.clear()
        await self.more.wait()

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        """One whole answer; what is neither bytes nor text is sent as JSON."""
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        self._head(status, fields)
        self.transport.write(data)

    def begin(self, kind: str) -> None:
        """Begin a chunked answer."""
        self._head(200, {"Content-Type": kind, "Transfer-Encoding": "chunked"})

    def chunk(self, text: str) -> None:
        """One piece of it; the empty one is the end."""
        data = text.encode()
        self.transport.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _head(self, status: int, fields: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Scripted')}", *(f"{k}: {v}" for k, v in fields.items())]
        self.transport.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))


# -- what the model says


def last_text(body: dict[str, Any]) -> tuple[str, str]:
    """Role and text of the last message, or of the prompt."""
    messages = body.get("messages") or [{"role": "user", "content": body.get("prompt", "")}]
    content = messages[-1].get("content") or ""
    if isinstance(content, list):
        content = " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return messages[-1].get("role", "user"), str(content)


def _answer(seen: Seen, given: dict[str, Any]) -> Answer:
    body = seen.json or {}
    role, text = last_text(body)
    answer = Answer(
        content=given.get("content") or "",
        reasoning=given.get("reasoning"),
        tool_calls=given.get("tool_calls", []),
        pause=given.get("pause", 0.0),
        endless=given.get("endless", False),
        drop=given.get("drop"),
    )
    if "chunks" in given:
        answer.content = "".join(given["chunks"])
    elif "content" not in given and not answer.tool_calls:
        _speak_by_itself(answer, body, role, text)
    if answer.tool_calls and not body.get("tools"):  # a model that was told of its tools in the prompt
        answer.content += "".join(f"<|tool_call|>{json.dumps(c)}</|tool_call|>" for c in answer.tool_calls)
        answer.tool_calls = []
    answer.finish_reason = given.get("finish_reason") or ("tool_calls" if answer.tool_calls else "stop")
    said = len(answer.content.split())
    sent = sum(
        len(str(message.get("content") or "").split()) for message in body.get("messages") or [{"content": text}]
    )
    answer.usage = given.get("usage") or {"prompt_tokens": sent, "completion_tokens": said, "total_tokens": sent + said}
    answer.chunks = given.get("chunks") or [word + " " for word in answer.content.split(" ")[:-1]] + [
        answer.content.split(" ")[-1]
    ]
    return answer


def _speak_by_itself(answer: Answer, body: dict[str, Any], role: str, text: str) -> None:
    schema = body.get("format") or (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    command, _, rest = text.strip().partition(" ")
    if role == "user" and command == "CALL":
        name, _, arguments = rest.partition(" ")
        found, _ = json.JSONDecoder().raw_decode(arguments or "{}")  # some clients add a word for the model
        answer.tool_calls = [{"name": name, "arguments": found}]
    elif isinstance(schema, dict):
        answer.content = json.dumps(filled(schema, schema))
    else:
        answer.content = f"echo: {text}"


def filled(schema: dict[str, Any], root: dict[str, Any]) -> Any:
    """The simplest value that fits a JSON schema."""
    if "$ref" in schema:
        return filled(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return filled(schema[several][0], root)
    match schema.get("type"):
        case "object":
            return {name: filled(inner, root) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [filled(schema.get("items", {"type": "string"}), root)]
        case kind:
            return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(str(kind), "text")


def _call(call: dict[str, Any], index: int) -> dict[str, Any]:
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {
        "index": index,
        "id": call.get("id", f"call_{index + 1}"),
        "type": "function",
        "function": {"name": call["name"], "arguments": text},
    }


def _openai(seen: Seen, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or (None if answer.tool_calls else "")}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [_call(call, index) for index, call in enumerate(answer.tool_calls)]
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": seen.json.get("model"),
        "choices": [choice],
        "usage": answer.usage,
    }


async def _openai_stream(seen: Seen, answer: Answer) -> AsyncIterator[str]:
    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        part = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": seen.json.get("model")}
        return f"data: {json.dumps({**part, 'choices': [choice]})}\n\n"

    async for text in _pieces(answer):
        yield event({"role": "assistant", "content": text})
    for index, call in enumerate(answer.tool_calls):
        whole = _call(call, index)
        arguments = whole["function"].pop("arguments")
        yield event({"tool_calls": [whole | {"function": whole["function"] | {"arguments": ""}}]})
        for piece in (arguments[:3], arguments[3:]):
            yield event({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield event({}, answer.finish_reason)
    yield f"data: {json.dumps({'id': 'chatcmpl-1', 'choices': [], 'usage': answer.usage})}\n\n"
    yield "data: [DONE]\n\n"


def _ollama(seen: Seen, answer: Answer, text: str | None = None, *, done: bool = True) -> dict[str, Any]:
    content = answer.content if text is None else text
    said: dict[str, Any] = {"model": seen.json.get("model"), "created_at": "2026-01-31T09:00:00Z", "done": done}
    if seen.path == "/api/generate":
        said["response"] = content
    else:
        said["message"] = {"role": "assistant", "content": content}
        if answer.reasoning is not None:
            said["message"]["thinking"] = answer.reasoning
        if answer.tool_calls:
            calls = [{"function": {"name": c["name"], "arguments": c.get("arguments", {})}} for c in answer.tool_calls]
            said["message"]["tool_calls"] = calls
    if done:
        used = answer.usage
        said |= {"done_reason": answer.finish_reason, "prompt_eval_count": used["prompt_tokens"]}
        said |= {"eval_count": used["completion_tokens"], "total_duration": 1}
    return said


async def _ollama_stream(seen: Seen, answer: Answer) -> AsyncIterator[str]:
    async for text in _pieces(answer):
        yield json.dumps(_ollama(seen, answer, text, done=False)) + "\n"
    yield json.dumps(_ollama(seen, answer, "")) + "\n"


async def _pieces(answer: Answer) -> AsyncIterator[str]:
    while True:
        for text in answer.chunks:
            yield text
            await asyncio.sleep(answer.pause)
        if not answer.endless:
            return


if __name__ == "__main__":  # a server for others: tells its address, and ends when its input does
    with ScriptedServer(latency=float(sys.argv[1])) as alone:
        print(alone.openai_url, flush=True)
        sys.stdin.read()
