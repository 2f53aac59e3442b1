"""The border for what nodes return: a plan that can be followed, in the form in which it may be stored."""

from __future__ import annotations

from typing import Any, TypeAlias

from msgspec.structs import replace

from .core.codec import DEEPEST, DEEPEST_GIVEN, json_safe
from .core.errors import InvalidPlan, UnknownNode
from .core.models import Effect, EffectType, StepPlan
from .core.secrets import admit, admit_both
from .core.spec import WorkflowSpec

Workflow: TypeAlias = WorkflowSpec[Any]

#: names in a result_key: a result that is as deep as results may be stays readable under it
_LONGEST_KEY = DEEPEST - DEEPEST_GIVEN - 10

#: payloads with their secrets, of the effects of one step, in order
Raws: TypeAlias = list[dict[str, Any]]


def checked_plan(plan: Any, workflow: Workflow, node_id: str) -> tuple[StepPlan, Raws]:
    """The plan as it may be stored, and the payloads of its effects with the secrets that may not."""

    if not isinstance(plan, StepPlan):
        raise _wrong(workflow, node_id, f"returned a {type(plan).__name__}; expected a StepPlan.")
    if type(plan.node_id) is not str or not plan.node_id.isascii():
        _check_text(plan.node_id, "node_id of the plan")
    if plan.complete_output is not None:
        output = admit(plan.complete_output, "complete_output", deepest=DEEPEST_GIVEN)
        return StepPlan(plan.node_id, complete_output=output), []
    if plan.next_node:
        if plan.next_node not in workflow.nodes:
            raise UnknownNode(f"Node {node_id!r} goes on to {plan.next_node!r}, which is no node of the workflow.")
        if workflow.edges is not None and plan.next_node not in workflow.edges.get(node_id, ()):
            raise _wrong(workflow, node_id, f"goes on to {plan.next_node!r}, but declares no such edge.")
    if plan.effects:
        return _checked_effects(plan, workflow, node_id)
    if plan.effect is None:
        if not plan.next_node:
            raise _wrong(workflow, node_id, "returned no effect and no next_node; it must say where the run goes.")
        return plan, []
    effect, raw = _checked_effect(plan.effect, workflow, node_id, "payload")
    return StepPlan(plan.node_id, effect, plan.next_node or None), [raw]


def _checked_effects(plan: StepPlan, workflow: Workflow, node_id: str) -> tuple[StepPlan, Raws]:
    if plan.effect is not None:
        raise _wrong(workflow, node_id, "returned both effect and effects; give one of them.")
    if not isinstance(plan.effects, list | tuple):
        raise _wrong(workflow, node_id, f"returned effects as a {type(plan.effects).__name__}; expected a list.")
    if type(plan.max_parallel) is not int or plan.max_parallel < 1:
        raise _wrong(
            workflow, node_id, f"returned max_parallel={plan.max_parallel!r}; expected a number of at least 1."
        )
    if plan.on_failure not in ("fail", "collect"):
        raise _wrong(workflow, node_id, f"returned on_failure={plan.on_failure!r}; expected 'fail' or 'collect'.")
    checked = [
        _checked_effect(effect, workflow, node_id, f"effects[{place}].payload")
        for place, effect in enumerate(plan.effects)
    ]
    keys = [effect.result_key for effect, _ in checked if effect.result_key]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _wrong(workflow, node_id, f"returned two effects with the result_key {twice!r}; give each its own.")
    effects = tuple(effect for effect, _ in checked)
    return replace(plan, effects=effects, next_node=plan.next_node or None), [raw for _, raw in checked]


def _checked_effect(effect: Any, workflow: Workflow, node_id: str, path: str) -> tuple[Effect, dict[str, Any]]:
    if not isinstance(effect, Effect) or not isinstance(effect.payload, dict):
        found = _kind(effect)
        raise _wrong(workflow, node_id, f"returned an effect that is no Effect with a dict payload: {found}.")
    kind, result_key = effect.type, effect.result_key
    if type(kind) is not EffectType:
        _check_text(kind, "type of the effect")
    if result_key:
        _check_text(result_key, "result_key of the effect")
        if result_key.count(".") >= _LONGEST_KEY:
            raise _wrong(workflow, node_id, f"returned a result_key of more than {_LONGEST_KEY} names.")
    raw, clean = admit_both(effect.payload, path)
    return Effect(kind, clean, result_key or None), raw


def _wrong(workflow: Workflow, node_id: str, what: str) -> InvalidPlan:
    return InvalidPlan(f"Node {node_id!r} of workflow {workflow.workflow_id!r} {what}")


def _kind(effect: Any) -> str:
    """What was given instead of an effect, without its values, which may be secret."""
    if not isinstance(effect, Effect):
        return f"found a {type(effect).__name__}"
    return f"its payload is a {type(effect.payload).__name__}"


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise InvalidPlan(f"{what}: expected a text, found {text!r:.80}")
    if not text.isascii():
        json_safe(text, what)
