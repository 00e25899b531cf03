"""Conversations of Anthropic's Messages API that another gateway over the same database continues, after a kill too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.doubles.anthropic_rules import sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic
from tests.doubles.upstream import Call, Gate
from tests.gateway.messages.sdk import HELPER_SETTINGS, sent_again, text_of
from tests.gateway.process import Process, serving
from tests.gateway.two.deployment import MODULE, PATIENCE_S, Database

Json = dict[str, Any]
MODEL = "claude-opus-5-5"


@pytest.fixture
def upstream() -> Iterator[StrictAnthropic]:
    with StrictAnthropic() as running:
        yield running


class Gateways:
    """Gateways over one database."""

    def __init__(self, stack: ExitStack, folder: Path, url: str, upstream: StrictAnthropic) -> None:
        self._stack, self._folder, self._url, self._upstream = stack, folder, url, upstream
        self._count = 0

    def start(self) -> tuple[Process, anthropic.Anthropic]:
        where, database = self._folder / f"gateway{self._count}", Database(self._folder / "none", self._url)
        where.mkdir()
        self._count += 1
        settings = HELPER_SETTINGS.format(base_url=self._upstream.base_url)
        process = self._stack.enter_context(
            serving(where, settings=settings, module=MODULE, environ=database.environ)
        )
        sdk = anthropic.Anthropic(
            base_url=f"http://127.0.0.1:{process.port}", api_key="none", max_retries=0, timeout=PATIENCE_S
        )
        return process, self._stack.enter_context(sdk)


@pytest.fixture
def gateways(upstream: StrictAnthropic, tmp_path: Path, url: str) -> Iterator[Gateways]:
    with ExitStack() as stack:
        yield Gateways(stack, tmp_path, url, upstream)


def asked(messages: list[Json]) -> Json:
    return {
        "model": "agent/helper",
        "max_tokens": 100,
        "messages": messages,
        "metadata": {"user_id": "alice"},
    }


def rounds(text: str, **options: Any) -> tuple[Message, Message]:
    """Returns a round that edits memory and the one after it, both with thoughts."""
    before, after = (
        {"type": "thinking", "thinking": words, "signature": sign(words)} for words in ("Tea.", "So.")
    )
    edit = Call("memory_insert", {"label": "human", "new_string": "Likes tea."})
    return Message(blocks=[before], text="One moment.", calls=[edit]), Message(
        blocks=[after], text=text, **options
    )


def test_the_other_gateway_inserts_hidden_rounds_again(gateways: Gateways, upstream: StrictAnthropic) -> None:
    """The upstream refuses thoughts whose prefix has changed."""
    (_, one), (_, two) = gateways.start(), gateways.start()
    upstream.queue(*rounds("Noted."))
    messages: list[Json] = [{"role": "user", "content": "I like tea."}]
    with one.messages.stream(**asked(messages)) as stream:
        reply = stream.get_final_message()
    inner = upstream.last.json["messages"]
    messages += [
        {"role": "assistant", "content": sent_again(reply)},
        {"role": "user", "content": "What do I like?"},
    ]
    assert two.messages.create(**asked(messages)).content[-1].type == "text"
    assert upstream.last.json["messages"][: len(inner)] == inner
    assert b"block_binding" not in upstream.last.body


def test_a_gateway_that_is_killed_in_a_stream_after_a_hidden_round(
    gateways: Gateways, upstream: StrictAnthropic
) -> None:
    """What was heard is taken for heard, and the next gateway goes on with a list that the upstream takes."""
    gate = Gate()
    upstream.queue(*rounds("Noted, with pleasure.", hold_after={8: gate}))
    first, sdk = gateways.start()
    messages: list[Json] = [{"role": "user", "content": "I like tea."}]
    pieces: list[str] = []

    def listen() -> None:
        with sdk.messages.stream(**asked(messages)) as stream:
            for piece in stream.text_stream:
                pieces.append(piece)
                if "Noted" in piece:
                    first.kill()

    with pytest.raises(Exception, match=r"(?i)connection|closed|reset"):
        listen()
    heard = "".join(pieces)
    gate.open()
    _, left = gateways.start()
    messages += [{"role": "assistant", "content": heard}, {"role": "user", "content": "Go on."}]
    assert text_of(left.messages.create(**asked(messages))) == "Ok."
    assert heard.split()[0] == "One"
    messages = [{"role": "user", "content": "And now?"}]
    with left.messages.stream(**asked(messages)) as stream:
        assert text_of(stream.get_final_message()) == "Ok."
