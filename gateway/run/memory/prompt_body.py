"""Renders a prompt for its endpoint: as the JSON of a chat completion, or as changes of the client's own dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import orjson

from adapters.types import Json
from gateway.core.conversation.wire_message import WireMessage, count_leading_system
from gateway.core.request.chat_request import MAX_COMPLETION_TOKENS
from gateway.core.request.edit import BodyEdit
from gateway.core.request.envelope import read_thinking_budget
from gateway.core.request.native_body import NativeChanges
from gateway.core.turn.guide import FREE_OFFER, Offer
from gateway.run.memory.prompt import Prompt

# The effort if thoughts are asked for without one. OpenAI's models have the same default.
_DEFAULT_EFFORT: Final = "medium"
_NO_FIELDS: Final[Mapping[str, Any]] = MappingProxyType({})


def render_body(
    prompt: Prompt,
    hidden_rounds: Sequence[WireMessage] = (),
    budget_tokens: int | None = None,
    offer: Offer = FREE_OFFER,
) -> bytes:
    """Returns the JSON of a chat completion.

    hidden_rounds: the messages of this turn's rounds so far.
    budget_tokens: the rest of the client's limit; None: not limited.
    offer: the tools that the model may call.
    """
    request = prompt.request
    edit = request.begin_edit()
    limit_field = _adapt_fields(prompt, edit)
    _adapt_messages(prompt, edit)
    _put_additions(prompt, edit)
    if prompt.adds_usage:
        options = {**(request.json.get("stream_options") or {}), "include_usage": True}
        edit.set_member("stream_options", options)
    if hidden_rounds:
        edit.insert_messages(len(request.messages), hidden_rounds)
        if budget_tokens is not None and limit_field is not None:
            # Claude refuses a limit that its thoughts alone may reach, so a late round has room for them.
            limit = max(budget_tokens, read_thinking_budget(request.json) + 1)
            edit.set_member(limit_field, limit)
    for key, value in _make_offer_fields(prompt, offer).items():
        if key not in prompt.form.refused_settings:
            edit.set_member(key, value)
    return edit.render()


def list_message_origins(prompt: Prompt) -> list[int | None]:
    """Returns, for each message of the chat completion, its index in the client's request; None: it was added."""
    edit = prompt.request.begin_edit()
    _adapt_messages(prompt, edit)
    _put_additions(prompt, edit)
    return edit.list_origins()


def make_body(prompt: Prompt) -> Json:
    """Returns the chat completion that opens the turn, to be shown or counted."""
    body: Json = orjson.loads(render_body(prompt))
    return body


def make_native_changes(
    prompt: Prompt, hidden_rounds: Sequence[WireMessage], budget_tokens: int | None, offer: Offer
) -> NativeChanges:
    """Returns the changes to a request in its client's own dialect. The parameters are those of `render_body`."""
    window, composition = prompt.window, prompt.composition
    is_limited = bool(hidden_rounds) and prompt.request.token_limit is not None
    return NativeChanges(
        system=_list_system_texts(prompt, prompt.tools),
        notes={i: note for i, note in composition.notes.items() if i not in window.dropped_indices},
        dropped=window.dropped_indices,
        replacements=prompt.replacements,
        stored_messages=[(each.message, each.note) for each in window.list_inserted(composition)],
        tools=prompt.tools,
        hidden_rounds=hidden_rounds,
        max_tokens=budget_tokens if is_limited else None,
        tool_choice=_make_offer_fields(prompt, offer),
        changes_prefix=prompt.changes_prefix,
        moves_hidden_rounds=prompt.moves_hidden_rounds,
    )


def _adapt_fields(prompt: Prompt, edit: BodyEdit) -> str | None:
    """Names the model, and changes the fields that it takes in another form or not at all.

    Returns the field with the limit of the reply's tokens; None: the request has no limit.
    """
    request, form = prompt.request, prompt.form
    if request.model != prompt.target.model:
        edit.set_member("model", prompt.target.model)
    for key in (*form.consumed_fields, *(request.gateway_fields & form.refused_settings)):
        edit.drop_member(key)
    limit_field = None if request.token_limit is None else request.token_limit.field
    if limit_field in form.refused_settings and limit_field in request.gateway_fields:
        limit_field = MAX_COMPLETION_TOKENS
        edit.set_member(limit_field, request.max_tokens)
    if form.thinks_on_request:
        edit.set_member("reasoning_effort", _DEFAULT_EFFORT)
    if prompt.has_tools_in_place_of_thoughts:
        if form.effort_with_tools:
            edit.set_member("reasoning_effort", form.effort_with_tools)
        else:
            edit.drop_member("reasoning_effort")
    return limit_field


def _adapt_messages(prompt: Prompt, edit: BodyEdit) -> None:
    """Changes the client's messages that the endpoint takes in another form."""
    for index in prompt.form.altered_messages.developer:
        if index not in prompt.window.dropped_indices:
            edit.set_role(index, "system")
    for index in prompt.form.altered_messages.with_other_content | prompt.without_media:
        edit.replace_message(index, [prompt.render_client_message(index)])


def _put_additions(prompt: Prompt, edit: BodyEdit) -> None:
    """Puts the gateway's texts, messages and tools into the request, and takes out the dropped messages."""
    window = prompt.window
    composition = prompt.composition
    tools = prompt.offered_tools
    for text in _list_system_texts(prompt, tools):
        edit.append_system(text)
    for index in window.dropped_indices:
        edit.drop_message(index)
    for index, messages in prompt.replacements.items():
        edit.replace_message(index, messages)
    for index, note in composition.notes.items():
        if index not in window.dropped_indices:
            edit.prefix_text(index, note)
    if inserted := window.list_inserted(composition):
        edit.insert_messages(
            count_leading_system(prompt.request.messages), [each.message for each in inserted]
        )
    if tools:
        edit.add_tools(tools, are_first=prompt.puts_tools_first)


def _list_system_texts(prompt: Prompt, tools: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the texts for the leading system message. tools: the gateway's tools in the request."""
    system = prompt.section.name_tools(prompt.system, [tool["function"]["name"] for tool in tools])
    return [text for text in (system, prompt.window.summary) if text]


def _make_offer_fields(prompt: Prompt, offer: Offer) -> Mapping[str, Any]:
    """Returns the fields of a request that ask for an offer."""
    if offer is FREE_OFFER:
        return _NO_FIELDS
    return offer.make_fields(
        can_force=prompt.form.can_force, has_client_tools=bool(prompt.request.tool_names)
    )
