"""The JSON of agents in the agents API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import to_builtins

from gateway.agents.api._message_renderer import MessageRenderer
from gateway.agents.api.agent_bodies import EXTENSION_FIELDS, PLAIN_FIELDS
from gateway.agents.api.blocks import render_block
from gateway.agents.api.folders import render_folder
from gateway.agents.api.groups import render_group
from gateway.agents.api.identities import render_identity
from gateway.agents.api.model_json import choose_provider_type, render_embedder
from gateway.agents.api.model_settings import SAMPLING_SETTINGS, SETTINGS_TYPES
from gateway.agents.api.tool_json import render_tool
from gateway.agents.core.kinds import choose_kind
from gateway.agents.registry.agent_models import find_context_window
from gateway.agents.registry.agent_views import AgentView
from gateway.agents.runs.compact_conversation import ASSUMED_WINDOW
from gateway.agents.runs.message_listing import AgentMessages
from gateway.agents.runs.system_message import make_system_id
from gateway.agents.wire.message import Showing
from gateway.agents.wire.shown_values import NO_AUTHORS, NO_TEMPLATE, render_time
from gateway.core import ids
from gateway.core.definition import AgentDefinition
from gateway.core.turn.stop_reason import StopReason
from gateway.settings import Settings
from storage.records import DEFAULT_CONVERSATION, Agent
from storage.run_records import Run, RunStep
from storage.sql.store import Store

# The settings that are shown even if they are null, besides the reasoning effort.
_COMMON_SETTINGS = ("max_output_tokens", "parallel_tool_calls", "temperature", "response_format")
# The settings that are left out if they have no value: Letta's server refuses an agent file in which one is null.
_NEVER_NULL = frozenset((
    "temperature", "enable_reasoner", "max_reasoning_tokens", "strict", "return_logprobs", "return_token_ids",
))  # fmt: skip


def render_agent(
    view: AgentView,
    *,
    window: int | None,
    message_ids: Sequence[str] = (),
    pending_message: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the JSON of an agent with all fields, whatever fields the client names in `include`.

    window: the size of the model's context window in tokens; None: the size is not known.
    message_ids: the ids of the messages in the agent's window, oldest first.
    pending_message: the message with the calls that wait for an answer; None: no call waits.
    """
    record = view.definition
    definition = AgentDefinition.of(record.body)
    model, retained = definition.model or "", definition.retained
    group = render_group(record.uid, definition, view.readers)
    blocks, identities = list(map(render_block, view.blocks)), list(map(render_identity, view.identities))
    return {
        "id": ids.make_id("agent", record.uid),
        "name": record.name,
        "agent_type": definition.kind,
        **{name: getattr(definition, field) for name, field in PLAIN_FIELDS.items()},
        "model": model,  # "" if the agent has no model
        "tags": list(view.tags),
        "model_settings": _render_settings(definition, model),
        "llm_config": _render_llm(definition, model, window),
        "response_format": definition.sampling.get("response_format"),
        "embedding": retained.get("embedding"),
        "embedding_config": render_embedder(retained.get("embedding_config"), retained.get("embedding")),
        "blocks": blocks,
        "memory": _render_memory(definition, blocks),
        "tools": [render_tool(tool) for tool in view.tools],
        "tool_rules": list(definition.rules),
        "sources": list(map(render_folder, view.folders)),
        "identities": identities,
        "identity_ids": [identity["id"] for identity in identities],
        "message_ids": list(message_ids),
        "compaction_settings": definition.compaction or None,
        "enable_sleeptime": group is not None,
        "multi_agent_group": group,
        "managed_group": group,
        **{name: retained.get(name) for name in ("max_files_open", "per_file_view_window_char_limit")},
        "pending_approval": pending_message,
        **_render_last_run(view.last_run),
        "created_at": render_time(record.created),
        "updated_at": render_time(record.updated),
        **NO_AUTHORS,
        **NO_TEMPLATE,
        "entity_id": None,
        "secrets": [],
        "tool_exec_environment_variables": [],
        "mnemogate": _render_extension(definition),
    }


def _render_memory(definition: AgentDefinition, blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the older object about an agent's memory."""
    return {
        "blocks": blocks,
        "file_blocks": [],
        "agent_type": definition.kind,
        "git_enabled": False,
        "prompt_template": "",
    }


def _render_extension(definition: AgentDefinition) -> dict[str, Any]:
    """Returns the fields that an agent has here beyond those of Letta, in the form of `agent_bodies.Own`."""
    return {
        "rebuild": "always" if definition.rebuilds else "free",
        **{name: getattr(definition, field) for name, field in EXTENSION_FIELDS.items()},
        "filler": to_builtins(definition.filler or choose_kind(definition.kind).filler),
    }


def _render_last_run(run: Run | None) -> dict[str, Any]:
    """Returns the fields of an agent's newest run. run: the run; None: the agent has none."""
    duration_ms = None
    if run is not None and run.begun is not None and run.ended is not None:
        duration_ms = max(0, int((run.ended - run.begun) * 1000))
    return {
        "last_run_completion": None if run is None else render_time(run.ended),
        "last_run_duration_ms": duration_ms,
        "last_stop_reason": None if run is None else run.stop,
    }


def _render_llm(definition: AgentDefinition, model: str, window: int | None) -> dict[str, Any]:
    """Returns the older object about the model, which the client still requires."""
    upstream, _, name = model.rpartition("/")
    sampling = definition.sampling
    config = {
        **definition.retained.get("llm_config", {}),
        "model": name,
        "handle": model,
        "display_name": name,
        "model_endpoint_type": choose_provider_type(model),
        "model_endpoint": None,
        "provider_name": upstream or None,
        "provider_category": "base",
        "context_window": definition.context_window or window or ASSUMED_WINDOW,
        "temperature": sampling.get("temperature"),
        "max_tokens": sampling.get("max_tokens"),
        "reasoning_effort": sampling.get("reasoning_effort"),
        "parallel_tool_calls": sampling.get("parallel_tool_calls"),
        "response_format": sampling.get("response_format"),
        "put_inner_thoughts_in_kwargs": definition.thinks_aloud,
    }
    return {name: value for name, value in config.items() if value is not None or name not in _NEVER_NULL}


def _render_settings(definition: AgentDefinition, model: str) -> dict[str, Any]:
    """Returns the settings of a model.

    A setting that the gateway honours has the value in force, whichever field of a request set it; any other setting
    has the value that was sent. A null means that the model's own value holds. Letta's settings have the reasoning
    effort in two forms: Anthropic's as a text, `effort`, and OpenAI's as an object, `reasoning`.
    """
    stored_settings = definition.retained.get("model_settings", {})
    settings = {name: value for name, value in stored_settings.items() if name not in SETTINGS_TYPES}
    settings["provider_type"] = stored_settings.get("provider_type") or choose_provider_type(model)
    for name, sampling_name in SAMPLING_SETTINGS.items():
        value = definition.sampling.get(sampling_name)
        if value is not None or name in _COMMON_SETTINGS:
            settings[name] = value
    effort = definition.sampling.get("reasoning_effort")
    if "effort" in stored_settings or settings["provider_type"] == "anthropic":
        settings["effort"] = effort
    else:
        settings["reasoning"] = None if effort is None else {"reasoning_effort": effort}
    return settings


async def render_agents(
    store: Store, settings: Settings, now: Callable[[], float], views: Sequence[AgentView]
) -> list[dict[str, Any]]:
    """Returns the JSON of agents, with the ids of messages and the waiting calls of each. Raises: StoreError."""
    agents = [view.agent for view in views]
    numbers = await AgentMessages(store, now).list_numbers_by_agent(agents)
    waiting_steps = await store.runs.load_waiting_steps([agent.id for agent in agents], DEFAULT_CONVERSATION)
    states = []
    for view, agent in zip(views, agents, strict=True):
        window_ids = (ids.make_id_with_seq("message", agent.uid, n) for n in numbers[agent.id])
        message_ids = [make_system_id(agent), *window_ids]
        window = find_context_window(settings, view.definition)
        step = waiting_steps.get(agent.id) or await _find_waiting_step(store, view)
        pending_message = None if step is None else await _find_pending_message(store, agent, step)
        states.append(
            render_agent(view, window=window, message_ids=message_ids, pending_message=pending_message)
        )
    return states


async def _find_waiting_step(store: Store, view: AgentView) -> RunStep | None:
    """Returns the step at which an agent's newest run waits for an answer; None if that run does not wait."""
    newest = view.last_run
    if newest is None or newest.stop != StopReason.REQUIRES_APPROVAL:
        return None
    return await store.runs.find_waiting_step(view.agent.id, newest.conversation_row)


async def _find_pending_message(store: Store, agent: Agent, step: RunStep) -> dict[str, Any] | None:
    """Returns the message with the calls of a step that wait for an answer; None if no call waits any more."""
    exchange = await store.turns.find_exchange(agent, step.exchange_row)
    if exchange is None:
        return None
    run = await store.runs.find_newest_waiting_run(agent.id, exchange.conversation_row, step.run_row)
    if run is None:
        return None
    requests = await MessageRenderer(store, agent, Showing()).render_approval_requests(run, exchange)
    return next(iter(requests), None)
