"""Puts text into a message, whatever the form of its content."""

from __future__ import annotations

from collections.abc import Sequence

from adapters.types import Json


def with_text_before(message: Json, text: str, text_kind: str = "text") -> Json:
    """Returns a message with `text` before its own: inside a string, or inside the first part of a list if it is text.

    So the model reads the same text in whichever form the client sends its words: some send the newest message as a
    list, to mark it for the cache, and later as a string. Before parts of another kind the text becomes a part of its
    own. Where the content is neither a string, a list, null nor missing, the message is returned as it is.
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
    first = content[0] if content else None
    if isinstance(first, dict) and first.get("type") == text_kind and isinstance(first.get("text"), str):
        return {**message, "content": [{**first, "text": text + first["text"]}, *content[1:]]}
    return {**message, "content": [{"type": text_kind, "text": text}, *content]}


def without_text_before(message: Json, text: str) -> Json:
    """Returns a message without the text that `with_text_before` has put there; as it is where it has none."""
    content = message.get("content")
    if isinstance(content, str) and content.startswith(text):
        return {**message, "content": content[len(text) :]}
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return message
    first = content[0]
    own = first.get("text")
    if not isinstance(own, str) or not own.startswith(text):
        return message
    parts = content[1:] if own == text else [{**first, "text": own[len(text) :]}, *content[1:]]
    return {**message, "content": parts}


def with_texts_after(message: Json, texts: Sequence[str], text_kind: str = "text") -> Json | None:
    """Returns a message with texts after its own, an empty line between them; each is a part of its own in a list.

    None: the content is neither a string, a list, null nor missing.
    """
    content = message.get("content")
    if not isinstance(content, str | list | None):
        return None
    if isinstance(content, list):
        return {**message, "content": [*content, *({"type": text_kind, "text": text} for text in texts)]}
    return {**message, "content": "\n\n".join(filter(None, (content, *texts)))}


def without_surrogates(text: str) -> str:
    """Replaces halves of surrogate pairs, which cannot be sent: memory never fails a request over one.

    What is not ASCII is copied: orjson leaves its UTF-8 with each text that it writes, and notes are stored for long.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
