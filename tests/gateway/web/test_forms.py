"""Whole forms: their fields and files, and bodies that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.web.form import FormPart, parse_form


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(b"--x\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
        + b"--x--\r\n"
    )


@given(st.lists(st.binary(max_size=40).filter(lambda data: b"--x" not in data), max_size=4))
def test_values_are_read_as_they_are(values: list[bytes]) -> None:
    head = 'Content-Disposition: form-data; name="a"'
    parsed = parse_form(form(*((head, value) for value in values)), b"x")
    assert parsed == [FormPart("a", None, "", value) for value in values]


def test_a_file_has_its_name_and_type() -> None:
    head = 'content-type: text/plain; charset=utf-8\r\ncontent-disposition: form-data; name=file; filename="ä%22.md"'
    parsed = parse_form(b"nobody's\r\n" + form((head, b"a\r\nb")), b"x")
    assert parsed == [FormPart("file", 'ä".md', "text/plain; charset=utf-8", b"a\r\nb")]


@pytest.mark.parametrize("file_name", ["a; name=b.md", "a; filename=b.md", "a;name=", "name=b;filename=c"])
@pytest.mark.parametrize(
    "head", ['name="file"; filename="%s"', 'filename="%s"; name=file', 'filename="%s";\r\n name=file']
)
def test_a_file_name_may_have_the_form_of_parameters(head: str, file_name: str) -> None:
    parsed = parse_form(form((f"content-disposition: form-data; {head % file_name}", b"a")), b"x")
    assert parsed == [FormPart("file", file_name, "", b"a")]


def test_the_first_of_two_names_counts() -> None:
    head = "content-disposition: form-data; name=a; name=b; filename*=UTF-8''x; filename=c; filename=d"
    assert parse_form(form((head, b"")), b"x") == [FormPart("a", "c", "", b"")]


@pytest.mark.parametrize(
    "data", [b"", b"--x", b"--x\r\n", b"--x\r\nno blank line\r\n--x--", form()[:-4], b"{}"]
)
def test_a_body_that_is_no_complete_form_is_none(data: bytes) -> None:
    assert parse_form(data, b"x") is None


def test_a_field_without_a_name_is_nobodys() -> None:
    assert parse_form(form(("content-disposition: form-data", b"a"), ('x: name="y"', b"b")), b"x") == []
    parsed = parse_form(form(('content-disposition: form-data; name=""', b"a")), b"x")
    assert parsed == [FormPart("", None, "", b"a")]


def test_a_form_of_very_many_parts_is_none() -> None:
    """One of 32 MB would take seconds, in which nobody else is answered."""
    one = ('content-disposition: form-data; name="a"', b"")
    parsed = parse_form(form(*[one] * 1000), b"x")
    assert parsed is not None
    assert len(parsed) == 1000
    assert parse_form(form(*[one] * 1001), b"x") is None
