"""A prompt: the client's request with the gateway's additions, and without the messages that do not fit the window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, field

from gateway.core.conversation.portable_message import (
    CLAUDE_FILES,
    REMOTE_MEDIA,
    make_portable_message,
    with_placeholder_text,
)
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.message_text import with_text_before
from gateway.core.prompt.composition import Composition
from gateway.core.prompt.eviction import NO_EVICTION, Eviction
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.section import NO_SECTION, Section
from gateway.core.prompt.shown_blocks import is_mark_named
from gateway.core.request.chat_request import ChatRequest
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.run.memory.fitted_window import WHOLE_WINDOW, FittedWindow
from gateway.run.memory.recall_result import NO_RECALL, RecallResult

# OpenAI's bound for the tools of a chat completion.
_MAX_TOOLS: Final = 128


class Prompt(Struct, frozen=True):
    """The prompt for one target. All rounds of the turn begin with it."""

    # The request of the client.
    request: ChatRequest
    # The upstream and model that the prompt is for.
    target: Target
    # The form that the target's endpoint needs.
    form: EndpointForm = field(default_factory=EndpointForm)
    # The text that the gateway appends to the leading system message: the agent's own prompt and the memory section.
    # The summary that follows them is in `window`.
    system: str = ""
    # The definitions of the gateway's tools.
    tools: Sequence[dict[str, Any]] = ()
    # The stored messages, hidden rounds and notes that are added to the request.
    composition: Composition = field(default_factory=Composition)
    # The messages that may leave the window or have left it; empty if the prompt is short.
    eviction: Eviction = NO_EVICTION
    # The part of the request and of `composition` that fits the model's window.
    window: FittedWindow = WHOLE_WINDOW
    # The memory section that `system` ends with.
    section: Section = NO_SECTION
    # The notes of the new messages, by the index among these. They are written with the turn. (`composition` has all
    # notes that the prompt shows, also those of earlier messages.)
    new_notes: Mapping[int, str] = field(default_factory=dict)
    # The result of the search for the note.
    recall: RecallResult = NO_RECALL
    # True: the gateway's tools stand before the client's. They change less, and a provider's cache begins with tools.
    puts_tools_first: bool = False
    # True: the usage of every call has to be known.
    needs_usage: bool = False
    # Indices of the request's messages that are sent without the media that an upstream would have to fetch.
    without_media: frozenset[int] = frozenset()
    # True: the text before the conversation's messages may differ from the text in the last request.
    changes_prefix: bool = False
    # True: the messages before this turn's hidden rounds may differ from the messages that the model had in the rounds.
    moves_hidden_rounds: bool = False

    def render_client_message(self, index: int) -> WireMessage:
        """Returns one of the request's messages with its note, as this endpoint reads it."""
        message = self.request.messages[index]
        altered = self.form.altered_messages
        message = with_text_before(message, self.composition.notes.get(index, ""))
        if index in altered.foreign_replies:
            message = make_portable_message(message)
        elif index in altered.unreadable_files:
            message = CLAUDE_FILES.replace_in(message)
        if index in self.without_media:
            message = REMOTE_MEDIA.replace_in(message)
        return with_placeholder_text(message) if index in self.request.reply_models else message

    @property
    def replacements(self) -> Mapping[int, list[WireMessage]]:
        return self.composition.replacements if self.window.replacements is None else self.window.replacements

    def names_mark(self, mark: str) -> bool:
        """Returns whether one of the gateway's texts in the prompt names the mark of the memory's notes."""
        return is_mark_named((self.system, *self.window.list_fitting_notes(self.composition)), mark)

    def hides_shown_blocks(self, window: FittedWindow) -> bool:
        """Returns whether a window leaves out a text of the prompt that shows a memory block last."""
        composition = self.composition
        return not window.is_whole and window.list_shown_blocks(
            composition
        ) != WHOLE_WINDOW.list_shown_blocks(composition)

    @property
    def offered_tools(self) -> Sequence[dict[str, Any]]:
        """The gateway's tools that go upstream.

        A model that does not think with tools gets no tools if the client names an effort. An agent's tools take
        precedence over the effort of its definition. There are none if the client's own leave too little room.
        """
        request = self.request
        client_count = len(request.json.get("tools") or ())
        if client_count <= _MAX_TOOLS < client_count + len(self.tools):
            return ()
        asks_effort = request.json.get("reasoning_effort") not in (None, "none")
        if self.form.effort_with_tools is None or not asks_effort or request.has_tools:
            return self.tools
        return self.tools if "reasoning_effort" in request.gateway_fields else ()

    def list_all_tools(self) -> list[dict[str, Any]]:
        """Returns all tools that go upstream: those of the gateway, and the client's tools and functions."""
        tools = [*self.offered_tools]
        if self.request.has_tools:
            for key in ("tools", "functions"):
                tools += self.request.json.get(key) or ()
        return tools

    @property
    def has_tools_in_place_of_thoughts(self) -> bool:
        """True if the model does not think since it has tools, which the client cannot know.

        The tools are the gateway's, or the client speaks another dialect.
        """
        if self.form.effort_with_tools is None:
            return False
        if self.request.has_tools:
            return self.request.is_translated
        return bool(self.offered_tools)

    @property
    def adds_usage(self) -> bool:
        """True if the gateway asks for the usage of a stream, though the client's request does not.

        It asks if the client's dialect always reports usage, if the receipt needs it, or if hidden rounds share the
        client's limit of tokens.
        """
        request = self.request
        if self.form.takes_usage is False or not request.stream:
            return False
        if request.wants_usage:
            return (request.json.get("stream_options") or {}).get("include_usage") is not True
        if not self.form.takes_usage:
            return False
        return (
            self.form.asks_usage or self.needs_usage or (bool(self.tools) and request.max_tokens is not None)
        )

    @property
    def injected_tokens(self) -> int:
        """The estimated tokens of the agent's prompt, the memory section, the summary and the notes that are sent."""
        tokens = self.window.estimate_note_tokens(self.composition)
        for text in (self.system, self.window.summary):
            if text:
                tokens += estimate_tokens(text)
        return tokens
