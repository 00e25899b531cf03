"""A call's arguments are checked by the tool's schema, and what is wrong is said so that it can be mended."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from math import inf
from threading import Thread
from typing import Any

import pytest

from gateway.core import exact_json
from gateway.core.turn.argument_cost import estimate_cost
from gateway.core.turn.arguments import answer_repair, are_valid, repair_arguments
from tests.rows import each_row

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
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
        "either": {"oneOf": [{"type": "string"}, {"minLength": 1}]},
        "other": {"not": {"type": "string"}},
        "step": {"multipleOf": 5},
        "once": {"uniqueItems": True},
        "named": {"propertyNames": {"maxLength": 1}, "minProperties": 1},
        "day": {"type": "string", "format": "date"},
        "has": {"contains": {"type": "string"}},
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


@each_row(
    ("given", "wrong"),
    [
        ({}, None),
        ({"label": None}, "`label` must be a string, and is None"),
        ({"label": ""}, "`label` must have at least 1 characters, and is ''"),
        ({"label": "longer"}, "`label` must have at most 5 characters, and is 'longer'"),
        ({"limit": 5.0}, None),
        ({"limit": 5.5}, "`limit` must be an integer, and is 5.5"),
        ({"limit": "five"}, "`limit` must be an integer, and is 'five'"),
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
        ({"code": "DE89"}, None),
        ({"code": "89"}, "`code` must match the pattern '^[A-Z]{2}[0-9]+$', and is '89'"),
        ({"either": "x"}, "`either` must fit exactly one of its alternatives, and is 'x'"),
        ({"other": "x"}, "`other` must not fit {'type': 'string'}, and is 'x'"),
        ({"step": 7}, "`step` must be a multiple of 5, and is 7"),
        ({"once": [1, 1]}, "`once` must not have an item twice, and is [1, 1]"),
        ({"named": {"ab": 1}}, '`named` has a name that does not fit: "ab" is longer than 1 character'),
        ({"named": {}}, "`named` must have at least 1 fields, and is {}"),
        ({"day": "tomorrow"}, None),
        ({"has": [1]}, "`has` does not fit (None of [1] are valid under the given schema), and is [1]"),
    ],
)
def test_a_schema_of_everything(given: Json, wrong: str | None) -> None:
    arguments = {"label": "a", **given}
    assert repair_arguments(SCHEMA, arguments) == (arguments, wrong)
    assert are_valid(SCHEMA, arguments) is (wrong is None)
    assert answer_repair({"schema": SCHEMA, "arguments": arguments}) == {
        "arguments": arguments,
        "error": wrong,
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"limit": "4", "tags": '["a"]', "score": "0.5"}, {"limit": 4, "tags": ["a"], "score": 0.5}),
        ({"kind": "1"}, {"kind": 1}),
        # A text that fits is one, whatever it may be read as.
        ({"label": "4"}, {"label": "4"}),
        ({"unknown": "4"}, {"unknown": "4"}),
        # What does not fit as JSON either is shown as it came.
        (
            {"limit": "four", "score": "7", "tags": "[" * 5000},
            {"limit": "four", "score": "7", "tags": "[" * 5000},
        ),
        ({"limit": [4]}, {"limit": [4]}),
        # A text within an object is not read.
        ({"map": {"x": "4"}}, {"map": {"x": "4"}}),
    ],
)
def test_a_text_that_is_json_is_read_where_no_text_fits(given: Json, meant: Json) -> None:
    arguments = {"label": "a", **given}
    assert repair_arguments(SCHEMA, arguments)[0] == {"label": "a", **meant}
    assert repair_arguments({"properties": 3}, given) == (given, None)


def test_the_error_names_the_missing_argument() -> None:
    assert repair_arguments(SCHEMA, {}) == ({}, "`label` is missing")


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "thing"},
        {"type": 3, "enum": 3, "required": 3, "properties": 3, "items": 3, "anyOf": 3, "minimum": "x"},
        {"$ref": "#/$defs/gone"},
        {"$ref": "#/prefixItems/" + "1" * 5000, "prefixItems": [{}]},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"properties": {"": {"items": {"type": "thing"}}}},
        {"properties": {"": {"properties": {"a": {"type": "thing"}}}, "properties": True}},
    ],
)
def test_a_schema_that_says_nothing_sensible_forbids_nothing(schema: Json) -> None:
    given = {"a": "a" * 50 + "b"}
    assert repair_arguments(schema, given) == (given, None)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"type": "string", "required": True}}},
        {"properties": {"a": {"type": "thing"}, "c": {"enum": 3}, "d": {"pattern": "("}}},
        {"properties": {"a": {"$ref": "https://example.org/schema"}}},
        {"properties": {"a": {"$ref": "#/$defs/gone"}}},
        {"properties": {"a": {"$ref": "#gone"}}},
        {"$schema": "https://example.org/draft", "properties": {}},
        {"$schema": "http://json-schema.org/draft-03/schema#", "properties": {}},
        {"properties": {"a": {"pattern": "a{1000}{1000}{1000}"}}},
        {"properties": {"a": {}, "1": {"type": "thing"}}},
    ],
)
def test_a_wrong_part_of_a_schema_takes_nothing_from_the_rest(schema: Json) -> None:
    schema["properties"]["b"] = {"$ref": "#/$defs/a number"}
    schema["$defs"] = {"a number": {"type": "integer"}}
    assert repair_arguments(schema, {"a": "y", "b": "x"})[1] == "`b` must be an integer, and is 'x'"
    assert repair_arguments(schema, {"a": "y", "b": "4"}) == ({"a": "y", "b": 4}, None)


def test_a_repaired_schema_has_its_properties_with_the_names_of_keywords() -> None:
    names: Json = {"$id": {"type": "string"}, "$schema": {"type": "string"}, "a": {"$ref": "#/$defs/gone"}}
    given = {"$id": "x", "$schema": "y"}
    assert repair_arguments({"properties": names, "additionalProperties": False}, given) == (given, None)


def test_a_pattern_is_matched_in_linear_time() -> None:
    schema: Json = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    assert are_valid(schema, {"a": "a" * 100_000})
    assert not are_valid(schema, {"a": "a" * 100_000 + "b"})


def test_nothing_is_fetched() -> None:
    asked: list[str] = []

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Asked) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/schema"
        for schema in ({"$ref": url}, {"$schema": url}, {"$id": url, "properties": {"a": {"$ref": "other"}}}):
            assert repair_arguments(schema, {"a": 1}) == ({"a": 1}, None)
        server.shutdown()
    assert asked == []


def test_the_draft_is_the_one_that_is_named() -> None:
    schema: Json = {"properties": {"a": {"items": [{"type": "string"}], "additionalItems": False}}}
    given = {"a": ["x", 1]}
    assert repair_arguments(schema, given) == (given, None)  # there is no such keyword today
    old = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    assert repair_arguments(old, given)[1] == "`a` must have at most 1 items, and is ['x', 1]"


def test_the_error_is_short() -> None:
    wrong = repair_arguments({"properties": {"a": {"type": "integer"}}}, {"a": "x" * 1000})[1]
    assert wrong is not None
    assert len(wrong) < 150
    names = [f"name {n}" for n in range(1000)]
    for schema, given in (
        ({"properties": {"a": {"enum": names}}}, {"a": 1}),
        ({"properties": {name: {} for name in names}, "additionalProperties": False}, {"b": 1}),
        ({"additionalProperties": {"type": "integer"}}, {"x" * 5000: "y"}),
    ):
        wrong = repair_arguments(schema, given)[1]
        assert wrong is not None
        assert 500 < len(wrong) <= 1000


REF: Json = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    ("schema", "least", "most"),
    [
        ({}, 60, 300),
        # A reference counts as what it leads to, as often as it is there.
        ({"allOf": [REF] * 10, "$defs": {"a": {"const": "x" * 1000}}}, 11_000 * 66, 12_000 * 67),
        ({"$ref": "#"}, inf, inf),
        ({"properties": {"a": REF}, "$defs": {"a": {"properties": {"a": REF}}}}, inf, inf),
        ({"$ref": "https://example.org"}, inf, inf),
        ({"$ref": "#/prefixItems/" + "1" * 5000, "prefixItems": [{}]}, inf, inf),
        # An index has no zero before it, and ASCII digits alone.
        ({"$ref": "#/prefixItems/00", "prefixItems": [{}]}, inf, inf),
        ({"$ref": "#/prefixItems/\u0660", "prefixItems": [{}]}, inf, inf),
        ({"unevaluatedProperties": False}, inf, inf),
        ({"$dynamicRef": "#a"}, inf, inf),
        ({"$id": "https://example.org"}, inf, inf),
        ({"pattern": "a"}, 4096 * 66, 5000 * 67),
    ],
)
def test_the_cost_is_known_before(schema: Json, least: float, most: float) -> None:
    assert least <= estimate_cost(schema, {}) <= most
    assert estimate_cost(schema, {"a": "x" * 100}) >= 2 * least


def test_references_that_multiply_cost_what_they_become() -> None:
    parts = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(20)}
    assert estimate_cost({"$ref": "#/$defs/d0", "$defs": {**parts, "d20": {}}}, {}) > 2**20


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"\U0001f600" * 50: True}},
        {"properties": {"\x00" * 50: True}},
        {"enum": ["\x00" * 50]},
        {"enum": [2**64 - 1] * 50},
        {"enum": [2**70] * 50},
        {"enum": [-0.12345678901234567] * 50},
    ],
    ids=["a name", "an escaped name", "an escaped text", "an integer", "a long integer", "a fraction"],
)
def test_a_schema_counts_with_all_its_bytes(schema: Json) -> None:
    assert estimate_cost(schema, {}) >= len(exact_json.dumps(schema)) * 64


DEEP: Any = [1]
for _ in range(300):
    DEEP = [DEEP]


@pytest.mark.parametrize("part", [{"type": "string"}, {"type": "object"}, {}])
def test_arguments_that_are_nested_too_deeply_are_refused(part: Json) -> None:
    schema = {"properties": {"a": part}}
    assert estimate_cost(schema, {"a": DEEP}) == 0
    _, wrong = repair_arguments(schema, {"a": DEEP})
    assert wrong == "the arguments have too many lists and objects within one another"


def test_no_schema_is_compiled_for_arguments_that_are_nested_too_deeply() -> None:
    unusable = {"allOf": [{"minLength": "a"}] * 20}  # it forbids nothing, since it has too many faults
    assert repair_arguments(unusable, {"a": 1})[1] is None
    assert repair_arguments(unusable, {"a": DEEP})[1] is not None


def test_a_text_with_json_that_is_nested_too_deeply_stays_a_text() -> None:
    text = "[" * 400 + "]" * 400
    meant, wrong = repair_arguments({"properties": {"a": {"type": "array"}}}, {"a": text})
    assert meant == {"a": text}
    assert wrong is not None
    assert wrong.startswith("`a` must be a list, and is '[[[")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ({"items": {"multipleOf": 0.01}}, [5] * 100),
        ({"items": {"not": {"const": 5e-324}}}, [5] * 100),
        ({"items": {"enum": ['a\\"b', 1]}}, [1e308] * 100),
    ],
    ids=["multipleOf", "a number of the schema", "a number of the arguments"],
)
def test_exact_arithmetic_has_no_bound_that_is_known(part: Json, value: list[Any]) -> None:
    assert estimate_cost({"properties": {"a": part}}, {"a": value}) == inf


def test_digits_within_a_text_are_no_large_number() -> None:
    part = {"enum": ["1e308", "5e-324", 'a"3e10', "\\"], "default": 0.5}
    assert estimate_cost({"properties": {"a": part}}, {"a": '"13e10f\\"'}) < inf
