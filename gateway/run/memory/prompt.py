"""A prompt: the client's request with the gateway's additions, and without the messages that do not fit the window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.core.conversation.portable_message import (
    CLAUDE_FILES,
    REMOTE_MEDIA,
    make_portable_message,
    with_placeholder_text,
)
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.message_text import with_text_before
from gateway.core.prompt.composition import Composition, list_rounds_without_results
from gateway.core.prompt.eviction import NO_EVICTION, Eviction
from gateway.core.prompt.note_text import estimate_tokens
from gateway.core.prompt.section import NO_SECTION, Section
from gateway.core.prompt.shown_blocks import is_mark_named
from gateway.core.request.chat_request import ChatRequest
from gateway.core.upstream.policy import Target
from gateway.run.memory.fitted_window import WHOLE_WINDOW, FittedWindow
from gateway.run.memory.recall_result import NO_RECALL, RecallResult


class EndpointForm(Struct, frozen=True):
    """The form that a request has to have for one endpoint."""

    # Fields of the client that are not for an upstream.
    consumed_fields: tuple[str, ...] = ()
    # Fields of the client for which the upstream's dialect has no place.
    untranslatable_fields: tuple[str, ...] = ()
    # Indices of the developer messages; the upstream calls their role `system`.
    developer_indices: tuple[int, ...] = ()
    # True: the upstream reports the usage of a stream on request; None: not known.
    takes_usage: bool | None = True
    # True: the model can be made to call a tool.
    can_force: bool = True
    # Settings of an agent that the model does not take.
    refused_settings: frozenset[str] = frozenset()
    # True: the model takes its thoughts back only if nothing before them has changed.
    binds_thoughts: bool = False
    # The `Capabilities.effort_with_tools` of the endpoint.
    effort_with_tools: str | None = None
    # True: the model thinks only on request, and thoughts are asked for without an effort.
    thinks_on_request: bool = False
    # True: the usage of a stream is asked for even if the client does not ask for it.
    asks_usage: bool = False
    # Indices of the replies, among those of `ChatRequest.reply_models`, that another model made.
    foreign_replies: frozenset[int] = frozenset()
    # Indices of the messages with files that the model cannot read.
    unreadable_files: frozenset[int] = frozenset()
    # Indices of the replies, among those of `ChatRequest.reply_models`, that have nothing in them.
    empty_replies: frozenset[int] = frozenset()

    @property
    def changed_messages(self) -> frozenset[int]:
        """Indices of the messages that have another content here."""
        return self.foreign_replies | self.unreadable_files | self.empty_replies


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
        form = self.form
        message = with_text_before(message, self.composition.notes.get(index, ""))
        if index in form.foreign_replies:
            message = make_portable_message(message)
        elif index in form.unreadable_files:
            message = CLAUDE_FILES.replace_in(message)
        if index in self.without_media:
            message = REMOTE_MEDIA.replace_in(message)
        return with_placeholder_text(message) if index in self.request.reply_models else message

    def without_memory_texts(self) -> Prompt | None:
        """Returns a copy without memory section, notes and summary, or None if the prompt has none of them."""
        section = self.section.without_blocks()
        composition = self.composition.without_notes()
        system = self.system if section is self.section else section.text
        has_notes = bool(self.window.choose_fitting_notes(self.composition))
        if not (has_notes or self.window.summary or system != self.system):
            return None
        return replace(
            self,
            system=system,
            section=section,
            composition=composition,
            window=replace(self.window, summary=""),
            new_notes=dict.fromkeys(self.new_notes, ""),
            recall=replace(self.recall, note="", note_tokens=0),
            changes_prefix=True,
        )

    def without_earlier_results(self) -> Prompt | None:
        """Returns a copy without the stored results before the last reply, or None if the prompt has none."""
        composition = self.composition.without_results(is_after_last_reply=False)
        if composition is self.composition:
            return None
        window, fitting_rounds = self.window, self.window.replacements
        if fitting_rounds is not None:
            window = replace(window, replacements=list_rounds_without_results(fitting_rounds))
        return replace(self, composition=composition, window=window, changes_prefix=True)

    def without_last_results(self) -> Prompt | None:
        """Returns a copy without the stored results of tools after the last reply, or None if the prompt has none."""
        composition = self.composition.without_results(is_after_last_reply=True)
        return None if composition is self.composition else replace(self, composition=composition)

    def without_stored_media(self) -> Prompt | None:
        """Returns a copy without the stored media that an upstream has to fetch, or None if the prompt has none."""
        inserted = self.composition.inserted
        with_media = frozenset(
            n for n in self.request.stored_indexes if REMOTE_MEDIA.are_in(self.request.messages[n])
        )
        if with_media <= self.without_media and not any(
            REMOTE_MEDIA.are_in(each.message) for each in inserted
        ):
            return None
        inserted = [replace(each, message=REMOTE_MEDIA.replace_in(each.message)) for each in inserted]
        composition = replace(self.composition, inserted=inserted)
        return replace(self, composition=composition, without_media=with_media, changes_prefix=True)

    @property
    def replacements(self) -> Mapping[int, list[WireMessage]]:
        return self.composition.replacements if self.window.replacements is None else self.window.replacements

    def names_mark(self, mark: str) -> bool:
        """Returns whether one of the gateway's texts in the prompt names the mark of the memory's notes."""
        return is_mark_named((self.system, *self.window.choose_fitting_notes(self.composition)), mark)

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

    @property
    def has_tools_in_place_of_thoughts(self) -> bool:
        """The model does not think since it has tools, and the client cannot know that.

        The tools are the gateway's, or the client speaks another dialect.
        """
        if self.form.effort_with_tools is None:
            return False
        if self.request.has_tools:
            return self.request.is_translated
        return bool(self.offered_tools)

    @property
    def adds_usage(self) -> bool:
        """The gateway asks for the usage of a stream, though the client's request does not.

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
