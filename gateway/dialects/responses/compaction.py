"""Compaction items: a conversation's summary, which a client sends back in place of what it covers.

It becomes a system message, so it is nobody's words, and is not remembered.
(platform.openai.com/docs/api-reference/responses/compact)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from adapters.types import Json
from gateway.dialects.responses.input import SEALED, opened
from gateway.errors import BadRequest

KIND: Final = "compaction"
_KEY: Final = "summary"
_BEFORE: Final = "A summary of the conversation up to here, in place of its messages:\n\n"


def compaction_item(id: str, summary: str) -> Json:
    return {"id": id, "type": KIND, "encrypted_content": SEALED + orjson.dumps({_KEY: summary}).decode()}


def summaries_in(items: Sequence[Any]) -> list[Json]:
    """Returns the compaction items of an input as system messages. Raises: BadRequest: one is not the gateway's."""
    found: list[Json] = []
    for index, item in enumerate(items):
        if not isinstance(item, dict) or item.get("type") != KIND:
            continue
        param, sealed = f"input[{index}].encrypted_content", item.get("encrypted_content")
        if not isinstance(sealed, str) or not sealed.startswith(SEALED):
            raise _unverified(param)
        summary = opened(sealed, param).get(_KEY)
        if not isinstance(summary, str):
            raise _unverified(param)
        found.append({"role": "system", "content": _BEFORE + summary})
    return found


def _unverified(param: str) -> BadRequest:
    return BadRequest(
        f"The encrypted content of '{param}' could not be verified: the gateway has not made it.",
        param=param,
        code="invalid_encrypted_content",
    )
