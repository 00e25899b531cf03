"""Bodies of requests to the endpoints that are forwarded as they are."""

from __future__ import annotations

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=XX"}


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    """Returns a multipart form.

    parts: (name, value); a name with a `*` before it is that of a file.
    end: whether the form has its closing boundary.
    """
    body = b""
    for name, value in parts:
        file_head = b'; filename="f.bin"\r\nContent-Type: application/octet-stream' if name[0] == "*" else b""
        disposition = b'Content-Disposition: form-data; name="' + name.lstrip("*").encode() + b'"' + file_head
        body += b"--XX\r\n" + disposition + b"\r\n\r\n" + value + b"\r\n"
    return body + (b"--XX--\r\n" if end else b"")
