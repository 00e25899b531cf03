"""Ours goes into the client's bytes; nothing else of them changes."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.request.scan import scan
from gateway.core.request.splice import Splice, dump

NOTE = 'Remember: "Kuchen"\n\\ é 🎂'


def splice(body: bytes) -> Splice:
    return Splice(scan(body))


def values(body: bytes) -> dict[str, Any]:
    return {key: orjson.loads(body[value:end]) for key, _, value, end in scan(body).outline.members}


# --- the layout

BODIES = [
    b"{}",
    b" \n{ \t} \r\n",
    b'{"messages":[]}',
    b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}',
    # white space everywhere
    b'\n{ "messages" : [ { "role" : "user" } , {"content":\n"x" }\t] , "n" : 1 }\n',
    # keys of the same name further inside, brackets and quotes inside strings
    b'{"a":{"messages":[1,{"content":"]}"}]},"messages":[{"content":"}]\\"[{","role":"user"}],"b":[[],[[]],{}]}',
    # strings that end in backslashes, in every parity
    rb'{"a":"\\","b":"\\\"","c":"\"","d":"\"\\","e":"\\\\","f":"x\\\"y\"","messages":[{"content":"\\"}]}',
    # escaped keys
    rb'{"mess\u0061ges":[{"r\"le":"user"}],"\u00e9\/":null,"z":-1.5e-3}',
    # surrogate pairs and raw UTF-8
    '{"messages":[{"content":"\\ud83d\\ude00 🎂 é \\u00e9 \\/"}],"x":[true,false,null]}'.encode(),
    # nested deeper than one pattern follows
    b'{"deep":'
    + b"[" * 300
    + b'"]"'
    + b"]" * 300
    + b',"messages":[{"x":'
    + b'{"a":' * 40
    + b"1"
    + b"}" * 41
    + b"]}",
    # longer than a pattern looks ahead: a string, a number, a list, white space, and escapes throughout
    b'{"a":"' + b"x" * 40_000 + b'","messages":[{"content":"' + b'\\"' * 20_000 + b'\\\\"}]}',
    b'{"a":1.'
    + b"0" * 40_000
    + b',"b":['
    + b"[],{}," * 10_000
    + b'0],"messages":[ '
    + b" " * 40_000
    + b"{} ]}",
    b'{"a":"' + b'\\\\\\"' * 20_000 + b'","messages":[{"b":[' + b'"\\\\",' * 9_000 + b'"]"]}]}',
    b'{"a":"' + b"\\\\" * 20_000 + b'","messages":[{"a":[[[[[[[[[["' + b"y" * 20_000 + b'"]]]]]]]]]]},{}]}',
]


@pytest.mark.parametrize("body", BODIES)
def test_every_span_holds_the_value_the_parser_sees(body: bytes) -> None:
    parsed = orjson.loads(body)
    layout = scan(body)
    assert {
        key: orjson.loads(body[value:end]) for key, _, value, end in layout.outline.index.values()
    } == parsed
    for key, start, value, end in layout.outline.members:
        assert orjson.loads(b"{" + body[start:end] + b"}") == {key: orjson.loads(body[value:end])}
    assert [orjson.loads(body[start:end]) for start, end in layout.messages] == parsed.get("messages", [])
    assert orjson.loads(body[layout.outline.start : layout.outline.end]) == parsed


@pytest.mark.parametrize("body", BODIES)
def test_without_edits_the_very_same_bytes_come_out(body: bytes) -> None:
    assert splice(body).render() is body


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("more", [b"", b',{"role":"user"}', b' , {"content":"]}"}\n,{"a":[{}]}'])
def test_a_body_that_begins_like_another_is_scanned_from_there_on(body: bytes, more: bytes) -> None:
    known = scan(body).places
    end = known[-1] if known else len(body)
    longer = body[:end] + more * bool(known) + body[end:]
    for count in (len(known), len(known) // 6 * 3):
        found, fresh = scan(longer, known[:count]), scan(longer)
        assert (found, found.outline) == (fresh, fresh.outline)


def test_the_text_of_a_plain_message_is_found_with_it() -> None:
    body = b'{"messages":[ {"role":"user", "content":"a\\"b"},{"role":"user","content":"c","name":"n"},"d",{"a":1}]}'
    layout = scan(body)
    assert [layout.place(n)[1] for n in range(4)] == [body.index(b"a\\"), 0, 0, 0]
    assert [layout.message(n) for n in range(4)] == layout.messages


def test_known_messages_are_not_scanned() -> None:
    body = b'{"messages":[{"a":1},{"b":2}],"n":1'
    known = scan(body + b"}").places
    found = scan(body.replace(b'{"b":2}', b"{" * 7) + b"}", known)
    assert (found.places, found.span("n")) == (known, scan(body + b"}").span("n"))


def test_repeated_keys_are_reported_and_the_last_one_counts() -> None:
    body = b'{"model":"a","n":1,"messages":[1],"mode\\u006c":"b","messages":[{},{}]}'
    layout = scan(body)
    assert layout.duplicates == ("model", "messages")
    assert layout.span("model") == (body.index(b'"b"'), body.index(b'"b"') + 3)
    assert len(layout.messages) == 2
    assert not scan(b'{"messages":[1],"messages":"x"}').messages


def test_a_body_cut_anywhere_never_hangs_the_scanner() -> None:
    whole = b'{"a":[1,{"b":"\\"x"}],"messages":[{"role":"user","content":["\\\\"]}, {"k":{}}],"z":-1.5}'
    for size in range(len(whole)):
        try:
            scan(whole[:size])
        except ValueError:
            continue
        pytest.fail(f"{whole[:size]!r} was taken for an object")


@settings(max_examples=300)
@given(st.text('{}[]":,\\ua1 \n', max_size=60).map(str.encode))
def test_bytes_that_are_no_json_are_refused_or_scanned_but_never_worse(noise: bytes) -> None:
    try:
        layout = scan(b'{"messages":[' + noise)
    except ValueError:
        return
    assert layout.outline.end <= len(noise) + 13


def test_images_of_twenty_megabytes_are_found() -> None:
    image = base64.b64encode(random.Random(1).randbytes(5_000_000))
    part = b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + image + b'"}}'
    body = b'{"messages":[{"role":"user","content":[' + b",".join([part] * 3) + b']}],"model":"m"}'
    edit = splice(body)
    assert edit.prefix_text(0, "look")
    at = body.index(b"[{", 20) + 1
    assert edit.render() == body[:at] + b'{"type":"text","text":"look"},' + body[at:]


# --- single edits

SYSTEM = b'{"messages":[ {"role":"system","content":"Be kind."} , {"role":"user","content":"hi"} ]}'


def test_a_note_goes_right_behind_the_opening_quote() -> None:
    body = rb'{"messages":[{"role":"user","content" : "h\u00ed \/ there"}]}'
    edit = splice(body)
    assert edit.prefix_text(0, NOTE)
    at = body.index(rb"h\u00ed")
    assert edit.render() == body[:at] + orjson.dumps(NOTE)[1:-1] + body[at:]


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
    # only the message's own last `content` counts
    (b'{"content":"a","x":{"content":"b"},"content":"c","y":"content"}', None),
]


@pytest.mark.parametrize(("message", "expected"), CONTENTS)
def test_a_note_fits_every_form_of_content(message: bytes, expected: dict[str, Any] | None) -> None:
    edit = splice(b'{"messages":[' + message + b"]}")
    assert edit.prefix_text(0, "NOTE:")
    out = edit.render()
    if expected is None:
        assert out == b'{"messages":[' + message.replace(b'"c"', b'"NOTE:c"') + b"]}"
    else:
        assert orjson.loads(out)["messages"] == [expected]


@pytest.mark.parametrize("content", [b"7", b"{}", b"true"])
def test_content_that_is_no_text_is_left_as_it_is(content: bytes) -> None:
    body = b'{"messages":[{"content":' + content + b"}]}"
    edit = splice(body)
    assert not edit.prefix_text(0, "note")
    assert edit.render() is body


def test_the_memory_section_goes_to_the_end_of_the_leading_system_message() -> None:
    edit = splice(SYSTEM)
    edit.append_system('Known: "a"')
    assert edit.render() == SYSTEM.replace(b"Be kind.", b'Be kind.\\n\\nKnown: \\"a\\"')


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ({"role": "developer", "content": "a"}, [{"role": "developer", "content": "a\n\nX"}]),
        ({"role": "system", "content": ""}, [{"role": "system", "content": "X"}]),
        ({"role": "system", "content": None}, [{"role": "system", "content": "X"}]),
        ({"role": "system"}, [{"role": "system", "content": "X"}]),
        (
            {"role": "system", "content": [{"type": "text", "text": "a"}]},
            [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "X"}]}],
        ),
        (
            {"role": "user", "content": "a"},
            [{"role": "system", "content": "X"}, {"role": "user", "content": "a"}],
        ),
    ],
)
def test_there_is_one_leading_system_message(first: dict[str, Any], expected: list[Any]) -> None:
    rest = {"role": "user", "content": "b"}
    edit = splice(orjson.dumps({"messages": [first, rest]}))
    edit.append_system("X")
    assert orjson.loads(edit.render())["messages"] == [*expected, rest]


def test_an_empty_list_gets_its_first_messages() -> None:
    edit = splice(b'{"messages":[ ]}')
    edit.insert_messages(0, [b"1"])
    edit.append_system("X")
    assert orjson.loads(edit.render())["messages"] == [{"role": "system", "content": "X"}, 1]


def test_insertions_leave_every_byte_of_the_client_where_it_was() -> None:
    edit = splice(SYSTEM)
    edit.insert_messages(2, [b'{"last":1}', b'{"last":2}'])
    edit.insert_messages(1, [b'{"mid":1}'])
    edit.insert_messages(1, [b'{"mid":2}'])
    edit.insert_messages(0, [])
    assert edit.render() == (
        b'{"messages":[ {"role":"system","content":"Be kind."} , {"mid":1},{"mid":2},'
        b'{"role":"user","content":"hi"},{"last":1},{"last":2} ]}'
    )


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
@pytest.mark.parametrize("body", [b'{"messages":[0,1,2]}', b'{"messages" : [ 0 , 1\n, 2 ] }'])
def test_drops_and_insertions_compose(
    body: bytes, drop: list[int], insert: dict[int, str], expected: list[Any]
) -> None:
    edit = splice(body)
    for index in drop:
        edit.drop_message(index)
    for index, new in insert.items():
        edit.insert_messages(index, [orjson.dumps(new)])
    assert orjson.loads(edit.render()) == {"messages": expected}


def test_members_are_replaced_in_place_added_at_the_end_and_dropped() -> None:
    body = b'{ "model" : "agent/x" , "a":1, "stream":false,"a" : 2 }'
    edit = splice(body)
    edit.set_member("model", b'"gpt"')
    edit.set_member("a", b"3")
    edit.set_member("new", b"[]")
    edit.drop_member("stream")
    edit.drop_member("missing")
    assert edit.render() == b'{ "model" : "gpt","a" : 3,"new":[] }'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"m":1}', b'{"m":1,"tools":[{"t":1},{"t":2}]}'),
        (b"{ }", b'{"tools":[{"t":1},{"t":2}] }'),
        (b'{"tools":null}', b'{"tools":[{"t":1},{"t":2}]}'),
        (b'{"tools":[ ]}', b'{"tools":[ {"t":1},{"t":2}]}'),
        (b'{"tools":[{"a":[]} ],"m":1}', b'{"tools":[{"a":[]} ,{"t":1},{"t":2}],"m":1}'),
    ],
)
def test_tools_go_behind_the_clients(body: bytes, expected: bytes) -> None:
    edit = splice(body)
    edit.add_tools([])
    assert edit.render() is body
    edit.add_tools([b'{"t":1}'])
    edit.add_tools([b'{"t":2}'])
    assert edit.render() == expected
    assert edit.render() == expected  # rendering changes nothing


def test_contradicting_edits_are_errors() -> None:
    for contradict in (
        lambda edit: (edit.drop_message(1), edit.prefix_text(1, "x")),
        lambda edit: (edit.drop_message(0), edit.append_system("x")),
        lambda edit: (edit.set_member("messages", b"[]"), edit.prefix_text(1, "x")),
        lambda edit: (edit.drop_member("tools"), edit.add_tools([b"{}"])),
        lambda edit: (edit.drop_message(0), edit.set_role(0, "user")),
    ):
        edit = splice(SYSTEM)
        contradict(edit)
        with pytest.raises(ValueError):
            edit.render()
    with pytest.raises(IndexError):
        splice(SYSTEM).prefix_text(2, "x")
    with pytest.raises(IndexError):
        splice(SYSTEM).set_role(2, "user")
    with pytest.raises(IndexError):
        splice(SYSTEM).insert_messages(3, [b"{}"])


def test_half_a_surrogate_pair_in_our_text_breaks_nothing() -> None:
    edit = splice(SYSTEM)
    edit.append_system("a\ud83d")
    edit.prefix_text(1, "b\ud83d")
    assert [m["content"] for m in orjson.loads(edit.render())["messages"]] == ["Be kind.\n\na?", "b?hi"]


# --- any request, written in any way

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
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


@settings(max_examples=400)
@given(parsed=bodies, seed=st.integers(0, 2**32), note=st.text(min_size=1, max_size=8))
def test_edited_bytes_parse_to_the_edited_request(parsed: dict[str, Any], seed: int, note: str) -> None:
    draw = random.Random(seed)
    body = write(parsed, draw).encode()
    parsed = orjson.loads(body)
    layout = scan(body)
    assert [orjson.loads(body[start:end]) for start, end in layout.messages] == parsed["messages"]
    edit = Splice(layout)

    sent: list[dict[str, Any]] = parsed["messages"]
    touched: set[int] = set()
    gone = {i for i in range(len(sent)) if draw.random() < 0.2}
    wanted: list[Any] = []
    for i in range(len(sent) + 1):
        new = [{"role": "user", "content": f"new {i}.{k}"} for k in range(draw.choice([0, 0, 0, 1, 2]))]
        edit.insert_messages(i, map(dump, new))
        wanted += new
        if i == len(sent):
            break
        if i in gone:
            replacement = [{"role": "tool"}] * draw.choice([0, 0, 1, 2])
            edit.replace_message(i, map(dump, replacement))
            wanted += replacement
            continue
        if draw.random() < 0.4:
            assert edit.prefix_text(i, note)
            add_prefix(sent[i], note)
            touched.add(i)
        if sent[i]["role"] == "developer" and draw.random() < 0.5:
            edit.set_role(i, "system")
            sent[i]["role"] = "system"
            touched.add(i)
        wanted.append(sent[i])
    if draw.random() < 0.5 and 0 not in gone:
        edit.append_system(NOTE)
        touched.add(0)
        add_system(wanted, sent[0] if sent else None, NOTE)
    parsed["messages"] = wanted
    if draw.random() < 0.3:
        edit.add_tools([b'{"ours":1}'])
        parsed["tools"] = [*parsed.get("tools", []), {"ours": 1}]
    for key in ("model", "x", "stream", "new"):
        choice = draw.random()
        if choice < 0.2:
            edit.set_member(key, b'{"set":true}')
            parsed[key] = {"set": True}
        elif choice < 0.4:
            edit.drop_member(key)
            parsed.pop(key, None)

    out = edit.render()
    assert orjson.loads(out) == parsed
    again = scan(out)
    assert [orjson.loads(out[start:end]) for start, end in again.messages] == wanted
    at = 0
    for i, (start, end) in enumerate(layout.messages):
        if i not in gone and i not in touched:
            at = out.find(body[start:end], at)  # in order, byte for byte
            assert at >= 0
            at += end - start


def test_one_repeated_key_among_many_takes_no_time() -> None:
    """Counted one by one they take the square of their number: minutes for these."""
    body = b"{%s}" % b",".join(b'"k%d":1' % (i % 200_000) for i in range(200_001))
    assert scan(body).duplicates == ("k0",)


def test_tools_go_in_front_of_the_clients_where_they_change_less() -> None:
    edit = splice(b'{"tools":[{"a":[]} ],"m":1}')
    edit.add_tools([b'{"t":1}', b'{"t":2}'], in_front=True)
    assert edit.render() == b'{"tools":[{"t":1},{"t":2},{"a":[]} ],"m":1}'
    edit = splice(b'{"m":1}')
    edit.add_tools([b'{"t":1}'], in_front=True)
    assert edit.render() == b'{"m":1,"tools":[{"t":1}]}'
