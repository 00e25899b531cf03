"""Adds text to a message, and removes it, whatever the form of the message's content."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.types import Json


def with_text_before(message: Json, text: str, text_kind: str = "text") -> Json:
    """Returns a copy of a message with `text` before its own text.

    The text goes into a string, or into the first part of a list if that part is text; before another part it becomes a
    part of its own. So the model reads the same text in both forms: some clients send the newest message as a list, to
    mark it for the cache, and later as a string. A message with content of any other form is returned as it is.

    text_kind: the `type` of text parts in the message's dialect.
    """
    if not text:
        return message
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": text + content}
    if content is None:
        return {**message, "content": text}
    if not isinstance(content, list):
        return message
    part = content[0] if content else None
    if isinstance(part, dict) and part.get("type") == text_kind and isinstance(part.get("text"), str):
        return {**message, "content": [{**part, "text": text + part["text"]}, *content[1:]]}
    return {**message, "content": [{"type": text_kind, "text": text}, *content]}


def without_text_before(message: Json, text: str) -> Json:
    """Returns a copy of a message without the text that `with_text_before` put before its own, if it begins with it."""
    content = message.get("content")
    if isinstance(content, str) and content.startswith(text):
        return {**message, "content": content[len(text) :]}
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return message
    part = content[0]
    part_text = part.get("text")
    if not isinstance(part_text, str) or not part_text.startswith(text):
        return message
    parts = content[1:] if part_text == text else [{**part, "text": part_text[len(text) :]}, *content[1:]]
    return {**message, "content": parts}


def with_texts_after(message: Json, texts: Sequence[str], text_kind: str) -> Json | None:
    """Returns a copy of a message with texts after its own; None: its content is neither a string nor a list.

    In a string an empty line separates the texts; in a list each text is a part of its own.
    """
    content = message.get("content")
    if not isinstance(content, str | list | None):
        return None
    if isinstance(content, list):
        return {**message, "content": [*content, *({"type": text_kind, "text": text} for text in texts)]}
    return {**message, "content": "\n\n".join(filter(None, (content, *texts)))}


def without_surrogates(text: str) -> str:
    """Returns a text with halves of surrogate pairs replaced: they cannot be sent, and memory must not fail a request.

    A text beyond ASCII is copied, because orjson leaves the UTF-8 form inside each string that it dumps, and notes stay
    in caches for long.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
