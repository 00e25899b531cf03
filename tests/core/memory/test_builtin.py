"""The agents' own tools: their schemas are sound, and each call means one thing or is an error that says why."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gateway.agents.core.kinds import KINDS
from gateway.core.dates import END_OF_DATES_S
from gateway.core.memory.block_edit import BlockEdit, apply_edit
from gateway.core.memory.builtin import (
    BUILT_IN_TOOLS,
    SPEAKING_TOOLS,
    ToolUse,
    find_tool_entry,
    list_built_in_tools,
)
from gateway.core.memory.edit_calls import RefusedCall, read_edit_calls
from gateway.core.memory.memory_lookup import Lookup, read_lookup
from gateway.core.memory.memory_tools import EditOperation
from storage.records import Block
from tests.rows import each_row

NOW = 1_772_000_000.0  # 2026-02-25 06:13:20 UTC
REPLACING = {"command": "str_replace", "old_string": "a", "new_string": ""}
UPDATE = "*** Begin Patch\n*** Update Block:"
ALL = frozenset({"message", "passage", "fact"})


def block(value: str, limit: int = 100, *, read_only: bool = False) -> Block:
    return Block(1, "human", "", value, limit, read_only)


def test_every_kind_of_agent_begins_with_tools_that_are_there() -> None:
    for kind in KINDS.values():
        assert set(kind.tools) <= BUILT_IN_TOOLS.keys()
    assert list_built_in_tools(ToolUse.SPEAK) == (*SPEAKING_TOOLS,)


@each_row("name", BUILT_IN_TOOLS)
def test_a_schema_describes_each_argument_and_requires_only_these(name: str) -> None:
    definition = find_tool_entry(name)
    assert definition is not None
    parameters = definition["function"]["parameters"]
    assert set(parameters["required"]) <= parameters["properties"].keys()
    assert all(each["description"] for each in parameters["properties"].values())
    assert definition["function"]["description"]


def test_an_unknown_name_has_no_definition() -> None:
    assert find_tool_entry("get_weather") is None


@pytest.mark.parametrize(
    ("name", "arguments", "before", "after"),
    [
        ("core_memory_append", {"content": "b"}, "a", "a\nb"),
        ("core_memory_replace", {"old_content": "a", "new_content": "c"}, "a b a", "c b c"),
        ("memory_insert", {"new_string": "b", "insert_line": 0}, "a", "b\na"),
        ("memory_replace", {"old_string": "a", "new_string": "c"}, "a b", "c b"),
        ("memory_rethink", {"new_memory": "c"}, "a", "c"),
        ("memory", {**REPLACING, "path": "/memories/human"}, "a b", " b"),
        ("memory", {"command": "insert", "path": "human", "insert_line": 1, "insert_text": "x"}, "a\nb", "a\nx\nb"),
        ("memory_apply_patch", {"patch": " a\n-b\n+c"}, "a\nb\nd", "a\nc\nd"),
        ("memory_apply_patch", {"patch": "@@ first @@\n-a\n+A\n@@\n d\n+e\n"}, "a\nb\nd", "A\nb\nd\ne"),
        ("memory_apply_patch", {"patch": "--- a\n+++ b\n@@\n+only"}, "", "only"),
        ("memory_apply_patch", {"patch": "@@\n--- old\n+-- new"}, "a\n-- old\nc", "a\n-- new\nc"),
        ("memory_apply_patch", {"patch": "@@\n-c\n+++ c"}, "a\nc", "a\n++ c"),
        ("memory_apply_patch", {"patch": "--- old\n+++ new"}, "a\n-- old\nc", "a\n++ new\nc"),
        ("memory_apply_patch", {"patch": f"{UPDATE} human\n--- a\n+++ b\n@@\n-a\n+b"}, "a", "b"),
        ("memory_apply_patch", {"patch": f"{UPDATE} human\n a\n\n-b\n*** End Patch"}, "a\n\nb", "a\n"),
    ],
)  # fmt: skip
def test_an_edit_changes_the_block(name: str, arguments: dict[str, Any], before: str, after: str) -> None:
    calls = read_edit_calls(name, {"label": "human", **arguments} if "path" not in arguments else arguments)
    (call,) = calls
    assert call.label == "human"
    assert apply_edit(call.op, call.arguments, block(before)).value == after


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"command": "create", "path": "/memories/new"}, "`create` is not possible here"),
        ({"command": "delete", "path": "/memories/human"}, "`delete` is not possible here"),
        ({"command": "rename", "old_path": "/memories/human"}, "`rename` is not possible here"),
        ({"command": "insert", "path": "human"}, "`insert` needs `insert_text`"),
        ({"command": "str_replace", "old_string": "a", "new_string": "b"}, "`str_replace` needs `path`"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedCall, match=rf"^Error: .*{words}"):
        read_edit_calls("memory", arguments)


def test_a_patch_may_edit_several_blocks() -> None:
    patch = "*** Begin Patch\n*** Update Block: human\n-a\n*** Update Block: persona\n+b\n*** End Patch"
    assert read_edit_calls("memory_apply_patch", {"label": "x", "patch": patch}) == [
        BlockEdit(EditOperation.PATCH, {"label": "human", "patch": "-a"}),
        BlockEdit(EditOperation.PATCH, {"label": "persona", "patch": "+b"}),
    ]


@pytest.mark.parametrize("patch", ["", "*** Delete Block: human", "*** Add Block: new\n+a"])
def test_a_patch_that_cannot_be_done_says_why(patch: str) -> None:
    with pytest.raises(RefusedCall, match=r"^Error: "):
        read_edit_calls("memory_apply_patch", {"label": "human", "patch": patch})


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ("-z", "these lines of the patch are not in the block: 'z'"),
        ("-a", "these lines of the patch are there more than once: 'a'"),
        ("a", "begins with none of ' ', '-', '+': 'a'"),
        (" b", "the patch changes nothing"),
    ],
)
def test_a_patch_that_does_not_fit_changes_nothing(patch: str, words: str) -> None:
    edit = apply_edit("patch", {"label": "human", "patch": patch}, block("a\nb\na"))
    assert edit.value is None
    assert words in edit.message


def test_a_patch_of_many_places_in_a_long_block() -> None:
    lines = "\n" * 50_000  # looked at one by one for each of the places, they took a minute
    patch = "@@\n-a\n+b\n@@\n-b\n+a\n" * 2_000 + "@@\n-a\n+c"
    edit = apply_edit("patch", {"label": "human", "patch": patch}, block(f"{lines}a", 60_000))
    assert edit.value == f"{lines}c"


def test_the_limit_and_read_only_hold_for_every_way_in() -> None:
    patch = {"label": "human", "patch": "+" + "x" * 50}
    assert "its limit is 10" in apply_edit("patch", patch, block("a", 10)).message
    assert "read-only" in apply_edit("patch", patch, block("a", read_only=True)).message


def test_where_a_text_is_there_more_than_once_its_lines_are_named() -> None:
    arguments = {"label": "human", "old_string": "a\nb", "new_string": "c"}
    edit = apply_edit("replace", arguments, block("a\nb\nx\na\nb"))
    assert "more than once (lines 1, 4)" in edit.message


def test_the_first_lines_of_many_places_are_named() -> None:
    arguments = {"label": "human", "old_string": "a", "new_string": "c"}
    assert "(lines 1, 3)" in apply_edit("replace", arguments, block("aaa\nb\naa", 100)).message
    edit = apply_edit("replace", arguments, block("a" * 5_000_000 + "\na" * 1_000, 10_000_000))
    assert "(lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)" in edit.message


def test_many_places_of_a_long_text_are_counted_before_they_are_replaced() -> None:
    arguments = {"label": "human", "old_string": "a", "new_string": "b" * 10_000_000, "every": True}
    edit = apply_edit("replace", arguments, block("a" * 10_000_000, 10_000_000))
    assert edit.value is None
    assert "would have 100000000000000 characters" in edit.message


def test_a_model_cannot_ask_for_what_the_schema_does_not_have() -> None:
    arguments = {"label": "human", "old_string": "a", "new_string": "b", "every": True}
    found = read_edit_calls("memory_replace", arguments)
    assert "every" not in found[0].arguments


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        (
            "archival_memory_search",
            {"query": " tea "},
            Lookup(("tea",), frozenset({"passage"})),
        ),
        (
            "archival_memory_search",
            {"query": "tea", "tags": ["x"], "tag_match_mode": "all", "top_k": 9},
            Lookup(("tea",), frozenset({"passage"}), tags=frozenset("x"), needs_all=True, limit=9),
        ),
        (
            "conversation_search",
            {"roles": ["user"], "start_date": "2026-03-01", "end_date": "2026-03-01", "limit": 2},
            Lookup(
                (),
                frozenset({"message"}),
                frozenset({"user"}),
                since=1_772_323_200.0,
                until=1_772_409_599.999999,
                limit=2,
            ),
        ),
        (
            "conversation_search",
            {"query": "x", "start_date": "2026-03-01T09:30:00+01:00"},
            Lookup(("x",), frozenset({"message"}), since=1_772_353_800.0),
        ),
        (
            "conversation_search",
            {"query": "x", "start_date": "0001-01-01", "end_date": "9999-12-31"},  # at any time
            Lookup(
                ("x",),
                frozenset({"message"}),
                since=-62_135_596_800.0,
                until=math.nextafter(END_OF_DATES_S, 0.0),
            ),
        ),
        ("recall_memory", {"query": "tea"}, Lookup(("tea",), ALL, limit=8)),
        (
            "search_memory",
            {"convo_keyword_queries": ["tea", " ", "milk"], "start_minutes_ago": 60, "end_minutes_ago": 0},
            Lookup(("tea", "milk"), ALL, since=NOW - 3600, until=NOW, limit=8),
        ),
    ],
)
def test_a_search_says_what_is_looked_for(name: str, arguments: dict[str, Any], wanted: Lookup) -> None:
    assert read_lookup(name, arguments, NOW) == wanted


def test_dates_without_a_zone_are_those_of_the_agent() -> None:
    found = read_lookup("conversation_search", {"start_date": "2026-03-01"}, NOW, "Asia/Tokyo")
    assert isinstance(found, Lookup)
    assert found.since == 1_772_323_200.0 - 9 * 3600
    assert read_lookup("conversation_search", {"start_date": "2026-03-01"}, NOW, "No/Where") == read_lookup(
        "conversation_search", {"start_date": "2026-03-01"}, NOW
    )


def test_the_error_of_a_wrong_date_shows_a_right_one() -> None:
    found = read_lookup("archival_memory_search", {"query": "x", "end_datetime": "yesterday"}, NOW)
    assert (
        found == "Error: `start_datetime` and `end_datetime` are dates such as 2026-03-01. Nothing was done."
    )
