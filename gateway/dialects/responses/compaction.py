"""Compaction items: a conversation's summary, which a client sends back in place of what it covers.

It becomes a system message, so it has no speaker, and is not remembered.
(platform.openai.com/docs/api-reference/responses/compact)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from adapters.types import Json
from gateway.dialects.responses.sealed import is_sealed, seal, unseal
from gateway.errors import BadRequest

KIND: Final = "compaction"
_KEY: Final = "summary"
_BEFORE: Final = "A summary of the conversation up to here, in place of its messages:\n\n"


def compaction_item(id: str, summary: str) -> Json:
    return {"id": id, "type": KIND, "encrypted_content": seal({_KEY: summary})}


def summaries_in(items: Sequence[Any], field: str = "input", items_before: int = 0) -> list[Json]:
    """Returns the compaction items among items as system messages. Raises: BadRequest: another has made one.

    field, items_before: as for `read_items`.
    """
    return [
        read_compaction(item, f"{field}[{index}]")
        for index, item in enumerate(items, -items_before)
        if isinstance(item, dict) and item.get("type") == KIND
    ]


def read_compaction(item: Json, where: str) -> Json:
    """Returns a compaction item as a system message. Raises: BadRequest: the gateway has not made the item."""
    param, content = f"{where}.encrypted_content", item.get("encrypted_content")
    if not is_sealed(content):
        raise _unverified_content(param)
    summary = unseal(content, param).get(_KEY)
    if not isinstance(summary, str):
        raise _unverified_content(param)
    return {"role": "system", "content": _BEFORE + summary}


def read_summary(message: Json) -> str:
    """Returns the summary in a message that `read_compaction` has made; "": the message is another one."""
    content = message.get("content")
    if message.get("role") != "system" or not isinstance(content, str) or not content.startswith(_BEFORE):
        return ""
    return content.removeprefix(_BEFORE)


def _unverified_content(param: str) -> BadRequest:
    return BadRequest(
        f"The encrypted content of '{param}' could not be verified: the gateway has not made it.",
        param=param,
        code="invalid_encrypted_content",
    )
