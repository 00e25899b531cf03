"""Memory of responses that upstreams store: a turn is written when a client reads its response, and deleted with it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from gateway.dialects.responses.native import read_native
from gateway.run.deferred_replies import DeferredReply
from gateway.run.native_chat import NativeChat
from gateway.run.native_request import NativeRequest
from gateway.run.store_errors import map_store_errors
from gateway.run.stored_responses import StoredResponses
from gateway.run.usage.pending_usage import PendingUsage
from gateway.web.request_info import get_request_info
from gateway.web.responses.response_owners import ResponseOwners


@dataclass(eq=False)
class UpstreamResponses:
    """Forgets and writes the turns of responses that upstreams have stored."""

    # Reads the turns of stored responses.
    stored: StoredResponses
    # Finds the users of requests.
    owners: ResponseOwners
    # Reads and forgets the replies of native requests.
    native_chat: NativeChat
    # The responses with tokens that the upstream reports later.
    pending_usage: PendingUsage
    # The most messages that a request may have.
    max_messages: int

    async def forget_deleted(self, scope: Scope, response_id: str) -> None:
        """Forgets the turn of a response that its upstream has just deleted. scope: the deleting request's."""
        owner = self.owners.read_owner(scope)
        deferred = self.native_chat.deferred_replies
        with map_store_errors():
            row = await deferred.find(owner.project, response_id)
            if row is not None and owner.may_read(row.agent):
                await deferred.forget(row)
        await self.stored.forget_by_upstream_id(owner, response_id)

    async def save_ended(self, scope: Scope, response_id: str, response: bytes) -> None:
        """Counts a response that its upstream has made in the background, and writes its turn if that is missing.

        scope: the request's, to which the upstream has just answered with the response.
        """
        project = get_request_info(scope).caller.project
        self.pending_usage.count(project, response_id, response)
        await self.native_chat.save_deferred(project, response_id, response, self._read_request)

    def _read_request(self, reply: DeferredReply) -> NativeRequest | None:
        """Returns the request of a deferred reply; None: memory cannot read it."""
        return read_native(reply.body.encode(), reply.path, self.max_messages)
