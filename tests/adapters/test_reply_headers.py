"""What replies' headers announce."""

from __future__ import annotations

import pytest

from adapters.reply_headers import is_event_stream, read_retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"retry-after-ms": "nan", "retry-after": "5"}, 5.0),
        ({"retry-after-ms": "inf", "retry-after": "5"}, 5.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after(headers.items(), 60.0) == seconds


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, (("content-type", "text/event-stream; charset=utf-8"),), True),
        (200, (("content-type", "Text/Event-Stream"),), True),
        (200, (("content-type", "application/json"),), False),
        (200, (), False),
        (429, (("content-type", "text/event-stream"),), False),
    ],
)
def test_content_types_that_are_read_as_events(
    status: int, headers: tuple[tuple[str, str], ...], expected: bool
) -> None:
    assert is_event_stream(status, headers) is expected
