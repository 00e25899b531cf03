"""A strict Anthropic API for tests: the server of `tests.doubles.upstream` with the Messages API.

    with StrictAnthropic(key="sk-ant-own") as upstream:
        upstream.queue(say("Hello"), think("Hm.", text="Hi"), refuse(429, "rate_limit_error", retry_after="1"))

It renders the replies of `tests.doubles.upstream` (`say`, `call_tools`, with their gates and cuts) as messages, and
`message` takes whole lists of blocks. It refuses what the real API refuses (tests/doubles/anthropic_rules.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from tests.doubles.anthropic_rules import PromptCache, Refused, Threads, bind, check_request, sign
from tests.doubles.openai_rules import Refusal
from tests.doubles.upstream import Reply, StrictUpstream, UpstreamRequest, choose_call_id, split_text

Json = dict[str, Any]

_STOPS = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use", "content_filter": "refusal"}


class Message(Reply, frozen=True):
    """A reply with content blocks of its own."""

    # The blocks before the text and the calls of `Reply`.
    blocks: Sequence[Json] = ()
    # Fields that are added to the message.
    fields: Mapping[str, Any] = msgspec.field(default_factory=dict)
    # Fields that are added to the end of the message, beside its stop reason.
    stop: Mapping[str, Any] = msgspec.field(default_factory=dict)


def message(*blocks: Json, text: str | None = None, **options: Any) -> Message:
    return Message(text=text, blocks=blocks, **options)


def think(thinking: str, text: str | None = None, **options: Any) -> Message:
    block = {"type": "thinking", "thinking": thinking, "signature": sign(thinking)}
    return Message(text=text, blocks=[block], **options)


def refuse(
    status: int, kind: str, message: str = "No.", *, retry_after: str | None = None, **headers: str
) -> Reply:
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_refused"}
    lines = {"content-type": "application/json", "request-id": "req_refused", **headers}
    if retry_after is not None:
        lines["retry-after"] = retry_after
    return Reply(status=status, headers=lines, body=[orjson.dumps(body)])


class StrictAnthropic(StrictUpstream):
    """A strict upstream that speaks the Messages API."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Makes the server. The parameters are those of `StrictUpstream`; `key` may also come as `x-api-key`."""
        super().__init__(*args, **options)
        self.cache = PromptCache()
        self.threads = Threads()
        # The reply to requests for a count of tokens; None: the count.
        self.count_reply: Reply | None = None

    def make_provider_headers(self, number: int) -> dict[str, str]:
        return {"request-id": f"req_{number}"}

    def _answer(self, request: UpstreamRequest) -> Reply:
        try:
            self._authorize(request)
            if request.path == "/v1/models" and request.method == "GET":
                return (
                    _make_json_reply(_make_model_list(self.models))
                    if self.model_list is None
                    else _make_raw_reply(self.model_list)
                )
            if request.path.startswith("/v1/models/") and request.path[len("/v1/models/") :] in self.models:
                return _make_json_reply(_make_model_list([request.path[len("/v1/models/") :]])["data"][0])
            path = request.path.partition("?")[0]
            if path == "/v1/files" or path.startswith("/v1/files/"):
                return _make_file_reply(request, path)
            if path not in ("/v1/messages", "/v1/messages/count_tokens") or request.method != "POST":
                raise Refused(f"Not found: {request.method} {request.path}", 404, "not_found_error")
            whole_body = self.threads.read_whole_body(request.body, request.headers)
            request.json = _check(whole_body, request.headers, counts=path.endswith("/count_tokens"))
            if path.endswith("/count_tokens"):
                return self.count_reply or _make_json_reply({"input_tokens": len(whole_body) // 4})
            self.cache.take(request.json)
        except Refused as refused:
            request.refusal = Refusal(str(refused), status=refused.status)
            return _make_json_reply({**refused.body, "request_id": "req_strict"}, refused.status)
        reply = self._replies.popleft() if self._replies else None
        if reply is None and self.script is not None:
            reply = self.script(request)
        reply, number = reply or Reply(), len(self.requests) + 1
        if whole_body is not request.body and reply.body is None and reply.status == 200:
            id_ = _make_message(request.json, reply, number)["id"]
            self.threads.store(request.json, id_, bind(_make_blocks(reply, number), request.json))
        return _render(request.json, reply, number)

    def _authorize(self, request: UpstreamRequest) -> None:
        token = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix(
            "Bearer "
        )
        if self.key is not None and token != self.key:
            raise Refused("invalid x-api-key", 401, "authentication_error")

    @property
    def chats(self) -> list[UpstreamRequest]:
        return [request for request in self.requests if request.path.partition("?")[0] == "/v1/messages"]


def _check(body: bytes, headers: Mapping[str, str], *, counts: bool) -> Json:
    try:
        return check_request(body, headers, counts=counts)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise Refused(f"a field has another form: {error}") from error


def _make_json_reply(value: Json, status: int = 200) -> Reply:
    headers = {"content-type": "application/json", "request-id": "req_strict"}
    return Reply(status=status, headers=headers, body=[orjson.dumps(value)])


def _make_raw_reply(body: bytes) -> Reply:
    return Reply(headers={"content-type": "application/json"}, body=[body])


def _make_file_reply(request: UpstreamRequest, path: str) -> Reply:
    """Returns the reply to a request about files. There is one file, with zeros as its content."""
    if "anthropic-version" not in request.headers:
        raise Refused("anthropic-version: header is required")
    if path.endswith("/content"):
        return Reply(headers={"content-type": "application/octet-stream"}, body=[bytes(5)])
    file = {
        "id": "file_1",
        "type": "file",
        "filename": "cats.txt",
        "mime_type": "text/plain",
        "size_bytes": 5,
    }
    if request.method == "DELETE":
        return _make_json_reply({"id": "file_1", "type": "file_deleted"})
    if request.method == "GET" and path == "/v1/files":
        return _make_json_reply(
            {"data": [file], "has_more": False, "first_id": "file_1", "last_id": "file_1"}
        )
    return _make_json_reply({**file, "created_at": "2026-10-21T00:00:00Z", "downloadable": False})


def _make_model_list(names: Sequence[str]) -> Json:
    created = "2026-10-21T00:00:00Z"
    data = [
        {
            "type": "model",
            "id": name,
            "display_name": name.title(),
            "created_at": created,
            "max_tokens": 4242,
            "max_input_tokens": 200_000,
            "lifecycle": "active",
        }
        for name in names
    ]
    return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _render(body: Json, reply: Reply, number: int) -> Reply:
    """Returns the reply with its body rendered, ready for the server to write."""
    if reply.body is not None:
        return reply
    headers = {"request-id": f"req_{number:06d}", **reply.headers}
    if body.get("stream"):
        headers = {"content-type": "text/event-stream; charset=utf-8", **headers}
        pieces = [
            b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
            for event in _list_events(body, reply, number)
        ]
        if reply.error_after is not None:
            count, error = reply.error_after
            data = orjson.dumps({"type": "error", "error": dict(error), "request_id": "req_late"})
            pieces = [*pieces[:count], b"event: error\ndata: %b\n\n" % data]
        elif not reply.done:
            pieces.pop()
    else:
        headers = {"content-type": "application/json", **headers}
        message_ = _make_message(body, reply, number)
        ended = {**message_, **_make_end(reply)}
        content = bind(_make_blocks(reply, number), body)
        pieces = [orjson.dumps({**ended, "content": content, "usage": _make_usage(body, reply)})]
    return replace(reply, headers=headers, body=pieces)


def _make_message(body: Json, reply: Reply, number: int) -> Json:
    return {
        "id": reply.id or f"msg_{number:06d}",
        "type": "message",
        "role": "assistant",
        "model": reply.model or body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        **(reply.fields if isinstance(reply, Message) else {}),
        **reply.extra,
    }


def _make_blocks(reply: Reply, number: int) -> list[Json]:
    blocks = [dict(block) for block in reply.blocks] if isinstance(reply, Message) else []
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    for index, call in enumerate(reply.calls):
        arguments = orjson.loads(call.text) if call.text else {}
        call_id = choose_call_id(number, index, call).replace("call_", "toolu_")
        blocks.append({"type": "tool_use", "id": call_id, "name": call.name, "input": arguments})
    return blocks


def _make_usage(body: Json, reply: Reply) -> Json:
    if reply.usage is not None:
        return dict(reply.usage)
    output_tokens = len(split_text(reply)) + sum(len(call.text) // 4 + 1 for call in reply.calls)
    return {
        "input_tokens": len(json.dumps(body["messages"])) // 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _make_end(reply: Reply) -> Json:
    reason = reply.finish_reason or ("tool_calls" if reply.calls else "stop")
    end = {"stop_reason": _STOPS.get(reason, reason), "stop_sequence": None}
    return {**end, **(reply.stop if isinstance(reply, Message) else {})}


def _list_events(body: Json, reply: Reply, number: int) -> list[Json]:
    usage = _make_usage(body, reply)
    start_usage = {**usage, "output_tokens": 1}
    events: list[Json] = [
        {"type": "message_start", "message": {**_make_message(body, reply, number), "usage": start_usage}},
        {"type": "ping"},
    ]
    # The index of the text, if the reply has one; the calls come after it.
    text_index = len(_make_blocks(reply, number)) - len(reply.calls) - 1
    for index, block in enumerate(bind(_make_blocks(reply, number), body)):
        start, deltas = split_block(block)
        if block["type"] == "text" and index == text_index and reply.text:
            deltas = [{"type": "text_delta", "text": token} for token in split_text(reply)]
        if index > text_index:
            call = reply.calls[index - text_index - 1]
            pieces = call.split() if call.text not in ("", "{}") else [""]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    is_repeated = re.compile("tokens$|details|iterations").search
    end_usage = {key: value for key, value in usage.items() if is_repeated(key)}
    events.append({"type": "message_delta", "delta": _make_end(reply), "usage": end_usage})
    events.append({"type": "message_stop"})
    return events


def split_block(block: Json) -> tuple[Json, list[Json]]:
    """Returns the start of a block and its deltas, as the API streams a block of its type."""
    match block["type"]:
        case "text":
            cited = [
                {"type": "citations_delta", "citation": citation} for citation in block.get("citations", ())
            ]
            return {"type": "text", "text": ""}, [*cited, {"type": "text_delta", "text": block["text"]}]
        case "thinking":
            words = block["thinking"].split(" ")
            pieces = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces if piece]
            return {**block, "thinking": "", "signature": ""}, [*deltas, signed]
        case "tool_use" | "server_tool_use":
            text = orjson.dumps(block["input"]).decode()
            pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": p} for p in pieces]
    return block, []
