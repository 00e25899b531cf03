"""Exports of other applications as their users have them, made small, for tests and benchmarks."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

Talk = Sequence[str]
BEGUN = 1_709_287_200.0  # 2024-03-01 10:00 UTC


def chatgpt_conversation(id: str, talk: Talk, begun: float = BEGUN, **fields: Any) -> dict[str, Any]:
    """A conversation of ChatGPT's, the user first, a minute a message, below the hidden root that each has."""
    root: dict[str, Any] = {"id": "root", "message": None, "parent": None, "children": ["n0"]}
    mapping = {"root": root}
    for i, text in enumerate(talk):
        mapping[f"n{i}"] = chatgpt_node(
            f"n{i}", "root" if not i else f"n{i - 1}", "assistant" if i % 2 else "user", text, begun + 60 * i
        )
    made = {"title": "Some title", "create_time": begun, "mapping": mapping, "conversation_id": id, "id": id}
    return {**made, "current_node": f"n{len(talk) - 1}" if talk else "root", **fields}


def chatgpt_node(
    id: str, parent: str, role: str, text: str | list[Any], at: float | None, **message: Any
) -> dict[str, Any]:
    parts = [text] if isinstance(text, str) else text
    kind = "text" if isinstance(text, str) else "multimodal_text"
    said = {
        "id": id, "author": {"role": role, "name": None, "metadata": {}}, "create_time": at, "update_time": None,
        "content": {"content_type": kind, "parts": parts}, "status": "finished_successfully", "weight": 1.0,
        "metadata": {}, "recipient": "all", **message,
    }  # fmt: skip
    return {"id": id, "message": said, "parent": parent, "children": []}


def claude_conversation(id: str, talk: Talk) -> dict[str, Any]:
    messages = [
        {
            "uuid": f"{id}-{i}", "text": text, "content": [{"type": "text", "text": text}],
            "sender": "assistant" if i % 2 else "human", "created_at": f"2024-03-01T10:{i:02}:00.123456Z",
            "attachments": [], "files": [],
        }
        for i, text in enumerate(talk)
    ]  # fmt: skip
    return {
        "uuid": id, "name": "Some name", "created_at": "2024-03-01T10:00:00Z", "account": {"uuid": "x"},
        "chat_messages": messages,
    }  # fmt: skip


def jsonl_conversation(id: str, talk: Talk) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "id": id,
        "messages": [
            {"role": roles[i % 2], "content": text, "at": BEGUN + 60 * i} for i, text in enumerate(talk)
        ],
    }


def mastra_messages(id: str, talk: Talk) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{id}-{i}", "threadId": id, "role": "assistant" if i % 2 else "user",
            "createdAt": f"2024-03-01T10:{i:02}:00.000Z",
            "content": {"format": 2, "parts": [{"type": "text", "text": text}]},
        }
        for i, text in enumerate(talk)
    ]  # fmt: skip


def export(format: str, talks: dict[str, Talk]) -> bytes:
    """Makes an export with these conversations by their ids, or with a fact for each message of a user."""
    facts = [text for talk in talks.values() for text in talk[::2]]
    if format == "chatgpt":
        return zipped([chatgpt_conversation(id, talk) for id, talk in talks.items()])
    if format == "claude":
        return zipped([claude_conversation(id, talk) for id, talk in talks.items()])
    if format == "jsonl":
        return b"".join(json.dumps(jsonl_conversation(*each)).encode() + b"\n" for each in talks.items())
    if format == "mastra":
        messages = [m for each in talks.items() for m in mastra_messages(*each)]
        return json.dumps({"threads": [{"id": id} for id in talks], "messages": messages}).encode()
    if format == "mem0":
        found = [{"id": str(i), "memory": text, "user_id": "al"} for i, text in enumerate(facts)]
        return json.dumps({"results": [{**f, "created_at": "2024-03-01T10:00:00Z"} for f in found]}).encode()
    lines = "\n".join(f"- [2024-03-01] - {text}" for text in facts)
    return f"# What you know\n\n```\n{lines}\n```\n".encode()


def zipped(conversations: Any, name: str = "conversations.json", **entries: bytes) -> bytes:
    """A ZIP as people download it, with other files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("user.json", "{}")
        archive.writestr(name, json.dumps(conversations))
        for other, data in entries.items():
            archive.writestr(other, data)
    return file.getvalue()
