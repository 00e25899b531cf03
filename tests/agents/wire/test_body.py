"""Bodies: read, refused with a place, stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import UNSET, Meta, UnsetType

from gateway.agents.wire.faults import LettaErrors, Unprocessable, render_fault
from gateway.agents.wire.sent_values import get_sent_fields
from gateway.agents.wire.struct_fields import (
    MAX_OBJECT_BYTES,
    Body,
    NoEffect,
    convert,
    find_list_fields,
    list_ignored_fields,
    partly_honoured,
    read_body,
    refused,
)
from gateway.errors import BadRequest


class Inner(Body):
    label: str
    size: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    plain: NoEffect[str] = UNSET
    notes: dict[str, Any] | UnsetType = UNSET
    other: Annotated[str | None, refused("Nor this.")] | UnsetType = UNSET


class Outer(Body):
    name: str
    inner: list[Inner] | UnsetType | None = UNSET
    words: list[str] | UnsetType = UNSET
    one: Inner | UnsetType | None = UNSET
    quiet: NoEffect[str] = UNSET
    partly: Annotated[dict[str, Any] | None, partly_honoured("heat")] | UnsetType = UNSET
    never: Annotated[str | None, refused("It cannot be.")] | UnsetType = UNSET


@pytest.mark.parametrize(
    ("data", "loc", "kind"),
    [
        (b"{", ("body", 1), "json_invalid"),
        (b"[" * 2000, ("body", 1025), "json_invalid"),
        # As deep as it can be read, and deeper than it could be written.
        (b'{"name": ' + b"[" * 1000 + b"]" * 1000 + b"}", ("body",), "json_invalid"),
        (b'{"name": ' + b'{"a":' * 240 + b"1" + b"}" * 241, ("body",), "json_invalid"),
        (b'{"name": ' + b'{"a":' * 239 + b"1" + b"}" * 240, ("body", "name"), "type_error"),
        (b"[]", ("body",), "model_type"),
        (b"{}", ("body", "name"), "missing"),
        (b'{"name": 1}', ("body", "name"), "type_error"),
        (b'{"name": "a", "other": 2}', ("body", "other"), "extra_forbidden"),
        (b'{"name": "a", "inner": [{"label": "x"}, {}]}', ("body", "inner", 1, "label"), "missing"),
        (b'{"name": "a", "inner": [{"label": "x", "size": 0}]}', ("body", "inner", 0, "size"), "type_error"),
        (b'{"name": "a", "inner": [{"label": "x", "y": 0}]}', ("body", "inner", 0, "y"), "extra_forbidden"),
    ],
)
def test_a_fault_says_where_it_lies(data: bytes, loc: tuple[Any, ...], kind: str) -> None:
    with pytest.raises(Unprocessable) as refusal:
        read_body(data, Outer)
    fault = refusal.value.fault
    assert (fault.path, fault.kind) == (loc, kind)
    body = LettaErrors().render_body(refusal.value)
    assert b'"detail":[{"type":"' + kind.encode() in body


def test_a_too_large_object_in_an_entry_is_named_with_the_index_of_the_entry() -> None:
    inner = [{"label": "x"}, {"label": "y", "notes": {"text": "z" * MAX_OBJECT_BYTES}}]
    with pytest.raises(Unprocessable) as refusal:
        convert({"name": "a", "inner": inner}, Outer, ("body",))
    assert refusal.value.fault.path == ("body", "inner", 1, "notes")


@pytest.mark.parametrize(("name", "said"), [("nmae", "; did you mean 'name'?"), ("colour", "")])
def test_the_error_of_a_misspelt_field_names_the_nearest(name: str, said: str) -> None:
    with pytest.raises(Unprocessable) as refusal:
        read_body(b'{"name": "a", "' + name.encode() + b'": 2}', Outer)
    assert refusal.value.fault.message == f"Extra inputs are not permitted{said}"


class Rule(Body, tag="first", tag_field="type"):
    pass


class OtherRule(Body, tag="last", tag_field="type"):
    pass


class Choosing(Body):
    order: Literal["asc", "desc"] | UnsetType | None = UNSET
    kinds: Annotated[list[Literal["a", "b", "c"]], Meta(max_length=3)] | UnsetType | None = UNSET
    rules: list[Rule | OtherRule] | UnsetType = UNSET
    by_name: dict[str, Literal["x"]] | UnsetType = UNSET
    inner: list[Choosing] | UnsetType = UNSET


@pytest.mark.parametrize(
    ("body", "loc", "words"),
    [
        ({"order": "up"}, ("body", "order"), "'asc' or 'desc'"),
        ({"kinds": ["a", "d"]}, ("body", "kinds", 1), "'a', 'b' or 'c'"),
        ({"rules": [{"type": "middle"}]}, ("body", "rules", 0, "type"), "'first' or 'last'"),
        ({"by_name": {"k": "y"}}, ("body", "by_name", "..."), "'x'"),
        ({"inner": [{}, {"order": "x" * 500}]}, ("body", "inner", 1, "order"), "'asc' or 'desc'"),
    ],
)
def test_a_choice_says_what_there_is_to_choose(body: Any, loc: tuple[Any, ...], words: str) -> None:
    with pytest.raises(Unprocessable) as refusal:
        convert(body, Choosing, ("body",))
    fault = refusal.value.fault
    assert (fault.path, fault.kind, fault.message) == (loc, "enum", f"Input should be {words}")


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(Unprocessable) as refusal:
        convert({"name": ["x" * 5000]}, Outer, ("body",))
    assert render_fault(refusal.value.fault)["input"] == "an array"


def test_null_and_a_missing_field_are_distinguished() -> None:
    assert get_sent_fields(read_body(b'{"name": "a"}', Outer)) == {"name": "a"}
    assert get_sent_fields(read_body(b'{"name": "a", "inner": null}', Outer)) == {"name": "a", "inner": None}


def test_fields_without_effect_are_named_if_they_were_sent() -> None:
    assert list_ignored_fields(read_body(b'{"name": "a", "quiet": "x"}', Outer)) == ["quiet"]
    assert list_ignored_fields(read_body(b'{"name": "a", "quiet": null}', Outer)) == []


def test_a_refused_field_says_why_unless_it_asks_for_nothing() -> None:
    assert read_body(b'{"name": "a", "never": null}', Outer).name == "a"
    with pytest.raises(BadRequest, match=r"^never: It cannot be\.$"):
        read_body(b'{"name": "a", "never": "x"}', Outer)


def test_a_field_of_a_part_has_its_verdict_too() -> None:
    inner = [{"label": "x", "plain": "y"}, {"label": "z", "plain": "y"}]
    one = {"label": "x", "plain": "y", "other": ""}
    made = convert({"name": "a", "inner": inner, "one": one, "quiet": "x"}, Outer, ("body",))
    assert list_ignored_fields(made) == ["quiet", "inner.plain", "one.plain"]
    for field in (
        {"inner": [{"label": "x"}, {"label": "x", "other": "y"}]},
        {"one": {"label": "", "other": "y"}},
    ):
        with pytest.raises(BadRequest, match=r"^(inner|one)\.other: Nor this\.$"):
            convert({"name": "a", **field}, Outer, ("body",))


def test_ignored_fields_of_an_object_are_named_as_far_as_a_header_can() -> None:
    made = convert(
        {"name": "a", "partly": {"heat": 1, "top_k": 5, "off": None, "böse,": 1}}, Outer, ("body",)
    )
    assert list_ignored_fields(made) == ["partly.top_k"]
    many = {f"n{n}": 1 for n in range(1000)}
    assert len(list_ignored_fields(convert({"name": "a", "partly": many}, Outer, ("body",)))) == 50


def test_lists_are_known_by_their_fields() -> None:
    assert {*find_list_fields(Outer)} == {"inner", "words"}
