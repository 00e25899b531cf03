"""Chooses the form that a request has to have for an endpoint and its model, by their capabilities."""

from __future__ import annotations

from adapters.capabilities import Capabilities
from gateway.core.conversation.portable_message import CLAUDE_FILES, is_empty_reply
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.envelope import (
    enables_thinking,
    find_developer_indices,
    list_consumed_fields,
    list_untranslatable_fields,
)
from gateway.core.request.native_body import NativeBody
from gateway.core.upstream.endpoint_form import AlteredMessages, EndpointForm
from gateway.run.receipt import mask_model_name
from gateway.run.upstream.endpoint import Endpoint

# The form of a request that goes upstream in its own dialect: its fields stay as they are.
NATIVE_FORM = EndpointForm()
_NATIVE_WITH_BOUND_THOUGHTS = EndpointForm(binds_thoughts=True)
# Claude thinks at the temperature 1 alone (build-with-claude/extended-thinking).
_FIELDS_REFUSED_WHEN_THINKING = frozenset({"temperature"})
_NO_FIELDS: frozenset[str] = frozenset()
_NO_INDICES: frozenset[int] = frozenset()


def choose_native_body(request: ChatRequest, endpoint: Endpoint) -> NativeBody | None:
    """Returns the body of a request in its client's dialect, or None if this endpoint gets a chat completion."""
    return request.native_body if endpoint.provider.capabilities.speaks_messages else None


def choose_endpoint_form(request: ChatRequest, endpoint: Endpoint, model: str) -> EndpointForm:
    """Returns the form of a request for an endpoint and its model."""
    capabilities = endpoint.provider.capabilities
    if choose_native_body(request, endpoint) is not None:
        return _NATIVE_WITH_BOUND_THOUGHTS if capabilities.binds_thoughts(model) else NATIVE_FORM
    consumed_fields = _list_consumed_fields(request, capabilities, model)
    return EndpointForm(
        consumed_fields=consumed_fields,
        untranslatable_fields=_list_untranslatable_fields(request, capabilities, consumed_fields),
        lowers_temperature=_lowers_temperature(request, capabilities, model),
        altered_messages=_make_altered_messages(request, endpoint, model),
        takes_usage=capabilities.stream_usage,
        can_force=_can_force(request, capabilities, model),
        refused_settings=_list_refused_fields(request, capabilities, model),
        asks_usage=endpoint.asks_usage,
        effort_with_tools=capabilities.effort_with_tools(model),
        thinks_on_request=request.wants_thoughts and capabilities.thinks_on_request(model),
    )


def _make_altered_messages(request: ChatRequest, endpoint: Endpoint, model: str) -> AlteredMessages:
    """Returns the messages of a request that the endpoint takes in another form."""
    renames_developer = endpoint.provider.capabilities.developer_role is False
    return AlteredMessages(
        developer=find_developer_indices(request.messages) if renames_developer else (),
        foreign_replies=_list_foreign_replies(request, endpoint, model),
        empty_replies=_list_empty_replies(request),
        unreadable_files=_NO_INDICES if request.native_body is None else _list_unreadable_files(request),
    )


def _list_consumed_fields(request: ChatRequest, capabilities: Capabilities, model: str) -> tuple[str, ...]:
    """Returns the fields that are not for the upstream."""
    consumed_fields = list_consumed_fields(request.json, takes_metadata=capabilities.metadata)
    if request.native_body is not None:
        consumed_fields += _list_choices_without_tools(request)
    if (
        "reasoning_effort" in request.json
        and request.is_translated
        and request.has_tools
        and capabilities.effort_with_tools(model) is not None
    ):
        consumed_fields += ("reasoning_effort",)
    return consumed_fields


def _list_untranslatable_fields(
    request: ChatRequest, capabilities: Capabilities, consumed_fields: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the fields that the upstream's dialect has no place for."""
    fields: tuple[str, ...] = ()
    if capabilities.untranslatable_fields:
        present_fields = list_untranslatable_fields(request.json, capabilities.untranslatable_fields)
        fields = tuple(name for name in present_fields if name not in consumed_fields)
    return fields if request.native_body is None else (*fields, *request.native_body.untranslatable)


def _lowers_temperature(request: ChatRequest, capabilities: Capabilities, model: str) -> bool:
    """Returns whether the request's temperature is above all that the model takes."""
    max_temperature, temperature = capabilities.max_temperature(model), request.json.get("temperature")
    return (
        max_temperature is not None and isinstance(temperature, int | float) and temperature > max_temperature
    )


def _can_force(request: ChatRequest, capabilities: Capabilities, model: str) -> bool:
    """Returns whether the model can be made to call a tool."""
    if not capabilities.replies_without_thoughts:  # its models think without being asked to
        return False
    may_force = capabilities.can_force_when_thinking or not enables_thinking(request.json)
    return may_force and capabilities.can_force(model)


def _list_unreadable_files(request: ChatRequest) -> frozenset[int]:
    """Returns the indices of the messages with files that a chat completion cannot have."""
    return frozenset(n for n, message in enumerate(request.messages) if CLAUDE_FILES.are_in(message))


def _list_foreign_replies(request: ChatRequest, endpoint: Endpoint, model: str) -> frozenset[int]:
    """Returns the indices of the replies that the gateway has put into a request and another model made."""
    model_name = mask_model_name(endpoint.upstream, model)
    return frozenset(index for index, maker in request.reply_models.items() if maker != model_name)


def _list_empty_replies(request: ChatRequest) -> frozenset[int]:
    """Returns the indices of the replies that the gateway has put into a request and that have nothing in them."""
    return frozenset(index for index in request.reply_models if is_empty_reply(request.messages[index]))


def _list_choices_without_tools(request: ChatRequest) -> tuple[str, ...]:
    """Returns the fields that choose among tools, if the chosen tool is none of the chat completion."""
    choice = request.json.get("tool_choice")
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    if request.tool_names and (name is None or name in request.tool_names):
        return ()
    return tuple(key for key in ("tool_choice", "parallel_tool_calls") if key in request.json)


def _list_refused_fields(request: ChatRequest, capabilities: Capabilities, model: str) -> frozenset[str]:
    """Returns the fields that the model does not take with this request, if the gateway has put fields into it."""
    if not request.gateway_fields:
        return _NO_FIELDS
    fields = capabilities.refused_fields(model)
    return fields | _FIELDS_REFUSED_WHEN_THINKING if enables_thinking(request.json) else fields
