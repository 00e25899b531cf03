"""Asides and words are read out of a tool's arguments while they are written."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.turn.asides import FILLER, HEARTBEAT, THINKING, Asides, with_asides
from gateway.core.turn.string_reader import StringReader

Json = dict[str, Any]
NAMES = ("message", "thinking")
TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["message", "x", 'a"b']), inner)
    ),
    max_leaves=6,
)
OBJECT = st.dictionaries(
    st.sampled_from(["message", "thinking", "x", 'mes"sage', "y\\"]) | TEXT, VALUE, max_size=6
)


def read(text: str, cuts: list[int]) -> dict[str, str]:
    reader = StringReader(NAMES)
    found: dict[str, str] = {}
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        for name, piece in reader.feed(text[begin:end]):
            assert piece
            found[name] = found.get(name, "") + piece
    return found


@given(made=OBJECT, is_ascii=st.booleans(), indent=st.none() | st.just(2), seed=st.integers(0, 1000))
def test_any_cut_of_any_object_reads_the_same(
    made: Json, is_ascii: bool, indent: int | None, seed: int
) -> None:
    text = json.dumps(made, ensure_ascii=is_ascii, indent=indent)
    dice = random.Random(seed)
    cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randrange(8)))
    wanted = {name: made[name] for name in NAMES if isinstance(made.get(name), str) and made[name]}
    assert read(text, cuts) == wanted
    assert read(text, [*range(1, len(text))]) == wanted


def test_arguments_of_nothing_but_escapes_are_read_in_one_go() -> None:
    breaks = 200_000  # a key and a text that were joined again at each of them took a quarter of an hour
    reader = StringReader(NAMES)
    assert reader.feed('{"' + "\\n" * breaks + '":"' + "\\n" * breaks) == []
    assert reader.feed('","message":"' + "\\n" * breaks + '"}') == [("message", "\n" * breaks)]


def test_a_character_is_shown_as_soon_as_it_is_whole() -> None:
    reader = StringReader(["message"])
    pieces = ['{"mess', 'age": "A', "\\", "n", "\\u00", "e9", "\\ud83d", "\\ude0", "0", "x\\", '"', '"', "}"]
    shown = [reader.feed(piece) for piece in pieces]
    assert [part[0][1] if part else None for part in shown] == [
        None, "A", None, "\n", None, "é", None, None, "😀", "x", '"', None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"message":"a\\ud83d"}', "a\ufffd"),
        ('{"message":"\\ude00b"}', "\ufffdb"),
        ('{"message":"\\ud83d\\ud83d\\ude00"}', "\ufffd😀"),
        ('{"message":"\\uzzzzb"}', "\ufffdb"),
        ('{"message":"\\u-001b"}', "\ufffdb"),
        ('{"message":"\\u 1_2b"}', "\ufffdb"),
        ('{"message":"cut', "cut"),
        ('["message","x"]', None),
        ('"message"', None),
        ('{"x":{"message":"inner"},"message":"outer"}', "outer"),
        ('{"x":["message","y"],"message":"late"}', "late"),
        ('{"message":{"message":"inner"}}', None),
        ("", None),
        ("}}{", None),
    ],
)
def test_broken_and_nested_json(text: str, shown: str | None) -> None:
    assert read(text, []).get("message") == shown


def tool(*names: str, required: tuple[str, ...] = ()) -> Json:
    properties = {name: {"type": "string"} for name in names}
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": "look", "strict": True, "parameters": parameters}}


def test_asides_stand_first_and_are_required() -> None:
    made = with_asides(tool("q", required=("q",)), {HEARTBEAT, THINKING, FILLER})
    parameters = made["function"]["parameters"]
    assert [*parameters["properties"]] == parameters["required"] == [THINKING, FILLER, HEARTBEAT, "q"]
    assert made["function"]["strict"] is True


def test_an_argument_of_the_tools_own_stays_its_own() -> None:
    own = tool("thinking")
    assert with_asides(own, {THINKING}) is own
    asides = Asides.of([own], {THINKING, HEARTBEAT}, {})
    assert asides.split("look", {"thinking": "x", HEARTBEAT: True}) == ({"thinking": "x"}, {HEARTBEAT: True})
    assert asides.find_voices("look") == {}


def test_a_tool_without_parameters_can_have_asides() -> None:
    made = with_asides({"type": "function", "function": {"name": "stop"}}, {HEARTBEAT})
    assert made["function"]["parameters"]["required"] == [HEARTBEAT]
    assert orjson.dumps(made)
