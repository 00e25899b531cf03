"""The tokens of a body are a quarter of its bytes, but for media."""

from __future__ import annotations

import base64
import json
import random

import orjson
import pytest

from gateway.core.usage.estimate import estimate_prompt_tokens

PICTURE = base64.b64encode(random.Random(7).randbytes(3_000_000)).decode()


@pytest.mark.parametrize("text", ["word " * 10_000, "\u6211\u7684\u732b" * 10_000, "x=1;y=2;" * 5_000, ""])
def test_text_counts_by_its_bytes(text: str) -> None:
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}]})
    assert estimate_prompt_tokens(body) == len(body) // 4


def test_text_counts_whose_letters_are_escaped() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "\u6211\u7684\u732b" * 10_000}]}).encode()
    assert estimate_prompt_tokens(body) == len(body) // 4


@pytest.mark.parametrize("slash", [b"/", b"\\/"])
@pytest.mark.parametrize("data", [PICTURE, f"data:image/png;base64,{PICTURE}"])
def test_a_picture_counts_as_some_thousand_tokens(data: str, slash: bytes) -> None:
    body = orjson.dumps({"messages": [{"role": "user", "content": [{"type": "image", "data": data}]}]})
    assert 0 < estimate_prompt_tokens(body.replace(b"/", slash)) < 3_000
