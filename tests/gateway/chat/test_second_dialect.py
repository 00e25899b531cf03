"""A client of another dialect, from its request to the last byte: only its view knows what it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.core.turn.client_view import UnseenView, ViewFactory
from gateway.core.turn.commands import TurnOutcome
from gateway.dialects.chat.parse import parse
from gateway.dialects.chat.render import ChatView
from gateway.errors import UpstreamReplyBroken
from gateway.run.receipt import Receipt
from gateway.run.request_context import RequestContext
from tests.doubles.lines_view import LinesView
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.sdk import agent, remember
from tests.server import RunningGateway, serve, settings_for

HELLO: dict[str, Any] = {
    "model": "m",
    "user": "alice",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
}


class Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.has_started = self.is_gone = False
        self.body = b""

    def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.has_started = True

    async def write(self, data: bytes) -> None:
        self.body += data

    async def end(self) -> None:
        pass

    async def send_body(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.body = body

    def cancel_on_leave(self) -> AbstractContextManager[None]:
        return nullcontext()


def answer(gateway: RunningGateway, view: ViewFactory, **fields: Any) -> list[str]:
    async def ask() -> bytes:
        sink, request = Collected(), parse(orjson.dumps({**HELLO, **fields}))
        receipt = Receipt()
        await gateway.app.services.chat.answer(request, RequestContext((), "default"), sink, receipt, view)
        return sink.body

    return gateway.call(ask()).decode().splitlines()


def test_a_hidden_tool_round_is_shown_in_its_form(upstream: StrictUpstream, tmp_path: Path) -> None:
    edit = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    with remember(upstream, tmp_path, agent()) as world:
        upstream.queue(call_tools(edit), say("Noted."))
        lines = answer(world.gateway, LinesView, model="agent/helper")
    words = [line.partition(" ")[0] for line in lines]
    assert words == ["begin", "round", "gateway", "result", *["text"] * words.count("text"), "end"]
    assert "".join(line[5:] for line in lines if line.startswith("text ")) == "Noted."


def test_a_reply_without_memory_is_not_passed_on_in_the_upstreams_form(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream)) as gateway:
        upstream.queue(say("Hi."), say("Hi."))
        lines = answer(gateway, LinesView)
        assert lines[0].startswith("begin ")
        assert lines[-1].startswith("end stop")
        assert answer(gateway, ChatView)[-2:] == ["data: [DONE]", ""]


class WholeView(UnseenView):
    """A view that answers in one body, whatever the upstream does."""

    def render_body(self, body: bytes, outcome: TurnOutcome, *, is_unchanged: bool) -> bytes:
        model = orjson.loads(body)["model"]
        return f"{model} {outcome.text} {outcome.finish_reason}".encode()


def test_a_view_of_whole_replies_shows_one_that_streams_unasked(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    edit = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    with remember(upstream, tmp_path, agent()) as world:
        upstream.queue(say("Hi.", streams=True), call_tools(edit, streams=True), say("Noted.", streams=True))
        assert answer(world.gateway, WholeView, model="agent/helper", stream=False) == ["m Hi. stop"]
        assert answer(world.gateway, WholeView, model="agent/helper", stream=False) == ["m Noted. stop"]


def test_a_view_of_whole_replies_gets_a_status_for_an_error_in_a_stream(upstream: StrictUpstream) -> None:
    with serve(settings_for(upstream)) as gateway:
        error = {"message": "Overloaded.", "type": "server_error"}
        upstream.queue(say("Hi.", streams=True, error_after=(2, error)))
        with pytest.raises(UpstreamReplyBroken, match="Overloaded"):
            answer(gateway, WholeView, stream=False)
