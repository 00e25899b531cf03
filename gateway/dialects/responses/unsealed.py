"""Removes items that the gateway has sealed from a request to an upstream's `/responses`, which cannot read them."""

from __future__ import annotations

from gateway.core.json_limits import check_values
from gateway.core.lenient import as_list, decode_object
from gateway.core.request.edit import BodyEdit
from gateway.dialects.responses.compaction import COMPACTION_TYPE, make_compaction_message
from gateway.dialects.responses.sealed import SEALED_PREFIX, is_sealed


def without_sealed_items(body: bytes) -> bytes:
    """Returns a request's body without items that the gateway has sealed; the same bytes if it has no such items.

    Sealed thoughts, which another model made, are left out; a sealed summary becomes a system message.

    Raises: BadRequest, BodyTooLarge.
    """
    if SEALED_PREFIX.encode() not in body:
        return body
    check_values(body)
    json = decode_object(body)
    edit = BodyEdit(body, json, list_key="input", text_kind="input_text")
    for index, item in enumerate(as_list(json.get("input"))):
        if not isinstance(item, dict) or not is_sealed(item.get("encrypted_content")):
            continue
        if item.get("type") == COMPACTION_TYPE:
            edit.replace_message(index, [make_compaction_message(item, f"input[{index}]")])
        else:
            edit.drop_message(index)
    return edit.render()
