"""Reads the thoughts of a reply, and removes them from its text.

Providers send thoughts in separate fields. Many local servers leave them in the text, between the tags of the model:
`<think>` of most, `<thought>` of Gemini and EXAONE, `<thinking>` of Nova, `<seed:think>`, and `[THINK]` of Magistral.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from adapters.types import READABLE_THOUGHT_FIELDS
from gateway.core.lenient import as_list, as_object, as_text

# Stands between the thoughts of two rounds, which a client gets as one text. OpenAI's own summaries have paragraphs.
THOUGHTS_SEPARATOR: Final = "\n\n"
# The thoughts at the beginning of a reply, which may come from several rounds. A thought that was cut has no end tag.
_LEADING_THOUGHTS = re.compile(
    r"(?:\s*+(?:<(think|thought|thinking|seed:think)>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)))+\s*",
    re.S,
)
# Some chat templates open the thought in the prompt (DeepSeek R1, QwQ). Then the reply has only the end tag, alone on
# a line.
_END_TAG = re.compile(r"^[ \t]*+</think>[ \t\r]*+$", re.M)


def read_thoughts(message: Mapping[str, Any]) -> str:
    """Returns the readable thoughts of a reply or a delta; "": it has no such thoughts.

    Mistral sends thoughts as parts of the content, and each of them has text parts of its own
    (docs.mistral.ai/capabilities/reasoning).
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


def separate_thoughts(delta: dict[str, Any]) -> bool:
    """Begins the thoughts of a delta with the separator of two rounds. Returns whether the delta has thoughts."""
    fields = [key for key in READABLE_THOUGHT_FIELDS if isinstance(delta.get(key), str) and delta[key]]
    for key in fields:
        delta[key] = THOUGHTS_SEPARATOR + delta[key]
    return bool(fields)


def without_thoughts(text: str) -> str:
    """Returns the text of a reply without the thoughts before it."""
    if thoughts := _LEADING_THOUGHTS.match(text):
        return text[thoughts.end() :]
    if "</think>" not in text or "<think>" in text:
        return text
    end_tag = _END_TAG.search(text)
    return text if end_tag is None else text[end_tag.end() :].lstrip()
