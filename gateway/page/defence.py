"""The defence of the page, as pure functions: the headers of each answer, and the origin of a request.

A write from a page of another origin is refused (`compare_origin`, which gateway.page.page_app asks).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from urllib.parse import urlsplit

RawHeader = tuple[bytes, bytes]
# The origins of `frame-ancestors` follow it.
_CSP_BEGINNING = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors "
)


def make_security_headers(frame_origins: Sequence[str] = ()) -> list[RawHeader]:
    """Returns the headers of each answer. frame_origins: the origins of pages that may show it in a frame."""
    headers = {
        "content-security-policy": _CSP_BEGINNING + (" ".join(frame_origins) or "'none'"),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
    if frame_origins:
        del headers["x-frame-options"]
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def read_header_values(headers: Iterable[RawHeader], name: bytes) -> list[str]:
    """Returns the values of a header, stripped. name: the header's name in lower case."""
    return [value.decode("latin-1").strip() for key, value in headers if key == name]


def compare_origin(headers: Sequence[RawHeader], *, has_tls: bool) -> bool | None:
    """Returns whether a request comes from a page of this very origin; None: the request does not say.

    Browsers send the origin in `Sec-Fetch-Site` or `Origin`. `Origin` must have the host and the port to which the
    request is sent, since a cookie goes to every port of its host.

    has_tls: True if the page is served with TLS, so a page of the same host without TLS is of another origin.
    """
    schemes = ("https",) if has_tls else ("http", "https")
    hosts = read_header_values(headers, b"host")
    own_host = hosts[0].lower() if len(hosts) == 1 else None
    verdicts = [value == "same-origin" for value in read_header_values(headers, b"sec-fetch-site")]
    verdicts += [
        own_host is not None and _parse_host(value, schemes) == own_host
        for value in read_header_values(headers, b"origin")
    ]
    return all(verdicts) if verdicts else None


def _parse_host(origin: str, schemes: Collection[str]) -> str | None:
    """Returns the host and port of an origin, as a `Host` header has them; None: it is no origin with these schemes."""
    try:
        url = urlsplit(origin)
    except ValueError:
        return None
    if url.scheme not in schemes or url.path or url.query or url.fragment:
        return None
    return url.netloc.lower() or None
