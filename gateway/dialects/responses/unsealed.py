"""Removes what the gateway has sealed from a request to an upstream that stores responses: it cannot read that."""

from __future__ import annotations

import orjson

from gateway.core.request.edit import BodyEdit
from gateway.dialects.responses.compaction import summaries_in
from gateway.dialects.responses.sealed import SEALED, is_sealed


def without_sealed_items(body: bytes) -> bytes:
    """Returns a request's body without items that the gateway has sealed: the same bytes where there are none.

    Thoughts are another model's, and are left out; a summary becomes a system message. Raises: BadRequest.
    """
    if SEALED.encode() not in body:
        return body
    try:
        json = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    items = json.get("input") if isinstance(json, dict) else None
    if not isinstance(items, list):
        return body
    edit = BodyEdit(body, json, listed="input", text_kind="input_text")
    for index, item in enumerate(items):
        if isinstance(item, dict) and is_sealed(item.get("encrypted_content")):
            edit.replace_message(index, summaries_in([item]))
    return edit.render()
