"""The models of agents, as the gateway's settings route them, and the settings of conversations and sends."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.definition import ConversationDefinition
from gateway.errors import UnknownModel
from gateway.run.upstream.route import resolve_agent_model, resolve_route, split_model
from gateway.settings import Settings
from storage.definition_records import Definition


def with_overrides(settings: Settings, spec: AgentSpec, model: str | None, system: str | None) -> AgentSpec:
    """Returns a copy of an agent with the model and the system prompt of a send.

    model: the model of the send; None or "": that of the agent.
    system: the system prompt of the send; None: that of the agent.
    """
    if model:
        spec = _with_model(settings, spec, model)
    return spec if system is None else replace(spec, system=system)


def with_conversation(settings: Settings, spec: AgentSpec, conversation: ConversationDefinition) -> AgentSpec:
    """Returns a copy of an agent with the model, the window and the sampling that a conversation sets."""
    if conversation.model:
        spec = _with_model(settings, spec, conversation.model)
    if conversation.context_window is not None:
        spec = replace(spec, context_window=conversation.context_window)
    if conversation.sampling and not spec.is_profile:
        sampling = {**spec.definition.sampling, **conversation.sampling}
        spec = replace(spec, definition=replace(spec.definition, sampling=sampling))
    return spec


def _with_model(settings: Settings, spec: AgentSpec, model: str) -> AgentSpec:
    """Returns a copy of an agent with another model. model: the name, as `<upstream>/<model>` or `<model>`."""
    upstream, name = split_model(settings, model)
    return replace(spec, model=name, upstream=upstream, has_callers_model=True)


def find_context_window(settings: Settings, definition: Definition) -> int | None:
    """Returns the size of the context window of an agent's model in tokens; None if the size is not known."""
    window = definition.body.get("context_window")
    return window if isinstance(window, int) else find_model_window(settings, definition.body.get("model"))


def find_model_window(settings: Settings, model: str | None) -> int | None:
    """Returns the size of a model's context window in tokens; None if the settings do not have it.

    model: the name that an agent's definition has.
    """
    try:
        return None if model is None else resolve_agent_model(settings, model).context_window
    except UnknownModel:
        return None


def make_handle(settings: Settings, model: str) -> str:
    """Returns the handle of a model of the gateway's list: `<upstream or its kind>/<model>`."""
    if any(alias.alias == model for alias in settings.models):
        return model
    try:
        route = resolve_route(settings, model)
    except UnknownModel:
        return model
    kinds = [other.kind for other in settings.upstreams]
    upstream = settings.get_upstream(route.upstream)
    provider = upstream.kind if kinds.count(upstream.kind) == 1 else upstream.name
    return f"{provider}/{route.model}"


def check_model(settings: Settings, model: str | None) -> None:
    """Raises: UnknownModel if the settings route a model to no upstream."""
    if model is not None:
        resolve_agent_model(settings, model)
