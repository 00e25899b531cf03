"""Forwards the endpoints without memory (`FORWARDED_PATHS`) to the upstream of the model they name, bytes for bytes.

A JSON body is read for its `model`, within the limits of a chat's body. Every other body is streamed to the upstream; a
form that may have the field `model` is held until the field has arrived, within the same limits. A request that names
no model goes to the first upstream that may have the endpoint, or to the upstream that `x-mnemogate-upstream` names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Final

from msgspec import Struct
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.core.request.memory_mode import MEMORY_HEADER
from gateway.core.request.request_headers import RawHeaders, refuse_repeated
from gateway.core.turn.reply_change import ReplyChange
from gateway.core.usage.reported import costs_tokens
from gateway.dialects.fields import check_model_name
from gateway.errors import BadRequest, NotAllowed, UnknownPath
from gateway.limits import Limits
from gateway.run.upstream.forward import Forwarder
from gateway.run.upstream.outgoing import OutgoingRequest
from gateway.run.upstream.route import Route as ModelRoute
from gateway.web.body import BodyReader, ByteQuota, parse_off_loop
from gateway.web.form import FieldSearch, read_boundary
from gateway.web.incoming import Incoming
from gateway.web.messages_paths import is_about_anthropic_storage
from gateway.web.raw_headers import read_upstream_name
from gateway.web.request_body import RequestBody, read_request_body
from gateway.web.upload import UploadBody

_POST: Final = ("POST",)
_GET_POST: Final = ("GET", "POST")
_GET_POST_DELETE: Final = ("GET", "POST", "DELETE")
# The paths that are forwarded, with their methods. The upstream refuses sub-paths that it does not have.
FORWARDED_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "/v1/embeddings": _POST,
    "/v1/completions": _POST,
    "/v1/moderations": _POST,
    "/v1/decisions": _POST,
    "/v1/content_provenance_checks": _POST,
    "/v1/rerank": _POST,
    "/v1/images/{rest:path}": _POST,
    "/v1/audio/{rest:path}": _GET_POST_DELETE,
    "/v1/videos": _GET_POST,
    "/v1/videos/{rest:path}": _GET_POST_DELETE,
    "/v1/files": _GET_POST,
    "/v1/files/{rest:path}": _GET_POST_DELETE,
    "/v1/uploads": _POST,
    "/v1/uploads/{rest:path}": _GET_POST_DELETE,
    "/v1/batches": _GET_POST,
    "/v1/batches/{rest:path}": _GET_POST_DELETE,
    # Responses name these by their ids: vector stores, containers in which code runs, and skills.
    "/v1/vector_stores": _GET_POST,
    "/v1/vector_stores/{rest:path}": _GET_POST_DELETE,
    "/v1/containers": _GET_POST,
    "/v1/containers/{rest:path}": _GET_POST_DELETE,
    "/v1/skills": _GET_POST,
    "/v1/skills/{rest:path}": _GET_POST_DELETE,
    "/v1/fine_tuning/jobs": _GET_POST,
    "/v1/fine_tuning/jobs/{rest:path}": _GET_POST_DELETE,
}
# A segment is a name or an id. With any other segment, above all `..` and escapes, an upstream might read another path,
# and the upstream is called with the operator's own key.
_SAFE_PATH: Final = re.compile(r"/v1(?:/(?!\.+(?:/|$))[\w.:@~+=-]{1,256}){1,8}", re.ASCII)


class ForwardingParts(Struct, frozen=True):
    """The parts that are shared by all routes that forward requests to upstreams."""

    # Sends the requests to upstreams.
    forwarder: Forwarder
    # Reads the bodies that are JSON.
    bodies: BodyReader
    # The most bytes of a body that is not JSON.
    max_upload_bytes: int
    # The limits of requests and replies.
    limits: Limits


def make_forwarding_routes(parts: ForwardingParts) -> list[Route]:
    """Returns the routes of all forwarded endpoints."""
    return [
        Route(path, ForwardedRoute(name_route(path), parts), methods=methods)
        for path, methods in FORWARDED_PATHS.items()
    ]


def name_route(path: str) -> str:
    """Returns the name under which metrics and the log count a path: its segment after the version."""
    return path.split("/")[2]


class ForwardedHead(Struct, frozen=True):
    """The part of a request that is known before its body."""

    # The method of HTTP.
    method: str
    # The path below the upstream's base URL, with the query.
    upstream_path: str
    # The upstream that a header asks for, by its name in the settings; None: no header names one.
    upstream_name: str | None
    # The header `content-type` as it was sent; "": the request has no such header.
    content_type: str
    # True if the body is compressed, or encoded in another way.
    is_encoded: bool
    # True for a POST with a body. The body of another method is not read.
    has_body: bool
    # True: the request is about objects of Anthropic's, which no other upstream has.
    is_about_anthropic_storage: bool

    @property
    def is_json(self) -> bool:
        """True if the body is JSON that can be read. (A compressed body is not decoded.)"""
        media_type = self.content_type.lower().partition(";")[0].strip()
        return not self.is_encoded and media_type in ("", "application/json")


@dataclass(eq=False)
class ForwardedRoute:
    """The route of one path. It is an object, which Starlette calls as an ASGI app; a function would get a `Request`.

    Subclasses in `gateway.web.responses` override the methods without underscore.
    """

    # The name of the route in logs and metrics.
    name: str
    # The parts of the gateway that forward requests.
    parts: ForwardingParts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming = Incoming(scope, receive, send)
        info = incoming.info
        info.route, info.memory = self.name, "off"
        head = _read_head(incoming)
        if head.has_body and not self.reads_body(head):
            await self._stream_through(incoming, head)
            return
        async with self.parts.bodies.read(scope, receive) as body:
            request_body = await parse_off_loop(body, partial(read_request_body, body))
            info.note_model(request_body.model, is_streamed=request_body.is_streamed)
            await self.answer_with_body(incoming, head, request_body)

    def reads_body(self, head: ForwardedHead) -> bool:
        """Returns whether a body is read for its model. Other bodies are streamed to the upstream."""
        return head.is_json

    async def answer_with_body(
        self, incoming: Incoming, head: ForwardedHead, request_body: RequestBody
    ) -> None:
        """Answers a request with its whole body, which may be empty."""
        refuse_required_memory(incoming.headers)
        route = self.parts.forwarder.routes.get_route(
            head.upstream_path,
            request_body.model,
            head.upstream_name,
            needs_messages_api=head.is_about_anthropic_storage,
        )
        await self.forward(incoming, route, _build_outgoing(incoming, head, body=request_body))

    async def forward(self, incoming: Incoming, route: ModelRoute, outgoing: OutgoingRequest) -> None:
        """Checks that the caller's key may send a request, and forwards it.

        Raises: NotAllowed: the key is limited to models, and the request names none.
        """
        info = incoming.info
        if info.model is None and info.caller.models is not None and _uses_model(outgoing):
            raise NotAllowed(
                "This key is limited to certain models, and this request names none that can be read.",
                code="model_not_allowed",
            )
        await self.forward_allowed(incoming, route, outgoing)

    async def forward_allowed(self, incoming: Incoming, route: ModelRoute, outgoing: OutgoingRequest) -> None:
        """Forwards a request that the caller's key may send."""
        send_timeout_s = self.parts.limits.send_timeout_s
        await forward_without_memory(self.parts.forwarder, incoming, route, outgoing, send_timeout_s)

    async def _stream_through(self, incoming: Incoming, head: ForwardedHead) -> None:
        """Streams a body to the upstream. A form that may name a model is read up to its field `model`."""
        refuse_required_memory(incoming.headers)
        info = incoming.info
        parts = self.parts
        upload = UploadBody(
            incoming.scope, incoming.receive, parts.max_upload_bytes, parts.limits.body_timeout_s
        )
        with parts.bodies.make_quota() as quota:
            is_searched = await self._read_to_model(upload, head, quota)
            info.model = upload.field_value or None
            route = parts.forwarder.routes.get_route(
                head.upstream_path,
                info.model,
                head.upstream_name,
                is_searched=is_searched,
                needs_messages_api=head.is_about_anthropic_storage,
            )
            outgoing = _build_outgoing(incoming, head, upload=upload)
            await self.forward(incoming._replace(receive=upload.receive_rest), route, outgoing)

    async def _read_to_model(self, upload: UploadBody, head: ForwardedHead, quota: ByteQuota) -> bool:
        """Reads a form until its field `model` is found, whose value is then `upload.field_value`.

        quota: counts the bytes that are held.

        Returns False if the body may name a model in the part that was not read.

        Raises: GatewayError; BadRequest: the form has the field twice, or its value cannot be a model's name.
        """
        boundary = read_boundary(head.content_type) if not head.is_encoded else None
        if boundary is None or not _may_name_a_model(head.upstream_path):
            return False
        search = FieldSearch(boundary, "model")
        await upload.read_until(search, self.parts.bodies.limit_bytes, quota)
        if upload.field_value:
            check_model_name(upload.field_value)
        return search.span is not None or search.is_whole


async def forward_without_memory(
    forwarder: Forwarder,
    incoming: Incoming,
    route: ModelRoute,
    outgoing: OutgoingRequest,
    send_timeout_s: float,
    change: ReplyChange | None = None,
) -> None:
    """Sends a request upstream without memory, and its reply to the client.

    send_timeout_s: the seconds after which a client that accepts no byte of the reply is disconnected.
    change: the function that changes the reply; None: the reply passes unchanged.
    """
    info = incoming.info
    receipt = info.begin_receipt()
    receipt.headers["x-mnemogate-memory"] = info.memory
    with incoming.begin_reply(send_timeout_s) as reply:
        await forwarder.forward(route, outgoing, reply, receipt, change)


def refuse_required_memory(headers: RawHeaders) -> None:
    """Refuses a request that requires memory (`x-mnemogate-memory: strict`), since it is answered without memory.

    Raises: BadRequest.
    """
    if dict(headers).get(MEMORY_HEADER, b"").strip().lower() == b"strict":
        raise BadRequest(
            "x-mnemogate-memory: strict: this request would be passed on without memory.",
            param=MEMORY_HEADER.decode(),
        )


def _read_head(incoming: Incoming) -> ForwardedHead:
    """Reads the part of a request that decides to which upstream it goes. Raises: UnknownPath, BadRequest."""
    scope = incoming.scope
    path = scope["path"]
    # The raw path must be equal to the decoded path: a decoded escape may be a character that the pattern allows.
    if not _SAFE_PATH.fullmatch(path) or scope.get("raw_path", path.encode()) != path.encode():
        raise UnknownPath(f"Unknown path: {scope['method']} {path}")
    refuse_repeated(incoming.headers, (MEMORY_HEADER,))
    headers = dict(incoming.headers)
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    content_type = headers.get(b"content-type", b"").decode("latin-1")
    return ForwardedHead(
        method=scope["method"],
        upstream_path=incoming.upstream_path,
        upstream_name=read_upstream_name(incoming.headers),
        content_type=content_type,
        is_encoded=encoding != b"identity",
        has_body=scope["method"] == "POST"
        and (b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"),
        is_about_anthropic_storage=is_about_anthropic_storage(scope),
    )


def _build_outgoing(
    incoming: Incoming,
    head: ForwardedHead,
    *,
    body: RequestBody | None = None,
    upload: UploadBody | None = None,
) -> OutgoingRequest:
    """Returns the request for an upstream. Either `body` or `upload` is given."""
    caller = incoming.info.caller
    return OutgoingRequest(
        method=head.method,
        upstream_path=head.upstream_path,
        headers=incoming.headers,
        project=caller.project,
        credential=caller.credential,
        body=body,
        upload=upload,
    )


def _uses_model(outgoing: OutgoingRequest) -> bool:
    """Returns whether a request uses a model: at once, or later as a batch, with models that its file names."""
    is_batch = outgoing.method == "POST" and outgoing.upstream_path.partition("?")[0] == "/batches"
    return is_batch or costs_tokens(outgoing.method, outgoing.upstream_path)


def _may_name_a_model(upstream_path: str) -> bool:
    """Returns whether a form for this path may have the field `model`."""
    return upstream_path.startswith(("/audio/", "/images/")) or upstream_path.partition("?")[0] == "/videos"
