"""Compaction that a client asks for: the user's newest messages of its conversation, and a summary.

The request's model writes the summary, in the words in which the gateway asks for its own. Nothing of it is remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import orjson
from msgspec import Struct
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.conversation.wire_message import WireMessage, read_text
from gateway.core.finish_reasons import CUT_REASONS, read_finish_reason
from gateway.core.prompt.summary import limit_summary
from gateway.core.prompt.summary_check import unwrap_summary, without_broken_line
from gateway.core.prompt.summary_request import make_summary_request
from gateway.core.prompt.summary_source import PART_TOKENS, list_message_lines, split_into_parts
from gateway.core.request.chat_request import ChatRequest
from gateway.core.turn.client_view import ViewFactory
from gateway.core.usage.reported import find_reported_counts
from gateway.errors import BadRequest, UpstreamReplyBroken
from gateway.run.chat import Chat
from gateway.run.receipt import Receipt
from gateway.run.request_context import RequestContext
from gateway.run.sink import HeldSink, Sink
from gateway.tokens import choose_tokenizer, count_message_tokens
from storage.run_records import TokenCounts

# The tokens of the window of a model without a window in the settings: the smallest of the windows in use.
_DEFAULT_WINDOW_TOKENS: Final = 32_768
# The messages that stay may fill a quarter of the window. Not measured: the summary, the new messages and the reply
# share the rest.
_MESSAGES_DIVISOR: Final = 4


class ResponseCompaction(Struct, frozen=True):
    """The newest messages of a conversation, and a summary of all its messages."""

    # The user's newest messages, oldest first.
    messages: Sequence[WireMessage]
    # The summary of all messages.
    summary: str
    # The usage in the form of a chat completion.
    usage: Json


class CompactionFailed(Exception):
    """The upstream has refused to write the summary."""

    def __init__(self, reply: HeldSink) -> None:
        """reply: the upstream's reply, in the form for a client of chat completions."""
        super().__init__(reply.status)
        self.reply = reply


async def compact(
    chat: Chat,
    request: ChatRequest,
    request_context: RequestContext,
    sink: Sink,
    receipt: Receipt,
    make_view: ViewFactory,
    read_summary: Callable[[WireMessage], str],
) -> ResponseCompaction:
    """Returns the newest messages of a request, and a summary of all.

    sink: the sink of the client that waits for the summary.
    make_view: returns the client view of the chat completion that asks for the summary.
    read_summary: returns the summary that a message has from an earlier compaction, or "".

    Raises: CompactionFailed; GatewayError; ClientGone.
    """
    whole_request = await chat.resolver.resolve_references(request, request_context)
    found_window = await chat.find_context_window(whole_request, request_context)
    window_tokens = found_window or _DEFAULT_WINDOW_TOKENS
    summary = "\n\n".join(filter(None, map(read_summary, whole_request.messages)))
    prompt_tokens = completion_tokens = 0
    lines = list_message_lines(whole_request.messages)
    if not lines:
        raise BadRequest("Invalid 'input': there is no message in it.", param="input", code="empty_array")
    # The notes so far, the question and the answer take less than the other half of the window.
    for part in split_into_parts(lines, min(PART_TOKENS, window_tokens // 2)):
        question = _make_question(request, make_summary_request(summary, part, limit_summary(window_tokens)))
        answer = HeldSink(sink)
        await chat.answer(question, request_context, answer, receipt, make_view)
        if answer.status != 200:
            raise CompactionFailed(answer)
        summary, counts = _read_reply(answer.body)
        prompt_tokens += counts.prompt
        completion_tokens += counts.completion
    newest_messages = await asyncio.to_thread(
        _select_newest, whole_request.messages, request.model, window_tokens // _MESSAGES_DIVISOR
    )
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return ResponseCompaction(newest_messages, summary, usage)


def _make_question(request: ChatRequest, messages: list[WireMessage]) -> ChatRequest:
    """Returns the request for a summary, to the model of a request. messages: the messages that ask for it."""
    body = {"model": request.model, "messages": messages}
    return replace(
        request, raw=orjson.dumps(body), json=body, messages=messages, references=(),
        tool_names=(), has_tools=False, stream=False, token_limit=None, memory_choice=None,
    )  # fmt: skip


class _SummaryReply(NamedTuple):
    """A summary that the model wrote, and the tokens of its completion."""

    # The text of the summary.
    text: str
    # The tokens of the call that made it.
    counts: TokenCounts


def _read_reply(body: bytearray) -> _SummaryReply:
    """Returns the summary in the body of a chat completion.

    Raises: UpstreamReplyBroken: the body is no chat completion, has only the model's thoughts, or was broken off.
    """
    try:
        reply = orjson.loads(body)
        choice = reply["choices"][0]
        text = unwrap_summary(read_text(choice["message"]))
        finish_reason = read_finish_reason(choice.get("finish_reason"))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        raise UpstreamReplyBroken("The upstream's answer is not a chat completion.") from None
    if not text:
        raise UpstreamReplyBroken("The model wrote no summary.")
    if finish_reason == "length":
        text = without_broken_line(text)
    elif finish_reason in CUT_REASONS:
        raise UpstreamReplyBroken("The model's summary was cut off.")
    return _SummaryReply(text, find_reported_counts(reply.get("usage")) or TokenCounts())


def _select_newest(messages: Sequence[WireMessage], model: str, max_tokens: int) -> list[WireMessage]:
    """Returns the user's newest messages, oldest first, with at most `max_tokens` together."""
    count = choose_tokenizer(model).count
    newest_first: list[WireMessage] = []
    free_tokens = max_tokens
    for message in reversed(messages):
        if message.get("role") == "user" and message.get("content"):
            free_tokens -= count_message_tokens(message, count)
            if free_tokens < 0:
                break
            newest_first.append(message)
    return newest_first[::-1]
