"""The routes of the agents API as data, and the one way in which all of them are served.

    AgentsRoute("PATCH", "/v1/agents/{agent_id}", self.update)

    async def update(self, request: ApiRequest, body: UpdateAgent) -> dict[str, Any]: ...

The annotations of a handler's parameters are a `UrlQuery`, and a `Body` or a `Form`. The first line of its docstring is
the route's summary. `/openapi.json` is made of the same annotations and docstrings (gateway.agents.api._openapi), so it
cannot differ from the served routes.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, get_type_hints

from msgspec import Struct
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Scope

from gateway.agents.api._paging import NEWEST_FIRST, Paging, read_ref
from gateway.agents.api._query import PageQuery
from gateway.agents.wire import struct_fields
from gateway.agents.wire.faults import LettaErrors, Unprocessable
from gateway.agents.wire.struct_fields import Body, Form, UrlQuery
from gateway.core import ids
from gateway.core.nul import without_nul
from gateway.errors import BadRequest, GatewayError, MemoryUnavailable, UnknownId, make_sentence
from gateway.run.store_errors import make_record_error
from gateway.validation import Fault
from gateway.web.body import BodyReader, parse_off_loop
from gateway.web.form import FormPart, parse_form, read_boundary
from gateway.web.json_response import JsonResponse
from gateway.web.request_info import get_request_info
from storage.errors import BlockTooLong, LimitExceeded, NotFound, StoreError, is_known

_log = logging.getLogger("mnemogate")

_ERRORS = LettaErrors()
_UID = re.compile("'([0-9a-f]{32})'")
_PROJECT_HEADERS = ("x-project", "x-project-id")
# The nouns of errors by the prefixes of ids that differ from them. The store's own error calls an archive a memory.
_NOUNS = {
    "archive": "archive", "conv": "conversation", "job": "batch", "mcp_server": "MCP server", "source": "folder"
}  # fmt: skip


@dataclass(slots=True)
class ApiRequest:
    """One request of the agents API, read and checked."""

    # The project of the caller's key.
    project: str
    # The parameters in the path of the request.
    path_params: Mapping[str, str]
    # The request as starlette has it.
    http: Request
    # Headers of the reply, to which the handler may add.
    headers: dict[str, str] = field(default_factory=dict)
    # The bytes of the body.
    data: bytes = b""
    # The uploaded file; None: the body is no form.
    file: FormPart | None = None

    def read_uid(self, kind: str, parameter: str) -> str:
        """Returns the uid in a parameter of the path. Raises: UnknownId."""
        return read_uid(kind, self.path_params[parameter])

    def read_ref(self, kind: str, parameter: str) -> ids.ObjectRef:
        """Returns the uid and number in a parameter of the path. Raises: UnknownId."""
        return read_ref(kind, self.path_params[parameter])

    def get_sent_id(self, uid: str) -> str:
        """Returns the id in the request that has this uid, or the uid if the request has no such id.

        The store's errors have uids, without the kinds of the ids.
        """
        query, body = str(self.http.url.query), self.data.decode("utf-8", "replace")
        request_text = " ".join([*self.path_params.values(), query, body])
        # Because of the lookbehind the search tries each word of a body once, not each of its letters.
        sent_ids = re.findall(rf"(?<![a-z_])[a-z_]++-(?:{uid}|{uuid.UUID(uid)})(?:-[0-9h-]+)?", request_text)
        # The id of an agent is shorter than the ids of its messages, which contain the agent's uid.
        return min(sent_ids, key=len, default=uid)


# Takes an `ApiRequest` and the structs of its query and body. Returns JSON, or an ASGI application that replies.
RouteHandler = Callable[..., Awaitable[Any]]


class AgentsRoute(Struct, frozen=True, dict=True):
    """A route of the agents API, with the handler that answers its requests."""

    # The HTTP method.
    method: str
    # The path, which is served with each end in `slashes`.
    path: str
    # The handler, a method of a class of routes.
    handle: RouteHandler
    # A sentence in the imperative, for `/openapi.json`; None: the first line of the handler's docstring.
    title: str | None = None
    # The ends with which the path is served: without and with a slash.
    slashes: tuple[str, ...] = ("", "/")
    # The handler reads the bytes of the body. If False, the body of a route without a `Body` or `Form` has to be empty.
    reads_body: bool = False
    # False for a path of Letta's that the gateway refuses: its handler raises the reason.
    is_served: bool = True
    # The parameter of the query without which the path without a slash belongs to another API; "": no parameter.
    required_parameter: str = ""
    # The paging of a list with a `PageQuery`; it changes the query before the handler sees it.
    paging: Paging = NEWEST_FIRST

    @property
    def summary(self) -> str:
        """The sentence that describes the route in `/openapi.json`."""
        return self.title or (self.handle.__doc__ or "").partition("\n")[0]

    @property
    def documented_path(self) -> str:
        """The path in `/openapi.json`: with a slash where another API has the path without one."""
        return f"{self.path}/" if self.slashes == ("/",) or self.required_parameter else self.path

    @cached_property
    def parameters(self) -> Mapping[str, type[Body]]:
        """The structs that the handler takes after the request, by the names of its parameters.

        A parameter that the handler does not use declares a query or a body that the route accepts.
        """
        hints = get_type_hints(self.handle).items()
        return {name: hint for name, hint in hints if isinstance(hint, type) and issubclass(hint, Body)}

    @property
    def query(self) -> type[UrlQuery] | None:
        """The struct of the query; None: the handler takes none."""
        return next((struct for struct in self.parameters.values() if issubclass(struct, UrlQuery)), None)

    @property
    def body(self) -> type[Body] | None:
        """The struct of the body, or of the form that comes with a file; None: the handler takes none.

        If no field is required, a request may have no body.
        """
        return next((struct for struct in self.parameters.values() if not issubclass(struct, UrlQuery)), None)

    async def answer(self, request: ApiRequest, query: UrlQuery | None, body: Body | None) -> Any:
        """Returns the answer of the handler, with the rows of a list in the requested order."""
        if not isinstance(query, PageQuery):
            return await self._call_handler(request, query, body)
        list_query = self.paging.make_list_query(query)
        answer = await self._call_handler(request, list_query, body)
        return self.paging.restore_order(query, list_query, answer)

    async def _call_handler(self, request: ApiRequest, query: UrlQuery | None, body: Body | None) -> Any:
        structs = {
            name: query if issubclass(struct, UrlQuery) else body for name, struct in self.parameters.items()
        }
        return await self.handle(request, **structs)


def make_starlette_routes(agents_routes: Iterable[AgentsRoute], reader: BodyReader) -> list[Route]:
    """Returns starlette's routes, one for all methods of a path; other methods get a 405."""
    by_path: dict[str, dict[str, AgentsRoute]] = {}
    for route in agents_routes:
        for slash in route.slashes:
            by_path.setdefault(route.path.rstrip("/") + slash, {})[route.method] = route
    return [_make_route(path, methods, reader) for path, methods in by_path.items()]


def _make_route(path: str, methods: Mapping[str, AgentsRoute], reader: BodyReader) -> Route:
    endpoint = _PathEndpoint(methods, reader)
    required_parameter = next(iter(methods.values())).required_parameter
    if required_parameter and not path.endswith("/"):
        return _SharedRoute(path, endpoint, methods=[*methods], parameter=required_parameter)
    return Route(path, endpoint, methods=[*methods])


class _SharedRoute(Route):
    """A route of a path that another API has as well. It matches requests with a certain parameter in the query."""

    def __init__(self, path: str, endpoint: _PathEndpoint, *, methods: list[str], parameter: str) -> None:
        super().__init__(path, endpoint, methods=methods)
        self._parameter_bytes = f"{parameter}=".encode()

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and self._parameter_bytes in scope["query_string"]:
            return super().matches(scope)
        return Match.NONE, {}


class ConversationConvertor(StringConvertor):
    """Converts the names of conversations in paths. OpenAI's conversations have ids of another form (`conv_…`)."""

    regex = "(?:conv|agent)-[^/]+|default"


register_url_convertor("conversation", ConversationConvertor())


class _PathEndpoint:
    """The endpoint of one path: reads a request, calls the handler of the method, and makes the reply."""

    def __init__(self, methods: Mapping[str, AgentsRoute], reader: BodyReader) -> None:
        self._methods = methods
        self._reader = reader

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        http = Request(scope, receive)
        info = get_request_info(scope)
        info.route, info.error_form = "agents", _ERRORS
        # A HEAD is answered as its GET.
        route = self._methods.get(scope["method"]) or self._methods["GET"]
        async with self._reader.read(scope, receive) as data:
            read = partial(_read_request, route, http, info.caller.project, data)
            request, query, body = await parse_off_loop(data, read)
            try:
                answer = await route.answer(request, query, body)
                if not callable(answer):
                    answer = JsonResponse(answer, headers=request.headers)
                await answer(scope, receive, send)
            except StoreError as error:
                raise _make_gateway_error(error, request) from error


def _read_request(
    route: AgentsRoute, http: Request, project: str, data: bytes
) -> tuple[ApiRequest, UrlQuery | None, Body | None]:
    """Reads and checks a request, with its query and body. Raises: UnknownId, Unprocessable, BadRequest."""
    _check_names(http, project)
    if not route.is_served:
        return ApiRequest(project, http.path_params, http), None, None
    body, file = _read_body(route, http, data)
    query = _read_query(route, http)
    ignored_fields = [
        name for part in (body, query) if part is not None for name in struct_fields.list_ignored_fields(part)
    ]
    headers = {"x-mnemogate-kept": ",".join(ignored_fields)} if ignored_fields else {}
    return ApiRequest(project, http.path_params, http, headers, data=data, file=file), query, body


def _check_names(http: Request, project: str) -> None:
    """Raises: UnknownId if a request names another project, or a path has U+0000.

    project: the project of the caller's key.
    """
    if any("\0" in value for value in http.path_params.values()):
        raise UnknownId("Nothing has a name with U+0000.")
    for header in _PROJECT_HEADERS:
        if http.headers.get(header, project) != project:
            raise UnknownId(f"There is no project {http.headers[header]!r} for this key.", param=header)


def _read_body(route: AgentsRoute, http: Request, data: bytes) -> tuple[Body | None, FormPart | None]:
    """Returns the body that a route takes, and the file of a form. Raises: Unprocessable, BadRequest."""
    if route.body is None:
        if data not in (b"", b"null") and not route.reads_body:
            struct_fields.read_body(data, Body)
        return None, None
    if issubclass(route.body, Form):
        return _read_form(route.body, http, data)
    return struct_fields.read_body(data, route.body), None


def _read_form(form_type: type[Form], http: Request, data: bytes) -> tuple[Form, FormPart]:
    """Returns the fields of a form, and its file. Raises: Unprocessable."""
    boundary = read_boundary(http.headers.get("content-type", ""))
    parts = None if boundary is None else parse_form(data, boundary)
    if parts is None:
        raise Unprocessable(
            Fault(("body",), "Expected a form of the type multipart/form-data", "form_invalid")
        )
    file = next((part for part in parts if part.name == "file"), None)
    if file is None:
        raise Unprocessable(Fault(("body", "file"), "Field required", "missing"))
    fields = {part.name: part.data.decode("utf-8", "replace") for part in parts if part is not file}
    return struct_fields.convert(without_nul(fields), form_type, ("body",), is_lax=True), file


def _read_query(route: AgentsRoute, http: Request) -> UrlQuery | None:
    """Returns the query that a route takes; None if it takes none. Raises: Unprocessable, BadRequest."""
    if route.query is None and not http.scope["query_string"]:
        return None
    query_type = route.query or UrlQuery
    values: dict[str, Any] = {}
    list_names = struct_fields.find_list_fields(query_type)
    for parameter, value in http.query_params.multi_items():
        # Letta 0.6 has `cursor` for `after`, and `user_id`, in place of which the key names the caller.
        name = "after" if parameter == "cursor" else parameter
        if name in list_names:
            values.setdefault(name, []).append(value)
        elif name != "user_id":
            values[name] = value
    return struct_fields.convert(without_nul(values), query_type, ("query",), is_lax=True)


def read_uid(kind: str, public_id: str) -> str:
    """Returns the uid in an id of a kind, such as `agent`. Raises: UnknownId."""
    uid = ids.parse_uid(kind, public_id)
    if uid is None:
        raise UnknownId(f"There is no {_NOUNS.get(kind, kind)} {public_id!r}.")
    return uid


def _make_gateway_error(error: StoreError, request: ApiRequest) -> GatewayError:
    """Returns the error for the caller, made of an error of the store, with ids in place of uids."""
    message = error.message
    if isinstance(error, NotFound):
        uid = _UID.search(message)
        if uid is not None:
            sent_id = request.get_sent_id(uid[1])
            prefix = sent_id.partition("-")[0]
            # An id with a number after the uid names a message or a step, which is missing in place of its agent.
            noun = prefix if sent_id.count("-") == 2 else _NOUNS.get(prefix)
            message = f"there is no {noun} {sent_id!r}" if noun else message.replace(uid[0], repr(sent_id))
    if isinstance(error, BlockTooLong):
        return Unprocessable(Fault(("body", "value"), make_sentence(message)))
    if isinstance(error, LimitExceeded):
        return BadRequest(make_sentence(message))
    if (record_error := make_record_error(error, message)) is not None:
        return record_error
    if not is_known(error):
        _log.warning("A request was refused, since the database could not be used: %s", error.message)
    return MemoryUnavailable.for_status(error.status)
