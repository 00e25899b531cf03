"""Text that somebody else wrote is read in one go, however it was laid out to make a pattern look again and again.

Each row once took a time that grew with the square of its length or faster: minutes to hours, in which nobody else was
answered.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapters import demo
from gateway.agents.tools.signature import make_schema
from gateway.core.conversation.private import make_framed_system_message
from gateway.core.memory.framework_markers import strip_marks
from gateway.core.memory.secret_texts import withhold
from gateway.core.prompt import note_text, shown_blocks
from gateway.core.prompt.summary_frame import render_summary
from gateway.core.tags import escape_tags
from gateway.core.thoughts import without_thoughts
from gateway.core.turn.context_length import find_context_length
from gateway.core.usage.withheld_usage import without_usage
from storage.records import Block

_LENGTH = 1 << 19
_OPEN = "<" + " " * _LENGTH
_NOTE = "Notes from earlier conversations with this user, for reference: quotations, possibly outdated."


def _block(value: str) -> str:
    return shown_blocks.render_section([Block(0, "human", "", value, _LENGTH * 2, False)], "a2b3c4d5")


def _summary(text: str) -> str:
    return render_summary(text, "a2b3c4d5")


def _change(value: str) -> object:
    changes, _ = shown_blocks.list_changes({}, [Block(0, "human", "", value, _LENGTH * 4, False)])
    return shown_blocks.read_shown_by_note(note_text.render_note((), changes, 0.0, mark="a2b3c4d5"))["human"]


def _events(text: str) -> bytes:
    return without_usage(text.encode())


def _tool(described: str) -> object:
    text = f"Add.\n\n    Args:\n        a: One.\n        {described}\n    "
    source = f'def add(a: int) -> int:\n    """{text}"""\n    return a\n'
    return make_schema(source)["name"]


def _demo(text: str) -> object:
    users = [{"role": "user", "content": each} for each in (text, text)]
    offered = [{"type": "function", "function": {"name": "memory_insert"}}]
    return demo.answer({"messages": users, "tools": offered})


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (make_framed_system_message, _OPEN),  # a system message to an agent
        (_block, _OPEN),
        (_summary, _OPEN),
        (escape_tags, _OPEN + "é"),
        (escape_tags, "<m" * _LENGTH + "é"),
        (escape_tags, "</\u200b" * _LENGTH),
        (escape_tags, "＜" + "/" * _LENGTH),
        (_change, "- Memory block" * 100_000),
        (_change, "\n</memory_block\n" * 100_000),
        (note_text.strip_notes, _NOTE + "\\" * _LENGTH),
        (note_text.read_own_words, "<system-reminder>" * 100_000),
        (note_text.read_own_words, "For context:" + "[" * _LENGTH),
        (note_text.read_own_words, "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>" + "<" * _LENGTH),
        (note_text.read_own_words, "a" + "\n\nRuntime: " * 100_000),
        (note_text.read_own_words, "Context information is below.\n---" + "\nQuery: " * 100_000),
        (note_text.read_own_words, "The text between <<<BEGIN_SYSTEM_INSTRUCTION>>> and " + "<" * _LENGTH),
        (strip_marks, "ok" + " ." * _LENGTH + "x"),
        (withhold, "password for " + " " * _LENGTH),
        (withhold, "-eyJaaaaaaaa" * 16_000),
        (without_thoughts, "\n" * _LENGTH + "I think> so."),
        (without_thoughts, "<think></think>" * 100_000 + " " * _LENGTH),
        (find_context_length, "1" * _LENGTH),
        (_events, '"usage"' + "a" * _LENGTH),
        (_events, '"usage"' + "a\n" * _LENGTH),
        (_events, '"usage"' + "a" * _LENGTH + "\r\r"),
        (_tool, "a" + " " * 90_000 + "b"),
        (_demo, "Hello." + "\n" * _LENGTH + "What?"),
        (_demo, "remember: a" + " " * _LENGTH + "b"),
        (_demo, "<" + "a" * _LENGTH),
        (_demo, "<memory " * 100_000),
        (_demo, "<summary>" + "<memory_block " * 100_000),
    ],
    ids=[
        "system",
        "block",
        "summary",
        "tag",
        "tags",
        "unseen",
        "slashes",
        "change",
        "frames",
        "note",
        "reminder",
        "context",
        "openclaw",
        "runtime",
        "template",
        "told",
        "filler",
        "named",
        "token",
        "thought",
        "thoughts",
        "error",
        "event",
        "lines",
        "returns",
        "docstring",
        "demo-lines",
        "demo-spaces",
        "demo-tag",
        "demo-section",
        "demo-block",
    ],
)
def test_a_long_text_is_read_once(read: Callable[[str], object], text: str) -> None:
    assert read(text) is not None or read is find_context_length
