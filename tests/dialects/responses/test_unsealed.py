"""What the gateway has sealed does not reach an upstream that stores responses."""

from __future__ import annotations

import orjson
import pytest

from adapters.types import Json
from gateway.dialects.responses.compaction import make_compaction_item
from gateway.dialects.responses.sealed import seal
from gateway.dialects.responses.unsealed import without_sealed_items
from gateway.errors import BadRequest

ASKED: Json = {"role": "user", "content": "Why?"}
THOUGHTS: Json = {"type": "reasoning", "encrypted_content": seal({"model": "m", "reasoning": "Hm."})}


def test_half_a_character_does_not_hide_a_sealed_item() -> None:
    body = orjson.dumps({"input": [THOUGHTS, {**ASKED, "content": "Why? HALF"}]})
    sent = without_sealed_items(body.replace(b"HALF", rb"\ud83d"))
    assert orjson.loads(sent) == {"input": [{**ASKED, "content": "Why? \ufffd"}]}


def test_a_sealed_item_that_is_wrong_is_named() -> None:
    wrong = {**THOUGHTS, "type": "compaction"}
    with pytest.raises(BadRequest) as raised:
        without_sealed_items(orjson.dumps({"input": [make_compaction_item("cmp_1", "Boats."), ASKED, wrong]}))
    assert raised.value.param == "input[2].encrypted_content"
