"""The routes of the agents API as data, and the one way in which all of them are served.

    AgentsRoute("PATCH", "/v1/agents/{agent_id}", self.update)

    async def update(self, request: ApiRequest, body: UpdateAgent) -> dict[str, Any]: ...

The annotations of a handler name what it takes: a `UrlQuery`, and a `Body` or a `Form`. The first line of its docstring
is the route's summary. `/openapi.json` is made of the same annotations and docstrings (gateway.agents.api._openapi), so
it cannot differ from what is served.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_type_hints

import orjson
from msgspec import Struct
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from gateway.agents.api._paging import NEWEST_FIRST, Paging
from gateway.agents.api._query import PageQuery
from gateway.agents.wire import struct_fields
from gateway.agents.wire.faults import LettaErrors, Unprocessable
from gateway.agents.wire.struct_fields import Body, Form, UrlQuery
from gateway.checked import Fault
from gateway.core import exact_json, ids
from gateway.core.nul import without_nul
from gateway.errors import BadRequest, Conflict, GatewayError, MemoryUnavailable, UnknownId, sentence
from gateway.web.body import BodyReader
from gateway.web.form import FormPart, parse_form, read_boundary
from gateway.web.middleware import info_of
from storage.errors import BlockOverLimit, NotFound, OverLimit, Stale, StoreError, WriteConflict, is_known

_log = logging.getLogger("mnemogate")

_ERRORS = LettaErrors()
_UID = re.compile("'([0-9a-f]{32})'")
_PROJECT_HEADERS = ("x-project", "x-project-id")
# The word for what an id names, if that is not the id's first part, or if the store has another word: to the store an
# archive is a memory.
_NOUNS = {
    "archive": "archive", "conv": "conversation", "job": "batch", "mcp_server": "MCP server", "source": "folder"
}  # fmt: skip


@dataclass(slots=True)
class ApiRequest:
    """One request of the agents API, read and checked."""

    project: str
    # The parameters in the path of the request.
    path: Mapping[str, str]
    http: Request
    # Headers that the handler adds to the reply.
    headers: dict[str, str] = field(default_factory=dict)
    # The bytes of the body.
    data: bytes = b""
    # The uploaded file, if the body is a form.
    file: FormPart | None = None

    def uid(self, kind: str, name: str) -> str:
        """Returns the uid in a path's parameter. Raises: UnknownId."""
        return uid_in(kind, self.path[name])

    def arguments(self) -> dict[str, Any]:
        """Returns `args` of the body, for a call that is made at once: with integers of any size."""
        arguments = exact_json.loads(self.data.decode() or "{}").get("args")
        return without_nul(arguments or {})

    def name_of(self, uid: str) -> str:
        """Returns the public id by which the request names a uid. The store reports uids without their kind."""
        query, body = str(self.http.url.query), self.data.decode("utf-8", "replace")
        sent = " ".join([*self.path.values(), query, body])
        # The lookbehind has the search try each word of a body once, not each of its letters.
        names = re.findall(rf"(?<![a-z_])[a-z_]++-(?:{uid}|{uuid.UUID(uid)})(?:-[0-9h-]+)?", sent)
        # The id of a message contains the uid of its agent, but the message may be what is missing.
        return min(names, key=len, default=uid)


# Answers with JSON, or with a reply that writes itself. Takes the request, and then the parameters of the route.
RouteHandler = Callable[..., Awaitable[Any]]


class AgentsRoute(Struct, frozen=True, dict=True):
    """A route of the agents API, with what it takes and the handler that answers it."""

    method: str
    # Served with and without a slash at its end, as far as `slashes` has both.
    path: str
    handle: RouteHandler
    # A sentence in the imperative, for `/openapi.json`; None: the first line of the handler's docstring.
    title: str | None = None
    slashes: tuple[str, ...] = ("", "/")
    # The handler reads the body itself. Without this, a `Body` and a `Form` a body has to be empty.
    reads_body: bool = False
    # False for a path of Letta's that the gateway refuses: its handler raises the reason.
    is_served: bool = True
    # Without this parameter of the query, the path without a slash belongs to another API.
    needs: str = ""
    # The paging of a list with a `PageQuery`; it changes the query before the handler sees it.
    pages: Paging = NEWEST_FIRST

    @property
    def summary(self) -> str:
        return self.title or (self.handle.__doc__ or "").partition("\n")[0]

    @cached_property
    def parameters(self) -> Mapping[str, type[Body]]:
        """The structs that the handler takes after the request, by the names of its parameters."""
        kinds = get_type_hints(self.handle).items()
        return {name: kind for name, kind in kinds if isinstance(kind, type) and issubclass(kind, Body)}

    @property
    def query(self) -> type[UrlQuery] | None:
        """The struct of the query; None: the handler takes none."""
        return next((kind for kind in self.parameters.values() if issubclass(kind, UrlQuery)), None)

    @property
    def body(self) -> type[Body] | None:
        """The struct of the body, or of the form that comes with a file; None: the handler takes none.

        A body may be left out if every field may.
        """
        return next((kind for kind in self.parameters.values() if not issubclass(kind, UrlQuery)), None)

    async def answer(self, request: ApiRequest, query: UrlQuery | None, body: Body | None) -> Any:
        """Returns what the handler returns, the rows of a list in the order asked for."""
        if not isinstance(query, PageQuery):
            return await self._call_handler(request, query, body)
        read = self.pages.read(query)
        return self.pages.shown(query, read, await self._call_handler(request, read, body))

    async def _call_handler(self, request: ApiRequest, query: UrlQuery | None, body: Body | None) -> Any:
        structs = {
            name: query if issubclass(kind, UrlQuery) else body for name, kind in self.parameters.items()
        }
        return await self.handle(request, **structs)


def serve(rows: Iterable[AgentsRoute], reader: BodyReader) -> list[Route]:
    """Returns the routes that serve these rows. All methods of a path are one route; other methods get a 405."""
    by_path: dict[str, dict[str, AgentsRoute]] = {}
    for row in rows:
        for slash in row.slashes:
            by_path.setdefault(row.path.rstrip("/") + slash, {})[row.method] = row
    return [_route(path, methods, reader) for path, methods in by_path.items()]


def _route(path: str, methods: Mapping[str, AgentsRoute], reader: BodyReader) -> Route:
    served = _PathEndpoint(methods, reader)
    needs = next(iter(methods.values())).needs
    if needs and not path.endswith("/"):
        return _SharedRoute(path, served, methods=[*methods], needs=needs)
    return Route(path, served, methods=[*methods])


class _SharedRoute(Route):
    """A path that another API has as well: it matches with a certain parameter in the query."""

    def __init__(self, path: str, served: _PathEndpoint, *, methods: list[str], needs: str) -> None:
        super().__init__(path, served, methods=methods)
        self._needs = f"{needs}="

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and self._needs.encode() in scope["query_string"]:
            return super().matches(scope)
        return Match.NONE, {}


class ConversationConvertor(Convertor[str]):
    """Names of conversations in paths, known or not. OpenAI's conversations have ids of another form (`conv_…`)."""

    regex = "(?:conv|agent)-[^/]+|default"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("conversation", ConversationConvertor())


class _PathEndpoint:
    """The endpoint of one path: reads a request, calls the handler of the method, and makes the reply."""

    def __init__(self, methods: Mapping[str, AgentsRoute], reader: BodyReader) -> None:
        self._methods = methods
        self._reader = reader

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        http = Request(scope, receive)
        info = info_of(scope)
        info.route, info.error_form = "agents", _ERRORS
        # A HEAD is answered as its GET.
        row = self._methods.get(scope["method"]) or self._methods["GET"]
        async with self._reader.read(scope, receive) as data:
            request, query, body = _read_request(row, http, info.caller.project, bytes(data))
            try:
                answer = await row.answer(request, query, body)
                if not callable(answer):
                    answer = Response(
                        orjson.dumps(answer), headers=request.headers, media_type="application/json"
                    )
                await answer(scope, receive, send)
            except StoreError as error:
                raise as_gateway_error(error, request) from error


def _read_request(
    row: AgentsRoute, http: Request, project: str, data: bytes
) -> tuple[ApiRequest, UrlQuery | None, Body | None]:
    """Reads and checks a request, with its query and body. Raises: UnknownId, Unprocessable, BadRequest."""
    if any("\0" in value for value in http.path_params.values()):
        raise UnknownId("Nothing has a name with U+0000.")
    for name in _PROJECT_HEADERS:
        if http.headers.get(name, project) != project:
            raise UnknownId(f"There is no project {http.headers[name]!r} for this key.", param=name)
    headers: dict[str, str] = {}
    if not row.is_served:
        return ApiRequest(project, http.path_params, http), None, None
    body: Body | None = None
    file, query = None, None
    if row.body is not None and issubclass(row.body, Form):
        body, file = _read_form(row.body, http, data)
    elif row.body is not None:
        body = struct_fields.read_body(data, row.body)
    elif data not in (b"", b"null") and not row.reads_body:
        struct_fields.read_body(data, Body)
    if row.query is not None or http.scope["query_string"]:
        kind = row.query or UrlQuery
        query = struct_fields.convert(_query_values(kind, http), kind, ("query",), lax=True)
    without_effect = [
        name for each in (body, query) if each is not None for name in struct_fields.sent_without_effect(each)
    ]
    if without_effect:
        headers["x-mnemogate-kept"] = ",".join(without_effect)
    return ApiRequest(project, http.path_params, http, headers, data, file), query, body


def _read_form(kind: type[Form], http: Request, data: bytes) -> tuple[Form, FormPart]:
    """Returns the fields of a form, and its file. Raises: Unprocessable."""
    boundary = read_boundary(http.headers.get("content-type", ""))
    parts = None if boundary is None else parse_form(data, boundary)
    if parts is None:
        raise Unprocessable(
            [Fault(("body",), "Expected a form of the type multipart/form-data", "form_invalid")]
        )
    file = next((part for part in parts if part.name == "file"), None)
    if file is None:
        raise Unprocessable([Fault(("body", "file"), "Field required", "missing")])
    fields = {part.name: part.data.decode("utf-8", "replace") for part in parts if part is not file}
    return struct_fields.convert(without_nul(fields), kind, ("body",), lax=True), file


def _query_values(kind: type[UrlQuery], http: Request) -> dict[str, Any]:
    """Returns a query as JSON: a parameter that may be repeated is a list."""
    values: dict[str, Any] = {}
    lists = struct_fields.list_fields(kind)
    for sent, value in http.query_params.multi_items():
        # As Letta 0.6 called it. Its `user_id` selects nothing: the key decides who asks.
        name = "after" if sent == "cursor" else sent
        if name == "user_id":
            continue
        if name in lists:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return without_nul(values)


def uid_in(kind: str, id: str) -> str:
    """Returns the uid that an id names. Raises: UnknownId."""
    uid = ids.uid_of(kind, id)
    if uid is None:
        raise UnknownId(f"There is no {_NOUNS.get(kind, kind)} {id!r}.")
    return uid


def as_gateway_error(error: StoreError, request: ApiRequest) -> GatewayError:
    """Returns an error of the store in the caller's terms."""
    if isinstance(error, NotFound):
        message = error.message
        uid = _UID.search(error.message)
        if uid is not None:
            id = request.name_of(uid[1])
            kind = id.partition("-")[0]
            # The id of a message or a step has the number of its place after the uid.
            noun = kind if id.count("-") == 2 else _NOUNS.get(kind)
            message = f"there is no {noun} {id!r}" if noun else message.replace(uid[0], repr(id))
        return UnknownId(sentence(message))
    if isinstance(error, BlockOverLimit):
        return Unprocessable([Fault(("body", "value"), sentence(error.message))])
    if isinstance(error, OverLimit):
        return BadRequest(sentence(error.message))
    if isinstance(error, WriteConflict | Stale):
        return Conflict(sentence(error.message))
    if not is_known(error):
        _log.warning("A request was refused, since the database could not be used: %s", error.message)
    return MemoryUnavailable.since(error.status)
