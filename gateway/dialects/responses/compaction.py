"""Compaction items: summaries of conversations, which clients send back in place of the summarised messages.

A summary becomes a system message, so it has no speaker, and is not remembered.
(platform.openai.com/docs/api-reference/responses/compact)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from adapters.types import Json
from gateway.dialects.responses.sealed import is_sealed, seal, unseal
from gateway.errors import BadRequest

COMPACTION_TYPE: Final = "compaction"
_SUMMARY_FIELD: Final = "summary"
_SUMMARY_PREFIX: Final = "A summary of the conversation up to here, in place of its messages:\n\n"


def make_compaction_item(item_id: str, summary: str) -> Json:
    """Returns the item with a summary, sealed as in `sealed.py`."""
    return {"id": item_id, "type": COMPACTION_TYPE, "encrypted_content": seal({_SUMMARY_FIELD: summary})}


def make_compaction_messages(items: Sequence[Any], field: str = "input", items_before: int = 0) -> list[Json]:
    """Returns the compaction items among items as system messages.

    field: the request's field with the items, for errors.
    items_before: the number of stored items before the request's own, which positions in errors do not count.

    Raises: BadRequest: such an item has no sealed summary.
    """
    return [
        make_compaction_message(item, f"{field}[{index}]")
        for index, item in enumerate(items, -items_before)
        if isinstance(item, dict) and item.get("type") == COMPACTION_TYPE
    ]


def make_compaction_message(item: Json, path: str) -> Json:
    """Returns a compaction item as a system message. Raises: BadRequest: the item has no sealed summary."""
    param = f"{path}.encrypted_content"
    content = item.get("encrypted_content")
    if not is_sealed(content):
        raise _make_content_error(param)
    summary = unseal(content, param).get(_SUMMARY_FIELD)
    if not isinstance(summary, str):
        raise _make_content_error(param)
    return {"role": "system", "content": _SUMMARY_PREFIX + summary}


def read_summary(message: Json) -> str:
    """Returns the summary in a message that `make_compaction_message` has made; "": any other message."""
    content = message.get("content")
    if (
        message.get("role") != "system"
        or not isinstance(content, str)
        or not content.startswith(_SUMMARY_PREFIX)
    ):
        return ""
    return content.removeprefix(_SUMMARY_PREFIX)


def _make_content_error(param: str) -> BadRequest:
    return BadRequest(
        f"The encrypted content of '{param}' could not be verified: the gateway has not made it.",
        param=param,
        code="invalid_encrypted_content",
    )
