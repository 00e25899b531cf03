"""The gateway edits the client's value, which is written once; a body without an edit is the bytes that came."""

from __future__ import annotations

import base64
import copy
import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.request.edit import BodyEdit

NOTE = 'Remember: "Kuchen"\n\\ é 🎂'
DEEP = b"[" * 400 + b"]" * 400


def edit_of(body: bytes) -> BodyEdit:
    return BodyEdit(body, orjson.loads(body))


def edited_message(message: bytes, text: str = "NOTE:") -> Any:
    """Returns a message with a text before its own."""
    edit = edit_of(b'{"messages":[' + message + b"]}")
    edit.prefix_text(0, text)
    return orjson.loads(edit.render())["messages"][0]


def test_each_message_of_an_edited_body_has_its_index_in_the_clients_list() -> None:
    messages = [
        {"role": role, "content": role} for role in ("user", "assistant", "user", "assistant", "user")
    ]
    edit = edit_of(orjson.dumps({"messages": messages}))
    assert edit.list_origins() == [0, 1, 2, 3, 4]
    edit.append_system("Be kind.")
    edit.insert_messages(0, [{"role": "user", "content": "Earlier."}])
    edit.drop_message(0)
    edit.replace_message(1, [messages[1], messages[1], messages[1]])
    edit.prefix_text(2, NOTE)
    edit.insert_messages(5, [messages[1]])
    assert edit.list_origins() == [None, None, 1, 1, 1, 2, 3, 4, None]
    assert len(orjson.loads(edit.render())["messages"]) == 9


def test_a_text_for_the_leading_system_message_moves_no_message() -> None:
    edit = edit_of(SYSTEM)
    edit.append_system("Be brief.")
    assert edit.list_origins() == [0, 1]


# --- bytes that stay

SYSTEM = b'{"messages":[ {"role":"system","content":"Be kind."} , {"role":"user","content":"hi"} ]}'


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b" \n{ \t} \r\n",
        rb'{ "mess\u0061ges" : [{"content":"\u00e9\/", "content":null}], "n":1.10, "n":12345678901234567890123 }',
        b'{"deep":' + DEEP + b"}",
    ],
)
def test_without_edits_the_very_same_bytes_come_out(body: bytes) -> None:
    edit = edit_of(body)
    edit.insert_messages(0, [])
    edit.prefix_text(0, "")
    edit.add_tools([])
    edit.drop_member("missing")
    assert edit.render() is body


def test_the_same_value_is_written_as_the_same_bytes() -> None:
    """What was sent before is the beginning of what is sent now, whatever the white space of each."""
    told = []
    for body in (
        SYSTEM,
        SYSTEM.replace(b" ", b"  "),
        SYSTEM.replace(b"]}", b',{"role":"user","content":"a"}]}'),
    ):
        edit = edit_of(body.replace(b"Be  kind.", b"Be kind."))
        edit.append_system("Known.")
        edit.prefix_text(1, NOTE)
        told.append(edit.render())
    assert told[0] == told[1]
    assert told[2].startswith(told[0].removesuffix(b"]}"))


@pytest.mark.parametrize(
    "number",
    [
        b"12345678901234567890123",
        b"-12345678901234567890123",
        b"18446744073709551616",
        b"-9223372036854775809",
        b"18446744073709551615",
        b"-9223372036854775808",
        b"9" * 300,
    ],
)
def test_integers_beyond_64_bits_keep_their_value(number: bytes) -> None:
    """In members, in messages, in tools and in a message that is edited. Others are written as ever."""
    body = (
        b'{"messages":[{"role":"user","content":"hi","x":%b,"y":[1e2]}],"n":%b,"z":1.10,"t":"a",'
        b'"tools":[{"maximum":%b}],"x":{"y":[%b, 0.5]}}'
    ).replace(b"%b", number)
    edit = edit_of(body)
    edit.prefix_text(0, "N ")
    edit.add_tools([{"t": 1}])
    edit.set_member("model", "m")
    expected = body.replace(b'"hi"', b'"N hi"').replace(b"1e2", b"100.0").replace(b"1.10", b"1.1")
    expected = expected.replace(b"}],", b'},{"t":1}],').replace(b'},{"t":1}],"n"', b'}],"n"')
    assert edit.render() == expected.replace(b", ", b",")[:-1] + b',"model":"m"}'


def test_long_runs_of_digits_in_texts_change_nothing() -> None:
    body = rb'{"messages":[{"role":"user","content":"call 12345678901234567890123, \"12345678901234567890123\""}]}'
    edit = edit_of(body)
    edit.prefix_text(0, "N ")
    assert edit.render() == body.replace(b"call", b"N call")


def test_a_body_too_deep_to_be_written_goes_as_it_came() -> None:
    body = b'{"model":"a","x": %b ,"messages":[{"role":"user","content":"hi"}],"n":1.50}' % DEEP
    edit = BodyEdit(body, {**orjson.loads(body), "more": "of the path"})
    edit.prefix_text(0, "N ")
    edit.set_member("model", "b")
    assert edit.render() == (
        b'{"model":"b","x":%b,"messages":[{"role":"user","content":"N hi"}],"n":1.5,"more":"of the path"}'
        % DEEP
    )


def test_the_value_that_was_parsed_is_not_changed() -> None:
    parsed = orjson.loads(SYSTEM)
    before = copy.deepcopy(parsed)
    edit = BodyEdit(SYSTEM, parsed)
    edit.append_system("a")
    edit.prefix_text(1, "b")
    edit.drop_message(1)
    edit.set_role(0, "developer")
    edit.set_member("model", "m")
    edit.add_tools([{"t": 1}])
    assert edit.render() == edit.render()
    assert parsed == before


def test_images_of_twenty_megabytes_are_sent_whole() -> None:
    image = base64.b64encode(random.Random(1).randbytes(5_000_000))
    part = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + image + b'"}}'
    body = b'{"messages":[{"role":"user","content":[' + b",".join([part] * 3) + b']}],"model":"m"}'
    edit = edit_of(body)
    edit.prefix_text(0, "look")
    assert edit.render() == body.replace(b"[{", b'[{"type":"text","text":"look"},{', 2).replace(
        b'[{"type":"text","text":"look"},', b"[", 1
    )


# --- single edits

CONTENTS = [
    (b'{"content":"x"}', {"content": "NOTE:x"}),
    (b'{"content":""}', {"content": "NOTE:"}),
    (b'{"content":null}', {"content": "NOTE:"}),
    (b'{"role":"user"}', {"role": "user", "content": "NOTE:"}),
    (b"{ }", {"content": "NOTE:"}),
    (b'{"content":[ ]}', {"content": [{"type": "text", "text": "NOTE:"}]}),
    (
        b'{"content":[{"type":"image_url"}]}',
        {"content": [{"type": "text", "text": "NOTE:"}, {"type": "image_url"}]},
    ),
    (
        b'{"content":[ {"text" : "x", "cache_control":{}, "type":"text"},{"type":"text","text":"y"}]}',
        {
            "content": [
                {"text": "NOTE:x", "cache_control": {}, "type": "text"},
                {"type": "text", "text": "y"},
            ]
        },
    ),
    (
        b'{"content":[{"type":"text","text":null}]}',
        {"content": [{"type": "text", "text": "NOTE:"}, {"type": "text", "text": None}]},
    ),
    (b'{"content":["x"]}', {"content": [{"type": "text", "text": "NOTE:"}, "x"]}),
    # Of a repeated key the last one counts, as for the upstream.
    (b'{"content":"a","x":{"content":"b"},"content":"c"}', {"content": "NOTE:c", "x": {"content": "b"}}),
    # What is no text is left as it is.
    (b'{"content":7}', {"content": 7}),
    (b'{"content":{}}', {"content": {}}),
    (b'{"content":true}', {"content": True}),
]


@pytest.mark.parametrize(("message", "expected"), CONTENTS)
def test_a_note_fits_every_form_of_content(message: bytes, expected: dict[str, Any]) -> None:
    assert edited_message(message) == expected
    assert edited_message(message, "") == orjson.loads(message)


def test_parts_and_lists_have_other_names_in_other_dialects() -> None:
    body = b'{"input":[{"content":[{"type":"input_text","text":"a"}]},{"content":[]}],"messages":7}'
    edit = BodyEdit(body, orjson.loads(body), list_key="input", text_kind="input_text")
    for index in (0, 1):
        edit.prefix_text(index, "N ")
    assert orjson.loads(edit.render()) == {
        "input": [
            {"content": [{"type": "input_text", "text": "N a"}]},
            {"content": [{"type": "input_text", "text": "N "}]},
        ],
        "messages": 7,
    }


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ({"role": "developer", "content": "a"}, [{"role": "developer", "content": "a\n\nX\n\nY"}]),
        ({"role": "system", "content": ""}, [{"role": "system", "content": "X\n\nY"}]),
        ({"role": "system", "content": None}, [{"role": "system", "content": "X\n\nY"}]),
        ({"role": "system"}, [{"role": "system", "content": "X\n\nY"}]),
        (
            {"role": "system", "content": [{"type": "text", "text": "a"}]},
            [{"role": "system", "content": [{"type": "text", "text": each} for each in "aXY"]}],
        ),
        (
            {"role": "system", "content": []},
            [{"role": "system", "content": [{"type": "text", "text": each} for each in "XY"]}],
        ),
        (
            {"role": "user", "content": "a"},
            [{"role": "system", "content": "X\n\nY"}, {"role": "user", "content": "a"}],
        ),
    ],
)
def test_there_is_one_leading_system_message(first: dict[str, Any], expected: list[Any]) -> None:
    rest = {"role": "user", "content": "b"}
    edit = edit_of(orjson.dumps({"messages": [first, rest]}))
    edit.append_system("X")
    edit.append_system("Y")
    assert orjson.loads(edit.render())["messages"] == [*expected, rest]


@pytest.mark.parametrize(
    ("replacement", "expected"),
    [
        ([{"role": "system", "content": "Be brief."}], [{"role": "system", "content": "Be brief.\n\nX"}]),
        ([], [{"role": "system", "content": "X"}]),
    ],
)
def test_a_text_outlasts_the_leading_message(replacement: list[Any], expected: list[Any]) -> None:
    edit = edit_of(SYSTEM)
    edit.append_system("X")
    edit.replace_message(0, replacement)
    rest = orjson.loads(SYSTEM)["messages"][1:]
    assert orjson.loads(edit.render())["messages"] == [*expected, *rest]


def test_an_empty_list_gets_its_first_messages() -> None:
    edit = edit_of(b'{"messages":[ ]}')
    edit.insert_messages(0, [{"n": 1}])
    edit.append_system("X")
    assert orjson.loads(edit.render())["messages"] == [{"role": "system", "content": "X"}, {"n": 1}]


@pytest.mark.parametrize(
    ("drop", "insert", "expected"),
    [
        ([0], {}, [1, 2]),
        ([1], {}, [0, 2]),
        ([2], {}, [0, 1]),
        ([0, 1, 2], {}, []),
        ([0, 1, 2], {0: "a", 1: "b", 3: "c"}, ["a", "b", "c"]),
        ([0, 1], {2: "a"}, ["a", 2]),
        ([1, 2], {2: "a"}, [0, "a"]),
        ([1, 2], {3: "a"}, [0, "a"]),
        ([1], {1: "a", 2: "b", 3: "c"}, [0, "a", "b", 2, "c"]),
    ],
)
def test_drops_and_insertions_compose(drop: list[int], insert: dict[int, str], expected: list[Any]) -> None:
    def message(name: object) -> dict[str, Any]:
        return {"name": name}

    edit = edit_of(orjson.dumps({"messages": [*map(message, range(3))]}))
    for index in drop:
        edit.drop_message(index)
    for index, new in insert.items():
        edit.insert_messages(index, [message(new)])
    assert orjson.loads(edit.render()) == {"messages": [*map(message, expected)]}


def test_members_are_replaced_in_place_added_at_the_end_and_dropped() -> None:
    edit = edit_of(b'{ "model" : "agent/x" , "a":1, "stream":false,"a" : 2 }')
    edit.set_member("model", "gpt")
    edit.set_member("a", 3)
    edit.set_member("new", [])
    edit.drop_member("stream")
    edit.drop_member("missing")
    assert edit.render() == b'{"model":"gpt","a":3,"new":[]}'


def test_a_member_that_is_dropped_and_then_set_is_there() -> None:
    edit = edit_of(b'{"a":1,"b":2}')
    edit.drop_member("a")
    edit.set_member("a", 3)
    edit.set_member("b", 4)
    edit.drop_member("b")
    assert edit.render() == b'{"a":3}'


@pytest.mark.parametrize("are_first", [False, True])
@pytest.mark.parametrize(
    ("body", "own"),
    [
        (b'{"m":1}', []),
        (b"{ }", []),
        (b'{"tools":null}', []),
        (b'{"tools":[ ]}', []),
        (b'{"tools":[{"a":[]} ],"m":1}', [{"a": []}]),
    ],
)
def test_tools_go_after_the_clients_or_in_front_where_they_change_less(
    body: bytes, own: list[Any], are_first: bool
) -> None:
    edit = edit_of(body)
    edit.add_tools([])
    assert edit.render() is body
    edit.add_tools([{"t": 1}, {"t": 2}], are_first=are_first)
    ours = [{"t": 1}, {"t": 2}]
    expected = [*ours, *own] if are_first else [*own, *ours]
    assert orjson.loads(edit.render()) == {**orjson.loads(body), "tools": expected}


def test_half_a_surrogate_pair_in_our_text_breaks_nothing() -> None:
    edit = edit_of(SYSTEM)
    edit.append_system("a\ud83d")
    edit.prefix_text(1, "b\ud83d")
    edit.set_member("instructions", "c\ud83d")
    sent = orjson.loads(edit.render())
    assert [m["content"] for m in sent["messages"]] == ["Be kind.\n\na?", "b?hi"]
    assert sent["instructions"] == "c?"


# --- any request, written in any way

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.text(max_size=12),
    st.sampled_from(['"', "\\", "]}", ""]),
)
keys = st.one_of(st.sampled_from(["content", "messages", "role", "type", "x"]), st.text(max_size=4))
anything = st.recursive(
    scalars, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(keys, v, max_size=3)), max_leaves=8
)
parts = st.one_of(
    st.dictionaries(keys, anything, max_size=3),
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=8)}, optional={"x": anything}),
)
contents = st.one_of(st.none(), st.text(max_size=20), st.lists(parts, max_size=3))
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={"content": contents, "tool_calls": anything, "x": anything},
)
bodies = st.fixed_dictionaries(
    {"model": st.text(max_size=5), "messages": st.lists(messages, max_size=5)},
    optional={"tools": st.lists(anything, max_size=2), "stream": st.booleans(), "x": anything},
)


def write(value: Any, draw: random.Random) -> str:
    """JSON with random white space, escapes, order of keys and repeated keys."""

    def space() -> str:
        return draw.choice(["", "", " ", "\n\t", "  "])

    if isinstance(value, dict):
        pairs = list(value.items())
        draw.shuffle(pairs)
        items = [f"{text(k, draw)}{space()}:{space()}{write(v, draw)}" for k, v in pairs]
        if pairs and draw.random() < 0.15:  # repeat a key, the parsed value being the last one's
            items.insert(0, f'{text(draw.choice(pairs)[0], draw)}:"shadowed"')
        return "{" + space() + f"{space()},{space()}".join(items) + space() + "}"
    if isinstance(value, list):
        return "[" + space() + f"{space()},{space()}".join(write(v, draw) for v in value) + space() + "]"
    return text(value, draw) if isinstance(value, str) else json.dumps(value)


def text(value: str, draw: random.Random) -> str:
    if draw.random() < 0.2:
        raw = "".join(f"\\u{unit:04x}" for unit in _units(value))
        return f'"{raw}"'
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).replace("/", draw.choice(["/", "\\/"]))


def _units(value: str) -> list[int]:
    encoded = value.encode("utf-16-be")
    return [int.from_bytes(encoded[i : i + 2]) for i in range(0, len(encoded), 2)]


def add_prefix(message: dict[str, Any], note: str) -> None:
    content = message.get("content")
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and first.get("type") == "text" and isinstance(first.get("text"), str):
        first["text"] = note + first["text"]
    elif isinstance(content, list):
        content.insert(0, {"type": "text", "text": note})
    else:
        message["content"] = note + (content or "")


def add_system(wanted: list[Any], message: dict[str, Any] | None, section: str) -> None:
    if message is None or message["role"] not in ("system", "developer"):
        wanted.insert(0, {"role": "system", "content": section})
    elif isinstance(message.get("content"), list):
        message["content"].append({"type": "text", "text": section})
    else:
        message["content"] = "\n\n".join(filter(None, (message.get("content"), section)))


@settings(max_examples=200)
@given(parsed=bodies, seed=st.integers(0, 2**32), note=st.text(min_size=1, max_size=8))
def test_the_sent_body_is_the_clients_value_with_the_edits(
    parsed: dict[str, Any], seed: int, note: str
) -> None:
    draw = random.Random(seed)
    body = write(parsed, draw).encode()
    parsed = json.loads(body)  # integers of any size
    edit = edit_of(body)

    sent: list[dict[str, Any]] = parsed["messages"]
    gone = {i for i in range(len(sent)) if draw.random() < 0.2}
    wanted: list[Any] = []
    is_edited = False
    for i in range(len(sent) + 1):
        new = [{"role": "user", "content": f"new {i}.{k}"} for k in range(draw.choice([0, 0, 0, 1, 2]))]
        edit.insert_messages(i, new)
        wanted += new
        is_edited |= bool(new)
        if i == len(sent):
            break
        if i in gone:
            replacement = [{"role": "tool"}] * draw.choice([0, 0, 1, 2])
            edit.replace_message(i, replacement)
            wanted += replacement
            is_edited = True
            continue
        if draw.random() < 0.4:
            edit.prefix_text(i, note)
            add_prefix(sent[i], note)
            is_edited = True
        if sent[i]["role"] == "developer" and draw.random() < 0.5:
            edit.set_role(i, "system")
            sent[i]["role"] = "system"
            is_edited = True
        wanted.append(sent[i])
    if draw.random() < 0.5 and 0 not in gone:
        edit.append_system(NOTE)
        add_system(wanted, sent[0] if sent else None, NOTE)
        is_edited = True
    parsed["messages"] = wanted
    if draw.random() < 0.3:
        edit.add_tools([{"ours": 1}])
        parsed["tools"] = [*parsed.get("tools", []), {"ours": 1}]
        is_edited = True
    for key in ("model", "x", "stream", "new"):
        choice = draw.random()
        if choice < 0.2:
            edit.set_member(key, {"set": True})
            parsed[key] = {"set": True}
            is_edited = True
        elif choice < 0.4:
            edit.drop_member(key)
            is_edited |= key in parsed
            parsed.pop(key, None)

    out = edit.render()
    assert json.loads(out) == parsed
    assert (out is body) is not is_edited
