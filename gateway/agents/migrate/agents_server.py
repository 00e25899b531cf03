"""Requests to a server with the agents API: a Letta server, or a gateway."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from msgspec import Struct

from adapters.types import Json
from gateway.errors import GatewayError

_PAGE_SIZE = 100
_TIMEOUT_S = 120.0
# The most bytes of an answer.
_MAX_BYTES = 1 << 29


class RequestFailed(GatewayError):
    """A server refuses a request, does not answer, or gives an answer that cannot be read."""

    def __init__(self, message: str, reply_status: int = 0) -> None:
        super().__init__(message)
        # The HTTP status of a refusal; 0: the server has given no status.
        self.reply_status = reply_status


class Server(Struct, frozen=True):
    """A server with the agents API."""

    # The address of the server, without a path.
    url: str
    # The key or the password of the server; None: it requires none.
    key: str | None = None

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Returns the JSON at a path. Raises: RequestFailed."""
        query_string = "?" + urlencode(query, doseq=True) if query else ""
        return self._ask(urllib.request.Request(f"{self._base}{path}{query_string}"))

    def list_if_served(self, path: str, query: Mapping[str, Any]) -> Iterator[Json]:
        """Yields the elements of a list; none if the server lacks it (0.11.7 lacks archives). Raises: RequestFailed."""
        try:
            yield from self.list_all(path, query)
        except RequestFailed as error:
            if error.reply_status != 404:
                raise

    def list_all(self, path: str, query: Mapping[str, Any]) -> Iterator[Json]:
        """Yields the elements of a list, read page by page. Raises: RequestFailed."""
        cursor: Json = {}
        ends: set[str] = set()
        # The limit counts stored messages, and a page lists a stored message as several messages or as none. So only an
        # empty page is the end.
        while page := _require_page(self.get(path, {**query, "limit": _PAGE_SIZE, **cursor})):
            end = page[-1]["id"]
            if end in ends:
                raise RequestFailed(
                    f"{self.url} answers {path} with pages that have no end: {end} ends two of them."
                )
            ends.add(end)
            yield from page
            cursor = {"after": end}

    def patch(self, path: str, fields: Mapping[str, Any]) -> None:
        """Sends a PATCH request. Raises: RequestFailed."""
        headers = {"content-type": "application/json"}
        url = f"{self._base}{path}"
        self._ask(urllib.request.Request(url, json.dumps(fields).encode(), headers, method="PATCH"))

    def send_file(self, path: str, name: str, data: bytes, fields: Mapping[str, str]) -> Any:
        """Sends a form with a file in `file`. Returns the JSON of the answer. Raises: RequestFailed.

        name: the file name of the file.
        fields: the other fields of the form.
        """
        boundary = uuid4().hex
        parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
        parts.append(
            f'name="file"; filename="{name}"\r\ncontent-type: application/json\r\n\r\n'.encode() + data
        )
        head = f"--{boundary}\r\ncontent-disposition: form-data; ".encode()
        body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return self._ask(urllib.request.Request(f"{self._base}{path}", body, headers))

    @contextmanager
    def expect_form(self, form: str) -> Iterator[None]:
        """Turns errors of reading an answer of another form into RequestFailed. form: the name of the expected form."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"{self.url} has answered in another form than {form}: {error!r:.300}"
            raise RequestFailed(message) from error

    @property
    def _base(self) -> str:
        return self.url.rstrip("/")

    def _ask(self, request: urllib.request.Request) -> Any:
        """Sends a request. Returns the JSON of the answer. Raises: RequestFailed."""
        if self.key is not None:
            # Unredirected: a redirect must not carry the key to another server.
            request.add_unredirected_header("authorization", f"Bearer {self.key}")
        path = request.selector.partition("?")[0]
        try:
            with _open(request) as reply:
                status, data = reply.status, reply.read(_MAX_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise RequestFailed(f"{self.url} did not answer: {reason}") from error
        except ValueError:
            # The error's text quotes the key.
            raise RequestFailed(
                f"{self.url} cannot be asked: its key or the path {path} has characters that HTTP does not carry."
            ) from None
        if status >= 300:
            text = data[:2000].decode("utf-8", "replace")
            raise RequestFailed(f"{self.url} answered {path} with {status}: {text}", status)
        if len(data) > _MAX_BYTES:
            raise RequestFailed(f"{self.url} answered {path} with more than {_MAX_BYTES >> 20} MiB.")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RequestFailed(f"{self.url} did not answer {path} with JSON.") from error


def _require_page(page: Any) -> list[Json]:
    """Returns a page, if it is a list of elements with ids. Raises: TypeError, KeyError if it is not."""
    if isinstance(page, list) and all(
        isinstance(record, dict) and isinstance(record["id"], str) for record in page
    ):
        return page
    raise TypeError("expected a list of what has an id")


def _open(request: urllib.request.Request) -> Any:
    """Returns the server's reply, even if it is an error."""
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        return error
