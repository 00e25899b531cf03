"""ChatGPT's export: `conversations.json`, a list of conversations, each a tree of nodes (`mapping`).

The form is not documented; it was read off exports of 2024 to 2026.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gateway.core.imports.branch import get_newest_leaf, list_branch
from gateway.core.imports.records import (
    ROLES,
    SourceConversation,
    SourceMessage,
    Unreadable,
    WrongForm,
    read_id,
    read_time,
    validate_text,
)
from gateway.core.lenient import as_object, as_text, decode_list

# The types of content that has texts.
_TEXT_TYPES: Final = ("text", "multimodal_text")
# The text in the place of an image.
IMAGE: Final = "[image]"
# The types of parts that are images or recordings.
_IMAGE_TYPES: Final = ("image_asset_pointer", "real_time_user_audio_video_asset_pointer")
# A mark in a reply that ChatGPT shows as a link to a source, as pictures or as a name: private characters around its
# kind and its arguments, such as `entity` and ["city","Paris"]. Older replies have their sources in brackets.
_MARK: Final = re.compile(
    "( ?)(?:\ue200(\\w*+)\ue202?([^\ue200\ue201]*+)\ue201|【\\d++(?::\\d++)?†[^【】]*+】)"
)
# The characters around the words of a reply that a source supports, and one that stands in replies without a known
# meaning. Other readers of these replies drop all three.
_SPAN_CHARACTERS: Final = dict.fromkeys(map(ord, "\ue203\ue204\ue206"))


def read_conversation(item: Any) -> SourceConversation | Unreadable:
    """Reads one conversation of the list. Raises: WrongForm."""
    mapping = as_object(item).get("mapping")
    if not isinstance(mapping, dict):
        raise WrongForm("it has no mapping of messages")
    nodes = {node_id: node for node_id, node in mapping.items() if isinstance(node, dict)}
    if len(nodes) < len(mapping):
        raise WrongForm("a node is no object")
    message_count = sum(isinstance(node.get("message"), dict) for node in nodes.values())
    if item.get("is_do_not_remember") is True:
        return Unreadable("it is marked as not to be remembered", message_count)
    parents = {node_id: _read_parent(node, nodes) for node_id, node in nodes.items()}
    if not parents:
        return SourceConversation(_read_conversation_id(item), ())
    leaf = item.get("current_node")
    if not isinstance(leaf, str) or leaf not in nodes:
        times = {node_id: _read_message_time(node) for node_id, node in nodes.items()}
        leaf = get_newest_leaf(parents, times)
    messages = []
    for node_id in list_branch(leaf, parents):
        message = _read_message(nodes[node_id].get("message"))
        if message is not None:
            messages.append(message)
    begun_at = read_time(item.get("create_time"))
    return SourceConversation(_read_conversation_id(item), messages, begun_at, message_count - len(messages))


def _read_conversation_id(item: dict[str, Any]) -> str | None:
    return read_id(item.get("conversation_id")) or read_id(item.get("id"))


def _read_parent(node: dict[str, Any], nodes: dict[str, Any]) -> str | None:
    parent = node.get("parent")
    if parent is not None and not isinstance(parent, str):
        raise WrongForm("the parent of a message is no text")
    return parent if parent in nodes else None


def _read_message_time(node: dict[str, Any]) -> float | None:
    message = node.get("message")
    return read_time(message.get("create_time")) if isinstance(message, dict) else None


def _read_message(message: Any) -> SourceMessage | None:
    """Returns a message that a person has written or read; None: instructions, or a tool's or an empty message."""
    if message is None:
        return None
    fields = as_object(message)
    author = fields.get("author")
    content = fields.get("content")
    if not isinstance(author, dict) or not isinstance(content, dict):
        raise WrongForm("a message has no author or no content")
    role = author.get("role")
    metadata = fields.get("metadata")
    if role not in ROLES or content.get("content_type") not in _TEXT_TYPES:
        return None
    if message.get("recipient", "all") != "all":
        return None
    if isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation"):
        return None
    parts = content.get("parts", [])
    if not isinstance(parts, list):
        raise WrongForm("the parts of a message are no list")
    text = "\n".join(filter(None, map(_read_part, parts)))
    if role == "assistant":
        text = _MARK.sub(_read_mark, text.translate(_SPAN_CHARACTERS))
    text = validate_text(text)
    return SourceMessage(role, text, read_time(message.get("create_time"))) if text.strip() else None


def _read_part(part: Any) -> str:
    """Returns the text of a part of a message. Raises: WrongForm."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise WrongForm("a part of a message is neither text nor object")
    if part.get("content_type") in _IMAGE_TYPES:
        return IMAGE
    # A transcript of speech has its text so.
    return as_text(part.get("text"))


def _read_mark(mark: re.Match[str]) -> str:
    """Returns the text of a mark: the name that it shows, or nothing."""
    space, kind, arguments = mark.groups()
    values = decode_list(arguments) if kind == "entity" else []
    name = as_text(values[1]) if len(values) > 1 else ""
    return space + name if name else ""
