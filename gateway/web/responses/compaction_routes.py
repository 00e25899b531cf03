"""Answers POST /v1/responses/input_tokens and /v1/responses/compact. Neither writes anything to memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Final, NamedTuple

import orjson

from adapters.reply_headers import replace_content_type
from adapters.types import JSON_HEADER, JSON_TYPE, Header, Json
from gateway.dialects.chat.render import ChatView
from gateway.dialects.fields import make_missing_field_error
from gateway.dialects.responses.compaction import make_compaction_item, read_summary
from gateway.dialects.responses.errors import render_upstream_error
from gateway.dialects.responses.items import render_message
from gateway.dialects.responses.render import render_usage
from gateway.dialects.responses.response_ids import make_tag
from gateway.dialects.responses.token_count import CountChange, render_count
from gateway.errors import BadRequest
from gateway.run.responses.response_compaction import CompactionFailed, ResponseCompaction, compact
from gateway.run.sink import HeldSink, Sink
from gateway.web.completions import ChatRoute
from gateway.web.forwarding import ForwardedHead
from gateway.web.incoming import Incoming
from gateway.web.request_body import RequestBody
from gateway.web.responses.response_call import ResponseCall, ResponseCallRoute, without_memory

INPUT_TOKENS_PATH: Final = "/v1/responses/input_tokens"
COMPACT_PATH: Final = "/v1/responses/compact"


class InputTokensRoute(ResponseCallRoute):
    """Counts the tokens of a request without memory: of its messages, the messages before them, and its tools."""

    async def respond(self, call: ResponseCall) -> None:
        """Answers with the number of tokens."""
        info = call.incoming.info
        info.memory = "off"
        request_context = info.caller.make_context(without_memory(call.headers))
        receipt = info.begin_receipt()
        with call.incoming.begin_reply(self.chat_route.send_timeout_s) as reply:
            # If the upstream counts tokens itself, it is asked, and `CountChange` translates its answer.
            answer = HeldSink(reply)
            tokens = await self.chat.count_prompt(
                call.request.chat, request_context, answer, receipt, change=CountChange()
            )
            if tokens is not None:  # None: `answer` has the upstream's reply
                await reply.send_body(200, [JSON_HEADER, *receipt.note_head()], render_count(tokens))
            elif answer.status < 300:
                await reply.send_body(answer.status, answer.headers, bytes(answer.body))
            else:
                await _send_upstream_error(reply, answer)


class CompactRoute(ResponseCallRoute):
    """Shortens a conversation to its user's newest messages and a summary."""

    async def answer_with_body(
        self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody
    ) -> None:
        # Without a model an upstream would be asked, and would take `compact` for the id of a response.
        if request_body.model is None:
            raise make_missing_field_error("model")
        await super().answer_with_body(incoming, head, request_body)

    async def respond(self, call: ResponseCall) -> None:
        await answer_with_summary(call, self.chat_route, _render_compaction)


class SummaryReply(NamedTuple):
    """A reply with a summary."""

    headers: Sequence[Header]
    body: bytes


async def answer_with_summary(
    call: ResponseCall,
    chat_route: ChatRoute,
    render: Callable[[ResponseCompaction], SummaryReply],
) -> None:
    """Answers with a summary of the sent messages. Nothing is written to memory.

    render: a function that returns the reply for a summary.

    Raises: BadRequest for a stored conversation.
    """
    if call.request.conversation_id is not None:
        raise BadRequest(
            "A stored conversation is not compacted: the gateway cuts it to the model's window itself.",
            param="conversation",
            code="unsupported_value",
        )
    info = call.incoming.info
    info.memory = "off"
    request_context = info.caller.make_context(without_memory(call.headers))
    receipt = info.begin_receipt()
    with call.incoming.begin_reply(chat_route.send_timeout_s) as reply:
        try:
            compacted = await compact(
                chat_route.chat,
                call.request.chat,
                request_context,
                reply,
                receipt,
                make_view=ChatView,
                read_summary=read_summary,
            )
        except CompactionFailed as error:
            await _send_upstream_error(reply, error.reply)
            return
        rendered = render(compacted)
        await reply.send_body(200, [*rendered.headers, *receipt.note_head()], rendered.body)


async def _send_upstream_error(reply: Sink, error: HeldSink) -> None:
    """Sends an upstream's error in the form of the Responses API.

    error: the upstream's reply, with the gateway's headers.
    """
    headers = replace_content_type(error.headers, JSON_TYPE)
    await reply.send_body(error.status, headers, render_upstream_error(error.status, bytes(error.body)))


def _render_compaction(compacted: ResponseCompaction) -> SummaryReply:
    """Returns the reply of `/compact` for a summary."""
    tag = token_hex(16)
    messages = [
        render_message(f"msg_{tag}_{index}", message) for index, message in enumerate(compacted.messages)
    ]
    response: Json = {
        "id": f"resp_{make_tag(None)}",
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*messages, make_compaction_item(f"cmp_{tag}", compacted.summary)],
        "usage": render_usage(compacted.usage),
    }
    return SummaryReply([JSON_HEADER], orjson.dumps(response))
