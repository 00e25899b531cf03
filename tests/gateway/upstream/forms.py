"""Bodies and doubles for the endpoints that are passed through."""

from __future__ import annotations

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=XX"}


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """parts: name (with a `*` before it: a file) and value."""
    out = b""
    for name, value in parts:
        more = b'; filename="f.bin"\r\nContent-Type: application/octet-stream' if name[0] == "*" else b""
        disposition = b'Content-Disposition: form-data; name="' + name.lstrip("*").encode() + b'"' + more
        out += b"--XX\r\n" + disposition + b"\r\n\r\n" + value + b"\r\n"
    return out + (b"--XX--\r\n" if end else b"")
