"""Forwards every endpoint but chat, bytes in and bytes out, to the upstream of the model that they name.

Memory has no part in it. A JSON body is read for its `model`, within the limits of a chat's body. Every other body is
handed on as it comes; a form that may have such a field goes on as soon as the field is there, within the same limits.
A request that names no model goes to the first upstream that may have the endpoint, or to the one that
`x-mnemogate-upstream` names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from msgspec import Struct
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.core.request.request_headers import RawHeaders, refuse_repeated
from gateway.core.turn.native_form import ReplyChange
from gateway.core.usage.reported import costs_tokens
from gateway.errors import BadRequest, NotAllowed, UnknownPath
from gateway.limits import Limits
from gateway.run.upstream.forward import Forwarding, Outgoing
from gateway.run.upstream.route import Route as ModelRoute
from gateway.web.body import BodyReader
from gateway.web.event_stream import ClientReply
from gateway.web.form import FieldSearch, boundary_of
from gateway.web.middleware import info_of
from gateway.web.model_field import NamedRequest, parse_named
from gateway.web.raw_headers import named_upstream
from gateway.web.upload import UploadBody

_ANY: Final = ("GET", "POST", "DELETE")

# path -> its methods, and the name under which it is counted. The upstream knows what lies below a path.
FORWARDED: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "/v1/embeddings": (("POST",), "embeddings"),
    "/v1/completions": (("POST",), "completions"),
    "/v1/moderations": (("POST",), "moderations"),
    "/v1/rerank": (("POST",), "rerank"),
    "/v1/images/{rest:path}": (("POST",), "images"),
    "/v1/audio/{rest:path}": (_ANY, "audio"),
    "/v1/files": (("GET", "POST"), "files"),
    "/v1/files/{rest:path}": (_ANY, "files"),
    "/v1/uploads": (("POST",), "uploads"),
    "/v1/uploads/{rest:path}": (_ANY, "uploads"),
    "/v1/batches": (("GET", "POST"), "batches"),
    "/v1/batches/{rest:path}": (_ANY, "batches"),
    # What a response names by id: stores that it searches, containers that its code runs in.
    "/v1/vector_stores": (("GET", "POST"), "vector_stores"),
    "/v1/vector_stores/{rest:path}": (_ANY, "vector_stores"),
    "/v1/containers": (("GET", "POST"), "containers"),
    "/v1/containers/{rest:path}": (_ANY, "containers"),
    "/v1/fine_tuning/jobs": (("GET", "POST"), "fine_tuning"),
    "/v1/fine_tuning/jobs/{rest:path}": (_ANY, "fine_tuning"),
}
# A segment is a name or an id. Anything else, above all `..` and escapes, might mean another place to an upstream, and
# the upstream is called with the operator's own key.
_PATH: Final = re.compile(r"/v1(?:/(?!\.+(?:/|$))[\w.:@~+=-]{1,256}){1,8}", re.ASCII)
_MEMORY: Final = b"x-mnemogate-memory"


def forwarding_routes(
    forwarding: Forwarding, bodies: BodyReader, max_upload_bytes: int, limits: Limits
) -> list[Route]:
    """Returns the routes of all forwarded endpoints. bodies: reads those that are JSON."""
    return [
        Route(path, ForwardedPath(name, forwarding, bodies, max_upload_bytes, limits), methods=list(methods))
        for path, (methods, name) in FORWARDED.items()
    ]


class ForwardedHead(Struct, frozen=True):
    """The part of a request that is known before its body."""

    method: str
    # Below the upstream's base URL, with the query.
    path: str
    # The upstream that a header asks for.
    named: str | None
    content_type: str
    is_encoded: bool
    has_body: bool

    @property
    def is_json(self) -> bool:
        return not self.is_encoded and self.content_type.lower().partition(";")[0].strip() in (
            "",
            "application/json",
        )


@dataclass(eq=False)
class ForwardedPath:
    """The route of one path. It is an object because starlette would wrap a function and read the request."""

    name: str
    forwarding: Forwarding
    bodies: BodyReader
    max_upload_bytes: int
    limits: Limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        info = info_of(scope)
        info.route, info.memory = self.name, "off"
        head = _read_head(scope)
        if head.has_body and not self._reads(head):
            await self._hand_on(head, scope, receive, send)
            return
        async with self.bodies.read(scope, receive) as body:
            asked = parse_named(body)
            info.model, info.stream = asked.model, asked.stream
            await self.answer(head, asked, scope, receive, send)

    def _reads(self, head: ForwardedHead) -> bool:
        """Returns whether a body is read. A compressed one is opaque here, and goes on as it comes."""
        return head.is_json

    async def answer(
        self, head: ForwardedHead, asked: NamedRequest, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answers a request after its body was read."""
        refuse_strict(scope["headers"])
        route = self.forwarding.find(head.path, asked.model, head.named)
        caller = info_of(scope).caller
        outgoing = Outgoing(
            head.method, head.path, scope["headers"], caller.project, caller.credential, named=asked
        )
        await self._answer(route, outgoing, scope, receive, send)

    async def _hand_on(self, head: ForwardedHead, scope: Scope, receive: Receive, send: Send) -> None:
        refuse_strict(scope["headers"])
        info = info_of(scope)
        upload = UploadBody(scope, receive, self.max_upload_bytes, self.limits.body_timeout_s)
        with self.bodies.quota() as quota:
            boundary = boundary_of(head.content_type) if not head.is_encoded else None
            is_read = boundary is not None and _may_name_a_model(head.path)
            if boundary is not None and is_read:
                search = FieldSearch(boundary, "model")
                await upload.look(search, self.bodies.limit_bytes, quota)
                info.model = upload.found or info.model
                is_read = search.span is not None or search.is_whole
            route = self.forwarding.find(head.path, info.model, head.named, is_read=is_read)
            caller = info.caller
            outgoing = Outgoing(
                head.method, head.path, scope["headers"], caller.project, caller.credential, upload=upload
            )
            await self._answer(route, outgoing, scope, upload.after, send)

    async def _answer(
        self,
        route: ModelRoute,
        outgoing: Outgoing,
        scope: Scope,
        receive: Receive,
        send: Send,
        change: ReplyChange | None = None,
    ) -> None:
        info = info_of(scope)
        if info.model is None and info.caller.models is not None and _asks_model(outgoing):
            raise NotAllowed(
                "This key may ask for some models alone, and this request names none that is read.",
                code="model_not_allowed",
            )
        receipt = info.begin_account()
        receipt.headers["x-mnemogate-memory"] = info.memory
        connection = scope["state"].get("connection")
        try:
            with ClientReply(receive, send, self.limits.send_timeout_s, connection) as reply:
                await self.forwarding.answer(route, outgoing, reply, receipt, change)
        finally:
            info.added_ms = receipt.added_ms


def _read_head(scope: Scope) -> ForwardedHead:
    """Reads what decides where a request goes. Raises: UnknownPath, BadRequest."""
    path: str = scope["path"]
    # The raw path has to be the same: an escaped character may have become one that the pattern allows.
    if not _PATH.fullmatch(path) or scope.get("raw_path", path.encode()) != path.encode():
        raise UnknownPath(f"Unknown path: {scope['method']} {path}")
    refuse_repeated(scope["headers"], (_MEMORY,))
    found = dict(scope["headers"])
    query = scope["query_string"].decode("latin-1")
    encoding = found.get(b"content-encoding", b"identity").strip().lower()
    kind = found.get(b"content-type", b"").decode("latin-1")
    return ForwardedHead(
        scope["method"],
        path.removeprefix("/v1") + (f"?{query}" if query else ""),
        named_upstream(scope["headers"]),
        kind,
        encoding != b"identity",
        scope["method"] == "POST"
        and (b"transfer-encoding" in found or found.get(b"content-length", b"0") != b"0"),
    )


def refuse_strict(headers: RawHeaders) -> None:
    """Refuses a request that asks for memory, where it would have none. Raises: BadRequest."""
    if dict(headers).get(_MEMORY, b"").strip().lower() == b"strict":
        raise BadRequest(
            "x-mnemogate-memory: strict: this request would be passed on without memory.",
            param=_MEMORY.decode(),
        )


def _asks_model(outgoing: Outgoing) -> bool:
    """Returns whether a model works for a request, now or as a batch, whose models are in its file."""
    is_batch = outgoing.method == "POST" and outgoing.path.partition("?")[0] == "/batches"
    return is_batch or costs_tokens(outgoing.method, outgoing.path)


def _may_name_a_model(path: str) -> bool:
    return path.startswith(("/audio/", "/images/"))
