"""A response in the background: the request as it is stored, and the response as it is shown without a turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import msgspec
import orjson
from msgspec import Struct, field
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.turn.client_view import ViewFactory
from gateway.core.turn_name import TurnName
from gateway.dialects.event_stream import encode_typed_event
from gateway.dialects.responses.call_form import UpstreamTools
from gateway.dialects.responses.errors import make_error_fields, make_response_error
from gateway.dialects.responses.event_names import END_EVENTS
from gateway.dialects.responses.growing_response import ResponseTerms
from gateway.dialects.responses.parse import ResponsesRequest, parse
from gateway.dialects.responses.render import (
    ResponsesViewFactory,
    make_empty_response,
    rebuild_response,
    render_usage,
)


class StoredResponseRequest(Struct, frozen=True):
    """A request as it is stored with its run, without keys and other headers of the caller."""

    # The body as the client sent it.
    body: str
    # The identity that was resolved when the request came.
    identity: Identity
    # The kinds of tools that the request's upstreams take.
    upstream_tools: UpstreamTools = field(name="takes")
    # The limit of the messages in a request.
    max_messages: int = field(name="most_messages")
    # The items of the conversation that wait for the next response; they come before the input.
    waiting_items: list[Json] = field(default_factory=list, name="waiting")
    # The id of the caller's key; 0: the caller has presented none.
    key_id: int = field(name="key", default=0)
    # The tools that searches have found in messages to which the request only refers.
    found_tools: list[Json] = field(default_factory=list)

    @staticmethod
    def decode(data: bytes) -> StoredResponseRequest:
        return msgspec.json.decode(data, type=StoredResponseRequest)

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    def read(self) -> ResponsesRequest:
        """Returns the parsed request, always as a request for a stream, since the events are stored."""
        request = parse(
            self.body.encode(),
            self.max_messages,
            self.upstream_tools,
            self.waiting_items,
            found_tools=self.found_tools,
        )
        chat = request.chat
        chat.identity = self.identity
        chat.stream = True
        chat.json = {**chat.json, "stream": True}
        chat.raw = orjson.dumps(chat.json)
        return request


class RestoredRequest(Struct, frozen=True):
    """A stored request that is performed. Implements `gateway.run.responses.response_runs.BackgroundRequest`."""

    # The request as it is stored.
    stored: StoredResponseRequest
    # The parsed request.
    request: ResponsesRequest
    # The part that the response's ids share.
    tag: str
    # The time at which the response was accepted, in seconds since the epoch.
    created_at: int

    @property
    def chat(self) -> ChatRequest:
        return self.request.chat

    @property
    def key_id(self) -> int:
        return self.stored.key_id

    @property
    def conversation_id(self) -> str | None:
        return self.request.conversation_id

    @property
    def waiting_ids(self) -> frozenset[str]:
        return frozenset(item["id"] for item in self.stored.waiting_items)

    def with_waiting(self, item_ids: Collection[str]) -> RestoredRequest:
        waiting_items = [item for item in self.stored.waiting_items if item["id"] in item_ids]
        stored_request = replace(self.stored, waiting_items=waiting_items)
        return replace(self, stored=stored_request, request=stored_request.read())

    def make_view_factory(
        self,
        turn_name: Callable[[], TurnName | None],
        count_usage: Callable[[str], Json | None],
        answering_model: Callable[[], str],
        first_number: int,
        *,
        has_begun: bool,
    ) -> ViewFactory:
        request = self.request
        return ResponsesViewFactory(
            request.echo,
            turn_name,
            count_usage=count_usage,
            answering_model=answering_model,
            forms=request.forms,
            shows_sealed_thoughts=request.shows_sealed_thoughts,
            messages=request.turn_messages,
            tag=self.tag,
            created_at=self.created_at,
            first_number=first_number,
            has_sent_created=has_begun,
        )


class ShownResponses:
    """Shows responses in this dialect. Implements `gateway.run.responses.response_runs.ResponsesDialect`."""

    def restore(self, encoded_request: bytes, tag: str, created_at: float) -> RestoredRequest:
        """Returns a stored request.

        tag: the part that the response's ids share.
        created_at: the time at which the response was accepted, in seconds since the epoch.
        """
        stored_request = StoredResponseRequest.decode(encoded_request)
        return RestoredRequest(stored_request, stored_request.read(), tag, int(created_at))

    def number_events(self, data: bytes, first: int) -> list[bytes]:
        """Returns the events in a piece of a stream. `first` is ignored, since the events have numbers already."""
        return [event + b"\n\n" for event in data.split(b"\n\n") if event and not event.startswith(b":")]

    def find_ended_response(self, data: bytes) -> Json | None:
        """Returns the response in the last event of a stream; None: `data` does not end with a response's end."""
        events = self.number_events(data, 0)
        if not events or b"event: response." not in events[-1]:
            return None
        name_line, _, event_json = events[-1].partition(b"\ndata: ")
        if name_line.removeprefix(b"event: ").decode() not in END_EVENTS:
            return None
        response: Json = orjson.loads(event_json)["response"]
        return response

    def as_failed(self, response: Json, code: str | None, message: str) -> Json:
        """Returns a response as it is shown after an error of the gateway or the upstream."""
        return {
            **response,
            "status": "failed",
            "error": make_response_error(message, code),
            "output": [],
            "usage": None,
        }

    def as_cancelled(self, response: Json, output: Sequence[Json] = ()) -> Json:
        """Returns a response as it is shown after its client has cancelled it. output: the items so far."""
        return {**response, "status": "cancelled", "output": [*output], "completed_at": None, "usage": None}

    def rebuild(self, tag: str, reply: WireMessage) -> Json | None:
        """Returns the response of a stored reply; None: the reply was no response. tag: the part that its ids share."""
        return rebuild_response(tag, reply)

    def render_last_events(self, response: Json, number: int) -> bytes:
        """Returns the last events of a response without a turn. number: the `sequence_number` of the first event."""
        error = response.get("error")
        events = b""
        if error:
            fields = make_error_fields(error["message"], error["code"], "server_error", None)
            events = encode_typed_event("error", {**fields, "sequence_number": number})
            number += 1
        end_name = {"failed": "failed", "completed": "completed"}.get(response["status"], "incomplete")
        return events + encode_typed_event(
            f"response.{end_name}", {"response": response, "sequence_number": number}
        )

    def render_whole_events(self, response: Json, number: int = 0) -> bytes:
        """Returns all events of a response, with each item whole. number: the `sequence_number` of the first event."""
        end_fields = dict.fromkeys(("completed_at", "error", "incomplete_details", "usage"))
        first_response = {**response, "status": "in_progress", "output": [], **end_fields}
        events: list[tuple[str, Json]] = [
            ("response.created", {"response": first_response}),
            ("response.in_progress", {"response": first_response}),
        ]
        for index, item in enumerate(response["output"]):
            item_fields = {"output_index": index, "item": item}
            events.append(("response.output_item.added", item_fields))
            events.append(("response.output_item.done", item_fields))
        encoded_events = [
            encode_typed_event(event_type, {**fields, "sequence_number": event_number})
            for event_number, (event_type, fields) in enumerate(events, number)
        ]
        return b"".join(encoded_events) + self.render_last_events(response, number + len(events))


def make_queued_response(request: ResponsesRequest, tag: str, created_at: float) -> Json:
    """Returns the response to a request that waits. created_at: its time in seconds since the epoch; 0: now."""
    terms = ResponseTerms(
        request.echo,
        lambda: TurnName.from_tag(tag),
        forms=request.forms,
        tag=tag,
        created_at=int(created_at or time.time()),
    )
    return make_empty_response(terms, "queued")


def make_compaction_response(request: ResponsesRequest, item: Json, usage: Json) -> Json:
    """Returns the response with a compaction item in place of a reply. usage: the usage of a chat completion."""
    now = int(time.time())
    terms = ResponseTerms({**request.echo, "store": False}, lambda: None, created_at=now)
    return {
        **make_empty_response(terms, "completed"),
        "completed_at": now,
        "output": [item],
        "usage": render_usage(usage),
    }
