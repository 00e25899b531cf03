"""A file is recognised and read within its limits; one that is made to harm is refused before anything is written."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest

from adapters.json_escapes import replace_lone_surrogates
from gateway.cli import root
from gateway.core.imports.records import SourceConversation, SourceFact, Unreadable
from gateway.errors import BadRequest
from gateway.run.admin.imports import import_file, import_json
from gateway.run.admin.imports.import_file import FORMATS, detect_format, read_file
from gateway.run.admin.imports.import_json import DepthLimit
from gateway.run.admin.manage_records import ImportParameters
from tests.exports import chatgpt_conversation, claude_conversation, export, mastra_messages, zipped
from tests.rows import each_row

TALKS = {"a": ("Hi", "Hello."), "b": ("Tea?", "Yes.", "Good.")}
CHAT = [chatgpt_conversation(id, talk) for id, talk in TALKS.items()]


def read(data: bytes, format: str | None = None) -> list[Any]:
    file = io.BytesIO(data)
    return list(read_file(file, format or detect_format(file)))


@pytest.mark.parametrize("format", ["chatgpt", "claude", "jsonl", "mastra", "mem0", "list"])
def test_a_format_is_found_and_read(format: str) -> None:
    data = export(format, TALKS)
    assert detect_format(io.BytesIO(data)) == format
    found = read(data)
    if format in ("mem0", "list"):
        assert [each.text for each in found] == ["Hi", "Tea?", "Good."]
    else:
        assert [each.id for each in found] == ["a", "b"]
        assert [m.text for m in found[1].messages] == ["Tea?", "Yes.", "Good."]


def test_each_format_can_be_named() -> None:
    """On the command line, over REST and in the documents."""
    (named,) = (each for each in root.commands["import"].params if each.name == "format")
    assert isinstance(named.type, click.Choice)
    assert set(named.type.choices) == set(FORMATS), "the choices of `import --format` in gateway/cli.py"
    (literal, _) = get_args(get_type_hints(ImportParameters)["format"])
    assert set(get_args(literal)) == set(FORMATS), "ImportParameters of manage_records.py"
    page = (Path(__file__).parents[3] / "docs/operations.md").read_text("utf-8")
    assert all(f"\n| `{each}` |" in page for each in FORMATS), "the table of formats in docs/operations.md"


def lines(*values: Any) -> bytes:
    return b"\n".join(v if isinstance(v, bytes) else json.dumps(v).encode() for v in values)


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (json.dumps(CHAT).encode(), "chatgpt"),
        (b"\xef\xbb\xbf \n" + json.dumps(CHAT).encode(), "chatgpt"),
        (json.dumps([claude_conversation("c", ("Hi",))]).encode(), "claude"),
        (b'[{"id": 1, "x": {"mapping": 1}, "memory": "Tea."}]', "mem0"),
        (lines({"role": "user", "content": "Hi"}), "jsonl"),
        (lines({"id": "a", "messages": [{"content": {"threadId": "x"}, "role": "user"}]}), "jsonl"),
        (lines({"messages": [], "id": "a"}), "jsonl"),
        (lines({"messages": [{"id": "m", "threadId": "t"}], "threads": []}), "mastra"),
        (lines({"messages": [{"thread_id": "t", "createdAt": 1}]}), "mastra"),
        (
            lines(*[{"messages": [{"thread_id": "t", "role": "user", "at": 1}], "id": id} for id in "ab"]),
            "jsonl",
        ),
        (b"[2026-03-01] - Likes tea.", "list"),
        (b"[Unknown date] - Likes tea.", "list"),
        (b"# Me\n- Likes tea.", "list"),
    ],
)
def test_the_format_of_a_file_is_detected(data: bytes, format: str) -> None:
    assert detect_format(io.BytesIO(data)) == format


def test_parts_of_an_export_are_read_in_order() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, item in (("001", CHAT[1]), ("000", CHAT[0])):
            archive.writestr(f"export/conversations-{name}.json", json.dumps([item]))
        archive.writestr("export/chat.html", "x")
    assert [each.id for each in read(file.getvalue())] == ["a", "b"]


def test_messages_of_lines_are_gathered_by_their_conversation() -> None:
    def said(role: str, content: str, conversation: str | None) -> dict[str, Any]:
        return {"role": role, "content": content, "conversation": conversation, "at": 1.5e9}

    found = read(
        lines(
            said("user", "1", "a"), said("user", "2", "b"), b"", b"no json", said("assistant", "3", "a"),
            {"id": "c", "messages": [said("user", "4", None)]}, b"7", said("assistant", "5", "b"),
        )
    )  # fmt: skip
    talks = {
        each.id: [m.text for m in each.messages] for each in found if isinstance(each, SourceConversation)
    }
    assert talks == {"c": ["4"], "a": ["1", "3"], "b": ["2", "5"]}
    assert [each.reason for each in found if isinstance(each, Unreadable)] == [
        "a line is no JSON",
        "a line is no object",
    ]


def test_one_conversation_that_is_wrong_is_left_out_alone() -> None:
    broken = chatgpt_conversation("x", ("secret",))
    broken["mapping"]["root"]["parent"] = "n0"
    found = read(json.dumps([CHAT[0], broken, {"mapping": 7}, None, CHAT[1]]).encode())
    assert [type(each) for each in found] == [SourceConversation, *[Unreadable] * 3, SourceConversation]
    assert "secret" not in repr(found)


def test_a_long_line_is_left_out_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_file, "MAX_LINE_BYTES", 1_000)
    long = {"messages": [{"role": "user", "content": "x" * 100_000}]}
    found = read(lines({"messages": [{"role": "user", "content": "Hi"}]}, long, {"messages": []}))
    assert [type(each) for each in found] == [SourceConversation, Unreadable, SourceConversation]
    facts = read(b"- Tea\n" + b"x" * 5_000 + b"\n- \xff\n- Cake", "list")
    assert [type(each) for each in facts] == [SourceFact, Unreadable, Unreadable, SourceFact]


def encrypted() -> bytes:
    data = bytearray(zipped(CHAT))
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := data.find(sign, place + 1)) >= 0:
            data[place + at] |= 1
    return bytes(data)


def many_entries() -> bytes:
    """The end of a ZIP that says it has more entries than are read."""
    return zipped(CHAT)[:-22] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, 100, 0, 0)


def long_list() -> bytes:
    return zipped(CHAT)[:-22] + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, 1 << 30, 0, 0)


def zip64(directory_bytes: int | None = None) -> bytes:
    """A ZIP whose readers pass over the record at its end, for another one before it."""
    data = zipped(CHAT)
    entries, end = data[:-22], data[-22:]
    count, size, offset = struct.unpack("<HLL", end[10:20])
    entries += struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, directory_bytes or size, offset
    )
    entries += struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data) - 22, 1)
    return entries + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0)


def bomb() -> bytes:
    return zipped([{"mapping": {}, "x": " " * 3_000_000}])


def lying() -> bytes:
    """A ZIP whose entry has more in it than it says."""
    data = zipped(CHAT)
    place = data.rfind(b"PK\x01\x02", 0, data.rfind(b"conversations.json"))
    return data[: place + 24] + struct.pack("<L", 20) + data[place + 28 :]


def packed_by_bzip2() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("conversations.json", json.dumps(CHAT))
    return file.getvalue()


def before_its_begin() -> bytes:
    """A ZIP whose list of entries is said to lie later than it does, so that its entries begin before the file."""
    data = zipped(CHAT)
    offset = int.from_bytes(data[-6:-2], "little")
    return data[:-6] + struct.pack("<L", offset + 1_000) + data[-2:]


@each_row(
    ("data", "why"),
    [
        (b"", "neither"),
        (b"\x00\x01\x02", "neither"),
        ("- \u00c4rger".encode("utf-16"), "UTF-8"),
        (b"{}", "not known"),
        (b"[]", "not known"),
        (b'[{"x": 1}]', "not known"),
        (b'{"messages": ', "no JSON"),
        (b'[{"mapping": {}}, {"mapp', "no JSON"),
        (b'[{"mapping": {"\xff": 1}}]', "no JSON"),
        (b'[{"mapping": {}}] and more', "no JSON"),
        (b'[{"mapping": ' + b"[" * 200, "deeper than 100"),
        (b'[{"mapping": {}, "x": ' + b'{"a":' * 200, "deeper than 100"),
        (lines({"messages": []}, b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}"), "deeper than 100"),
        (b'[{"x": ' + b"1" * 5_000 + b"}]", "no JSON"),
        (b'[{"mapping": {}, "x": "\xed\xa0\x80"}]', "not Unicode"),
        (packed_by_bzip2(), "packed in a way"),
        (before_its_begin(), "damaged"),
        (zipped(CHAT, "other.json"), "no conversations.json"),
        (zipped(CHAT)[:-30], "end is missing"),
        (zipped(CHAT)[:200] + b"x" + zipped(CHAT)[201:], "damaged"),
        (encrypted(), "encrypted"),
        (many_entries(), "more than 10,000 entries.*import its conversations.json"),
        (long_list(), "too long"),
        (zip64(1 << 30), "too long"),
        (bomb(), "200 times"),
        (lying(), "damaged|no JSON"),
    ],
)
def test_a_file_that_is_no_export_is_refused_by_name(data: bytes, why: str) -> None:
    with pytest.raises(BadRequest, match=why) as refused:
        read(data)
    assert refused.value.param == "file"


def test_a_zip_with_numbers_of_64_bits_is_read() -> None:
    assert read(zip64(), "chatgpt") == read(zipped(CHAT), "chatgpt") != []


def test_json_is_bounded_by_what_is_read_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = json.dumps([{"mapping": {}, "x": "y" * 300_000}] * 3).encode()
    monkeypatch.setattr(import_json, "MAX_ITEM_BYTES", 200_000)
    with pytest.raises(BadRequest, match="one item of its list"):
        read(data)
    with pytest.raises(BadRequest, match="the JSON around the list"):
        read(json.dumps({"about": "y" * 300_000, "results": []}).encode(), "mem0")
    monkeypatch.setattr(import_json, "MAX_ITEM_BYTES", 600_000)
    monkeypatch.setattr(import_json, "MAX_JSON_BYTES", 800_000)
    with pytest.raises(BadRequest, match="GiB of JSON"):
        read(data)


def test_what_is_gathered_of_a_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_file, "MAX_GATHERED_CONVERSATIONS", 2)
    messages = [{"role": "user", "content": "Hi", "conversation": f"c{n}"} for n in range(3)]
    assert len(read(lines(*messages[:2]))) == 2
    with pytest.raises(BadRequest, match="more than 2 conversations"):
        read(lines(*messages))
    monkeypatch.setattr(import_file, "MAX_ITEM_BYTES", 1_000)
    with pytest.raises(BadRequest, match="one conversation"):
        read(lines(*[{"role": "user", "content": "x" * 100, "conversation": "c"}] * 20), "jsonl")
    threads = [{"threadId": f"t{n}", "role": "user"} for n in range(20)]
    with pytest.raises(BadRequest, match="fewer threads"):
        read(json.dumps({"threads": [], "messages": threads}).encode(), "mastra")


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1_000])
def test_depth_is_counted_however_the_text_is_cut(step: int) -> None:
    """Brackets within texts do not count, whatever escapes stand before them."""
    text = json.dumps(['\\"[[[{', '"', "\\", {"a\\": "]"}] * 30) + "[" * 99
    data = text.encode()
    depth = DepthLimit()
    for at in range(0, len(data), step):
        depth.feed(data[at : at + step])
    depth.feed(b"[")
    with pytest.raises(BadRequest):
        depth.feed(b"[")


class NotedReads(io.BytesIO):
    """A file that notes how many bytes each of its reads returns."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.sizes: list[int] = []

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.sizes.append(len(data))
        return data


def test_a_long_string_is_read_in_few_pieces() -> None:
    """A parser reads it again from its beginning with each piece."""
    text = 'A \\ and a "quote" ['.ljust(1 << 20, "x")
    file = NotedReads(json.dumps([chatgpt_conversation("a", (text, "Yes."))]).encode())
    (found,) = read_file(file, "chatgpt")
    assert [each.text for each in found.messages] == [text, "Yes."]
    assert len(file.sizes) < 30


HALVES = "\ude00 a \ud83d b \\\ud83d \ud83d\ud83d\ude00 \\ud83d \U0001f600"
WITHOUT_HALVES = "\ufffd a \ufffd b \\\ufffd \ufffd\U0001f600 \\ud83d \U0001f600"


@pytest.mark.parametrize("format", ["chatgpt", "claude", "jsonl", "mastra", "mem0"])
def test_half_a_character_is_lost_alone(format: str) -> None:
    found = read(export(format, {"a": (HALVES, "Hello.")}))
    texts = [found[0].text] if format == "mem0" else [message.text for message in found[0].messages]
    assert texts == [WITHOUT_HALVES, "Hello."][: len(texts)]


@pytest.mark.parametrize("step", [1, 2, 5, 7])
def test_half_a_character_is_found_however_the_text_is_cut(step: int) -> None:
    text = json.dumps(HALVES).encode()
    whole, cut = b"", b""
    for i in range(0, len(text), step):
        piece, cut = replace_lone_surrogates(cut + text[i : i + step])
        whole += piece
    assert json.loads(whole + cut) == WITHOUT_HALVES


def test_a_large_file_is_read_conversation_by_conversation() -> None:
    """The memory that reading takes does not grow with the file."""

    def pieces() -> Iterator[bytes]:
        one = json.dumps(chatgpt_conversation("c", ("x" * 2_000,) * 20)).encode()
        return (one for _ in range(100))

    data = b"[" + b",".join(pieces()) + b"]"
    file = io.BytesIO(data)
    format = detect_format(file)
    tracemalloc.start()
    count = sum(1 for _ in read_file(file, format))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 100
    assert peak < len(data) / 4


def test_rows_of_mastras_table_are_read_as_its_messages() -> None:
    """A row has its thread under the column's name, and its parts as JSON in a text; older rows have plain texts."""
    rows = [
        {**message, "content": json.dumps(message["content"]), "thread_id": message.pop("threadId")}
        for message in [*mastra_messages("a", ("Hi", "Hello.")), *mastra_messages("b", ("Hey",))]
    ]
    rows[-1]["content"] = '{"a": 1} is JSON'
    for threads in ({}, {"threads": []}):
        found = read(json.dumps({"messages": rows, **threads}).encode())
        assert [(each.id, [message.text for message in each.messages]) for each in found] == [
            ("a", ["Hi", "Hello."]), ("b", ['{"a": 1} is JSON'])
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "text"),
    [
        *[
            (text, text)
            for text in ('{"parts": 3}', "[1]", "[]", '["a", "b"]', '[{"type": 1}]', "null", '"a"')
        ],
        ('[{"type": "step-start"}, {"type": "text", "text": "Hi"}]', "Hi"),
        ('{"format": 2, "parts": []}', None),
    ],
)
def test_the_text_of_a_row_is_decoded_only_if_it_has_parts(content: str, text: str | None) -> None:
    row = {"thread_id": "t", "role": "user", "createdAt": "2024-03-01T10:00:00Z", "content": content}
    (found,) = read(json.dumps({"messages": [row]}).encode())
    assert [message.text for message in found.messages] == ([] if text is None else [text])


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_a_row_whose_text_has_many_brackets_is_read(depth: int) -> None:
    row = {"thread_id": "t", "role": "user", "createdAt": "2024-03-01T10:00:00Z"}
    rows = [{**row, "content": "[" * depth + "]" * depth}, {**row, "content": "Hi"}]
    (found,) = read(json.dumps({"messages": rows}).encode())
    assert found.messages[-1].text == "Hi"


def test_the_page_on_mastra_shows_a_file_that_is_read() -> None:
    page = (Path(__file__).parents[3] / "docs/mastra.md").read_text("utf-8")
    data = page.partition("```json\n")[2].partition("```")[0].encode()
    assert detect_format(io.BytesIO(data)) == "mastra"
    (found,) = read(data)
    assert (found.id, [m.role for m in found.messages]) == ("t1", ["user"])
