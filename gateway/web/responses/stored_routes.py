"""The routes of responses and conversations that are stored: by the gateway, or by an upstream.

A response or conversation that an upstream stores is read there, and the additions of memory are taken out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gateway.core.turn.reply_change import ReplyChange
from gateway.dialects.responses.background_end import BackgroundEnd
from gateway.dialects.responses.instructions import cut_memory_section
from gateway.dialects.responses.native_lists import NoteRemoval
from gateway.dialects.responses.response_ids import is_gateway_id
from gateway.run.upstream.outgoing import OutgoingRequest
from gateway.run.upstream.route import Route as ModelRoute
from gateway.web.forwarding import ForwardedRoute, ForwardingParts, forward_without_memory, name_route
from gateway.web.incoming import Incoming
from gateway.web.request_info import get_request_info
from gateway.web.responses.conversation_requests import CONVERSATIONS_PATH
from gateway.web.responses.gateway_responses import GatewayResponses
from gateway.web.responses.upstream_responses import UpstreamResponses

_RANGE_HEADERS: Final = frozenset((b"range", b"if-range"))
# The paths with their methods. Conversations of the agents API have the same path, with ids of another form or a query
# that names an agent.
_STORED_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "/v1/responses/{rest:path}": ("GET", "POST", "DELETE"),
    "/v1/conversations": ("POST",),
    "/v1/conversations/{rest:path}": ("GET", "POST", "DELETE"),
}


class _StoredPath(NamedTuple):
    """The parts of a path below an upstream's base URL."""

    # The first segment, such as "responses".
    kind: str
    # The id of a response or conversation; "": the path has none.
    id: str
    # The part after the id, such as "input_items".
    subpath: str

    @classmethod
    def parse(cls, path: str) -> _StoredPath:
        """Returns the parts of a path. path: the path from its first "/" on, perhaps with a query."""
        kind, _, rest = path.partition("?")[0][1:].partition("/")
        stored_id, _, subpath = rest.partition("/")
        return cls(kind, stored_id, subpath)

    @property
    def is_response(self) -> bool:
        """True if the path names one response, and nothing below it."""
        return self.kind == "responses" and bool(self.id) and not self.subpath

    @property
    def lists_items(self) -> bool:
        """True if the reply has items of a conversation, or the input of a response."""
        if self.kind == "conversations":
            return self.subpath.partition("/")[0] == "items"
        return self.subpath == "input_items"


@dataclass(eq=False)
class StoredRoute(ForwardedRoute):
    """The route of a path below which responses, or their conversations, are stored."""

    # The system prompts of the profiles.
    prompts: Sequence[str]
    # Answers requests for responses and conversations that the gateway itself stores.
    gateway_responses: GatewayResponses
    # Writes and forgets the turns of responses that upstreams store.
    upstream_responses: UpstreamResponses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        stored_path = _StoredPath.parse(path.removeprefix("/v1"))
        if self._creates_here(path) or is_gateway_id(stored_path.id):
            info = get_request_info(scope)
            # None: the log reads the memory from the headers of the reply.
            info.route, info.memory = self.name, None
            await self.gateway_responses(scope, receive, send)
            return
        # A range may have only a part of a response's instructions, and memory could not be removed from such a part.
        headers = [(name, value) for name, value in scope["headers"] if name not in _RANGE_HEADERS]
        if scope["method"] == "DELETE" and stored_path.is_response:
            send = self._forget_before_answer(scope, stored_path.id, send)
        await super().__call__({**scope, "headers": headers}, receive, send)

    async def forward_allowed(self, incoming: Incoming, route: ModelRoute, outgoing: OutgoingRequest) -> None:
        stored_path = _StoredPath.parse(outgoing.upstream_path)
        change = self._find_reply_change(outgoing.method, stored_path)
        if change is not None and outgoing.method == "GET" and stored_path.is_response:
            background_end = BackgroundEnd(change)
            change = background_end
            incoming = incoming._replace(send=self._save_before_end(incoming, background_end))
        await forward_without_memory(
            self.parts.forwarder,
            incoming,
            route,
            outgoing,
            send_timeout_s=self.parts.limits.send_timeout_s,
            change=change,
        )

    def _creates_here(self, path: str) -> bool:
        """Returns whether a path creates a conversation that the gateway stores, since no upstream can."""
        return path == CONVERSATIONS_PATH and not self.parts.forwarder.routes.has_endpoint("/conversations")

    def _forget_before_answer(self, scope: Scope, response_id: str, send: Send) -> Send:
        """Returns a `send` that forgets a response before its upstream's answer says that it is deleted."""
        reply_head: Message | None = None

        async def send_after_forgetting(message: Message) -> None:
            """Sends a message. The head of the reply waits until the response is forgotten."""
            nonlocal reply_head
            if "status" in message:
                # The head waits, since an error of the store has a status of its own.
                reply_head = message
                return
            if reply_head is not None:
                # A 404 may answer a client that asks again after an error of the store: upstream the response is gone.
                if 200 <= reply_head["status"] < 300 or reply_head["status"] == 404:
                    await self.upstream_responses.forget_deleted(scope, response_id)
                await send(reply_head)
                reply_head = None
            await send(message)

        return send_after_forgetting

    def _save_before_end(self, incoming: Incoming, background_end: BackgroundEnd) -> Send:
        """Returns a `send` that writes the turn of a response that has ended, before the response's end is sent."""

        async def send_after_saving(message: Message) -> None:
            if (ended_response := background_end.take_ended()) is not None:
                await self.upstream_responses.save_ended(
                    incoming.scope, ended_response.id, ended_response.body
                )
            await incoming.send(message)

        return send_after_saving

    def _find_reply_change(self, method: str, stored_path: _StoredPath) -> ReplyChange | None:
        """Returns the change of the reply to a request, or None if the reply passes unchanged."""
        if method not in ("GET", "POST"):
            return None
        if stored_path.lists_items:
            return NoteRemoval()
        return cut_memory_section(self.prompts) if stored_path.kind == "responses" else None


def make_stored_routes(
    parts: ForwardingParts,
    prompts: Sequence[str],
    gateway_responses: GatewayResponses,
    upstream_responses: UpstreamResponses,
) -> list[Route]:
    """Returns the routes of stored responses and conversations."""
    return [
        Route(
            path,
            StoredRoute(
                name=name_route(path),
                parts=parts,
                prompts=prompts,
                gateway_responses=gateway_responses,
                upstream_responses=upstream_responses,
            ),
            methods=methods,
        )
        for path, methods in _STORED_PATHS.items()
    ]
