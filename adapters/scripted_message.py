"""A message that a scripted provider answers with, as a body or a stream of chat completions."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from msgspec import Struct

from adapters.token_counts import BYTES_PER_TOKEN

_TOKEN_PATTERN = re.compile(r"\s*\S+|\s+")
# The tokens of a call besides its arguments, for its name and its form. An estimate, since no model counts them.
_CALL_TOKENS = 4
# The most choices of one reply; a request for more gets one.
_MAX_CHOICES = 16


class ScriptedCall(Struct, frozen=True):
    """A call of a tool."""

    # The name of the tool.
    name: str
    # The arguments of the call, as JSON.
    arguments: str = "{}"
    # The id of the call; None: an id is made.
    id: str | None = None


class ScriptedMessage(Struct, frozen=True):
    """An assistant message."""

    # The text; None: the message has calls alone.
    text: str | None
    # The calls of tools.
    calls: tuple[ScriptedCall, ...] = ()
    # The finish reason; None: "tool_calls" if there are calls, else "stop".
    finish_reason: str | None = None


def render_whole(body: Mapping[str, Any], scripted: ScriptedMessage, number: int) -> dict[str, Any]:
    """Returns a message as a chat completion.

    body: the request.
    number: the number of the reply, from which its ids are made.
    """
    message: dict[str, Any] = {"role": "assistant", "content": scripted.text, "refusal": None}
    if scripted.calls:
        message["tool_calls"] = [
            _render_call(call, number, index, call.arguments) for index, call in enumerate(scripted.calls)
        ]
    choice = {"message": message, "logprobs": None, "finish_reason": _choose_finish_reason(scripted)}
    return {
        **_make_frame(body, number, "chat.completion"),
        "choices": [{"index": index, **choice} for index in range(_read_choice_count(body))],
        "usage": _make_usage(body, scripted),
    }


def render_stream(body: Mapping[str, Any], scripted: ScriptedMessage, number: int) -> Iterable[bytes]:
    """Yields the events of a message as a stream, a token each. The parameters are those of `render_whole`."""
    options = body.get("stream_options") or {}
    wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    frame = _make_frame(body, number, "chat.completion.chunk")
    if wants_usage:
        frame["usage"] = None
    head = {"role": "assistant", "content": None if scripted.text is None else "", "refusal": None}
    deltas: list[tuple[dict[str, Any], str | None]] = [(head, None)]
    deltas += [({"content": token}, None) for token in _split_tokens(scripted)]
    for index, call in enumerate(scripted.calls):
        deltas.append(({"tool_calls": [{"index": index, **_render_call(call, number, index, "")}]}, None))
        for piece in _TOKEN_PATTERN.findall(call.arguments):
            deltas.append(({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, None))
    deltas.append(({}, _choose_finish_reason(scripted)))
    for delta, finish in deltas:
        for choice_index in range(_read_choice_count(body)):
            choice = {"index": choice_index, "delta": delta, "logprobs": None, "finish_reason": finish}
            yield _render_event({**frame, "choices": [choice]})
    if wants_usage:
        yield _render_event({**frame, "choices": [], "usage": _make_usage(body, scripted)})
    yield b"data: [DONE]\n\n"


def _render_event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _make_frame(body: Mapping[str, Any], number: int, object_type: str) -> dict[str, Any]:
    """Returns the fields that a chat completion and each of its chunks have besides their choices."""
    now = int(time.time())
    return {
        "id": f"chatcmpl-{now:x}{number:06x}",
        "object": object_type,
        "created": now,
        "model": body.get("model", "scripted"),
        "system_fingerprint": "fp_scripted",
    }


def _render_call(call: ScriptedCall, number: int, index: int, arguments: str) -> dict[str, Any]:
    """Returns a call of the reply with this number. index: the index of the call in the reply."""
    return {
        "id": call.id or f"call_{int(time.time()):x}{number:04x}{index}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _make_usage(body: Mapping[str, Any], scripted: ScriptedMessage) -> dict[str, int]:
    prompt_tokens = len(orjson.dumps(body.get("messages"))) // BYTES_PER_TOKEN + 1
    completion_tokens = len(_split_tokens(scripted)) + sum(
        len(call.arguments) // BYTES_PER_TOKEN + _CALL_TOKENS for call in scripted.calls
    )
    completion_tokens *= _read_choice_count(body)  # each choice is paid for
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _split_tokens(scripted: ScriptedMessage) -> list[str]:
    return _TOKEN_PATTERN.findall(scripted.text or "")


def _read_choice_count(body: Mapping[str, Any]) -> int:
    """Returns the number of choices that a request asks for (`n`)."""
    count = body.get("n")
    return count if isinstance(count, int) and 0 < count <= _MAX_CHOICES else 1


def _choose_finish_reason(scripted: ScriptedMessage) -> str:
    return scripted.finish_reason or ("tool_calls" if scripted.calls else "stop")
