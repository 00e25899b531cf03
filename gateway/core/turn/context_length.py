"""Reads from an upstream's error whether the prompt is too long for the model, and the context length that it names.

An error may repeat the request, so words and numbers that the request has do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import orjson

from adapters.json_escapes import read_json
from adapters.types import Json

# The beginning of an error's message that is read for its cause. Some quote the request after that.
CAUSE_CHARS: Final = 200
# A number with more digits is no context length, and Python refuses to parse thousands of digits.
_MAX_DIGITS = 11
# A smaller number in such a sentence counts something else. Not measured.
_MIN_CONTEXT_TOKENS = 256
# The sentences in which servers name the length of their context; the group is the number.
_CONTEXT_SENTENCES = (
    # "context": OpenAI, vLLM, OpenRouter; "prompt": xAI; "model": vLLM.
    re.compile(r"maximum (?:context|prompt|model) length (?:is|of) (\d[\d,]*)", re.I),
    re.compile(r"configured limit of (\d[\d,]*) tokens", re.I),  # OpenAI, of its fifth generation
    re.compile(r"model token limit: (\d[\d,]*)", re.I),  # Kimi
    re.compile(r"current length is \d+ while limit is (\d[\d,]*)", re.I),  # Cerebras
    re.compile(r"prompt token count of \d+ exceeds the limit of (\d[\d,]*)", re.I),  # GitHub Copilot
    re.compile(r"range of input length should be \[\d+, ?(\d[\d,]*)", re.I),  # Qwen
    re.compile(r"context limit: \d+ \+ \d+ > (\d[\d,]*)", re.I),  # Anthropic, with the reply
    re.compile(r"`max_new_tokens` must be <= (\d[\d,]*)", re.I),  # TGI, with the reply
    re.compile(r"`inputs` must have less than (\d[\d,]*) tokens", re.I),  # TGI
    re.compile(r"input length \(\d+ tokens\) exceeds the maximum allowed length \((\d+)", re.I),  # SGLang
    re.compile(r"prompt length \(\d+\) exceeds maximum input length \((\d+)", re.I),  # TensorRT-LLM
    re.compile(r"number of tokens in the prompt cannot exceed (\d[\d,]*)", re.I),  # Cohere
    re.compile(r"(?<!\d)(\d[\d,]{0,15}) maximum context length", re.I),  # Mistral
    # llama.cpp, in a field of its error; LM Studio. A server that could not load the model names it as well.
    re.compile(r"(?:\"n_ctx\":|>= n_ctx:?) ?\(?(\d+)", re.I),
    # llama.cpp, LM Studio, Groq. Ollama names by how much the context is exceeded, and MiniMax its error's code.
    re.compile(r"context (?:size|length|window)(?! by | exceeds )[^.\d]{0,30}(\d[\d,]*)", re.I),
    re.compile(r"\d tokens > (\d[\d,]*) maximum", re.I),  # Anthropic
    re.compile(r"maximum number of tokens allowed \(?(\d[\d,]*)", re.I),  # Gemini
)
# An escape in a text of JSON.
_ESCAPE = re.compile(r"\\.", re.DOTALL)
# The code and the sentences of errors that may name no length (OpenAI, MiniMax, Ollama, Groq, LM Studio, GLM).
_TOO_LONG_CODE: Final = "context_length_exceeded"
_TOO_LONG: Final = re.compile(
    r"exceeds the context (?:window|length)|context window exceeds|prompt (?:is )?too long"
    r"|input is too long for \w+ model|reduce the length of the messages|context size has been exceeded"
    r"|greater than the context length|prompt exceeds max length"
    r"|max_tokens must be at least 1, got -\d+",  # vLLM, of what the prompt leaves
    re.I,
)


def is_too_long(error: Json, request: bytes = b"") -> bool:
    """Returns whether an error, in OpenAI's form, is about a request that is too long.

    request: the JSON of the request. Words that the error repeats from the request do not count.
    """
    if error.get("code") == _TOO_LONG_CODE:
        return True
    message = str(error.get("message") or "")
    sentences = [match[0].lower() for match in _TOO_LONG.finditer(message[:CAUSE_CHARS])]
    if not sentences or not request:
        return bool(sentences)
    request_text = _normalize_json_text(request)
    if _is_pasted(message, request_text):
        return True
    request_text = request_text.lower()
    return any(sentence not in request_text for sentence in sentences)


def find_context_length(body: str, request: bytes = b"", message: str = "") -> int | None:
    """Returns the context length in tokens that an upstream's error names, or None.

    body: the error as the upstream sent it, since some name the length in a field of their own.
    request: the JSON of the request. A length that the error repeats from it does not count.
    message: the message of the error, by which an error that a person pasted into the request is recognized; "": not
        known.
    """
    lengths = list(_find_context_lengths(body))
    if not lengths or not request:
        return lengths[0] if lengths else None
    request_text = _normalize_json_text(request)
    named_length = next(_find_context_lengths(message), None)
    if named_length is not None and _is_pasted(message, request_text):
        return named_length
    request_lengths = set(_find_context_lengths(request_text))
    return next((length for length in lengths if length not in request_lengths), None)


def _is_pasted(message: str, request_text: str) -> bool:
    """Returns whether a person has pasted an earlier error with the same message into the request.

    The request contains the whole message then. An error that repeats the request has words of its own around it.
    """
    return _normalize_json_text(orjson.dumps(message))[1:-1].lower() in request_text.lower()


def _normalize_json_text(json: bytes) -> str:
    """Returns JSON as a text without escapes, so that a request and an error that repeats it have the same words."""
    if not json:
        return ""
    value, strict_json = read_json(json)  # a client may send half a character
    text = strict_json.decode("utf-8", "replace")
    if value is not None:
        with suppress(orjson.JSONEncodeError):  # orjson reads 1,024 levels, and writes 254
            text = orjson.dumps(value).decode()  # without escaped letters
    return _ESCAPE.sub(" ", text)


def _find_context_lengths(text: str) -> Iterator[int]:
    """Yields the context lengths that a text names."""
    for sentence in _CONTEXT_SENTENCES:
        for match in sentence.finditer(text):
            digits = match[1].replace(",", "")
            if len(digits) <= _MAX_DIGITS and int(digits) >= _MIN_CONTEXT_TOKENS:
                yield int(digits)
