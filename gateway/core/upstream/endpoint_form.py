"""The form that a request has to have for one endpoint: the fields, messages and settings that it takes otherwise."""

from __future__ import annotations

from msgspec import Struct


class AlteredMessages(Struct, frozen=True):
    """The messages of one request that an endpoint takes in another form, by their indices."""

    # The developer messages; the upstream calls their role `system`.
    developer: tuple[int, ...] = ()
    # The replies, of those in `ChatRequest.reply_models`, that another model made.
    foreign_replies: frozenset[int] = frozenset()
    # The replies, of those in `ChatRequest.reply_models`, that have nothing in them.
    empty_replies: frozenset[int] = frozenset()
    # The messages with files that the model cannot read.
    unreadable_files: frozenset[int] = frozenset()

    @property
    def with_other_content(self) -> frozenset[int]:
        """Indices of the messages that get another content."""
        return self.foreign_replies | self.empty_replies | self.unreadable_files


NO_ALTERED_MESSAGES = AlteredMessages()


class EndpointForm(Struct, frozen=True):
    """The form that a request has to have for one endpoint."""

    # Fields of the client that are not for an upstream.
    consumed_fields: tuple[str, ...] = ()
    # Fields of the client for which the upstream's dialect has no place.
    untranslatable_fields: tuple[str, ...] = ()
    # True: the upstream's dialect has no temperature as high as the request's, so it gets its highest one.
    lowers_temperature: bool = False
    # The messages that the endpoint takes in another form.
    altered_messages: AlteredMessages = NO_ALTERED_MESSAGES
    # True: the upstream reports the usage of a stream on request; None: not known.
    takes_usage: bool | None = True
    # True: the usage of a stream is asked for even if the client does not ask for it.
    asks_usage: bool = False
    # True: the model can be made to call a tool.
    can_force: bool = True
    # Settings of an agent that the model does not take.
    refused_settings: frozenset[str] = frozenset()
    # True: the model takes its thoughts back only if nothing before them has changed.
    binds_thoughts: bool = False
    # True: the model thinks only on request, and thoughts are asked for without an effort.
    thinks_on_request: bool = False
    # The `Capabilities.effort_with_tools` of the endpoint.
    effort_with_tools: str | None = None
