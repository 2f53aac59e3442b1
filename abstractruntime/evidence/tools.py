"""What is evidence in the results of the tools we know: what is a fact, what is a text too long for the run."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ..core.codec import REFUSALS, decode


class ToolRule(Struct, frozen=True, kw_only=True):
    """How the result of one tool becomes evidence.

    `facts` are looked up in its output and then its arguments. The `texts` of the output, by name, go to artifacts and
    leave a reference under the second name. Where there are no `texts`, the whole output is copied to an artifact.
    `subject` is the fact that the run's list shows, as `shown_as`.
    """

    facts: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    subject: str = ""
    shown_as: str = ""


RULES = {
    "fetch_url": ToolRule(
        facts=("url", "final_url", "status_code", "content_type", "size_bytes", "title", "timestamp"),
        texts=(("raw_text", "raw_artifact"), ("normalized_text", "normalized_artifact")),
        subject="url",
        shown_as="url",
    ),
    "execute_command": ToolRule(
        facts=("command", "working_directory", "platform", "return_code", "duration_s"),
        texts=(("stdout", "stdout_artifact"), ("stderr", "stderr_artifact")),
        subject="command",
        shown_as="command_preview",
    ),
    "web_search": ToolRule(facts=("query", "engine", "source", "params"), subject="query", shown_as="query"),
}

#: of a tool that we do not know
OTHER = ToolRule()

#: the name of the reference to a copy of the whole output
WHOLE = "output_artifact"


def facts_of(rule: ToolRule, output: Any, arguments: Any) -> dict[str, Any]:
    """The facts that output or arguments tell."""
    places = [place for place in (output, arguments) if isinstance(place, dict)]
    found = {}
    for name in rule.facts:
        values = [place[name] for place in places if place.get(name) is not None]
        if values:
            found[name] = values[0]
    return found


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call and its result, brought together."""

    result: dict[str, Any]
    name: str
    call_id: str
    arguments: Any

    @property
    def success(self) -> bool:
        """Whether the tool said so."""
        return self.result.get("success") is True


def paired(tool_calls: Any, tool_results: Any) -> list[ToolCall]:
    """Every result with its call: the one at its place, or where ids say otherwise the one with its id.

    `tool_results` is the result of a TOOL_CALLS effect or the list in it; what is no dict in the lists is left out.
    """
    results = tool_results.get("results") if isinstance(tool_results, dict) else tool_results
    pairs = []
    for index, result in enumerate(results if isinstance(results, list | tuple) else ()):
        if not isinstance(result, dict):
            continue
        call = call_of(result, index, tool_calls)
        name, call_id = result.get("name") or call.get("name"), _ids(result) or _ids(call)
        pairs.append(
            ToolCall(
                result=result,
                name=str(name or "").strip(),
                call_id=call_id[0] if call_id else "",
                arguments=_read(call.get("arguments")),
            )
        )
    return pairs


def _read(arguments: Any) -> Any:
    """Arguments that came as JSON text, as models write them, as the dict in it, so that secrets are seen."""
    try:
        return decode(arguments) if isinstance(arguments, str) else arguments
    except REFUSALS:
        return arguments


def call_of(result: dict[str, Any], index: int, calls: Any) -> dict[str, Any]:
    """The call that a result at this place belongs to; `{}` if there is none."""
    calls = calls if isinstance(calls, list | tuple) else ()
    there = calls[index] if index < len(calls) and isinstance(calls[index], dict) else {}
    wanted = set(_ids(result))
    if there and (not wanted or not _ids(there) or wanted & set(_ids(there))):
        return there
    return next((call for call in calls if isinstance(call, dict) and wanted & set(_ids(call))), {})


def _ids(value: dict[str, Any]) -> list[str]:
    return [str(value[key]) for key in ("call_id", "id", "runtime_call_id") if value.get(key) not in (None, "")]
