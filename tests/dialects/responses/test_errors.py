"""Upstreams' errors name the fields of chat completions, and the client has sent others."""

from __future__ import annotations

import orjson
import pytest

from gateway.dialects.responses.errors import FIELD_NAMES, translate_error


@pytest.mark.parametrize(
    ("param", "own"),
    [
        ("messages[3].content[0].image_url", "input"),
        ("messages.[1].role", "input"),
        ("messages.2.content", "input"),
        ("messages", "input"),
        ("max_tokens", "max_output_tokens"),
        ("max_completion_tokens", "max_output_tokens"),
        ("reasoning_effort", "reasoning.effort"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("verbosity", "text.verbosity"),
        ("tools[2].function.parameters", "tools[2].parameters"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("temperature", "temperature"),
        ("metadata.messages", "metadata.messages"),
    ],
)
def test_a_field_has_the_clients_name(param: str, own: str) -> None:
    assert FIELD_NAMES.translate_path(param) == own
    body = orjson.dumps({"error": {"message": "No.", "param": param, "code": 7}, "more": [1]})
    assert orjson.loads(translate_error(body) or b"") == {
        "error": {"message": "No.", "param": own, "code": 7},
        "more": [1],
    }


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("Invalid 'messages[1].content': too long.", "Invalid 'input': too long."),
        ("max_tokens: 9 > 8, see `messages`.", "max_output_tokens: 9 > 8, see `input`."),
        ("Your messages resulted in 9 tokens.", "Your messages resulted in 9 tokens."),
        ("Less verbosity, please.", "Less verbosity, please."),
        ("Unsupported value: 'verbosity'.", "Unsupported value: 'text.verbosity'."),
        ("Invalid tools[0].function.name.", "Invalid tools[0].name."),
    ],
)
def test_so_has_a_message(text: str, own: str) -> None:
    assert FIELD_NAMES.translate_sentence(text) == own
    assert orjson.loads(translate_error(orjson.dumps({"message": text})) or b"") == {"message": own}


def test_a_request_that_a_message_quotes_is_not_read() -> None:
    """Of 30 MB it would take six seconds, in which no other request is served."""
    request = "max_tokens: 9 " * 10_000
    assert FIELD_NAMES.translate_sentence(f"max_tokens: 9 > 8.{request}").endswith(request[-100_000:])
    assert FIELD_NAMES.translate_sentence(f"max_tokens: 9 > 8.{request}").startswith(
        "max_output_tokens: 9 > 8."
    )


def test_an_error_that_google_puts_into_a_list_is_an_error() -> None:
    body = b'[{"error":{"message":"max_tokens: no.","code":429}}]'
    assert orjson.loads(translate_error(body) or b"") == {
        "error": {"message": "max_output_tokens: no.", "code": 429}
    }


@pytest.mark.parametrize("body", [b"[]", b"<html>", b""])
def test_an_error_that_is_no_object_is_none(body: bytes) -> None:
    assert translate_error(body) is None
