"""Workflows by their ids."""

from __future__ import annotations

import pytest

from abstractruntime import UnknownWorkflow, WorkflowRegistry

from .worlds import flow, go


def test_a_workflow_is_found_by_its_id_until_it_is_taken_out():
    registry, first, second = WorkflowRegistry(), flow("a", workflow_id="w1", a=go("a", "end")), flow("end")
    registry.register(first)
    registry.register(second)
    assert registry.get("w1") is registry.get_or_raise("w1") is first
    assert registry.list_ids() == ["w1", "flow"]
    assert len(registry) == 2
    assert "flow" in registry
    registry.unregister("w1")
    assert registry.get("w1") is None
    assert registry.list_ids() == ["flow"]


def test_an_id_stands_for_one_workflow():
    registry = WorkflowRegistry()
    registry.register(flow("end"))
    with pytest.raises(ValueError, match=r"'flow' is registered already.*unregister"):
        registry.register(flow("end"))


def test_what_is_not_there_is_told_with_what_is():
    registry = WorkflowRegistry()
    registry.register(flow("end"))
    for call in (registry.get_or_raise, registry.unregister):
        with pytest.raises(UnknownWorkflow, match="'other' is not registered; registered are 'flow'"):
            call("other")
        with pytest.raises(KeyError):
            call("other")


def test_only_workflows_are_taken():
    with pytest.raises(TypeError, match="expected a WorkflowSpec, found a dict"):
        WorkflowRegistry().register({})  # type: ignore[arg-type]
