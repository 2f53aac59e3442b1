"""A web service around durable runs: start them, answer their questions, follow their ledgers, send them events.

    uvicorn --app-dir examples fastapi_service:app

Runs live in the database that RUNS_URL names, and a driver in this process moves them: a request commits what it
brings and returns. Several such processes may share one SQLite file. Stop one whenever you like, even with SIGKILL:
what it was at goes on in another, or when it comes back. Who may ask for what is left out: check your users in a
dependency.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from abstractruntime import (
    AbstractRuntimeError,
    AsyncRuntime,
    AsyncScheduler,
    Effect,
    EffectCall,
    EffectOutcome,
    EffectType,
    InvalidAnswer,
    InvalidCursor,
    InvalidId,
    InvalidState,
    RunState,
    RunStatus,
    StepPlan,
    StoreError,
    TypedRun,
    UnknownRun,
    UnknownWorkflow,
    UnsafeValue,
    WaitReason,
    WorkflowRegistry,
    WorkflowSpec,
)

# -- the workflow: ask a person, pay, wait until the bank has settled


class Refund(msgspec.Struct):
    order: str
    amount: float
    answer: dict[str, Any] = {}
    receipt: str | None = None


def ask(run: TypedRun[Refund], ctx: Any) -> StepPlan:
    prompt = f"Refund {run.state.amount:g} EUR for {run.state.order}?"
    payload = {"prompt": prompt, "choices": ["yes", "no"], "allow_free_text": False}
    return StepPlan("ask", Effect(EffectType.ASK_USER, payload, "answer"), "pay")


def pay(run: TypedRun[Refund], ctx: Any) -> StepPlan:
    if run.state.answer["choice"] == "no":
        return StepPlan("pay", complete_output={"paid": False})
    return StepPlan("pay", Effect("pay", {"amount": run.state.amount}, "receipt"), "settle")


def settle(run: TypedRun[Refund], ctx: Any) -> StepPlan:
    return StepPlan("settle", Effect(EffectType.WAIT_EVENT, {"name": "settled"}), "end")


def end(run: TypedRun[Refund], ctx: Any) -> StepPlan:
    return StepPlan("end", complete_output={"paid": True, "receipt": run.state.receipt})


async def send_money(call: EffectCall) -> EffectOutcome:
    await asyncio.sleep(0.1)  # a bank; it is given call.key, and pays once for each
    return EffectOutcome.completed(f"receipt {call.key[:8]}")


HANDLERS = {"pay": send_money}
REGISTRY = WorkflowRegistry()
REGISTRY.register(WorkflowSpec("refund", "ask", {"ask": ask, "pay": pay, "settle": settle, "end": end}, state=Refund))

# -- the application: a runtime and its driver live as long as it does


@contextmanager
def at_shutdown(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when the process is told to end; the lifespan ends too late for streams, as it waits for them."""
    loop = asyncio.get_running_loop()
    before: dict[int, Callable[[int, Any], Any]] = {}

    def hear(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(act)
        before[number](number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(handler := signal.getsignal(number)) and threading.current_thread() is threading.main_thread():
            before[number] = handler  # the server's
            signal.signal(number, hear)
    try:
        yield
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    url = os.environ.get("RUNS_URL", "sqlite:///runs.db")
    async with (
        AsyncRuntime.open(url, workflow_registry=REGISTRY, effect_handlers=HANDLERS) as rt,
        AsyncScheduler(rt) as driver,  # at the end it lets effects finish for 5 s and hands back the others
    ):
        with at_shutdown(rt.stop_following):
            yield {"rt": rt, "driver": driver}


app = FastAPI(title="Refunds", lifespan=lifespan)


@app.exception_handler(AbstractRuntimeError)
async def refuse(request: Request, error: Exception) -> JSONResponse:
    """What went wrong, as a status; what is none of these is a defect, and a 500."""
    match error:
        case UnknownRun() | UnknownWorkflow():
            code = 404
        case InvalidAnswer() | InvalidCursor() | InvalidId() | InvalidState() | UnsafeValue():
            code = 422
        case StoreError():
            code = 503
        case ValueError():
            code = 409  # answered already, paused, changed under the run, another run of this id
        case _:
            raise error
    return JSONResponse({"error": type(error).__name__, "detail": str(error)}, code)


def runtime(request: Request) -> AsyncRuntime:
    rt: AsyncRuntime = request.state.rt
    return rt


Rt = Annotated[AsyncRuntime, Depends(runtime)]


async def known_run(run_id: str, rt: Rt) -> RunState:
    return await rt.get_state(run_id)


Run = Annotated[RunState, Depends(known_run)]


def shown(run: RunState) -> dict[str, Any]:
    """A run as clients see it."""
    seen = {name: getattr(run, name) for name in ("run_id", "workflow_id", "session_id", "output", "error")}
    waiting = None if run.waiting is None else run.waiting.reason.value
    return {**seen, "status": run.status.value, "node": run.current_node, "waiting": waiting}


class Start(BaseModel):
    workflow_id: str = "refund"
    vars: dict[str, Any] = {}
    session_id: str | None = None
    actor_id: str | None = None
    run_id: str | None = None  # one of the client's own: the same request twice is one run


class Answer(BaseModel):
    wait_id: str  # from the inbox: of this one question, so that a late answer cannot meet the next
    payload: Any
    answer_id: str | None = None  # one of the client's own: the same answer twice counts once


class Event(BaseModel):
    name: str = Field(min_length=1)
    payload: Any = None
    event_id: str | None = None  # one of the client's own: the same event twice is one


@app.post("/runs", status_code=201)
async def start(body: Start, rt: Rt) -> dict[str, Any]:
    """Create a run; the driver moves it."""
    options = body.model_dump(exclude={"workflow_id"})
    return shown(await rt.get_state(await rt.start(workflow=REGISTRY.get_or_raise(body.workflow_id), **options)))


@app.get("/runs/{run_id}")
async def show(run: Run) -> dict[str, Any]:
    return shown(run)


@app.post("/runs/{run_id}/tick")
async def tick(run: Run, rt: Rt) -> dict[str, Any]:
    """Move a run and answer when it rests, for clients that would rather wait; also for the driver, if it is at it."""
    return shown(await rt.tick(workflow=REGISTRY.get_or_raise(run.workflow_id), run_id=run.run_id))


@app.get("/inbox")
async def inbox(
    rt: Rt, actor_id: str | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50, cursor: str | None = None
) -> dict[str, Any]:
    """The open questions of all runs, the newest run's first; `cursor` leads to the next page."""
    page = await rt.find_waits(reason=WaitReason.USER, actor_id=actor_id, limit=limit, cursor=cursor)
    return {"questions": page.items, "cursor": page.cursor}


@app.post("/runs/{run_id}/answer")
async def answer(run: Run, body: Answer, rt: Rt) -> dict[str, Any]:
    """Answer a question; the driver goes on. Of several who answer the same one, the first gets 200, the others 409."""
    state = await rt.resume(
        workflow=REGISTRY.get_or_raise(run.workflow_id),
        run_id=run.run_id,
        wait_key=body.wait_id,
        payload=body.payload,
        resume_id=body.answer_id,
        max_steps=0,
    )
    return shown(state)


@app.post("/sessions/{session_id}/events", status_code=202)
async def emit(session_id: str, body: Event, rt: Rt) -> dict[str, Any]:
    """Tell the runs of a session something: those that wait for it, and those that will."""
    told = await rt.emit_event(name=body.name, payload=body.payload, session_id=session_id, event_id=body.event_id)
    return {"delivered_to": told["delivered_to"]}


@app.get("/runs/{run_id}/events", response_class=EventSourceResponse)
async def events(run: Run, rt: Rt, last_event_id: Annotated[int, Header(ge=0)] = 0) -> AsyncIterable[ServerSentEvent]:
    """The ledger as server-sent events, all or what is behind `Last-Event-ID`; when the run has ended, an `end`."""
    async for entry in rt.follow_ledger(run.run_id, after=last_event_id):
        last_event_id = entry.offset
        yield ServerSentEvent(data=entry.record, id=str(entry.offset))
    state = await rt.get_state(run.run_id)
    if state.status not in (RunStatus.RUNNING, RunStatus.WAITING) and state.records <= last_event_id:
        yield ServerSentEvent(event="end", data=shown(state))  # without it the stream was cut: come again


@app.get("/health")
async def health(request: Request, rt: Rt) -> JSONResponse:
    """Whether the store answers and the driver drives."""
    await rt.find_runs(limit=1)
    driver: AsyncScheduler = request.state.driver
    told = {"driving": driver.is_running, "moved": driver.stats.runs_resumed, "failed": driver.stats.runs_failed}
    return JSONResponse(told, 200 if driver.is_running else 503)
