"""Each format is read into what was said, and what is not as it should be is left out without a word of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.imports import chatgpt, claude, simple_formats
from gateway.core.imports.records import SourceConversation, Unreadable, WrongForm, read_time
from tests.exports import START, chatgpt_conversation, chatgpt_node, claude_conversation
from tests.rows import each_row

TALK = ("Hi", "Hello.", "How are you?", "Well.")


def spoken(found: Any) -> list[tuple[str, str]]:
    assert isinstance(found, SourceConversation)
    return [(m.role, m.text) for m in found.messages]


ALL = [("user", "Hi"), ("assistant", "Hello."), ("user", "How are you?"), ("assistant", "Well.")]


def with_nodes(*nodes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The talk with nodes after it or in place of its own."""
    made = chatgpt_conversation("c", TALK)
    made["mapping"].update({node["id"]: node for node in nodes})
    return {**made, **fields}


node = chatgpt_node
HIDDEN = {"metadata": {"is_visually_hidden_from_conversation": True}}
INSTRUCTIONS = {"content_type": "user_editable_context"}
OTHER = [ALL[0], ("assistant", "Other")]
PICTURED = ("user", "[image]\nSpoken\nTyped")
PARTS = [
    {"content_type": "image_asset_pointer", "asset_pointer": "file://x"},
    {"content_type": "audio_transcription", "text": "Spoken"},
    {"content_type": "audio_asset_pointer"},
    "Typed",
]
MARKED = (
    'In \ue200entity\ue202["city","Paris","capital of France"]\ue201 \ue203it rains\ue204 \ue200cite\ue202turn0search0'
    "\ue202turn0news3\ue201. Go \ue200entity\ue202[\ue201 home 【4:0†guide.pdf】【5†source】."
)
UNCLOSED = "\ue200" + "a" * 100_000 + "【1†" * 100_000
UNMARKED = ("assistant", "In Paris it rains. Go home.")


@pytest.mark.parametrize(
    ("item", "talk", "skipped"),
    [
        (chatgpt_conversation("c", TALK), ALL, 0),
        # The branch to the current node counts, and no other.
        (with_nodes(node("b", "n0", "assistant", "Other", 9.0)), ALL, 1),
        (with_nodes(node("b", "n0", "assistant", "Other", 9.0), current_node="b"), OTHER, 3),
        # Without one the newest leaf, and of leaves without dates the last.
        (with_nodes(node("b", "n0", "assistant", "Other", 2e9), current_node=None), OTHER, 3),
        (with_nodes(node("b", "n0", "assistant", "Other", None), current_node="gone"), ALL, 1),
        # Tools, hidden messages, thoughts, custom instructions, empty texts, and words to a tool.
        (with_nodes(node("t", "n3", "tool", "Found", 9.0), current_node="t"), ALL, 1),
        (with_nodes(node("t", "n3", "user", "Hidden", 9.0, **HIDDEN), current_node="t"), ALL, 1),
        (with_nodes(node("t", "n3", "assistant", "print()", 9.0, recipient="python"), current_node="t"), ALL, 1),
        (with_nodes(node("t", "n3", "user", " ", 9.0), current_node="t"), ALL, 1),
        (with_nodes(node("t", "n3", "user", "x", 9.0, content=INSTRUCTIONS), current_node="t"), ALL, 1),
        # A picture, a transcript, sound without one.
        (with_nodes(node("t", "n3", "user", PARTS, 9.0), current_node="t"), [*ALL, PICTURED], 0),
        # Marks of sources, pictures and names.
        (with_nodes(node("t", "n3", "assistant", MARKED, 9.0), current_node="t"), [*ALL, UNMARKED], 0),
        # Marks without an end, of which a text may be full.
        (with_nodes(node("t", "n3", "assistant", UNCLOSED, 9.0), current_node="t"), [*ALL, ("assistant", UNCLOSED)], 0),
        # A parent that is missing is the beginning.
        (with_nodes(node("n0", "lost", "user", "Hi", 9.0)), ALL, 0),
        (chatgpt_conversation("c", ()), [], 0),
    ],
)  # fmt: skip
def test_chatgpt(item: Any, talk: list[tuple[str, str]], skipped: int) -> None:
    found = chatgpt.read_conversation(item)
    assert spoken(found) == talk
    assert isinstance(found, SourceConversation)
    assert (found.id, found.skipped_count) == ("c", skipped)


def test_chatgpt_keeps_dates_and_heeds_what_is_not_to_be_remembered() -> None:
    found = chatgpt.read_conversation(chatgpt_conversation("c", TALK))
    assert isinstance(found, SourceConversation)
    assert [m.at for m in found.messages] == [START + 60 * i for i in range(4)]
    assert found.begun_at == START
    private = chatgpt.read_conversation(chatgpt_conversation("c", TALK, is_do_not_remember=True))
    assert private == Unreadable("it is marked as not to be remembered", 4)


@pytest.mark.parametrize(
    "item",
    [
        [],
        "x",
        {},
        {"mapping": []},
        {"mapping": {"a": 1}},
        {"mapping": {"a": {"parent": 7}}},
        {"mapping": {"a": {"parent": "a"}}, "current_node": "a"},
        {"mapping": {"a": {"parent": "b"}, "b": {"parent": "a"}}},
        with_nodes(node("t", "n3", "user", "a\0b", 9.0), current_node="t"),
        with_nodes(node("t", "n3", "user", "\ud800", 9.0), current_node="t"),
        with_nodes(node("t", "n3", "user", "x" * 10_000_001, 9.0), current_node="t"),
        with_nodes(node("t", "n3", "user", [7], 9.0), current_node="t"),
        with_nodes({"id": "t", "parent": "n3", "message": "x"}, current_node="t"),
        with_nodes({"id": "t", "parent": "n3", "message": {"author": "x", "content": {}}}, current_node="t"),
        with_nodes(node("t", "n3", "user", "x", 9.0, content={"content_type": "text", "parts": "x"}), current_node="t"),
    ],
)  # fmt: skip
def test_chatgpt_of_another_form_is_refused_without_a_quote(item: Any) -> None:
    with pytest.raises(WrongForm, match=r"^(it|its|a|the) [a-zA-Z0-9, ]+$"):
        chatgpt.read_conversation(item)


def claude_with(*messages: dict[str, Any]) -> dict[str, Any]:
    made = claude_conversation("c", TALK)
    return {**made, "chat_messages": [*made["chat_messages"], *messages]}


def linked(found: dict[str, Any], **parents: str) -> dict[str, Any]:
    """The conversation with the name of the message before each."""
    for i, each in enumerate(found["chat_messages"]):
        each["parent_message_uuid"] = parents.get(
            f"m{i}", f"c-{i - 1}" if i else "00000000-0000-4000-8000-000000000000"
        )
    return found  # fmt: skip


BLOCKS = [
    {"type": "thinking", "thinking": "Hm"},
    {"type": "text", "text": "One"},
    {"type": "tool_use", "name": "x", "input": {}},
    {"type": "tool_result", "content": [{"type": "text", "text": "Found"}]},
    {"type": "text", "text": "Two"},
]
UNSUPPORTED = "```\nThis block is not supported on your current device yet.\n```\n"


@pytest.mark.parametrize(
    ("item", "talk", "skipped"),
    [
        (claude_conversation("c", TALK), ALL, 0),
        (claude_with({"sender": "human", "content": BLOCKS}), [*ALL, ("user", "One\nTwo")], 0),
        (claude_with({"sender": "human", "content": [], "text": "Old"}), [*ALL, ("user", "Old")], 0),
        # In place of calls and results the plain text has a notice, which is no text of the reply's.
        (claude_with({"sender": "assistant", "content": BLOCKS[2:4], "text": UNSUPPORTED}), ALL, 1),
        (claude_with({"sender": "human", "content": BLOCKS[2:3], "text": f"Old{UNSUPPORTED}"}),
         [*ALL, ("user", "Old\n")], 0),
        (claude_with({"sender": "human", "text": ""}, {"sender": "system", "text": "x"}), ALL, 2),
        (linked(claude_conversation("c", TALK)), ALL, 0),
        # The third message was asked once more: the path to the newest message is the branch.
        (linked(claude_conversation("c", ("Hi", "Hello.", "Wrong", "x", "Right", "y")), m4="c-1"),
         [*ALL[:2], ("user", "Right"), ("assistant", "y")], 2),
    ],
)  # fmt: skip
def test_claude(item: Any, talk: list[tuple[str, str]], skipped: int) -> None:
    found = claude.read_conversation(item)
    assert spoken(found) == talk
    assert (found.id, found.skipped_count) == ("c", skipped)


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"chat_messages": [1]},
        claude_with({"sender": "human", "text": 7}),
        linked(claude_conversation("c", TALK), m0="c-3"),
        {"chat_messages": [{"parent_message_uuid": "x", "sender": "human"}]},
        {"chat_messages": [{"uuid": "a", "parent_message_uuid": 7}]},
    ],
)
def test_claude_of_another_form_is_refused(item: Any) -> None:
    with pytest.raises(WrongForm):
        claude.read_conversation(item)


@pytest.mark.parametrize(
    ("line", "text", "at"),
    [
        ("Likes tea.", "Likes tea.", None),
        ("- Likes tea.", "Likes tea.", None),
        (" * [2026-03-01] - Likes tea.", "Likes tea.", "2026-03-01"),
        ("12. [2026-03-01]: Likes tea.", "Likes tea.", "2026-03-01"),
        ("[2026-03-01] – Likes tea.", "Likes tea.", "2026-03-01"),
        ("[2026-13-01] - Likes tea.", "Likes tea.", None),
        ("[unknown] - Likes tea.", "Likes tea.", None),
        ("- [Date unknown] - Likes tea.", "Likes tea.", None),
        ("[2026] Likes tea.", "[2026] Likes tea.", None),
        ("-5 degrees is too cold", "-5 degrees is too cold", None),
        ("• 好きなのはお茶", "好きなのはお茶", None),
    ],
)  # fmt: skip
def test_a_line_is_a_fact(line: str, text: str, at: str | None) -> None:
    found = simple_formats.read_fact(line)
    assert found is not None
    assert (found.text, found.at) == (text, None if at is None else read_time(at))


@pytest.mark.parametrize(
    "line", ["", "  ", "# Facts", "## Facts", "```", "```text", "---", "- ", "[2026-03-01] -"]
)
def test_headings_fences_and_blank_lines_are_none(line: str) -> None:
    assert simple_formats.read_fact(line) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hi", "Hi"),
        ([{"type": "text", "text": "Hi"}, {"type": "tool-invocation", "text": "no"}, {"type": "file"}], "Hi"),
        ({"format": 2, "parts": [{"type": "reasoning", "text": "Hm"}, {"type": "text", "text": "Hi"}]}, "Hi"),
        ({"format": 2, "content": "Hi"}, "Hi"),
        (None, ""),
    ],
)  # fmt: skip
def test_the_text_of_a_content(content: Any, text: str) -> None:
    assert simple_formats.read_content_text(content) == text


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (simple_formats.read_conversation, {"messages": "x"}),
        (simple_formats.read_conversation, {"messages": [{"content": "x"}]}),
        (simple_formats.read_conversation, {"messages": [{"role": "user", "content": 7}]}),
        (simple_formats.read_memory, {"text": "x"}),
        (simple_formats.read_fact, "x" * 2_001),
        (simple_formats.read_fact, "a\0b"),
    ],
)
def test_an_item_that_is_no_message_or_fact_is_refused(read: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(WrongForm):
        read(value)


@each_row(
    ("value", "at"),
    [
        (1.5e9, 1.5e9),
        ("2024-03-01T10:00:00Z", START),
        ("2024-03-01T12:00:00+02:00", START),
        ("2024-03-01 10:00:00", START),
        ("1969-12-31T23:59:59Z", -1.0),
        (-1, -1.0),
        ("0001-01-01", -62_135_596_800.0),
        *((wrong, None) for wrong in (True, "soon", 0, "1970-01-01", -62_135_596_801, 10**400, -(10**400), float("nan"),
                                      float("inf"), 1e300, None, [], "9" * 5_000)),
    ],
)  # fmt: skip
def test_dates(value: object, at: float | None) -> None:
    assert read_time(value) == at
