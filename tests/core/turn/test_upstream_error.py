"""The errors of upstreams, each read in its own form."""

from __future__ import annotations

from types import NoneType
from typing import Any

import orjson
import pytest

from adapters.types import Event
from gateway.core.turn.context_length import find_context_length
from gateway.core.turn.refusal import (
    RefusedContent,
    exceeds_context,
    find_named_context_length,
    find_refused_content,
    is_filter_verdict,
    is_permanent_refusal,
)
from gateway.core.turn.upstream_error import (
    find_error_in_first_event,
    find_error_in_success_body,
    find_openai_error,
    find_stream_exception,
    make_openai_error_of_reply,
)
from gateway.errors import UpstreamRefused, UpstreamReplyBroken


@pytest.mark.parametrize(
    ("status", "body", "message", "code"),
    [
        (429, b'{"error":{"message":"slow","type":"t","code":"c"}}', "slow", "c"),
        (429, b'{"error":{"message":"slow"}}', "slow", 429),
        (400, b'[{"error":{"message":"bad","code":400}}]', "bad", 400),  # Google
        (500, b'{"error":"boom"}', "boom", 500),
        (400, b'{"object":"error","message":"too long","code":400}', "too long", 400),  # vLLM
        (
            400,
            rb'{"error":{"message":"no \ud83d","code":"c"}}',
            "no \ufffd",
            "c",
        ),  # it quotes half a character
    ],
)
def test_errors_of_all_upstreams_have_one_shape(status: int, body: bytes, message: str, code: Any) -> None:
    error = make_openai_error_of_reply(status, body)
    assert (error["message"], error["code"]) == (message, code)
    assert {"message", "type", "param", "code"} <= error.keys()


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]"])
def test_an_error_without_words_names_its_status(body: bytes) -> None:
    error = make_openai_error_of_reply(503, body)
    assert "503" in error["message"]
    assert error["code"] == 503


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        (b'data: {"choices":[]}\n\ndata: {"error":{"message":"x"}}\n\n', UpstreamReplyBroken),
        (b'data:{"object":"error","message":"x"}\r\n\r\n', UpstreamReplyBroken),
        (b'event: error\ndata: {"message":"x"}\n\n', UpstreamReplyBroken),
        (b'event: error\ndata: {"code":"context_length_exceeded","message":"x"}\n\n', UpstreamRefused),
        (b'data: {"error":{"code":429,"message":"x"}}\n\n', UpstreamRefused),
        (b'error: {"code":400,"message":"x"}\n\n', UpstreamRefused),  # an older llama.cpp
        (b'data: {"error":{"message":"x \\ud83d"}}\n\n', UpstreamReplyBroken),
        (b'data: {"choices":[],"error":null}\n\n', NoneType),
        (b'data: {"choices":[{"delta":{"content":"an {\\"error\\":1}"}}]}\n\n', NoneType),
        (b": error\n\ndata: error\n\n", NoneType),
        (b'event: error\n\ndata: {"message":"x"}\n\n', NoneType),
    ],
)
def test_an_error_is_found_among_events(events: bytes, kind: type[object]) -> None:
    assert type(find_stream_exception(events)) is kind


DEEP = orjson.loads("[" * 300 + "]" * 300)


@pytest.mark.parametrize(
    ("chunk", "message", "code"),
    [
        ({"error": {"message": "No.", "code": 502}}, "No.", 502),
        ({"error": "No.", "code": "Invalid argument"}, "No.", "Invalid argument"),  # xAI
        ({"error": "No."}, "No.", None),
        ({"object": "error", "message": "No.", "code": 500}, "No.", 500),  # an older vLLM
        (
            {"object": "error", "message": {"detail": [{"loc": ["user"]}]}},
            '{"detail":[{"loc":["user"]}]}',
            None,
        ),
        ({"error": {"message": None, "type": "x"}}, "The upstream reported an error", None),
        ({"error": ["No.", 7]}, '["No.",7]', None),
        ({"code": 500, "msg": "No.", "success": False}, "No.", 500),  # GLM
        ({"code": "Throttling", "message": "No.", "request_id": "r"}, "No.", "Throttling"),  # Qwen
        (
            {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "No."}},  # MiniMax
            "No.",
            1002,
        ),
        # Nested more deeply than JSON is written here.
        ({"error": {"message": "No.", "code": 502, "cause": DEEP}}, "No.", 502),
        ({"error": {"message": DEEP, "code": DEEP}}, "The upstream reported an error", None),
        ({"error": DEEP, "code": DEEP}, "The upstream reported an error", None),
    ],
)
def test_an_error_is_read_in_each_form_that_upstreams_have(
    chunk: dict[str, Any], message: str, code: Any
) -> None:
    found = find_openai_error(chunk)
    assert found is not None
    assert (found["message"], found["code"]) == (message, code)
    assert orjson.loads(orjson.dumps({"error": found})) == {"error": found}
    assert find_openai_error({"choices": []}) is None


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}},
        {"choices": [{"index": 0}], "base_resp": {"status_code": 1027, "status_msg": "sensitive"}},
        {"code": 200, "msg": "ok", "data": {}},
        {"code": 0, "message": "success"},
        {"code": 500},
        {"type": "message_start", "message": {"id": "m"}, "code": 1},
    ],
)
def test_a_code_alone_is_no_error(chunk: dict[str, Any]) -> None:
    assert find_openai_error(chunk) is None


_MINIMAX = '{"id":"","choices":null,"base_resp":{"status_code":%d,"status_msg":"No."}}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (_MINIMAX % 1002, 429),
        (_MINIMAX % 1004, 401),
        (_MINIMAX % 1008, 402),
        (_MINIMAX % 1026, 400),
        (_MINIMAX % 1000, 500),
        ('{"code":1234,"msg":"No.","success":false}', 500),
        ('{"code":429,"msg":"No."}', 429),
        ('{"error":{"message":"No.","type":"overloaded_error"},"choices":[]}', 529),
        (_MINIMAX % 0, None),
        ('{"choices":[{"index":0}],"error":{"message":"No."}}', None),
        ("<html>error</html>", None),
    ],
)
def test_a_body_that_is_an_error_has_its_status(body: str, status: int | None) -> None:
    found = find_error_in_success_body(body.encode())
    assert (None if found is None else found.status) == status
    if found is not None:
        assert orjson.loads(found.body)["error"]["message"] == "No."


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "m", "code": 429}, 429),
        ({"message": "m", "code": "502"}, 502),
        ({"message": "m", "type": "overloaded_error", "code": None}, 529),
        ({"message": "m", "type": "requests", "code": "rate_limit_exceeded"}, 429),
        ({"message": "m", "type": "BadRequestError", "code": 400}, 400),
        ({"message": "m", "type": "server_error"}, 500),
        ({"message": "m", "code": 7}, 500),
        ({"message": "m", "code": True, "type": []}, 500),
        ("it broke", 500),
    ],
)
def test_a_stream_that_begins_with_an_error_has_its_status(error: Any, status: int) -> None:
    data = orjson.dumps({"error": error})
    found = find_error_in_first_event(Event(b"data: " + data + b"\n\n", data))
    assert found is not None
    assert found.status == status
    assert orjson.loads(found.body) == {"error": find_openai_error({"error": error})}


@pytest.mark.parametrize(
    "event",
    [
        Event(b": error\n\n", None),
        Event(b"data: error\n\n", b"error"),
        Event(b'data: ["error"]\n\n', b'["error"]'),
        Event(b"", b'{"choices":[{"delta":{"content":"an \\"error\\""}}],"error":null}'),
    ],
)
def test_a_text_about_an_error_is_no_error(event: Event) -> None:
    assert find_error_in_first_event(event) is None


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (
            "This model's maximum context length is 8192 tokens. However, you sent 9001 tokens.",
            8192,
        ),
        ("This model's maximum prompt length is 131072 but the request contains 136973 tokens.", 131072),
        ("input length and `max_tokens` exceed context limit: 199759 + 8192 > 200000, decrease it", 200000),
        ("`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3474 `inputs` tokens", 2048),
        ("Prompt contains 40000 tokens, too large for model with 32768 maximum context length", 32768),
        ("prompt is too long: 210000 tokens > 200000 maximum", 200000),
        ("The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).", 1048576),
        ("the request exceeds the available context size (4096 tokens), try increasing it", 4096),
        ('{"error":{"code":400,"type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4096}}', 4096),
        ("maximum context length is 131,072 tokens", 131072),
        (
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 289650",
            272000,
        ),
        ("Invalid request: Your request exceeded model token limit: 262144 (requested: 291351)", 262144),
        ("Please reduce the length of the messages. Current length is 131473 while limit is 131072", 131072),
        ("prompt token count of 131473 exceeds the limit of 128000", 128000),
        ("Range of input length should be [1, 129024]", 129024),
        ("The decoder prompt (length 9001) is longer than the maximum model length of 8192.", 8192),
        ("greater than the context length (n_keep: 9001>= n_ctx: 4096). Try to load the model", 4096),
        ("Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)", 7424),
        ("the model is loaded with context length of only 32768 tokens", 32768),
        ("Input length (26533 tokens) exceeds the maximum allowed length (16384 tokens). Use less", 16384),
        ("Prompt length (5000) exceeds maximum input length (4096). Set log level to info", 4096),
        ("Input validation error: `inputs` must have less than 4095 tokens. Given: 5000", 4095),
        ("too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292.", 4081),
        ("model load failed: n_ctx = 4096 could not be allocated", None),
        # By how much it is exceeded, and the code of the error.
        ("prompt too long; exceeded max context length by 1523 tokens", None),
        ("invalid params, context window exceeds limit (2013)", None),
        ("rate limit reached for gpt-4o: 30000 tokens per min", None),
        ("context length 7", None),
        ("", None),
    ],
)
def test_the_context_is_read_from_an_error(body: str, tokens: int | None) -> None:
    assert find_context_length(body) == tokens


@pytest.mark.parametrize(
    "message",
    [
        "Prompt exceeds max length",  # GLM
        "The number of tokens to keep from the initial prompt is greater than the context length.",  # LM Studio
        "the input length exceeds the context length",  # Ollama
        "prompt too long; exceeded max context length by 1523 tokens",  # Ollama's cloud
    ],
)
def test_an_error_without_a_length_is_about_a_long_request(message: str) -> None:
    assert exceeds_context(orjson.dumps({"error": {"message": message}}), b'{"messages":[]}')


def test_a_length_is_read_whatever_the_request_is_like() -> None:
    deep = b'{"tools":' + b"[" * 300 + b"]" * 300 + b',"x":"maximum context length is 4096"}'
    assert find_context_length("maximum context length is 8192 tokens", deep) == 8192
    assert find_context_length("maximum context length is 4096 tokens", deep) is None
    with_half_a_character = b'{"x":"\\ud83d maximum context length is 4096"}'
    assert find_context_length("maximum context length is 8192 tokens", with_half_a_character) == 8192
    assert find_context_length("maximum context length is 4096 tokens", with_half_a_character) is None


def test_words_that_an_error_repeats_are_no_length_of_its_own() -> None:
    body = b"{\"error\":{\"message\":\"[{'loc': 'content', 'input': 'Why was my prompt too long?'}]\"}}"
    assert exceeds_context(body)
    assert not exceeds_context(
        body, b'{"messages":[{"role":"user","content":"Why was my Prompt too long?"}]}'
    )
    assert exceeds_context(b'{"error":{"message":"prompt too long"}}', b'{"messages":[]}')


def test_an_error_that_was_pasted_into_the_conversation_is_still_about_the_length() -> None:
    message = 'The prompt is too long.\nUse a shorter "prompt".'
    body = orjson.dumps({"error": {"message": message}})
    asked = orjson.dumps({"messages": [{"role": "user", "content": f"What does '{message}' mean?"}]})
    assert exceeds_context(body, asked)


def test_a_length_in_an_error_that_was_pasted_into_the_conversation_counts() -> None:
    message = 'The request exceeds the available context size (4096 tokens), try "increasing" it.'
    request = orjson.dumps({"messages": [{"role": "user", "content": f"What does '{message}' mean?"}]})
    assert find_named_context_length(orjson.dumps({"error": {"message": message}}), request) == 4096
    repeated = orjson.dumps({"error": {"message": f"Input should be valid, not What does '{message}' mean?"}})
    assert find_named_context_length(repeated, request) is None


def test_a_length_that_a_pasted_message_does_not_name_is_the_persons() -> None:
    message, pasted = "Provider returned error", "The maximum context length is 4096 tokens."
    body = orjson.dumps({"error": {"message": message, "metadata": {"raw": f"not valid: {pasted}"}}})
    request = orjson.dumps({"messages": [{"role": "user", "content": f"{message}: {pasted}"}]})
    assert find_named_context_length(body, request) is None


def _claude(message: bytes) -> bytes:
    return b'{"type":"error","error":{"type":"invalid_request_error","message":"%b"}}' % message


@pytest.mark.parametrize(
    ("status", "body", "for_good"),
    [
        (400, b'{"error":{"message":"The prompt was filtered.","code":"content_filter"}}', True),
        (403, b'{"error":{"message":"Flagged.","metadata":{"reasons":["violence"]}}}', True),
        (413, b"", True),
        (422, b'{"error":"the picture cannot be read"}', True),
        # What goes with the next message would be as long.
        (400, b'{"error":{"message":"Too long.","code":"context_length_exceeded"}}', True),
        (400, b'{"object":"error","message":"maximum context length is 8192 tokens"}', False),
        (401, b"{}", False),
        (429, b"{}", False),
        # Of Claude, Gemini, Qwen, Groq, Fireworks, xAI and OpenRouter, about the account.
        (400, _claude(b"Your credit balance is too low to access the Anthropic API."), False),
        (400, _claude(b"You have reached your specified API usage limits."), False),
        (400, b'[{"error":{"code":400,"message":"API key expired.","status":"INVALID_ARGUMENT"}}]', False),
        (400, b'{"error":{"code":400,"message":"User location is not supported for the API use."}}', False),
        (400, _claude(b"This organization has been disabled."), False),
        (
            400,
            b'{"error":{"message":"Organization has been restricted.","code":"organization_restricted"}}',
            False,
        ),
        (
            400,
            b'{"error":{"code":"Arrearage","message":"Make sure your account is in good standing."}}',
            False,
        ),
        (412, b'{"error":{"message":"Account a is suspended, possibly due to the monthly limit."}}', False),
        (403, b'{"code":"The caller does not have permission","error":"You have used all credits."}', False),
        (403, b'{"error":{"code":403,"message":"Key limit exceeded (total limit)."}}', False),
        (403, b'{"error":"Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO"}', True),
        (403, b"<html>Attention Required!</html>", True),
        # What it quotes is the request's.
        (400, _claude(b"messages.0: " + b"x" * 200 + b" my API key"), True),
        (500, b"{}", False),
    ],
)
def test_errors_that_refuse_a_request_for_good(status: int, body: bytes, for_good: bool) -> None:
    assert is_permanent_refusal(status, body) is for_good


_FILTERED, _UNREACHABLE = RefusedContent.FILTERED, RefusedContent.UNREACHABLE


@pytest.mark.parametrize(
    ("status", "error", "refused"),
    [
        # Azure, OpenAI, DeepSeek, Kimi, GLM, Qwen, OpenRouter.
        (400, {"message": "The response was filtered.", "code": "content_filter"}, _FILTERED),
        (400, {"message": "Your prompt was flagged as violating our usage policy."}, _FILTERED),
        (400, {"message": "Content Exists Risk", "type": "invalid_request_error"}, _FILTERED),
        (400, {"message": "The request was rejected because it was considered high risk"}, _FILTERED),
        (400, {"message": "系统检测到输入或生成内容可能包含不安全或敏感内容", "code": "1301"}, _FILTERED),
        (400, {"message": "Input data may be wrong.", "code": "data_inspection_failed"}, _FILTERED),
        (403, {"message": "Flagged.", "metadata": {"reasons": ["violence"]}}, _FILTERED),
        # OpenAI, Claude, Gemini, Groq, Mistral.
        (400, {"message": "Error while downloading https://x.example/safety.png."}, _UNREACHABLE),
        (400, {"message": "Unable to download the file. Please verify the URL."}, _UNREACHABLE),
        (400, {"message": "Cannot fetch content from the provided URL."}, _UNREACHABLE),
        (400, {"message": "failed to retrieve media: received status code: 404"}, _UNREACHABLE),
        (422, {"message": "Image could not be loaded."}, _UNREACHABLE),
        (400, {"message": "Invalid value.", "code": "invalid_image_url"}, _UNREACHABLE),
        # Something else.
        (400, {"message": "Invalid value for 'seed'.", "type": "invalid_request_error"}, None),
        (400, {"message": "maximum context length is 8192 tokens", "code": "context_length_exceeded"}, None),
        (400, {"message": "You have reached your quota for images that were loaded."}, None),
        (403, {"message": "Key limit exceeded (total limit)."}, None),
        (404, {"message": "The image was not found, so it could not be loaded."}, None),
        (500, {"message": "The content filter failed."}, None),
    ],
)
def test_parts_of_a_request_that_errors_refuse(
    status: int, error: Any, refused: RefusedContent | None
) -> None:
    assert find_refused_content(status, orjson.dumps({"error": error})) is refused


def test_a_page_refuses_nothing_of_a_request() -> None:
    assert find_refused_content(400, b"<html>filtered</html>") is None


@pytest.mark.parametrize(
    ("message", "is_verdict"),
    [
        ({}, True),
        ({"role": "assistant", "content": None}, True),
        ({"content": "Plums"}, False),
        ({"tool_calls": [{"function": {"name": "f"}}]}, False),
        ({"function_call": {"name": "f", "arguments": "{"}}, False),
        ({"audio": {"id": "a", "transcript": "Plums"}}, False),
    ],
)
def test_a_filtered_reply_with_an_answer_is_no_verdict_on_the_request(
    message: dict[str, Any], is_verdict: bool
) -> None:
    choice = {"index": 0, "message": message, "finish_reason": "content_filter"}
    assert is_filter_verdict(orjson.dumps({"choices": [choice]})) is is_verdict
