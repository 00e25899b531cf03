"""Small exports in the forms of other applications, for tests and benchmarks."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

# The texts of a conversation, the user's first, then by turns.
Texts = Sequence[str]
# The time of the first message: 2024-03-01 10:00 UTC.
START = 1_709_287_200.0


def chatgpt_conversation(id: str, texts: Texts, begun: float = START, **fields: Any) -> dict[str, Any]:
    """Returns a conversation of ChatGPT's export, with a message each minute below the hidden root.

    begun: the time of the first message, in seconds since the epoch.
    fields: further fields of the conversation.
    """
    root: dict[str, Any] = {"id": "root", "message": None, "parent": None, "children": ["n0"]}
    mapping = {"root": root}
    for i, text in enumerate(texts):
        mapping[f"n{i}"] = chatgpt_node(
            f"n{i}", "root" if not i else f"n{i - 1}", "assistant" if i % 2 else "user", text, begun + 60 * i
        )
    conversation = {"title": "Some title", "create_time": begun, "mapping": mapping}
    conversation |= {"conversation_id": id, "id": id}
    return {**conversation, "current_node": f"n{len(texts) - 1}" if texts else "root", **fields}


def chatgpt_node(
    id: str, parent: str, role: str, text: str | list[Any], at: float | None, **fields: Any
) -> dict[str, Any]:
    """Returns a node of a conversation of ChatGPT's export.

    text: the text of the message, or its parts.
    at: the time of the message, in seconds since the epoch; None: it has none.
    fields: further fields of the message.
    """
    parts = [text] if isinstance(text, str) else text
    kind = "text" if isinstance(text, str) else "multimodal_text"
    message = {
        "id": id, "author": {"role": role, "name": None, "metadata": {}}, "create_time": at, "update_time": None,
        "content": {"content_type": kind, "parts": parts}, "status": "finished_successfully", "weight": 1.0,
        "metadata": {}, "recipient": "all", **fields,
    }  # fmt: skip
    return {"id": id, "message": message, "parent": parent, "children": []}


def claude_conversation(id: str, texts: Texts) -> dict[str, Any]:
    messages = [
        {
            "uuid": f"{id}-{i}", "text": text, "content": [{"type": "text", "text": text}],
            "sender": "assistant" if i % 2 else "human", "created_at": f"2024-03-01T10:{i:02}:00.123456Z",
            "attachments": [], "files": [],
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return {
        "uuid": id, "name": "Some name", "created_at": "2024-03-01T10:00:00Z", "account": {"uuid": "x"},
        "chat_messages": messages,
    }  # fmt: skip


def jsonl_conversation(id: str, texts: Texts) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "id": id,
        "messages": [
            {"role": roles[i % 2], "content": text, "at": START + 60 * i} for i, text in enumerate(texts)
        ],
    }


def mastra_messages(id: str, texts: Texts) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{id}-{i}", "threadId": id, "role": "assistant" if i % 2 else "user",
            "createdAt": f"2024-03-01T10:{i:02}:00.000Z",
            "content": {"format": 2, "parts": [{"type": "text", "text": text}]},
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip


def export(format: str, conversations: dict[str, Texts]) -> bytes:
    """Returns an export with conversations, or with a fact for each message of a user.

    format: a format of `mnemogate import`.
    conversations: id -> the texts of the conversation.
    """
    facts = [text for texts in conversations.values() for text in texts[::2]]
    if format == "chatgpt":
        return zipped([chatgpt_conversation(id, texts) for id, texts in conversations.items()])
    if format == "claude":
        return zipped([claude_conversation(id, texts) for id, texts in conversations.items()])
    if format == "jsonl":
        lines = (json.dumps(jsonl_conversation(id, texts)) for id, texts in conversations.items())
        return b"".join(line.encode() + b"\n" for line in lines)
    if format == "mastra":
        messages = [m for id, texts in conversations.items() for m in mastra_messages(id, texts)]
        return json.dumps({"threads": [{"id": id} for id in conversations], "messages": messages}).encode()
    if format == "mem0":
        created = {"user_id": "al", "created_at": "2024-03-01T10:00:00Z"}
        results = [{"id": str(i), "memory": text, **created} for i, text in enumerate(facts)]
        return json.dumps({"results": results}).encode()
    list_items = "\n".join(f"- [2024-03-01] - {text}" for text in facts)
    return f"# What you know\n\n```\n{list_items}\n```\n".encode()


def zipped(conversations: Any, name: str = "conversations.json", **entries: bytes) -> bytes:
    """Returns a ZIP as users download it. entries: the names and contents of further files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("user.json", "{}")
        archive.writestr(name, json.dumps(conversations))
        for entry_name, data in entries.items():
            archive.writestr(entry_name, data)
    return file.getvalue()
