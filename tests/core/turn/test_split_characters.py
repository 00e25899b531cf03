"""A character of which a stream has each half in another delta reaches memory whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.json_escapes import read_json
from gateway.core.turn.commands import Save
from gateway.core.turn.events import ClientLeft, Received, ReplyEnded, ReplyFailed, ReplyStarted, TurnEvent
from gateway.core.turn.split_characters import SplitCharacters
from gateway.core.turn.terms import TurnTerms
from gateway.errors import UpstreamReplyBroken
from tests.core.turn.playbook import DONE, SSE, chat_turn, event, feed_event, join_bodies

HIGH, LOW = "\ud83d", "\ude00"


def joined(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the deltas of one choice as a round reads them; the last one ends it."""
    split, read = SplitCharacters(), []
    for n, delta in enumerate(deltas, 1):
        reason = "stop" if n == len(deltas) else None
        data = json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode()
        chunk, _ = read_json(data)
        split.join(chunk, data)
        read.append(chunk["choices"][0]["delta"])
    assert not split.is_waiting
    return read


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([f"Hm {HIGH}", f"{LOW}."], ["Hm ", "😀."]),
        ([HIGH, LOW, HIGH, LOW], ["", "😀", "", "😀"]),
        ([f"{HIGH}{LOW}{HIGH}", f"{LOW}{HIGH}", LOW], ["😀", "😀", "😀"]),
        # A half without its other one is no character.
        ([HIGH, "a"], ["", "\ufffda"]),
        ([HIGH, HIGH, LOW], ["", "\ufffd", "😀"]),
        ([LOW, f"a{LOW}b"], ["\ufffd", "a\ufffdb"]),
        (["a", HIGH], ["a", "\ufffd"]),
    ],
)
def test_the_halves_of_a_character_become_one(pieces: list[str], texts: list[str]) -> None:
    assert [delta["content"] for delta in joined(*({"content": piece} for piece in pieces))] == texts


def test_a_half_waits_for_the_text_that_it_is_in() -> None:
    call = {"index": 0, "function": {"arguments": f'{{"new_string": "{HIGH}'}}
    rest = {"index": 0, "function": {"arguments": f'{LOW}"}}'}}
    read = joined(
        {"reasoning_content": HIGH}, {"tool_calls": [call]}, {"content": "a"}, {"tool_calls": [rest]}, {}
    )
    assert [delta["tool_calls"][0]["function"]["arguments"] for delta in (read[1], read[3])] == [
        '{"new_string": "',
        '😀"}',
    ]
    assert read[2] == {"content": "a"}
    assert read[4] == {"reasoning_content": "\ufffd"}


def test_calls_without_an_index_keep_their_arguments() -> None:
    """NaN alone has a chunk read again, and some servers number no calls."""
    calls = [{"id": id, "function": {"arguments": f'{{"city": "{id}"}}'}} for id in ("Lyon", "Bonn")]
    choice = {"index": 0, "delta": {"tool_calls": calls}, "logprobs": float("nan")}
    data = json.dumps({"choices": [choice]}).encode()
    chunk, strict = read_json(data)
    assert strict is not data
    SplitCharacters().join(chunk, data)
    assert chunk["choices"][0]["delta"]["tool_calls"] == calls


def test_a_half_before_a_list_of_parts_does_not_end_the_stream() -> None:
    parts = [{"type": "text", "text": "a"}]
    assert joined({"content": HIGH}, {"content": parts}) == [{"content": ""}, {"content": parts}]


@pytest.mark.parametrize(
    "end",
    [
        Received([DONE]),  # as complete as a reply without a finish_reason can be
        ReplyEnded(),
        ReplyFailed(UpstreamReplyBroken("It broke off.")),
        Received([event({"error": {"message": "No.", "type": "server_error"}})]),
        ClientLeft(),
    ],
)
@pytest.mark.parametrize("index", [{"index": 0}, {}])
def test_a_half_at_the_end_of_a_reply_without_a_finish_reason_is_stored_as_the_client_has_it(
    end: TurnEvent, index: dict[str, int]
) -> None:
    text = event(json.dumps({"choices": [{**index, "delta": {"content": f"Hm {HIGH}"}}]}).encode())
    turn = chat_turn(TurnTerms(holds_end=True))
    commands = [
        each
        for happened in (ReplyStarted(200, SSE), Received([text]), end)
        for each in feed_event(turn, happened)
    ]
    (outcome,) = [command.outcome for command in commands if isinstance(command, Save)]
    assert outcome.shown_reply == {"role": "assistant", "content": "Hm \ufffd"}
    assert join_bodies(commands).startswith(text.raw)
