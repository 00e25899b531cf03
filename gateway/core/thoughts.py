"""Thoughts of a reply: in fields of their own, or in its text between `<think>` and `</think>` (many local servers)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapters.types import READABLE_THOUGHT_FIELDS
from gateway.core.lenient import as_list, as_object, as_text

# Thoughts at the beginning of a reply, or of several rounds of one reply. A thought that was cut has no end.
_THOUGHTS_AHEAD = re.compile(r"(?:\s*+<think>.*?(?:</think>|\Z))+\s*", re.S)
# Templates that open the thought themselves (DeepSeek R1, QwQ) leave its end alone in the reply, on a line of its own.
_END_TAG = re.compile(r"^[ \t]*+</think>[ \t\r]*+$", re.M)


def read_thoughts(message: Mapping[str, Any]) -> str:
    """Returns the readable thoughts of a reply or a delta; "": it has no such thoughts.

    Mistral has thoughts among the parts of the content, each with parts of its own.
    (docs.mistral.ai/capabilities/reasoning)
    """
    for field in READABLE_THOUGHT_FIELDS:
        thoughts = message.get(field)
        if isinstance(thoughts, str) and thoughts:
            return thoughts
    parts = [as_object(part).get("thinking") for part in as_list(message.get("content"))]
    return "".join(
        as_text(thoughts) or "".join(as_text(as_object(part).get("text")) for part in as_list(thoughts))
        for thoughts in parts
    )


def without_thoughts(text: str) -> str:
    """Returns the text of a reply that is meant for its reader."""
    if "think>" not in text:
        return text
    if thoughts := _THOUGHTS_AHEAD.match(text):
        return text[thoughts.end() :]
    end_tag = None if "<think>" in text else _END_TAG.search(text)
    return text if end_tag is None else text[end_tag.end() :].lstrip()
