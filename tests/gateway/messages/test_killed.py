"""A gateway that is killed in a native stream with thoughts and hidden rounds, and the next one over the same file.

The strict upstream refuses a thought whose prefix has changed, a call without its result and a result without its call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest
from msgspec.structs import replace

from tests.doubles.anthropic_rules import check_request, sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic
from tests.doubles.upstream import Call, Gate
from tests.gateway.messages.sdk import HELPER_SETTINGS, sent_again, text_of
from tests.gateway.process import Process, serving
from tests.patience import PATIENCE_S

Json = dict[str, Any]


@pytest.fixture
def upstream() -> Iterator[StrictAnthropic]:
    with StrictAnthropic() as running:
        yield running


@contextmanager
def gateway(where: Path, upstream: StrictAnthropic) -> Iterator[tuple[Process, anthropic.Anthropic]]:
    settings = HELPER_SETTINGS.format(base_url=upstream.base_url)
    with serving(where, settings=settings) as process:
        url = f"http://127.0.0.1:{process.port}"
        with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S) as sdk:
            yield process, sdk


def complete(sdk: anthropic.Anthropic, messages: list[Json]) -> tuple[Any, str]:
    """Returns a reply, and the name of its conversation."""
    raw = sdk.messages.with_raw_response.create(**asked(messages))
    return raw.parse(), raw.headers["x-mnemogate-conversation"]


def asked(messages: list[Json]) -> Any:
    return {
        "model": "agent/helper",
        "max_tokens": 100,
        "messages": messages,
        "metadata": {"user_id": "alice"},
    }


def rounds(fact: str, text: str) -> tuple[Message, Message]:
    """Returns a round that notes a fact and the one after it, both with thoughts."""
    before, after = (
        {"type": "thinking", "thinking": words, "signature": sign(words)}
        for words in (f"To note: {fact}", f"Noted: {fact}")
    )
    edit = Call("memory_insert", {"label": "human", "new_string": fact})
    return Message(blocks=[before], text="One moment.", calls=[edit]), Message(blocks=[after], text=text)


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def listen_until(events: Any, sign_of_end: str) -> str:
    """Returns the text that has come when an event has these words. Raises: AssertionError: the stream has ended."""
    heard = ""
    for event in events:
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            heard += event.delta.text
        if sign_of_end in str(event):
            return heard
    raise AssertionError(f"no event has {sign_of_end!r}")


@pytest.mark.parametrize("sends_again", [True, False], ids=["again", "on"])
@pytest.mark.parametrize(
    ("rounds_asked", "events", "last"),
    [
        (1, 4, "thinking_delta"),
        (2, 0, "moment"),  # as the result of the hidden call arrives
        (2, 12, "Noted,"),
        (2, 15, "pleasure."),  # all but the last event has come, and the gateway holds the one before
    ],
    ids=["in a thought", "between rounds", "in the text", "before the end"],
)
def test_the_next_gateway_goes_on_with_all_that_was_finished(
    upstream: StrictAnthropic, tmp_path: Path, rounds_asked: int, events: int, last: str, sends_again: bool
) -> None:
    """events: of the round in which the gateway is killed. last: the words of the last event that the client gets."""
    with gateway(tmp_path, upstream) as (process, sdk):
        upstream.queue(*rounds("Likes tea. ", "Noted."))
        talk = [user("I like tea.")]
        reply, conversation = complete(sdk, talk)
        talk += [{"role": "assistant", "content": sent_again(reply)}, user("I like cake.")]
        finished = upstream.last.json["messages"]
        gate = Gate()
        replies = [*rounds("Likes cake. ", "Noted, with pleasure.")]
        held = {"hold_after": {events: gate}} if events else {"hold_before_headers": gate}
        replies[rounds_asked - 1] = replace(replies[rounds_asked - 1], **held)
        upstream.queue(*replies)
        arrived = upstream.request_gate(len(upstream.requests) + rounds_asked)
        with sdk.messages.create(**asked(talk), stream=True) as stream:
            heard = listen_until(stream, last)
            arrived.wait_sync()
            process.kill()
        gate.open()
    upstream.forget_replies()
    with gateway(tmp_path, upstream) as (_, sdk):
        if sends_again:
            upstream.queue(*rounds("Likes cake. ", "Noted, with pleasure."))
        elif heard:
            talk += [{"role": "assistant", "content": heard}, user("Go on.")]
        else:
            talk[-1] = user("I like cake. Go on.")
        reply, named = complete(sdk, talk)
        assert named == conversation
        assert upstream.last.json["messages"][: len(finished)] == finished
        # No thought has to be dropped.
        strict = {key: value for key, value in upstream.last.json.items() if key != "thinking"}
        check_request(orjson.dumps(strict), upstream.last.headers)
        assert text_of(reply) == ("One moment.Noted, with pleasure." if sends_again else "Ok.")
        # What the newest turn has edited is another conversation's when the talk has gone on.
        complete(sdk, [*talk, {"role": "assistant", "content": sent_again(reply)}, user("Good?")])
        complete(sdk, [user("What do I like, tea or cake?")])
        section, note = str(upstream.last.json["system"]), str(upstream.last.json["messages"])
        assert section.count("Likes tea.") == 1
        assert section.count("Likes cake.") == int(sends_again)
        assert note.count("user: I like tea.") == note.count("user: I like cake.") == 1
