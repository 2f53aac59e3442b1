"""The handler of LLM_CALL: one request to a model, and the few more that an answer may need before it counts.

An answer that was cut off is asked for again with more room, as long as there is more; one that does not fit the
schema is repaired once. Everything else that fails is the policy's to repeat. The result holds what is known about the
answer, and neither keys nor pictures.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ...core.outcomes import Change, EffectCall, EffectOutcome
from ...core.threads import WorkerThreads
from ...core.tokens import added, tokens_of
from .llm_request import LLMRequest, request_of
from .normalising import plain, tool_calls_of
from .protocols import LLMError, OnDelta
from .structured import Schema, judged, repair_request

log = logging.getLogger("abstractruntime.abstractcore")

_CUT_OFF = ("length", "max_tokens", "max_output_tokens")

#: calls of sync clients that one handler has under way at once
_MAX_CALLS = 64

Answer: TypeAlias = dict[str, Any]
#: the data of an answer, and what is wrong with it
Judged: TypeAlias = tuple[Any, list[str]]


class Delta(Struct, frozen=True, kw_only=True):
    """A piece of an answer as it came from the model.

    Pieces are told, not journaled: the result of the effect is what counts. `request` is 1 for the first request of an
    attempt; with another `step_id` or `request` the answer begins anew, and what was told before is void.
    """

    run_id: str
    node_id: str
    session_id: str | None
    step_id: str
    request: int
    #: the number of this piece, from 0
    index: int
    text: str


def make_llm_call_handler(
    *, llm: Any, artifact_store: Any = None, on_delta: Callable[[Delta], None] | None = None
) -> Callable[[EffectCall], Coroutine[Any, Any, EffectOutcome]]:
    """The handler of LLM_CALL effects.

    `llm` is an `AbstractCoreLLMClient`, sync or async. With `on_delta`, answers without tools and without a schema are
    streamed, and it is called on the event loop with each piece; what it raises is logged.

    >>> rt = AsyncRuntime(
    ...     run_store=runs, ledger_store=ledger, effect_handlers={"llm_call": make_llm_call_handler(llm=client)}
    ... )
    """
    return _Handler(llm, artifact_store, on_delta).perform


class _Handler:
    def __init__(self, llm: Any, artifact_store: Any, on_delta: Callable[[Delta], None] | None) -> None:
        self._llm, self._on_delta = llm, on_delta
        if artifact_store is not None and getattr(llm, "artifact_store", self) is None:
            llm.artifact_store = artifact_store  # a client of ours that was made without one
        self._threads = WorkerThreads(_MAX_CALLS)

    async def perform(self, call: EffectCall) -> EffectOutcome:
        """Perform one LLM_CALL."""
        try:
            request = request_of(call)
        except LLMError as error:
            return EffectOutcome.failed(str(error), retryable=False)
        conversation = _Conversation(self._ask, self._judge, call, request, self._on_delta)
        try:
            answer = await conversation.answer()
        except LLMError as error:
            return EffectOutcome(
                "failed",
                {"usage": {"total_tokens": conversation.tokens}} if conversation.tokens else None,
                error=str(error),
                retryable=error.retryable,
                retry_after=error.retry_after,
            )
        return EffectOutcome.completed(answer, changes=_changes(call, request, answer))

    async def _judge(self, answer: Answer, schema: Schema) -> Judged:
        """In a thread: whatever the answer's size, and what it takes to import the validator."""
        found: Judged = await self._threads.run(judged, answer, schema)
        return found

    async def _ask(self, request: LLMRequest, call: EffectCall, on_delta: OnDelta | None) -> Answer:
        arguments = {
            "prompt": request.prompt,
            "messages": request.messages,
            "system_prompt": request.system_prompt,
            "tools": request.tools,
            "media": request.media or None,
            "params": request.params,
        }
        agenerate = getattr(self._llm, "agenerate", None)
        if agenerate is not None:
            found = await agenerate(**arguments, cancelled=call.cancelled, on_delta=on_delta)
        elif inspect.iscoroutinefunction(self._llm.generate):
            found = await self._llm.generate(**arguments)
        else:
            found = await self._threads.run(lambda: self._llm.generate(**arguments))
            if inspect.isawaitable(found):
                found = await found
        if not isinstance(found, dict):
            raise LLMError(f"The LLM client returned a {type(found).__name__}, not a dict", retryable=False)
        return found


class _Conversation:
    """The requests of one attempt, until there is an answer that counts."""

    def __init__(
        self,
        ask: Callable[[LLMRequest, EffectCall, OnDelta | None], Coroutine[Any, Any, Answer]],
        judge: Callable[[Answer, Schema], Coroutine[Any, Any, Judged]],
        call: EffectCall,
        request: LLMRequest,
        on_delta: Callable[[Delta], None] | None,
    ) -> None:
        self._ask, self._judge, self._call, self._first = ask, judge, call, request
        self._on_delta = on_delta if request.params.get("stream") is not False else None
        self._usages: list[Any] = []

    @property
    def tokens(self) -> int:
        """Tokens of all requests so far."""
        return added(*(tokens_of({"usage": usage}) for usage in self._usages))

    async def answer(self) -> Answer:
        """The answer, with what the runtime knows about it."""
        request = self._first
        answer = await self._whole(request)
        if request.schema is not None:
            answer = await self._fitting(request, answer)
        self._finish(answer)
        return answer

    async def _once(self, request: LLMRequest) -> Answer:
        self._usages.append(None)
        deltas = None if self._on_delta is None else _Teller(self._on_delta, self._call, len(self._usages)).tell
        answer = {"metadata": {}, **await self._ask(request, self._call, deltas)}
        answer["metadata"] = dict(answer["metadata"]) if isinstance(answer["metadata"], dict) else {}
        self._usages[-1] = answer.get("usage")
        self._read_calls(answer)
        return answer

    async def _whole(self, request: LLMRequest) -> Answer:
        """The answer to a request, asked for again with more room while it is cut off and there is more."""
        attempts, budget = 1, request.output_tokens
        while True:
            answer = await self._once(request)
            if answer.get("finish_reason") not in _CUT_OFF:
                if attempts > 1:
                    answer["metadata"]["_truncation"] = {"attempts": attempts, "resolved": True}
                self._check_calls(answer)
                return answer
            more = _more(request, budget, answer)
            if more is None or attempts >= request.truncation_attempts or not request.retry_truncated:
                return self._cut_off(request, answer, attempts, budget)
            attempts, budget = attempts + 1, more
            request = replace(request, params={**request.params, "max_output_tokens": more})

    def _cut_off(self, request: LLMRequest, answer: Answer, attempts: int, budget: int | None) -> Answer:
        if not request.allow_truncated:
            room = "its maximum" if budget is None else f"{budget} tokens"
            raise LLMError(
                f"The answer was cut off at {room}, after {attempts} request(s). Raise max_output_tokens, or set "
                "allow_truncated to take it as it is.",
                kind="truncated",
                retryable=False,
            )
        answer["metadata"]["_truncation"] = {"attempts": attempts, "resolved": False}
        return answer

    async def _fitting(self, request: LLMRequest, answer: Answer) -> Answer:
        """The answer with its data, which fit the schema; repaired once. Raises `LLMError`."""
        schema = request.schema
        assert schema is not None
        data, wrong = await self._judge(answer, schema)
        if wrong and not (answer.get("tool_calls") and data is None):
            said = answer.get("content") or ""
            answer = await self._whole(_repairing(request, said, wrong))
            data, wrong = await self._judge(answer, schema)
            answer["metadata"]["_structured_output_repaired"] = not wrong
        if wrong and answer.get("tool_calls") and data is None:
            return answer  # it asks for tools first
        if wrong and request.schema_may_fail:
            answer["metadata"] |= {"_structured_output_fallback": True, "_structured_output_parse_error": wrong[0]}
            return {**answer, "data": None}
        if wrong:
            told = "; ".join(wrong[:5])
            raise LLMError(f"The answer does not fit the schema {schema.name!r}: {told}", kind="malformed")
        return {**answer, "data": data}

    def _read_calls(self, answer: Answer) -> None:
        """The calls of tools in one shape, with ids that are the same whenever this effect is performed."""
        read, malformed = tool_calls_of(answer.get("tool_calls"))
        ids: set[str] = set()
        for index, tool_call in enumerate(read):
            if tool_call["call_id"] is None or tool_call["call_id"] in ids:
                tool_call["call_id"] = f"call_{self._call.key[:24]}_{index + 1}"
            ids.add(tool_call["call_id"])
        answer["tool_calls"] = read or None
        if malformed:
            answer["metadata"]["malformed_tool_calls"] = malformed

    def _check_calls(self, answer: Answer) -> None:
        """A call whose arguments cannot be read is never made with others."""
        malformed = answer["metadata"].get("malformed_tool_calls")
        if malformed:
            named = ", ".join(repr(call.get("name")) for call in malformed)
            raise LLMError(f"The model called {named} with arguments that are no JSON object", kind="malformed")

    def _finish(self, answer: Answer) -> None:
        request, metadata = self._first, answer["metadata"]
        if len(self._usages) > 1 and isinstance(answer.get("usage"), dict):
            metadata["_usage_by_request"] = self._usages
            answer["usage"] = {**answer["usage"], "total_tokens": self.tokens}
        if request.messages_left_out:
            metadata["_messages_left_out"] = request.messages_left_out
        metadata["_runtime_observability"] = {"llm_generate_kwargs": _told(request)}


class _Teller:
    """Tells the pieces of one answer."""

    def __init__(self, on_delta: Callable[[Delta], None], call: EffectCall, request: int) -> None:
        self._on_delta, self._call, self._request, self._index = on_delta, call, request, 0

    def tell(self, text: str) -> None:
        run = self._call.run
        delta = Delta(
            run_id=run.run_id,
            node_id=self._call.node_id,
            session_id=run.session_id,
            step_id=self._call.step_id,
            request=self._request,
            index=self._index,
            text=text,
        )
        self._index += 1
        try:
            self._on_delta(delta)
        except Exception:  # a boundary: whoever looks on does not harm the call
            log.exception("on_delta raised; the call goes on")


def _more(request: LLMRequest, budget: int | None, answer: Answer) -> int | None:
    """A larger budget than the one that was too small, or None: to ask again with the same is to pay for the same."""
    usage = answer.get("usage") or {}
    spent = budget if budget is not None else usage.get("output_tokens", usage.get("completion_tokens"))
    if type(spent) is not int or spent <= 0:
        return None
    more = min(2 * spent, request.output_cap)
    return more if more > spent else None


def _repairing(request: LLMRequest, said: str, wrong: list[str]) -> LLMRequest:
    asked = [{"role": "user", "content": request.prompt}] if request.prompt else []
    turn = [{"role": "assistant", "content": said}] if said else []
    again = {"role": "user", "content": repair_request(wrong)}
    return replace(request, prompt="", messages=[*(request.messages or ()), *asked, *turn, again])


def _told(request: LLMRequest) -> dict[str, Any]:
    """What was sent beside prompt and messages, which are in the payload of the effect."""
    kept = {
        name: value
        for name, value in request.params.items()
        if name not in ("trace_metadata", "response_schema", "response_model")
    }
    told: dict[str, Any] = {"params": plain(kept), "messages": len(request.messages or ())}
    if request.tools:
        told["tools"] = len(request.tools)
    if request.media:
        told["media"] = len(request.media)
    return told


def _changes(call: EffectCall, request: LLMRequest, answer: Answer) -> tuple[Change, ...]:
    changes = []
    if request.include_context:
        about = {"kind": "llm_turn", "node_id": call.node_id}
        turns = (("user", request.prompt), ("assistant", answer.get("content")))
        changes += [
            Change(path="context.messages", op="append", value={"role": role, "content": text, "metadata": about})
            for role, text in turns
            if text
        ]
    if request.took_pending:
        changes.append(Change(path="_runtime.pending_media", value=[]))
    return tuple(changes)
