"""Golden files: what Claude is asked for a chat completion, and what its messages and streams become.

Each file has what comes `in` and what goes `out`. A fix adds a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters.claude.model_traits import SAMPLING_FIELDS
from adapters.claude.reply import translate_message
from adapters.claude.request import translate_request
from adapters.claude.stream import StreamTranslator
from adapters.types import Event
from tests.doubles.anthropic_rules import NEW_VERSION, OLD_VERSION, check_request

ROOT = Path(__file__).parent.parent / "golden" / "anthropic"
CREATED = 1_700_000_000
NOT_STRICT = {"native_fields", "blocks_go_back_in_order"}  # further than the strict upstream can follow


def golden(folder: str, *but: str) -> Any:
    files = sorted(file for file in (ROOT / folder).glob("*.json") if file.stem not in but)
    return pytest.mark.parametrize("file", files, ids=[file.stem for file in files])


def read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


@golden("requests")
def test_a_request_becomes_this_one_and_is_accepted(file: Path) -> None:
    given = read(file)
    marks = '"cache_control"' not in json.dumps(given["in"])
    wire = orjson.dumps(translate_request(given["in"], places_marks=marks))
    assert json.loads(wire) == given["out"]
    version = OLD_VERSION if any(key in given["out"] for key in SAMPLING_FIELDS) else NEW_VERSION
    if file.stem not in NOT_STRICT:
        check_request(wire, {"content-type": "application/json", "anthropic-version": version})


@golden("replies")
def test_a_message_becomes_this_completion(file: Path) -> None:
    given = read(file)
    assert translate_message(given["in"], CREATED) == given["out"]


@golden("streams")
def test_a_stream_becomes_these_chunks_one_by_one(file: Path) -> None:
    given = read(file)
    translator = StreamTranslator(CREATED, wants_usage=given["wants_usage"])
    out: list[Any] = []
    for event in given["in"]:
        made = translator.feed(Event(b"", orjson.dumps(event)))
        assert len(made) <= 1 or event["type"] == "message_stop", "nothing waits for what follows it"
        for event in made:
            if event.data is None:
                out.append(event.raw.decode().strip())
            else:
                assert event.raw == b"data: " + event.data + b"\n\n"
                out.append("[DONE]" if event.data == b"[DONE]" else json.loads(event.data))
    assert out == given["out"]
    assert translator.is_over


@golden("streams", "error_in_the_middle", "interleaved_blocks")
def test_a_stream_says_what_its_whole_message_would(file: Path) -> None:
    """Joined, the deltas are the message; so no reply depends on how it was asked for."""
    given = read(file)
    joined: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for chunk in given["out"]:
        for choice in chunk["choices"] if isinstance(chunk, dict) else ():
            for key, value in choice["delta"].items():
                if key == "tool_calls":
                    for piece in value:
                        call = calls.setdefault(piece["index"], {"name": "", "arguments": ""})
                        for part, text in piece["function"].items():
                            call[part] += text
                elif isinstance(value, list):
                    joined[key] = joined.get(key, []) + value
                elif isinstance(value, str):
                    joined[key] = joined.get(key, "") + value
    assert joined["role"] == "assistant"
    for call in calls.values():
        assert isinstance(json.loads(call["arguments"]), dict)
    twin = ROOT / "replies" / file.name
    if twin.exists() and file.stem not in ("refusal", "plain"):
        message = read(twin)["out"]["choices"][0]["message"]
        for key in ("content", "reasoning_content", "thinking_blocks", "citations"):
            assert joined.get(key) == message.get(key)
