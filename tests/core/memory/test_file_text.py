"""The text of files: read from bytes, cut into parts that are the text again, and names that are names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.memory.file_text import clean_file_name, decode_text, split_text


@given(st.text(alphabet="ab .\n", max_size=300), st.integers(1, 40))
def test_the_parts_of_a_text_are_the_text_again(text: str, size: int) -> None:
    found = list(split_text(text, size))
    assert "".join(found) == text
    assert all(0 < len(each) <= size for each in found)


def test_a_part_ends_where_a_paragraph_or_a_line_ends() -> None:
    text = "".join(f"Paragraph {n}. {'word ' * 60}\n\n" for n in range(40))
    assert all(each.startswith("Paragraph") for each in split_text(text))
    lines = "".join(f"{n}: {'x' * 90}\n" for n in range(200))
    assert all(each.endswith("\n") for each in split_text(lines))
    assert [len(each) for each in split_text("x" * 4500)] == [2000, 2000, 500]


@pytest.mark.parametrize(
    ("data", "type", "text"),
    [
        (b"plain", "text/plain", "plain"),
        (b"{}", "", "{}"),
        (b"\xef\xbb\xbfGr\xc3\xb6\xc3\x9fe", "text/plain", "Größe"),
        (b"\xfe\xff\x00a", "text/plain", "a"),
        (b"", "text/plain", ""),
        (b"a\0b", "text/plain", None),
        (b"\xff\xfe\x00", "text/plain", None),
        (b"Gr\xf6\xdfe", "text/plain", None),
        (b"%PDF-1.4", "text/plain", None),
        (b"plain", "Image/PNG", None),
    ],
)
def test_text_is_read_and_nothing_else(data: bytes, type: str, text: str | None) -> None:
    assert decode_text(data, type) == text


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a.md", "a.md"),
        ("docs/v1/a.md", "docs/v1/a.md"),
        ("../../etc//./passwd", "etc/passwd"),
        ("x\\y.txt", "x/y.txt"),
        ("a\n\0b", "ab"),
        ("..", ""),
        ("/", ""),
    ],
)
def test_a_name_keeps_its_directories(name: str, kept: str) -> None:
    assert clean_file_name(name) == kept
