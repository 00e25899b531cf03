"""Counting tokens, without a network."""

from __future__ import annotations

import base64
import hashlib
import itertools
import socket
import subprocess
import sys
from types import FrameType
from typing import Any

import pytest
import tiktoken_ext.openai_public  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import tokens
from gateway.tokens import (
    Encoding,
    Tokenizer,
    choose_tokenizer,
    count_message_tokens,
    count_upper_bound,
    estimate_media_tokens,
)

ENCODINGS: list[tuple[Encoding, str]] = [
    ("o200k_base", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"),
    ("cl100k_base", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"),
]


def count(text: str, model: str = "gpt-4o") -> int:
    """Of a model whose encoding is published, so without a margin."""
    return choose_tokenizer(model).count(text)


@pytest.mark.parametrize(("name", "digest"), ENCODINGS)
def test_the_packed_ranks_are_the_published_ones(name: Encoding, digest: str) -> None:
    _, ranks = tokens.read_ranks(name)
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    assert hashlib.sha256(b"".join(lines)).hexdigest() == digest


@pytest.mark.parametrize(("name", "digest"), ENCODINGS)
def test_the_split_pattern_is_the_one_of_the_installed_tiktoken(
    name: str, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    assert tokens.read_ranks(name)[0] == getattr(tiktoken_ext.openai_public, name)()["pat_str"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "o200k", "cl100k"),
    [
        ("", 0, 0),
        ("hello world", 2, 2),
        ("antidisestablishmentarianism", 6, 6),
        ("お誕生日おめでとう", 8, 9),  # the example of OpenAI's cookbook for of the encodings' difference
        ("<|endoftext|>", 7, 7),  # a special token somebody typed is plain text
        ("\ud800", 1, 1),  # half a surrogate pair: legal in JSON, counted as the replacement character
    ],
)
def test_tokens_are_counted_as_tiktoken_does(
    text: str, o200k: int, cl100k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert (count(text), count(text, "gpt-4")) == (o200k, cl100k)
    assert count(text) == o200k  # from memory this time


@settings(max_examples=150)
@given(st.text())
def test_bytes_are_an_upper_bound(text: str) -> None:
    assert count(text) <= count_upper_bound(text) == len(text.encode())
    assert choose_tokenizer("llama-3").count(text) <= count_upper_bound(text)


@pytest.mark.parametrize(
    ("model", "encoding", "scale"),
    [
        ("gpt-4", "cl100k_base", 1.0),
        ("gpt-4-turbo", "cl100k_base", 1.0),
        ("ft:gpt-3.5-turbo:acme", "cl100k_base", 1.0),
        ("gpt-4o-mini", "o200k_base", 1.0),
        ("gpt-4.1", "o200k_base", 1.0),
        ("openai/gpt-5", "o200k_base", 1.0),
        ("o4-mini", "o200k_base", 1.0),
        ("qwen3-32b", "o200k_base", tokens.OTHER_SCALE),
        ("", "o200k_base", tokens.OTHER_SCALE),
    ],
)
def test_the_encoding_of_a_model(model: str, encoding: str, scale: float) -> None:
    found = choose_tokenizer(model)
    assert (found.encoding, found.scale) == (encoding, scale)
    assert choose_tokenizer(model) is found


def test_a_stand_in_counts_with_a_margin() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 10
    assert choose_tokenizer("mistral").count(text) == -(-count(text) * 12 // 10)


def test_remembered_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHED_COUNTS", 3)
    tokenizer = Tokenizer("o200k_base")
    assert [tokenizer.count("x " * n) for n in range(1, 8)] == [count("x " * n) for n in range(1, 8)]
    assert len(tokenizer._counts) == 3


def test_threads_may_count_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's count may fall between any two steps of a count, and of the next one."""
    monkeypatch.setattr(tokens, "CACHED_COUNTS", 3)
    tokenizer, texts = Tokenizer("o200k_base"), map(str, itertools.count())
    tokenizer.load()

    def count_before(step: int) -> None:
        """Counts a text, and another one before a step of that."""
        steps = itertools.count()

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code is not Tokenizer.count.__code__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and next(steps) == step:
                tokenizer.count(next(texts))
            return trace

        sys.settrace(trace)
        tokenizer.count(next(texts))

    tracing = sys.gettrace()
    try:
        for first, second in itertools.product(range(0, 150, 5), range(150)):
            count_before(first)
            count_before(second)
    finally:
        sys.settrace(tracing)


@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
def test_a_long_text_is_counted_whatever_it_has(encoding: Encoding) -> None:
    tokenizer = Tokenizer(encoding)
    assert 0 < tokenizer.count(f"a{' ' * 1_000_000}b") < 1_000_000
    words = "the quick brown fox jumps " * 10_000
    # A last token is the blank at its end.
    assert 0 <= tokenizer.count(words) - 50_001 <= 2 * (len(words) // tokens.PIECE_CHARS)


def test_starting_loads_neither_ranks_nor_tiktoken() -> None:
    probe = (
        "import sys, gateway.tokens as t; t.count_upper_bound('x'); "
        "print('tiktoken' in sys.modules, t.choose_tokenizer('gpt-4o').is_loaded)"
    )
    process = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "False"]


BIG = "A" * 400_000


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x/y.png"}}, 1_000),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BIG}"}}, 1_000),  # not its bytes
        ({"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}, 85),
        ({"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}, 85),
        ({"type": "input_audio", "input_audio": {"data": BIG, "format": "wav"}}, 62),
        ({"type": "input_audio", "input_audio": {"data": BIG, "format": "mp3"}}, 200),
        ({"type": "input_audio", "input_audio": {"data": "AA", "format": "mp3"}}, 10),
        ({"type": "input_audio", "input_audio": {"data": BIG, "format": ["odd"]}}, 200),
        ({"type": "file", "file": {"file_data": BIG}}, 10_000),
        ({"type": "file", "file": {"file_id": "file-1"}}, 3_000),
        ({"type": "something_new"}, 1_000),
        ({"type": ["odd"]}, 1_000),
    ],
)
def test_media_are_estimated_by_kind(part: dict[str, object], expected: int) -> None:
    assert estimate_media_tokens(part) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "abc"}, 4 + 3),
        ({"role": "user", "content": None}, 4),
        ({"role": "user", "name": "bo", "content": [{"type": "text", "text": "abc"}, "d"]}, 4 + 2 + 3 + 1),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, 4 + 1_000),
        # Mistral's thoughts are a part with parts of its own.
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "ab" * 1_000}]},
                    {"type": "text", "text": "abc"},
                ],
            },
            4 + 2_000 + 3,
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, 4 + 4 + 3),
        ({"role": "assistant", "tool_calls": [{"custom": {"name": "f", "input": "abc"}}]}, 4 + 4 + 4),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}, 4 + 4 + 3),
        ({"role": 1, "content": 7, "tool_calls": [None, {"function": 3}]}, 4),  # nonsense is no crash
    ],
)
def test_a_message_counts_with_its_calls_and_media(message: dict[str, object], expected: int) -> None:
    assert count_message_tokens(message, len) == expected
