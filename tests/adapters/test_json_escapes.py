"""JSON that strict parsers refuse is read all the same."""

from __future__ import annotations

import pytest

from adapters.json_escapes import read_json


@pytest.mark.parametrize(
    ("data", "strict"),
    [
        (b'{"a":NaN,"n":1}', b'{"a":null,"n":1}'),
        (b'\xef\xbb\xbf{"n":1}', b'{"n":1}'),
        (b'{"a":"\\ud83d"}', '{"a":"\ufffd"}'.encode()),
        # orjson cannot write an integer beyond 64 bits.
        (b'{"a":NaN,"n":123456789012345678901234}', b'{"a":null,"n":123456789012345678901234}'),
    ],
)
def test_lenient_json_is_read_and_made_strict(data: bytes, strict: bytes) -> None:
    value, found = read_json(data)
    assert value is not None
    assert found.replace(b"\\ufffd", "\ufffd".encode()) == strict


@pytest.mark.parametrize("data", [b"", b"{", b"null,", b'{"a":NaN,"n":%b}' % (b"1" * 400)])
def test_a_text_that_is_no_json_has_no_value(data: bytes) -> None:
    assert read_json(data) == (None, data)
