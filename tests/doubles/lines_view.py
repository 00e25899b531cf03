"""A second dialect: a reply as lines of text, one for each thing that happens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from adapters.types import Event
from gateway.core.turn.chunks import is_first_choice
from gateway.core.turn.client_view import MAX_HELD_BYTES, ClientView, ReplyEvent
from gateway.core.turn.commands import TurnOutcome
from gateway.core.turn.terms import TurnTerms
from gateway.core.turn.tool_call import ToolCall
from gateway.core.turn.tool_result import ToolResult
from gateway.errors import GatewayError

# The lines that wait for one of another kind: up to then an error is a status.
_HELD_WORDS: Final = frozenset(("begin", "thought"))


class LinesView(ClientView):
    """Shows everything that happens, each as one line: a word for its kind, and its value.

    client: a piece of a call of the client's tools. gateway: a call of the gateway's own, as a dialect of agents shows
    it.
    """

    def __init__(self, terms: TurnTerms) -> None:
        self._lines: list[bytes] = []
        self._finish = "stop"
        self._usage: Any = None
        self._is_holding, self._held_bytes = True, 0

    def _line(self, word: str, rest: object) -> None:
        line = f"{word} {rest}\n".encode()
        self._lines.append(line)
        self._held_bytes += len(line)
        if word not in _HELD_WORDS or self._held_bytes > MAX_HELD_BYTES:
            self._is_holding = False

    def take(self) -> bytes:
        if self._is_holding:
            return b""
        data = b"".join(self._lines)
        self._lines.clear()
        return data

    def release(self) -> None:
        self._is_holding = False

    def begin(self, first: dict[str, Any]) -> None:
        self._line("begin", first["id"])

    def show(self, event: ReplyEvent) -> None:
        for choice in event.choices:
            if not is_first_choice(choice):
                continue
            delta = choice.get("delta") or {}
            if delta.get("content"):
                self._line("text", delta["content"])
            self.add_calls(delta.get("tool_calls") or [] if event.calls is None else event.calls)
            self._finish = choice.get("finish_reason") or self._finish
        if event.chunk is not None:
            self._usage = event.usage or event.chunk.get("usage") or self._usage

    def show_texts(self, batch: Sequence[Event], texts: Sequence[str]) -> bool:
        for text in filter(None, texts):
            self._line("text", text)
        return True

    def add_text(self, text: str) -> None:
        self._line("text", repr(text))

    def add_thought(self, text: str) -> None:
        self._line("thought", text)

    def add_calls(self, calls: list[dict[str, Any]]) -> None:
        for call in calls:
            self._line("client", call["function"])

    def hide_round(self, tail: Sequence[ReplyEvent]) -> None:
        for each in tail:
            self.show(each)
        self._line("round", "over")

    def end(self, tail: Sequence[ReplyEvent], finish_reason: str | None, done: bytes) -> None:
        for each in tail:
            self.show(each)
        self._line(
            "end", f"{finish_reason or self._finish} {self._usage and self._usage['completion_tokens']}"
        )

    def note_not_durable(self) -> None:
        self._line("not", "durable")

    def show_calls(self, calls: Sequence[ToolCall]) -> None:
        for call in calls:
            self._line("gateway", f"{call.name} {call.arguments_text}")

    def show_tool_result(self, result: ToolResult) -> None:
        self._line("result", result.content)

    def begin_step(self, first_seq: int, reply_seq: int) -> None:
        self._line("step", f"{first_seq} {reply_seq}")

    def show_upstream_error(self, error: dict[str, Any], raw: bytes | None) -> None:
        self._line("error", error["message"])

    def fail(self, error: GatewayError) -> None:
        self._line("error", f"{error.status} {error.message}")

    def render_body(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        tokens = outcome.usage and outcome.usage["completion_tokens"]
        return f"whole {outcome.text} {outcome.finish_reason} {len(outcome.full_reply)} {tokens}".encode()

    def render_error_body(self, status: int, body: bytes) -> bytes:
        return f"refused {status} {orjson.loads(body)['error']['message']}".encode()
