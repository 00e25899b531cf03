"""What asking for the usage of a stream adds is taken out again, to the byte, and nothing else."""

from __future__ import annotations

import pytest

from gateway.core.usage.withheld_usage import without_usage

PLAIN = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a, \\"usage\\":null"}}]}\n\n'


@pytest.mark.parametrize("null", [b',"usage":null', b', "usage": null', b',\n"usage" :null'])
def test_a_null_goes_and_the_rest_stays(null: bytes) -> None:
    assert without_usage(PLAIN.replace(b"]}", b"]%b}" % null)) == PLAIN


def test_the_last_chunk_goes_whole() -> None:
    usage = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":1}}\n\n'
    assert without_usage(PLAIN + usage + b"data: [DONE]\n\n") == PLAIN + b"data: [DONE]\n\n"
    assert without_usage(usage.replace(b"\n", b"\r\n")) == b""


def test_the_last_chunk_of_litellm_goes_too() -> None:
    """Its choice has an empty delta."""
    usage = b'data: {"id":"1","choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":1}}\n\n'
    assert without_usage(PLAIN + usage) == PLAIN


@pytest.mark.parametrize(
    "event",
    [
        PLAIN,
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\n',
        # Some upstreams report with the last text, asked or not: the client had that before.
        b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1}}\n\n',
        b'data: {"choices":[],"usage":{\n\n',
        b'data: {"type":"transcript.text.done","usage":{"input_tokens":1}}\n\n',
        b": a comment\n\n",
    ],
)
def test_all_else_stays(event: bytes) -> None:
    assert without_usage(event) == event
