"""Makes the requests that go upstream as they came, from a body that was read or is still arriving."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol, Self

from msgspec import Struct

from adapters.types import Header, ModelRequest
from gateway.core.request.identity import ReadNames
from gateway.core.request.request_headers import list_headers_for_upstream
from gateway.core.upstream.policy import Target
from gateway.run.receipt import Receipt
from gateway.run.upstream.endpoint import Endpoint

# The body is sent as it came, so the caller's own headers describe it.
_BODY_HEADERS: Final = frozenset((b"content-type", b"content-encoding"))
# Codex's headers, but for those that begin with `x-codex-` (seen on the wire of 0.169).
_CODEX_HEADERS: Final = frozenset((b"originator", b"session-id", b"thread-id", b"version"))
# Paths that list all objects of one kind in an account. (A caller that names one object by its id was given the id.)
_LIST_PATHS: Final = (
    "/files",
    "/batches",
    "/vector_stores",
    "/containers",
    "/skills",
    "/videos",
    "/fine_tuning/jobs",
    "/audio/voice_consents",  # platform.openai.com/docs/api-reference/audio: with the names of those who consented
)
# Paths of objects that an upstream stores.
_STORED_PATHS: Final = (*_LIST_PATHS, "/uploads", "/responses", "/conversations")
# The path of the older completions, of a prompt without messages.
COMPLETIONS_PATH: Final = "/completions"


def _with_body_headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    """Returns the caller's headers that go upstream with a body that is the caller's own."""
    body_headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name in _BODY_HEADERS
    ]
    return (*list_headers_for_upstream(headers), *body_headers)


def with_codex_headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[Header, ...]:
    """Returns the caller's headers, Codex's own among them, for a request for a response that goes as it came.

    A response that is made by chat completions takes none of Codex's headers along: they name paths and commits, which
    are no other provider's business.
    """
    codex_headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if name in _CODEX_HEADERS or name.startswith(b"x-codex-")
    ]
    return (*_with_body_headers(headers), *codex_headers)


class WholeBody(Protocol):
    """A body that has been read."""

    @property
    def raw(self) -> bytes:
        """The body as it came."""

    def read_value(self, key: str) -> Any:
        """Returns the value of a field; None: the body has no such field, or its value cannot be read."""

    def with_model(self, model: str) -> bytes:
        """Returns the body with this model's name, if it names a model."""

    def with_usage(self) -> Self:
        """Returns a copy of the body that asks for the usage of its stream (`stream_options.include_usage`).

        Returns the body itself if it asks for the usage already, or asks for no stream.
        """


class StreamedBody(Protocol):
    """A body that is still arriving."""

    # The size that the caller has announced, in bytes; None: none was announced.
    size_bytes: int | None
    # The error that ended the body early; None: no such error.
    error: Exception | None

    def replace_model(self, model: str) -> None:
        """Sets the model's name, if the body names a model."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Yields the body in pieces, as they arrive."""


class OutgoingRequest(Struct, frozen=True):
    """A request for an upstream. Its body is either `body` or `upload`."""

    # The HTTP method.
    method: str
    # The path below the base URL, with the query.
    upstream_path: str
    # The caller's headers, as ASGI has them.
    headers: Sequence[tuple[bytes, bytes]]
    # The caller's project.
    project: str
    # The caller's own credential.
    credential: str | None
    # A body that was read whole.
    body: WholeBody | None = None
    # A body that is read while it is sent.
    upload: StreamedBody | None = None
    # Reads the names of users in the body, in the request's dialect; None: as in chat completions.
    read_names: ReadNames | None = None

    @property
    def is_about_stored(self) -> bool:
        """True if the request is about objects that the upstream stores."""
        return self.upstream_path.startswith(_STORED_PATHS)

    @property
    def sends_once(self) -> bool:
        """True: the request is not sent again after a failure.

        A second attempt could create an object twice, when the first attempt has only seemed to fail.
        """
        if self.method == "GET" or not self.is_about_stored:
            return False
        body = self.body
        is_stored = (
            body is None
            or body.read_value("store") is not False
            or body.read_value("conversation") is not None
        )
        return is_stored or self.upstream_path.partition("?")[0] != "/responses"

    @property
    def refers_to_stored(self) -> bool:
        """True if the request continues an object that an upstream stores, or refers to an item of it."""
        body = self.body
        names = ("previous_response_id", "conversation")
        return (
            body is None
            or any(body.read_value(name) is not None for name in names)
            or b"item_reference" in body.raw
        )

    @property
    def is_list(self) -> bool:
        """True if the reply lists all objects of a kind in the upstream's account."""
        return self.method != "POST" and self.upstream_path.partition("?")[0] in _LIST_PATHS

    async def make_request(
        self, target: Target, endpoint: Endpoint, *, upstream: str, receipt: Receipt
    ) -> ModelRequest:
        """Returns the request for one target.

        upstream: the upstream that the caller's credential is for.
        receipt: notes whether the usage of a stream is hidden from the client, which has not asked for it.
        """
        if self.upload is not None:
            self.upload.replace_model(target.model)
        body = self.body
        receipt.hides_usage = False
        if (
            body is not None
            and endpoint.asks_usage
            and self.upstream_path.partition("?")[0] == COMPLETIONS_PATH
        ):
            body = body.with_usage()
            receipt.hides_usage = body is not self.body
        if self.upstream_path.startswith("/responses"):
            headers = with_codex_headers(self.headers)
        else:
            headers = _with_body_headers(self.headers)
        return ModelRequest(
            b"" if body is None else body.with_model(target.model),
            headers,
            self.credential if target.gets_credential(upstream) else None,
            path=self.upstream_path,
            method=self.method,
            upload=None if self.upload is None else self.upload.pieces(),
            upload_bytes=None if self.upload is None else self.upload.size_bytes,
        )

    def find_upload_error(self) -> Exception | None:
        """Returns the error that ended the upload early, or None if there is no such error or no upload."""
        return None if self.upload is None else self.upload.error
