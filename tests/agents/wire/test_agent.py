"""Agents: what a body makes of a definition, and how that is shown again."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.agents.api.agent_bodies import CreateAgent, UpdateAgent, define_agent, with_update
from gateway.agents.api.agent_json import render_agent
from gateway.agents.registry.agent_views import AgentView
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.struct_fields import convert
from gateway.core.definition import AgentDefinition
from storage.definition_records import Definition, DefinitionKind
from storage.records import Agent, Scope

UID = "0" * 32


def made(**fields: Any) -> AgentDefinition:
    return define_agent(convert(fields, CreateAgent, ("body",)))


def after(definition: AgentDefinition, **fields: Any) -> AgentDefinition:
    return with_update(definition, convert(fields, UpdateAgent, ("body",)))


def shown(definition: AgentDefinition) -> dict[str, Any]:
    row = Definition(
        1, UID, "p", DefinitionKind.AGENT, 1, "bob", 1, 0.0, 0.0, AgentDefinition.of(definition.dump()).dump()
    )
    agent = Agent(1, UID, Scope("p", "", "agent"), b"", 0)
    return render_agent(AgentView(agent, row, [], [], [], None), window=None)


def test_the_field_of_its_own_counts_before_the_older_object() -> None:
    found = made(
        model="openai/a", llm_config={"handle": "openai/b", "context_window": 5, "temperature": 0.1},
        context_window_limit=9000, model_settings={"temperature": 0.2, "max_output_tokens": 7}, max_tokens=8,
    )  # fmt: skip
    assert (found.model, found.context_window) == ("openai/a", 9000)
    assert found.sampling == {"temperature": 0.2, "max_tokens": 8}
    assert made(llm_config={"model": "b"}).model == "b"


def test_a_change_leaves_what_it_does_not_name() -> None:
    before = made(
        model="m", system="Old.", description="D.", model_settings={"temperature": 0.5}, embedding="e"
    )
    now = after(before, system="New.")
    assert (now.system, now.description, now.sampling, now.retained["embedding"]) == (
        "New.",
        "D.",
        {"temperature": 0.5},
        "e",
    )
    assert after(now, description=None, system=None, model=None, model_settings=None, embedding=None) == now
    assert after(before, model_settings={"temperature": None}).sampling == {}


def test_fields_without_effect_are_given_back() -> None:
    found = shown(made(model="m", embedding="openai/e", llm_config={"model": "m", "enable_reasoner": True}))
    assert found["embedding"] == "openai/e"
    assert found["llm_config"]["enable_reasoner"] is True


def test_our_own_fields_are_taken_and_shown() -> None:
    found = made(model="m", mnemogate={"rebuild": "always", "recall_tokens": 0, "learn": False})
    assert (found.rebuilds, found.recall_tokens, found.learns) == (True, 0, False)
    own = {"rebuild": "always", "recall_tokens": 0, "learn": False, "filler": "none"}
    assert shown(found)["mnemogate"] == own


def test_our_own_fields_are_taken_back_as_they_are_shown() -> None:
    own = shown(made(model="m"))["mnemogate"]
    assert own["recall_tokens"] is None
    assert shown(made(model="m", mnemogate=own))["mnemogate"] == own


def test_rules_are_stored_as_they_came() -> None:
    rules = [
        {"type": "run_first", "tool_name": "a", "args": {"x": 1}},
        {"type": "constrain_child_tools", "tool_name": "a", "children": ["b"]},
        {"type": "conditional", "tool_name": "a", "child_output_mapping": {"1": "b"}, "default_child": "c"},
        {"type": "max_count_per_step", "tool_name": "a", "max_count_limit": 3},
        {"type": "requires_approval", "tool_name": "a"},
    ]
    assert [dict(rule) for rule in shown(made(model="m", tool_rules=rules))["tool_rules"]] == rules


@pytest.mark.parametrize(
    "fields",
    [
        {"timezone": "Mars/Olympus"},
        {"llm_config": {"context_window": "wide"}},
        {"llm_config": {"context_window": 10**17}},  # beyond the bound of `context_window_limit`
        {"llm_config": {"max_tokens": 10**17}},
        {"model_settings": {"parallel_tool_calls": 1}},
        {"model_settings": {"max_output_tokens": 0}},
        {"model_settings": {"reasoning": {"reasoning_effort": 5}}},
        # No upstream takes such a format, so each send would fail.
        {"response_format": {}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"model_settings": {"response_format": {"type": "json_schema"}}},
        {"tool_rules": [{"type": "max_count_per_step", "tool_name": "a", "max_count_limit": -1}]},
        {"agent_type": "nonsense"},
    ],
)
def test_impossible_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Unprocessable):
        made(model="m", **fields)


@pytest.mark.parametrize("field", ["handle", "model"])
@pytest.mark.parametrize("name", [" ", "m" * 201])
def test_the_older_object_has_the_bounds_of_a_models_name(field: str, name: str) -> None:
    with pytest.raises(Unprocessable):
        made(llm_config={field: name})
    assert made(llm_config={"handle": "", "model": "m"}).model == "m"


def test_all_that_the_client_requires_is_there() -> None:
    found = shown(made(model="openai/m"))
    required = (
        "id",
        "agent_type",
        "blocks",
        "llm_config",
        "memory",
        "name",
        "sources",
        "system",
        "tags",
        "tools",
    )
    assert [name for name in required if found[name] is None] == []
    assert (found["llm_config"]["model"], found["llm_config"]["handle"]) == ("m", "openai/m")
