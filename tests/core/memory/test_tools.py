"""When the memory tools are offered, under which names, and what their edits do to a block."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.memory import call_arguments, memory_tools
from gateway.core.memory.block_edit import apply_edit
from gateway.core.memory.call_arguments import find_argument_error, read_arguments
from gateway.core.memory.memory_tools import BLOCK_TOOLS, MEMORY_TOOLS, MemoryTool, make_tool_schema
from gateway.core.memory.offered_tools import allows_hidden_tools, choose_tool_names, make_tool_definitions
from storage.records import Block
from tests.rows import each_row

USER: dict[str, Any] = {"role": "user", "content": "Hi"}


@each_row(
    ("fields", "expected"),
    [
        ({}, True),
        ({"n": 1, "tool_choice": "auto", "logprobs": False, "response_format": {"type": "text"}}, True),
        ({"tools": [], "modalities": ["text"]}, True),
        ({"n": 2}, False),
        ({"n": "1"}, False),  # the upstream's error is the caller's to see
        ({"tool_choice": "none"}, False),
        ({"tool_choice": "required"}, False),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, False),
        ({"grammar": 'root ::= "yes"'}, False),
        ({"guided_choice": ["yes", "no"]}, False),
        ({"grammar": "", "guided_json": None}, True),
        ({"logprobs": True}, False),
        ({"top_logprobs": 0}, False),
        ({"functions": []}, False),
        ({"function_call": "auto"}, False),
        ({"modalities": ["text", "audio"]}, False),
        ({"audio": {"voice": "alloy"}}, False),
        ({"prediction": {"type": "content", "content": "x"}}, False),
        ({"web_search_options": {}}, False),
        ({"prediction": None, "web_search_options": None}, True),
        ({"tools": {"a": 1}}, False),
        ({"messages": []}, False),
        ({"messages": None}, False),
        ({"messages": [USER, {"role": "assistant", "content": "Well,"}]}, False),  # prefilled
        ({"messages": [USER, {"role": "tool", "tool_call_id": "a", "content": "x"}]}, True),
    ],
)
def test_tools_are_offered_only_where_a_hidden_round_makes_sense(
    fields: dict[str, Any], expected: bool
) -> None:
    assert allows_hidden_tools({"messages": [USER], **fields}) is expected


class TestOffer:
    def test_nothing_enabled_is_nothing_offered(self) -> None:
        assert choose_tool_names((), ()) == {}
        assert make_tool_definitions({}) == []

    def test_names_are_plain_where_they_are_free(self) -> None:
        enabled = ("memory_insert", "conversation_search", "unknown")
        assert choose_tool_names(enabled, {"get_weather"}) == {
            "memory_insert": "memory_insert",
            "conversation_search": "conversation_search",
        }

    def test_a_clash_renames_the_gateway_tool(self) -> None:
        taken = {"memory_insert", "mnemogate_memory_insert"}
        assert choose_tool_names(("memory_insert", "memory_replace"), taken) == {
            "mnemogate_mnemogate_memory_insert": "memory_insert",
            "memory_replace": "memory_replace",
        }

    def test_names_stay_as_they_were_first_offered(self) -> None:
        agreed = {"mnemogate_memory_insert": "memory_insert", "memory_replace": "memory_replace"}
        assert choose_tool_names(("memory_insert", "memory_replace"), (), agreed) == agreed
        assert choose_tool_names(("memory_replace",), (), agreed) == {"memory_replace": "memory_replace"}

    def test_a_client_that_claims_one_later_takes_them_out(self) -> None:
        agreed = {"memory_insert": "memory_insert", "memory_replace": "memory_replace"}
        assert choose_tool_names(("memory_insert", "memory_replace"), {"memory_insert"}, agreed) == {}

    def test_definitions_carry_the_offered_name(self) -> None:
        (made,) = make_tool_definitions({"mnemogate_memory_insert": "memory_insert"})
        assert made["type"] == "function"
        assert made["function"]["name"] == "mnemogate_memory_insert"
        assert made["function"]["parameters"] == MEMORY_TOOLS["memory_insert"].schema["parameters"]


@pytest.mark.parametrize("tool", MEMORY_TOOLS)
def test_schemas_are_what_the_real_api_takes(tool: str) -> None:
    schema = MEMORY_TOOLS[tool].schema
    parameters = schema["parameters"]
    assert schema["description"]
    assert parameters["type"] == "object"
    assert set(parameters["required"]) <= parameters["properties"].keys()
    assert all(entry["description"] for entry in parameters["properties"].values())
    missing = find_argument_error(tool, {})
    assert all(name in (missing or "") for name in parameters["required"][:1])


@each_row(
    ("type_name", "value", "is_right"),
    [
        ("string", "a", True),
        ("string", 1, False),
        ("integer", 1, True),
        ("integer", True, False),  # Python takes a bool for an int
        ("number", 1.5, True),
        ("number", 2, True),
        ("number", False, False),
        ("boolean", True, True),
        ("boolean", 1, False),
        ("array", ["a"], True),
        ("array", "a", False),
        ("object", {"a": 1}, True),
        ("object", ["a"], False),
    ],
)
def test_an_argument_may_be_of_any_type_of_json(
    monkeypatch: pytest.MonkeyPatch, type_name: str, value: Any, is_right: bool
) -> None:
    toy = MemoryTool(make_tool_schema("A toy.", (), x={"type": type_name}))
    monkeypatch.setattr(call_arguments, "MEMORY_TOOLS", {"toy": toy})
    error = find_argument_error("toy", {"x": value})
    assert error is None if is_right else f"must be of type {type_name}" in (error or "")


def test_learning_knows_each_argument_with_new_text() -> None:
    """Otherwise learning would write a secret or an order that came in another argument."""
    schemas = [memory_tools.MEMORY_TOOLS[name].schema["parameters"] for name in memory_tools.BLOCK_TOOLS]
    texts = {
        name
        for schema in schemas
        for name, value in schema["properties"].items()
        if value["type"] not in ("integer", "number", "boolean")
    }
    assert texts == {"label", "old_string", *memory_tools.NEW_TEXT_ARGUMENTS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        ("", {}),
        (" ", {}),
        ('{"a":1}', {"a": 1}),
        ("[1]", None),
        ("1", None),
        ('{"a', None),
        ('{"a":"b\\u0000"}', {"a": "b"}),
        (f'{{"a":{"[" * 900}"\\u0000"{"]" * 900}}}', None),
    ],
)
def test_arguments_are_an_object_or_nothing(text: str, expected: dict[str, Any] | None) -> None:
    assert read_arguments(text) == expected


def test_an_integer_stays_what_it_is_however_large() -> None:
    """orjson reads one beyond 64 bits as a float."""
    long, digits = 2**80 + 1, "1" * 300
    assert read_arguments(f'{{"a":{long},"b":[{-long}],"c":{{"d":{digits}}},"e":"{digits}"}}') == {
        "a": long,
        "b": [-long],
        "c": {"d": int(digits)},
        "e": digits,
    }
    assert read_arguments(f'{{"a":{digits * 20}}}') is None
    assert read_arguments(f'{{"a":{"[" * 1000}{long}{"]" * 1000}}}') is not None


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    arguments = read_arguments('{"query":"tea","limit":5.0,"line":-1.0,"share":0.5,"much":1e300}')
    assert arguments is not None
    assert [type(value) for value in arguments.values()] == [str, int, int, float, float]
    assert arguments == {"query": "tea", "limit": 5, "line": -1, "share": 0.5, "much": 1e300}


@pytest.mark.parametrize(
    ("tool", "arguments", "word"),
    [
        ("conversation_search", {"query": 3}, "query"),
        ("conversation_search", {"query": "x", "limit": "5"}, "limit"),
        ("conversation_search", {"query": "x", "limit": 2**80}, "limit"),
        ("conversation_search", {"query": "x", "limit": True}, "limit"),
        ("conversation_search", {"query": "x", "role": "system"}, "role"),
        ("conversation_search", {"query": "x", "role": None, "more": 1}, None),
        ("archival_memory_search", {"query": "x", "limit": 3}, None),
    ],
)
def test_the_error_names_the_wrong_argument(tool: str, arguments: dict[str, Any], word: str | None) -> None:
    complaint = find_argument_error(tool, arguments)
    assert complaint is None if word is None else complaint is not None and f"`{word}`" in complaint


def block(value: str, limit: int = 100, read_only: bool = False) -> Block:
    return Block(1, "human", "", value, limit, read_only)


def edited(op: str, value: str, **arguments: Any) -> str | None:
    return apply_edit(op, {"label": "human", **arguments}, block(value)).value


class TestEdits:
    @pytest.mark.parametrize(
        ("value", "line", "expected"),
        [
            ("", None, "new"),
            ("", 0, "new"),
            ("a\nb", None, "a\nb\nnew"),
            ("a\nb", -1, "a\nb\nnew"),
            ("a\nb", 0, "new\na\nb"),
            ("a\nb", 1, "a\nnew\nb"),
            ("a\nb", 3, None),
            ("a\nb", -2, None),
        ],
    )
    def test_an_insert_goes_after_the_line_it_names(
        self, value: str, line: int | None, expected: str | None
    ) -> None:
        fields = {} if line is None else {"insert_line": line}
        assert edited("insert", value, new_string="new\n", **fields) == expected

    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("tea", "coffee", "likes coffee, aaa"),
            ("likes tea", "", ", aaa"),
            ("milk", "x", None),  # not there
            ("a", "x", None),  # there more than once
            ("aa", "x", None),  # there twice, overlapping
            ("", "x", None),
        ],
    )
    def test_a_replace_changes_a_text_that_is_there_once(
        self, old: str, new: str, expected: str | None
    ) -> None:
        assert edited("replace", "likes tea, aaa", old_string=old, new_string=new) == expected

    def test_an_operation_without_a_case_is_a_fault(self) -> None:
        with pytest.raises(NotImplementedError, match="reverse"):
            edited("reverse", "old", new_memory="new")

    def test_a_rethink_rewrites_the_block(self) -> None:
        assert edited("rethink", "old", new_memory="all new") == "all new"
        assert edited("rethink", "old", new_memory="") == ""

    @pytest.mark.parametrize(
        ("op", "fields"),
        [
            ("insert", {"new_string": "x" * 101}),
            ("insert", {"new_string": " \n"}),
            ("insert", {}),
            ("replace", {"old_string": "old", "new_string": "x" * 101}),
            ("rethink", {"new_memory": "x" * 101}),
            ("rethink", {"new_memory": 7}),
        ],
    )
    def test_a_refused_edit_changes_nothing_and_says_why(self, op: str, fields: dict[str, Any]) -> None:
        edit = apply_edit(op, {"label": "human", **fields}, block("old"))
        assert edit.value is None
        assert edit.message.startswith("Error: ")

    def test_the_limit_is_exact_and_counts_characters(self) -> None:
        assert edited("rethink", "old", new_memory="ü" * 100) == "ü" * 100

    def test_a_block_over_its_limit_may_shrink_but_not_grow(self) -> None:
        over = block("x" * 120)
        shrunk = {"label": "human", "new_memory": "x" * 110}
        assert apply_edit("rethink", shrunk, over).value == "x" * 110
        assert apply_edit("insert", {"label": "human", "new_string": "y"}, over).value is None

    @pytest.mark.parametrize("target", [None, block("old", read_only=True)], ids=["unknown", "read-only"])
    def test_blocks_that_cannot_be_edited(self, target: Block | None) -> None:
        edit = apply_edit("insert", {"label": "human", "new_string": "x"}, target)
        assert edit.value is None
        assert edit.message.startswith("Error: ")

    def test_the_result_is_short_and_does_not_repeat_the_block(self) -> None:
        edit = apply_edit("insert", {"label": "human", "new_string": "tea"}, block("secret"))
        assert "+ 'tea'" in edit.message
        assert "secret" not in edit.message
        long = apply_edit("insert", {"label": "human", "new_string": "y" * 5000}, block("", limit=9000))
        assert len(long.message) < 400

    def test_an_edit_that_changes_nothing_is_no_error(self) -> None:
        edit = apply_edit("rethink", {"label": "human", "new_memory": "old"}, block("old"))
        assert edit.value is None
        assert not edit.message.startswith("Error")

    def test_every_edit_of_a_block_can_be_applied(self) -> None:
        for tool, operation in BLOCK_TOOLS.items():
            assert apply_edit(operation, {}, None).message.startswith(f"Error: {tool} needs ")
