from __future__ import annotations

from gateway.web.raw_headers import encode_headers, find_header


def test_an_upstreams_header_that_is_no_text_goes_on_in_its_own_bytes() -> None:
    sent = [(b"x-plain", b"a"), (b"x-umlaut", "ü".encode()), (b"x-odd", b"caf\xe9")]
    read = [(name.decode(), value.decode("utf-8", "surrogateescape")) for name, value in sent]
    assert encode_headers(read) == sent
    assert encode_headers(read[:2]) == sent[:2]


def test_the_first_of_two_headers_with_a_name_counts() -> None:
    headers = [(b"a", b"1"), (b"b", b""), (b"b", b"2")]
    assert [find_header(headers, name) for name in (b"a", b"b", b"c")] == [b"1", b"", None]
