"""The reply as it is sent to the client: the head, and the part of the body that has left."""

from __future__ import annotations

import orjson

from adapters.reply_headers import replace_content_type
from adapters.types import EVENT_STREAM_HEADER, EVENT_STREAM_TYPE, JSON_TYPE, Header, Json
from gateway.core.turn import commands
from gateway.core.turn.client_view import ClientView
from gateway.core.turn.commands import Command
from gateway.core.turn.round import AS_BODY, AS_EVENTS, Round
from gateway.core.turn.states import READING, RUNNING_TOOLS, TurnState
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.upstream_error import find_openai_error_of_body, read_error_status
from gateway.errors import UpstreamReplyBroken


class SentReply:
    """Sends the bytes that the view of a turn has ready. The head (status and headers) leaves with the first bytes."""

    def __init__(self, terms: TurnTerms, view: ClientView) -> None:
        self._terms = terms
        self._view = view
        # True: the head was sent.
        self.has_head = False

    def flush(self, current_round: Round) -> list[Command]:
        """Sends the bytes that the view has ready. current_round: the round that is under way."""
        if current_round.form is AS_BODY:  # the reply leaves as a whole, unless a later round is a stream
            return []
        data = self._view.take()
        if not data:
            return []
        return (
            [commands.SendBody(data)]
            if self.has_head
            else [self._begin(current_round), commands.SendBody(data)]
        )

    def keep_alive(self, current_round: Round, state: TurnState) -> list[Command]:
        """Sends a comment, unless the status that goes with it may still change.

        While a reply is read that could lead to another round, the status may change. While tools run, the comment is
        sent nevertheless, since tools may take longer than a proxy waits. Before its first reply a turn may still be
        answered with a body, unless its steps are shown.
        """
        if current_round.form is AS_BODY:
            return []
        comment = commands.SendBody(commands.KEEP_ALIVE)
        if self.has_head:
            return [comment]
        if state is READING:
            may_begin = not self._terms.gateway_tools
        else:
            is_stream = self._terms.shows_steps or current_round.form is AS_EVENTS
            may_begin = state is RUNNING_TOOLS and is_stream
        return [self._begin(current_round), comment] if may_begin else []

    def list_headers(self, current_round: Round, content_type: str) -> tuple[Header, ...]:
        """Returns the round's headers. content_type: the type of a translated reply; others have the upstream's."""
        return (
            current_round.headers
            if self._view.speaks_chat
            else replace_content_type(current_round.headers, content_type)
        )

    def make_error_answer(
        self, current_round: Round, body: bytes, error: Json
    ) -> commands.SendWhole | commands.SendError:
        """Returns the answer with the upstream's error, or with the gateway's for a 200 that is no completion.

        body: the body of the upstream's reply.
        error: the error in that body, as OpenAI's error object.
        """
        status, headers = current_round.status, current_round.headers
        client_body = self._view.render_error_body(status, body)
        if client_body is None and status < 400 and find_openai_error_of_body(body) is not None:
            status = read_error_status(error)  # of a completion with an error in it
        if client_body is None and status >= 400:  # a page of a server before the upstream: its status counts
            client_body = self._view.render_error_body(status, orjson.dumps({"error": error}))
        if client_body is None:
            return commands.SendError(UpstreamReplyBroken("The upstream's answer is not a chat completion."))
        if client_body != body:  # in a dialect's own form, whatever form it came in
            headers = replace_content_type(headers, JSON_TYPE)
        return commands.SendWhole(status, headers, client_body)

    def _begin(self, current_round: Round) -> commands.SendHead:
        """Returns the command that sends the head."""
        self.has_head = True
        if self._terms.shows_steps:
            return commands.SendHead(200, (EVENT_STREAM_HEADER,))
        return commands.SendHead(current_round.status, self.list_headers(current_round, EVENT_STREAM_TYPE))
