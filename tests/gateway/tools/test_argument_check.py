"""Arguments are checked where it does not hold up anybody else, however large they and the schema are."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.agents.tools import argument_check as module
from gateway.agents.tools.argument_check import validate_arguments
from gateway.agents.tools.children import Children
from gateway.core.turn import arguments as checks
from tests.patience import SHORT_S

Json = dict[str, Any]
NAMES = [f"{'x' * 55}{n}" for n in range(2000)]  # 130 kB
LARGE: dict[str, tuple[Json, Json, str]] = {
    "enum": ({"items": {"enum": NAMES}}, {"a": ["y"] * 4000}, "`a[0]` must be one of"),
    "required": ({"items": {"required": NAMES}}, {"a": [{}] * 5000}, "`a[0].xxx"),
    "type": (
        {"items": {"allOf": [{"type": "string"}] * 5000}},
        {"a": ["y"] * 4000 + [1]},
        "`a[4000]` must be",
    ),
    "$ref": ({"items": {"allOf": [{"$ref": "#/$defs/b"}] * 5000}}, {"a": [1] * 8000}, "`a[0]` must be"),
}


def schema_of(part: Json) -> Json:
    return {"type": "object", "properties": {"a": part}, "$defs": {"b": {"type": "string"}}}


# Each level of such a schema is looked at twice for the next: 2.5 kB take longer than anybody waits.
ENDLESS: Json = {"type": "object"}
for _ in range(60):
    ENDLESS = {"allOf": [ENDLESS], "unevaluatedProperties": {}}


@pytest.mark.parametrize("keyword", LARGE)
async def test_large_arguments_are_not_checked_in_this_process(
    keyword: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, arguments, says = LARGE[keyword]
    for name in ("are_valid", "repair_arguments"):
        monkeypatch.setattr(checks, name, None)
    meant, wrong = await validate_arguments(Children(), "tool", schema_of(part), arguments)
    assert meant == arguments
    assert wrong is not None
    assert wrong.startswith(f"Error: {says}")
    assert wrong.endswith(" in the call of tool. Nothing was done.")


async def test_a_check_without_an_end_ends_and_others_go_on_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHECK_S", SHORT_S)
    check = asyncio.create_task(validate_arguments(Children(), "tool", ENDLESS, {"a": 1}))
    other = asyncio.create_task(asyncio.sleep(0))
    done, _ = await asyncio.wait({check, other}, return_when=asyncio.FIRST_COMPLETED)
    assert done == {other}
    assert await check == (
        {"a": 1},
        "Error: the arguments cannot be checked by the tool's schema (it takes too long) in the call of tool. "
        "Nothing was done.",
    )


async def test_a_check_that_takes_too_much_memory_has_no_result() -> None:
    """Alternatives that fail have an error for each item, each with a copy of what it is about."""
    part: Json = {"anyOf": [{"items": {"enum": NAMES}}, {"type": "null"}]}
    wrong = (await validate_arguments(Children(), "tool", schema_of(part), {"a": ["y"] * 4000}))[1]
    assert wrong is not None
    assert "cannot be checked by the tool's schema" in wrong


@pytest.mark.parametrize(
    ("part", "given", "meant"),
    [
        ({"type": "integer"}, "4", 4),
        # Not small enough to be read here.
        ({"type": "integer", "enum": list(range(1000))}, "4", 4),
        ({"type": "integer"}, str(2**80 + 1), 2**80 + 1),
        ({"type": "integer", "not": {"enum": list(range(1000))}}, str(2**80 + 1), 2**80 + 1),
        ({"type": "array"}, str([2**80 + 1] * 10_000), [2**80 + 1] * 10_000),
        ({"type": "string"}, "x" * 10_000, "x" * 10_000),
        ({"type": "array"}, str(list(range(10_000))), list(range(10_000))),
    ],
)
async def test_arguments_are_read_alike_wherever_they_are_checked(part: Json, given: str, meant: Any) -> None:
    assert await validate_arguments(Children(), "tool", schema_of(part), {"a": given}) == ({"a": meant}, None)


async def test_a_usual_call_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Children, "ask", None)
    schema = schema_of({"type": "string", "description": "What is to be remembered. " * 20})
    for given in ("x", "x" * 10_000):
        assert await validate_arguments(Children(), "tool", schema, {"a": given}) == ({"a": given}, None)
    assert (await validate_arguments(Children(), "tool", schema, {"a": 1}))[1] is not None
