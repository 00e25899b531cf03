"""A call's arguments are checked by the tool's schema, and what is wrong is said so that it can be mended."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.turn.arguments import as_meant, check_arguments, wrong_arguments

Json = dict[str, Any]
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "minLength": 1, "maxLength": 5},
        "limit": {"type": "integer", "minimum": 1, "maximum": 9},
        "score": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "kind": {"enum": ["any", "all", 1]},
        "fixed": {"const": "x"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        "pair": {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
        "maybe": {"anyOf": [{"type": "null"}, {"type": "integer"}]},
        "both": {"allOf": [{"type": "integer"}, {"minimum": 3}]},
        "one": {"oneOf": [{"type": "string"}, {"type": "boolean"}]},
        "several": {"type": ["string", "null"]},
        "node": {"$ref": "#/$defs/node"},
        "never": False,
        "closed": {
            "type": "object",
            "properties": {"a": {}},
            "required": ["a"],
            "additionalProperties": False,
        },
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
    "required": ["label"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"$ref": "#/$defs/node"}, "a/b": {}},
            "required": ["v"],
        }
    },
}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, None),
        ({"label": None}, "`label` must be a string, and is None"),
        ({"label": ""}, "`label` must have at least 1 characters, and is ''"),
        ({"label": "longer"}, "`label` must have at most 5 characters, and is 'longer'"),
        ({"limit": 5.0}, None),
        ({"limit": 5.5}, "`limit` must be an integer, and is 5.5"),
        ({"limit": "5"}, "`limit` must be an integer, and is '5'"),
        ({"limit": True}, "`limit` must be an integer, and is True"),
        ({"limit": 0}, "`limit` must be at least 1, and is 0"),
        ({"limit": 10}, "`limit` must be at most 9, and is 10"),
        ({"score": 0}, "`score` must be more than 0, and is 0"),
        ({"score": 1}, "`score` must be less than 1, and is 1"),
        ({"kind": "none"}, "`kind` must be one of 'any', 'all', 1, and is 'none'"),
        ({"kind": True}, "`kind` must be one of 'any', 'all', 1, and is True"),
        ({"fixed": "y"}, "`fixed` must be 'x', and is 'y'"),
        ({"tags": "a"}, "`tags` must be a list, and is 'a'"),
        ({"tags": []}, "`tags` must have at least 1 items, and is []"),
        ({"tags": ["a", 2]}, "`tags[1]` must be a string, and is 2"),
        ({"tags": ["a", "b", "c"]}, "`tags` must have at most 2 items, and is ['a', 'b', 'c']"),
        ({"pair": ["a", 1]}, None),
        ({"pair": ["a", "b"]}, "`pair[1]` must be an integer, and is 'b'"),
        ({"pair": ["a", 1, 2]}, "`pair[2]` is not allowed"),
        ({"maybe": None}, None),
        ({"maybe": "x"}, "`maybe` must be an integer, and is 'x'"),
        ({"both": 2}, "`both` must be at least 3, and is 2"),
        ({"one": False}, None),
        ({"one": 3}, "`one` must be a string, and is 3"),
        ({"several": None}, None),
        ({"several": 3}, "`several` must be a string or null, and is 3"),
        ({"node": {"v": 1, "next": {"v": 2}}}, None),
        ({"node": {"v": 1, "next": {}}}, "`node.next.v` is missing"),
        ({"never": 1}, "`never` is not allowed"),
        ({"closed": {"a": 1, "b": 2}}, "`closed.b` is not known (there are: a)"),
        ({"map": {"x": "y"}}, "`map.x` must be an integer, and is 'y'"),
        ({"unknown": 1}, None),
    ],
)
def test_a_schema_of_everything(given: Json, wrong: str | None) -> None:
    assert check_arguments(SCHEMA, {"label": "a", **given}) == wrong


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"limit": "4", "tags": '["a"]', "score": "0.5"}, {"limit": 4, "tags": ["a"], "score": 0.5}),
        ({"kind": "1"}, {"kind": 1}),
        # A text that fits is one, whatever it may be read as.
        ({"label": "4"}, {"label": "4"}),
        ({"unknown": "4"}, {"unknown": "4"}),
        # What does not fit as JSON either is told as it came.
        (
            {"limit": "four", "score": "7", "tags": "[" * 5000},
            {"limit": "four", "score": "7", "tags": "[" * 5000},
        ),
        ({"limit": [4]}, {"limit": [4]}),
    ],
)
def test_a_text_that_is_json_is_read_where_no_text_fits(given: Json, meant: Json) -> None:
    assert as_meant(SCHEMA, given) == meant
    assert as_meant({"properties": 3}, given) == given


def test_many_texts_are_looked_at_no_more_than_one_value() -> None:
    """Each parameter would have its own bound, and a few hundred of them would hold everybody for a minute."""
    looked = 0

    class Part(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            nonlocal looked
            looked += key == "type"
            return super().get(key, default)

    again = {"$ref": "#/again"}
    schema: Json = {"properties": {f"p{n}": again for n in range(10)}, "again": Part(anyOf=[again, again])}
    given = {f"p{n}": "x" for n in range(10)}
    assert as_meant(schema, given) == given
    assert 1_000 < looked < 20_000


def test_what_is_missing_is_named() -> None:
    assert wrong_arguments("look", SCHEMA, {}) == (
        "Error: `label` is missing in the call of look. Nothing was done."
    )


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "thing"},
        {"type": 3, "enum": 3, "required": 3, "properties": 3, "items": 3, "anyOf": 3, "minimum": "x"},
        {"$ref": "#/$defs/gone"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"properties": {"a": {"pattern": "(a+)+$"}}},
    ],
)
def test_a_schema_that_says_nothing_sensible_forbids_nothing(schema: Json) -> None:
    assert check_arguments(schema, {"a": "a" * 50}) is None


def test_a_long_value_is_cut() -> None:
    wrong = check_arguments({"properties": {"a": {"type": "integer"}}}, {"a": "x" * 1000})
    assert wrong is not None
    assert len(wrong) < 150


def test_where_a_value_stands_is_put_into_words_for_an_error_alone() -> None:
    class Key(str):
        """A key so long that nobody could afford to write it for each value below it."""

        def __format__(self, spec: str) -> str:
            raise AssertionError

    schema: Json = {"additionalProperties": {"additionalProperties": {"type": "integer"}}}
    assert check_arguments(schema, {Key("k"): {"a": 1, "b": 2}, "list": [1]}) is None
    assert check_arguments(schema, {"k": {"a": "x"}}) == "`k.a` must be an integer, and is 'x'"
