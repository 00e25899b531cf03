"""`/mcp`: the tools over streamable HTTP, without sessions: any gateway answers any request, in JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

import orjson
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST
from msgspec.structs import replace
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from adapters.json_escapes import without_lone_surrogates
from gateway.core.json_limits import check_values
from gateway.core.memory.mcp_tools import McpAnswer, McpCaller
from gateway.core.request.identity import Identity, IdentityRules, identify
from gateway.core.request.memory_mode import Mode
from gateway.core.request.request_headers import refuse_misspelt
from gateway.core.request.requested_agent import AGENT_HEADER
from gateway.errors import BodyTooLarge, ErrorForm, GatewayError, NotAllowed
from gateway.run.admin.mcp.mcp_memory import McpMemory
from gateway.web.body import BodyReader
from gateway.web.mcp.mcp_protocol import CallContext, make_mcp_server, read_client
from gateway.web.mcp.session_id import read_session_client, with_session_id
from gateway.web.query import read_query
from gateway.web.request_info import get_request_info

_MCP_PATH: Final = "/mcp"
# The most bytes of a call: far more than any block's value.
MAX_BYTES: Final = 4 << 20


class McpErrors:
    """The `ErrorForm` of `/mcp`: errors of JSON-RPC, which clients show. The code of the gateway is in `data`."""

    id_header: ClassVar[bytes | None] = None

    def render_body(self, error: GatewayError) -> bytes:
        code = INTERNAL_ERROR if error.status >= 500 else INVALID_REQUEST
        data = {"type": error.kind, "param": error.param, "code": error.code}
        fields = {"code": code, "message": error.message, "data": data}
        return orjson.dumps({"jsonrpc": "2.0", "id": None, "error": fields})

    def render_event(self, error: GatewayError) -> bytes:
        return self.render_body(error)  # no reply is a stream


class McpEndpoint:
    """The endpoint of one process. It answers while `run` runs."""

    def __init__(
        self,
        memory: McpMemory,
        rules: Callable[[str, str | None], IdentityRules],
        bodies: BodyReader,
    ) -> None:
        """Makes an endpoint that does not run yet. rules: returns the rules for a project and the mode of a key."""
        self._memory, self._rules, self._bodies = memory, rules, bodies
        self._manager = StreamableHTTPSessionManager(
            make_mcp_server(self._perform),
            json_response=True,
            stateless=True,
            max_request_body_size=MAX_BYTES,
        )
        self._is_running = asyncio.Event()

    def make_routes(self) -> list[Route]:
        """Returns the route. It takes only POST: nothing is streamed to a client, and no session has to be ended."""
        return [Route(_MCP_PATH, self, methods=["POST"])]

    def list_error_forms(self) -> dict[str, ErrorForm]:
        """Returns path -> the form of all errors below it."""
        return {_MCP_PATH: McpErrors()}

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with self._manager.run():
            self._is_running.set()
            await asyncio.Event().wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        info = get_request_info(scope)
        info.route = "mcp"
        identity = self._read_identity(scope)
        info.memory = str(identity.mode)
        if identity.mode is Mode.OFF:
            raise NotAllowed("Memory is off for this request, and /mcp is nothing else.")
        scope["state"]["mcp"] = McpCaller(
            info.caller.project,
            identity.profile,
            identity.user,
            may_write=identity.mode is not Mode.READ,
            key_id=info.caller.key_id,
            client=read_session_client(scope["headers"]),
        )
        await self._is_running.wait()
        async with self._bodies.read(scope, receive) as raw:
            if len(raw) > MAX_BYTES:
                raise BodyTooLarge(f"The body has {len(raw)} bytes, and may have {MAX_BYTES}.")
            body = without_lone_surrogates(bytes(raw))  # the SDK refuses them
            check_values(body)
            parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Message:
                return parts.pop() if parts else await receive()

            await self._manager.handle_request(scope, replay, with_session_id(body, send))

    def _read_identity(self, scope: Scope) -> Identity:
        """Returns the user and the mode of the memory. Raises: BadRequest; NotAllowed: it is another user's."""
        caller = get_request_info(scope).caller
        query = read_query(scope)
        headers = list(scope["headers"])
        refuse_misspelt(headers)
        if query.get("profile"):
            headers.append((AGENT_HEADER, query["profile"].encode()))
        rules = self._rules(caller.project, caller.memory)
        names = {"user": query["user"]} if query.get("user") else {}
        return identify(headers, names, rules, caller.project, time.time())

    async def _perform(self, context: CallContext, tool: str, arguments: Mapping[str, Any]) -> McpAnswer:
        assert context.request is not None  # each call of this endpoint comes with a request over HTTP
        caller: McpCaller = context.request.scope["state"]["mcp"]
        return await self._memory.call(
            replace(caller, client=read_client(context) or caller.client), tool, arguments
        )
