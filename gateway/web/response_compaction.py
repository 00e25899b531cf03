"""POST /v1/responses/input_tokens and /compact, which leave nothing in memory."""

from __future__ import annotations

import time
from secrets import token_hex
from typing import Final

import orjson
from starlette.types import Receive, Scope, Send

from adapters.types import Json
from gateway.core.request.request_headers import RawHeaders
from gateway.dialects.chat.render import ChatView
from gateway.dialects.responses.compaction import compaction_item
from gateway.dialects.responses.counted import CountedTokens, counted
from gateway.dialects.responses.items import message_item
from gateway.dialects.responses.parse import ResponsesRequest
from gateway.dialects.responses.render import usage_of
from gateway.run.response_compaction import CompactionFailed, compact
from gateway.run.response_conversations import ConversationHead
from gateway.web.event_stream import ClientReply
from gateway.web.middleware import trace_of
from gateway.web.responses import ResponsesPath, without_memory

INPUT_TOKENS_PATH: Final = "/v1/responses/input_tokens"
COMPACT_PATH: Final = "/v1/responses/compact"
_JSON: Final = [("content-type", "application/json")]


class InputTokensPath(ResponsesPath):
    """Counts the tokens of a request, of what it continues and of its tools, without what memory adds."""

    needs_input = False

    async def respond(
        self,
        request: ResponsesRequest,
        conversation: ConversationHead | None,
        headers: RawHeaders,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        trace = trace_of(scope)
        caller, receipt = trace.caller, trace.begin_account()
        connection = scope["state"].get("connection")
        with ClientReply(receive, send, self.chats.send_timeout_s, connection) as reply:
            tokens = await self.chats.chat.count(
                request.chat, without_memory(headers), caller.project, caller.credential, reply, receipt,
                counted=CountedTokens(),
            )  # fmt: skip
            if tokens is not None:
                await reply.whole(200, [*_JSON, *receipt.close()], counted(tokens))
        trace.memory = "off"


class CompactPath(ResponsesPath):
    """Makes a conversation short: its user's newest messages, and a summary."""

    needs_input = False

    async def respond(
        self,
        request: ResponsesRequest,
        conversation: ConversationHead | None,
        headers: RawHeaders,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        trace = trace_of(scope)
        caller = trace.caller
        connection = scope["state"].get("connection")
        trace.memory = "off"
        with ClientReply(receive, send, self.chats.send_timeout_s, connection) as reply:
            try:
                found = await compact(
                    self.chats.chat, request.chat, without_memory(headers), caller.project, caller.credential,
                    reply, trace.begin_account(), ChatView,
                )  # fmt: skip
            except CompactionFailed as error:
                await reply.whole(error.status, _JSON, error.body)
                return
            tag = token_hex(16)
            messages = [message_item(f"msg_{tag}_{n}", m) for n, m in enumerate(found.messages)]
            shown: Json = {
                "id": f"resp_{token_hex(28)}",
                "object": "response.compaction",
                "created_at": int(time.time()),
                "output": [*messages, compaction_item(f"cmp_{tag}", found.summary)],
                "usage": usage_of(found.usage),
            }
            await reply.whole(200, _JSON, orjson.dumps(shown))
