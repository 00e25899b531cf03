"""Replies that a model speaks itself (`modalities: ["text", "audio"]`): memory has their transcripts.

The next list has the reply by its id alone. (platform.openai.com/docs/guides/audio)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from gateway.core.conversation.wire_message import read_text
from tests.doubles.upstream import Gate, Reply, StrictUpstream, raw
from tests.gateway.sdk import CHAT, World, remember

Json = dict[str, Any]
SOUND = "UklGRiRsoundZGF0YQAA"
REPLY = "The ferry to Zanzibar leaves at nine."
SPEECH: Json = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "pcm16"}}
APPEND = {"x-mnemogate-conversation": "call-1", "x-mnemogate-history": "append"}


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def streams(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def spoken(id: str, transcript: str, *, streams: bool) -> Reply:
    """Returns a reply as OpenAI's audio models send it."""
    about = {"id": "chatcmpl-1", "created": 1, "model": "gpt-audio"}
    if not streams:
        audio = {"id": id, "data": SOUND, "expires_at": 1_760_003_600, "transcript": transcript}
        message = {"role": "assistant", "content": None, "refusal": None, "audio": audio}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {**about, "object": "chat.completion", "choices": [choice]}
        return raw(orjson.dumps(body), content_type="application/json")
    pieces: list[Json] = [
        {"role": "assistant", "refusal": None, "audio": {"id": id, "transcript": transcript[:10]}},
        {"audio": {"data": SOUND[:8]}},
        {"audio": {"transcript": transcript[10:]}},
        {"audio": {"data": SOUND[8:]}},
        {"audio": {"expires_at": 1_760_003_600}},
    ]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in pieces]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    chunks = [{**about, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
    return raw(*(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in chunks), b"data: [DONE]\n\n")


def asked(content: str) -> Json:
    return {"role": "user", "content": content}


def by_id(id: str) -> Json:
    return {"role": "assistant", "audio": {"id": id}}


def speak(
    world: World,
    messages: list[Json],
    reply: Reply,
    headers: Mapping[str, str] | None = None,
    *,
    streams: bool,
) -> None:
    """Has a model speak. The client gets its bytes as they are."""
    world.upstream.queue(reply)
    found = world.post(messages, headers, user="alice", stream=streams, **SPEECH)
    assert found.status == 200
    assert found.body == b"".join(reply.body or ())


def test_a_spoken_reply_is_recalled(upstream: StrictUpstream, tmp_path: Path, streams: bool) -> None:
    with remember(upstream, tmp_path) as world:
        speak(world, [asked("When does it go?")], spoken("audio_1", REPLY, streams=streams), streams=streams)
        world.chat(user="alice").say("Tell me about the ferry to Zanzibar.")
        assert REPLY in upstream.last.messages[-1]["content"]
        assert SOUND.encode() not in world.data()


def test_a_conversation_goes_on_by_the_ids_of_its_replies(
    upstream: StrictUpstream, tmp_path: Path, streams: bool
) -> None:
    with remember(upstream, tmp_path) as world:
        messages = [asked("When does it go?")]
        for n in range(3):
            speak(world, messages, spoken(f"audio_{n}", REPLY, streams=streams), streams=streams)
            assert [m.get("audio") for m in upstream.last.messages] == [m.get("audio") for m in messages]
            messages += [by_id(f"audio_{n}"), asked(f"And the {n}th after it?")]
        # An application may have the words alone, as after the sound's hour.
        messages[1] = {"role": "assistant", "content": REPLY}
        speak(world, messages, spoken("audio_4", REPLY, streams=streams), streams=streams)
        messages += [by_id("audio_4"), asked("Thank you.")]
        # Of a trimmed list only the id of its first reply says which conversation it is.
        speak(world, messages[-4:], spoken("audio_3", REPLY, streams=streams), streams=streams)
        assert world.query("SELECT count(*) FROM conversations") == [1]
        assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [5]


def test_the_stored_history_has_transcripts(upstream: StrictUpstream, tmp_path: Path, streams: bool) -> None:
    """A sound can be named for an hour, and to its own model."""
    with remember(upstream, tmp_path) as world:
        for n in range(2):
            reply = spoken(f"audio_{n}", REPLY, streams=streams)
            speak(world, [asked(f"When does ferry {n} go?")], reply, APPEND, streams=streams)
        messages = upstream.last.messages
        assert [read_text(m) for m in messages] == ["When does ferry 0 go?", REPLY, "When does ferry 1 go?"]
        assert messages[1] == {"role": "assistant", "content": REPLY}


@pytest.mark.parametrize(
    ("sent", "remembered"),
    [({"role": "assistant", "content": "The ferry to"}, "The ferry to"), (by_id("audio_0"), REPLY)],
    ids=["its words", "its id"],
)
def test_memory_has_the_heard_part_of_a_cut_reply(
    upstream: StrictUpstream, tmp_path: Path, sent: Json, remembered: str
) -> None:
    gate = Gate()
    with remember(upstream, tmp_path) as world:
        reply = spoken("audio_0", REPLY, streams=True)
        upstream.queue(replace(reply, hold_after={3: gate}))
        body = {"model": "m", "user": "alice", "stream": True, **SPEECH}
        messages = [asked("When does it go?")]
        with world.gateway.connect() as client:
            client.request("POST", CHAT, orjson.dumps({**body, "messages": messages}))
            client.read_until(REPLY[10:].encode())
        upstream.last.gone.wait_sync()
        gate.open()
        messages += [sent, asked("Where to?")]
        speak(world, messages, spoken("audio_1", "To Zanzibar.", streams=True), streams=True)
        world.settle()
        assert world.query("SELECT count(*) FROM conversations") == [1]
        replies = world.query("SELECT shown_reply FROM exchanges WHERE active <> 0 ORDER BY seq")
        assert [read_text(orjson.loads(each)) for each in replies] == [remembered, "To Zanzibar."]
