"""The page as an ASGI application: its door, its routes, and answers as HTML and as JSON.

It stands apart from the API: keys of applications do not open it, no other origin may read or write it, and its errors
are pages of its own, with the same headers as all its answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec
import orjson
from msgspec import Struct
from starlette.convertors import Convertor
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from gateway.checked import Invalid, convert
from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    CallerError,
    GatewayError,
    MemoryUnavailable,
    MethodNotAllowed,
    NotAllowed,
    NotAuthenticated,
    Overloaded,
    UnknownId,
    UnknownPath,
)
from gateway.page.defence import RawHeader, is_same_origin, security_headers, values_of
from gateway.page.operations import PageOperations
from gateway.page.routes import all_routes
from gateway.page.screen import Action, Answer, Ask, Done, Download, NoFields, Readable, Screen, View
from gateway.page.shown_text import as_typed
from gateway.page.visitor import Failures, PersonLink, Sessions, Visitor, name_of_session
from gateway.run.admin.links import Right
from gateway.run.admin.memory_edits import LINK
from gateway.run.admin.operation_arguments import refusal
from gateway.run.admin.page_paths import part_of
from gateway.run.admin.sign_in import UNKNOWN
from gateway.settings import Settings
from storage.errors import StoreError

S = TypeVar("S", bound=Struct)
_log = logging.getLogger("mnemogate")

PREFIX = "/ui/"
STATIC = "static/"
# Below it are the pages of people with a link.
PERSONS = "me/"
# The page at `/ui/` itself has its twin by this name.
OVERVIEW = "overview"
# Bytes of a body: a block of 100,000 characters, each written as %XX%XX%XX.
MAX_BODY_BYTES = 1 << 20
# Screens that are read at once on the reader's connection, so that turns find it free.
_READS = 2
# Notes of what was read, by session, memory and hour.
_MOST_NOTED = 10_000
_SESSION_COOKIE, THEME_COOKIE = "mg_ui_", "mg_ui_theme"
_THEME_S = 365 * 86_400
_MOST_NEXT = 1_000
# Above every number that SQLite gives out, and below what it cannot hold.
_TOO_LARGE = 1 << 62
_NEXT = re.compile(
    r"(?:[A-Za-z0-9_~%-][A-Za-z0-9_~%.-]*(?:/[A-Za-z0-9_~%-][A-Za-z0-9_~%.-]*)*)?(?:\?[!-~]*)?"
)
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"


class _UnsupportedType(CallerError):
    status = 415
    code = "unsupported_content_type"


class _Ended(NotAuthenticated):
    """Nobody has signed in, or the session has ended."""

    code = "not_signed_in"


class Bodies(Protocol):
    """Reads bodies within limits."""

    def read(self, scope: Scope, receive: Receive) -> AbstractAsyncContextManager[bytes]: ...


class _Reply(Struct):
    status: int
    content_type: str
    body: bytes | AsyncIterator[bytes] = b""
    headers: list[tuple[str, str]] = msgspec.field(default_factory=list)
    may_be_cached: bool = False


class _Request(Struct):
    """A request below /ui/, as far as it is known."""

    scope: Scope
    receive: Receive
    # The path below /ui/, percent-decoded, and as it came.
    path: str
    raw_path: str
    cookies: dict[str, str]
    visitor: Visitor | None = None
    token: str | None = None
    # Download with a form.
    typed: str = ""
    query: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def is_twin(self) -> bool:
        return self.path.endswith(".json")

    @property
    def is_persons(self) -> bool:
        """A link opens it, and no session."""
        return self.path.startswith(PERSONS)

    @property
    def is_read(self) -> bool:
        return self.method in ("GET", "HEAD")


class PageApp:
    """The page.

    knows_host: whether the gateway may be addressed by a `Host`.
    note_request: is given the scope and the path as the log may show it.
    client_gone: what `bodies` raises where the client has left.
    """

    def __init__(
        self,
        settings: Settings,
        operations: PageOperations,
        bodies: Bodies,
        now: Callable[[], float],
        knows_host: Callable[[str], bool],
        note_request: Callable[[Scope, str], None],
        client_gone: type[Exception],
    ) -> None:
        ui = settings.ui
        self._ui = ui
        self._operations = operations
        self._bodies = bodies
        self._now = now
        self._knows_host = knows_host
        self._note_request = note_request
        self._client_gone = client_gone
        self._sign_in = operations.sign_in
        self.sessions = Sessions(now, ui.session_s, ui.idle_s)
        self._failures = Failures(now)
        self._reads = asyncio.Semaphore(_READS)
        self._noted: OrderedDict[tuple[str, str, int], None] = OrderedDict()
        self._headers = security_headers()
        self._person_headers = security_headers(ui.frame_origins)
        database = hashlib.sha256(settings.database.shown.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        # Cookies do not know ports: gateways of one host, each with its database, have cookies of their own.
        self._cookie = ("__Secure-" if ui.https else "") + _SESSION_COOKIE + database
        self._attributes = "; SameSite=Strict; Path=/ui" + ("; Secure" if ui.https else "")
        routes = all_routes(operations)
        self._screens = [(_pattern(each.path), each) for each in routes if isinstance(each, Screen)]
        self._actions = [(_pattern(each.path), each) for each in routes if isinstance(each, Action)]
        self._first_parts = {each.path.partition("/")[0] for each in routes} | {
            "static",
            "login",
            "logout",
            "theme",
        }
        self._paths = {each.path for each in routes}
        self._renderer: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        path: str = scope["path"].removeprefix(PREFIX)
        self._note_request(scope, self._logged_path(path))
        is_begun = False
        headers = self._person_headers if path.startswith(PERSONS) else self._headers

        async def answer(reply: _Reply) -> None:
            nonlocal is_begun
            is_begun = True
            await _send(reply, headers, began, send)

        raw = scope.get("raw_path", b"").decode("latin-1").partition("?")[0].removeprefix(PREFIX)
        request = _Request(scope, receive, path, raw, _cookies_of(scope["headers"]))
        try:
            await answer(await self._respond(request))
        except asyncio.CancelledError:
            if not is_begun:
                await answer(
                    self._error(request, Overloaded("The gateway is shutting down.", retry_after_s=1))
                )
            raise
        except Exception as error:
            if is_begun or isinstance(error, self._client_gone):
                raise
            await answer(self._error(request, _as_gateway_error(error)))

    def _logged_path(self, path: str) -> str:
        """Returns the path as the log may show it: no token, uid or label."""
        first, _, rest = path.removesuffix(".json").partition("/")
        if path in ("/ui", ""):
            return path or PREFIX
        return f"{PREFIX}{first if first in self._first_parts else '…'}{'/…' if rest else ''}"

    # -- the door

    async def _respond(self, request: _Request) -> _Reply:
        scope = request.scope
        if not self._ui.enabled:
            raise UnknownPath("There is no page here: ui.enabled is false.")
        hosts = values_of(scope["headers"], b"host")
        if len(hosts) != 1 or not self._knows_host(hosts[0]):
            raise NotAllowed(
                "The page is not served under this host name. server.allowed_hosts names those under which it is."
            )
        if scope["path"] == "/ui":
            return _redirect("ui/", 307)
        if request.path.startswith(STATIC):
            return self._static(request)
        bearer = _bearer(scope["headers"]) if request.is_twin and not request.is_persons else None
        if not request.is_read:
            self._check_origin(request, is_by_bearer=bearer is not None)
        request.visitor = await self._find_visitor(request, bearer)
        if request.path in ("login", "logout", "logout.json", "theme", "theme.json"):
            return await self._sign(request)
        return await self._serve(request)

    def _check_origin(self, request: _Request, *, is_by_bearer: bool) -> None:
        if is_by_bearer:
            return
        verdict = is_same_origin(request.scope["headers"])
        needs_one = request.is_persons or (self._cookie in request.cookies and request.path != "login")
        if verdict is False or (verdict is None and needs_one):
            raise NotAllowed(
                "A change must come from a page of this gateway, and this one does not. "
                "Open the page anew and try again; a proxy before it must pass on the `Host` header as it comes."
            )

    async def _find_visitor(self, request: _Request, bearer: str | None) -> Visitor | None:
        if request.is_persons:
            return None  # the link says it
        if bearer is not None:
            operator = await self._sign_in.by_key(bearer)
            if operator is None:
                raise _Ended("This is no key of an operator. `mnemogate keys create --operator` makes one.")
            assert operator.digest is not None
            return Visitor(operator.actor, operator.project, operator.may_write, operator.digest.hex()[:16])
        token = request.cookies.get(self._cookie)
        operator = None if token is None else self.sessions.find(token)
        if token is None or operator is None:
            return None
        if not await self._sign_in.holds(operator):
            self.sessions.end(token)
            return None
        request.token = token
        return Visitor(operator.actor, operator.project, operator.may_write, name_of_session(token))

    # -- routes

    async def _serve(self, request: _Request) -> _Reply:
        if request.visitor is None and not request.is_persons:
            if request.method == "GET" and not request.is_twin:
                return _redirect(_up(request) + "login?next=" + quote(_next_of(request), safe=""), 303)
            await self._keep_typed(request)
            raise _Ended("You are not signed in, or your session has ended. Sign in to go on.")
        routes: Sequence[tuple[_Pattern, Screen | Action]] = (
            self._screens if request.is_read else self._actions
        )
        route, params = self._match(request, routes)
        if request.method not in ("GET", "HEAD", "POST"):
            raise MethodNotAllowed(f"{request.method} is not allowed here.")
        if request.is_persons:
            try:
                request.visitor = await self._open_link(str(params["token"]), route.right)
            except UnknownId:
                await self._keep_typed(request)
                raise
        assert request.visitor is not None
        if isinstance(route, Action) and route.changes and not request.visitor.may_write:
            raise NotAllowed("Your key may read, and not change anything.")
        query = request.query = _query_fields(request.scope)
        ask = Ask(
            request.visitor,
            params,
            _checked(query, route.query, is_text=True),
            request.is_twin,
            partial(self._note_read, request.visitor),
            request.raw_path,
            request.cookies,
            _referrer(request),
        )
        if isinstance(route, Screen):
            async with self._reads:
                found = await route.show(ask, ask.query)
        else:
            sent = await self._read_form(request)
            request.typed = "" if request.is_twin else _typed_of(sent)
            form = _checked(sent, route.form, is_text=not request.is_twin)
            found = await route.perform(ask, form)
        return self._reply(request, found)

    async def _keep_typed(self, request: _Request) -> None:
        """Notes the text of a form that comes too late, so that the page of the error has it."""
        if request.method == "POST" and not request.is_twin:
            with suppress(CallerError):  # that it comes too late is what counts
                request.typed = _typed_of(await self._read_form(request))

    def _match(
        self, request: _Request, routes: Sequence[tuple[_Pattern, Screen | Action]]
    ) -> tuple[Screen | Action, dict[str, Any]]:
        path = request.path.removesuffix(".json")
        if request.is_twin and path == OVERVIEW:
            path = ""
        elif path == "" and request.is_twin:
            raise _unknown()
        for pattern, route in routes:
            params = pattern.match(path)
            if params is not None and (
                not request.is_twin or not isinstance(route, Screen) or route.has_twin
            ):
                return route, params
        others = self._screens if routes is self._actions else self._actions
        if any(pattern.match(path) is not None for pattern, _ in others):
            raise MethodNotAllowed(f"{request.method} is not allowed here.")
        raise _unknown()

    async def _open_link(self, token: str, right: Right) -> Visitor:
        link = await self._operations.links.open(token, right)
        person = PersonLink(link.memory_uid, link.scope.project, link.rights, link.expires, link.paused)
        return Visitor(LINK, link.scope.project, may_write=True, session=name_of_session(token), link=person)

    async def _note_read(self, visitor: Visitor, uid: str) -> None:
        noted = visitor.session, uid, int(self._now() // 3600)
        if noted in self._noted:
            return
        self._noted[noted] = None
        if len(self._noted) > _MOST_NOTED:
            self._noted.popitem(last=False)
        await self._sign_in.note(visitor.actor, "read", uid)

    # -- signing in

    async def _sign(self, request: _Request) -> _Reply:
        name = request.path.removesuffix(".json")
        if request.is_read and name == "login":
            wanted = _checked(_query_fields(request.scope), _LoginQuery, is_text=True)
            return self._login_page(request, to=_safe_next(wanted.next))
        if request.method != "POST":
            raise MethodNotAllowed(f"{request.method} is not allowed here.")
        form = await self._read_form(request)
        match name:
            case "login":
                return await self._log_in(request, _checked(form, _Login, is_text=True))
            case "logout":
                _checked(form, NoFields, is_text=True)
                return await self._log_out(request)
            case _:
                theme = _checked(form, _Theme, is_text=True).theme
                kept = f"{theme}; Max-Age={_THEME_S}" if theme != "system" else "; Max-Age=0"
                cookie = f"{THEME_COOKIE}={kept}{self._attributes}"
                return self._reply(request, Done({"theme": theme}, _referrer(request), (cookie,)))

    async def _log_in(self, request: _Request, wanted: _Login) -> _Reply:
        to = _safe_next(wanted.next)
        operator = await self._sign_in.admit(wanted.key.strip())
        if operator is None:
            retry_after_s = self._failures.add()
            if retry_after_s is not None:
                error: GatewayError = _TooMany(
                    "Too many attempts have failed. Wait a minute, and try again.",
                    retry_after_s=retry_after_s,
                )
            else:
                await self._sign_in.note(UNKNOWN, "login_failed")
                error = _Ended(
                    "This code or key opens nothing. A code works once, for a minute; of keys only those of "
                    "operators open the page."
                )
            return self._login_page(request, to=to, error=error)
        token = self.sessions.begin(operator)
        await self._sign_in.note(operator.actor, "login")
        cookie = f"{self._cookie}={token}; HttpOnly{self._attributes}"
        return self._reply(request, Done({}, to, (cookie,)))

    async def _log_out(self, request: _Request) -> _Reply:
        if request.visitor is None or request.token is None:
            raise _Ended("You are not signed in.")
        self.sessions.end(request.token)
        await self._sign_in.note(request.visitor.actor, "logout")
        cookie = f"{self._cookie}=; HttpOnly; Max-Age=0{self._attributes}"
        return self._reply(request, Done({"done": True}, "login", (cookie,)))

    def _login_page(
        self, request: _Request, *, to: str, error: GatewayError | None = None, typed: str = ""
    ) -> _Reply:
        request.visitor = None
        shown = View(None, "login.html", "Sign in", {"next": to, "typed": typed}, error)
        return self._html(request, shown)

    # -- bodies

    async def _read_form(self, request: _Request) -> dict[str, Any]:
        """Reads the body of a form, or the object of a twin."""
        wanted = _JSON if request.is_twin else _FORM
        given = [
            value.partition(";")[0].strip().lower()
            for value in values_of(request.scope["headers"], b"content-type")
        ]
        if given != [wanted]:
            raise _UnsupportedType(f"The body must be {wanted}.", param="content-type")
        try:
            async with self._bodies.read(request.scope, request.receive) as raw:
                body = bytes(raw)
        except BodyTooLarge as error:
            raise BodyTooLarge(f"The body has more than {MAX_BODY_BYTES} bytes.") from error
        if request.is_twin:
            try:
                value = orjson.loads(body)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise BadRequest("The body must be a JSON object.")
            return value
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=100)
        except ValueError as error:
            raise BadRequest("The form cannot be read.") from error
        return {name: as_typed(text) for name, text in _single(pairs).items()}

    # -- answers

    def _reply(self, request: _Request, found: Answer) -> _Reply:
        if isinstance(found, Download):
            headers = []
            if found.filename is not None:
                headers.append(("content-disposition", f'attachment; filename="{found.filename}"'))
            return _Reply(200, found.content_type, found.body, headers)
        if isinstance(found, Readable):
            file = Download("text/html; charset=utf-8", self._rendered(found), found.filename)
            return self._reply(request, file)
        if isinstance(found, Done):
            cookies = [("set-cookie", cookie) for cookie in found.cookies]
            if request.is_twin:
                return _Reply(200, _JSON, msgspec.json.encode(found.record), cookies)
            reply = _redirect(_up(request) + found.to or "./", 303)
            reply.headers += cookies
            return reply
        if request.is_twin:
            if found.error is not None:
                raise found.error
            return _Reply(200, _JSON, msgspec.json.encode(found.record))
        return self._html(request, found)

    async def _rendered(self, found: Readable) -> AsyncIterator[bytes]:
        made_at = self._now()
        async for part in found.parts:
            yield self._pages.render(found.template, "", {}, made_at=made_at, **part).encode(
                "utf-8", "replace"
            )

    def _html(self, request: _Request, shown: View) -> _Reply:
        visitor, error = request.visitor, shown.error
        text = self._pages.render(
            shown.template,
            request.raw_path,
            request.query,
            record=shown.record,
            heading=shown.heading,
            alert=None if error is None else error.message,
            visitor=visitor,
            may_write=visitor is not None and visitor.may_write,
            menu=self._menu(request, visitor),
            theme=_theme(request.cookies),
            **shown.context,
        )
        reply = _Reply(200, "text/html; charset=utf-8", text.encode("utf-8", "replace"))
        if error is not None:
            reply.status = error.status
            _add_retry(reply, error)
        return reply

    def _menu(self, request: _Request, visitor: Visitor | None) -> list[tuple[str, str, bool]]:
        """Returns the links of the navigation: name, path, whether it is this page."""
        if visitor is None or visitor.link is not None:
            return []
        names = {"": "Overview", "people": "People", "requests": "Requests", "work": "Work"}
        if visitor.project is None and visitor.may_write:
            names["keys"] = "Keys"
        names["audit"] = "Audit"
        first = request.path.partition("/")[0]
        return [(name, path, path == first) for path, name in names.items() if path in self._paths]

    def _error(self, request: _Request, error: GatewayError) -> _Reply:
        if request.is_twin:
            shown = {"message": error.message, "code": error.code or error.kind, "param": error.param}
            reply = _Reply(error.status, _JSON, msgspec.json.encode({"error": shown}))
        elif isinstance(error, _Ended):
            return self._login_page(request, to=_referrer(request), error=error, typed=request.typed)
        else:
            reply = self._html(request, View(None, "error.html", error.message, {"typed": request.typed}))
            reply.status = error.status
        if error.status == 401:
            reply.headers.append(("www-authenticate", "Bearer"))
        _add_retry(reply, error)
        return reply

    def _static(self, request: _Request) -> _Reply:
        found = self._pages.files.get(request.path.removeprefix(STATIC))
        if found is None or not request.is_read:
            raise _unknown()
        _, content_type, data = found
        return _Reply(200, content_type, data, may_be_cached=True)

    @property
    def _pages(self) -> Any:
        if self._renderer is None:
            # Jinja2 is loaded with the first page: a gateway without visitors does without.
            from gateway.page.render import Renderer

            self._renderer = Renderer(self._now)
        return self._renderer


class _LoginQuery(Struct, frozen=True, forbid_unknown_fields=True):
    next: str = ""


class _Login(_LoginQuery, frozen=True, kw_only=True):
    key: str


class _Theme(Struct, frozen=True, forbid_unknown_fields=True):
    theme: Literal["system", "light", "dark"]


class _TooMany(GatewayError):
    status = 429
    kind = "rate_limit_error"
    code = "rate_limit_exceeded"


class _Pattern(Struct, frozen=True):
    """The pattern of a path, as starlette compiles it."""

    regex: re.Pattern[str]
    convertors: Mapping[str, Convertor[Any]]

    def match(self, path: str) -> dict[str, Any] | None:
        """Returns the parts of a path by their names; None: it is not of this pattern."""
        found = self.regex.match(f"/{path}")
        if found is None:
            return None
        parts = {name: self.convertors[name].convert(text) for name, text in found.groupdict().items()}
        if any(isinstance(part, int) and part >= _TOO_LARGE for part in parts.values()):
            return None
        return {name: part_of(part) if isinstance(part, str) else part for name, part in parts.items()}


def _pattern(path: str) -> _Pattern:
    regex, _, convertors = compile_path(f"/{path}")
    return _Pattern(regex, convertors)


def _checked(value: Mapping[str, Any], kind: type[S], *, is_text: bool) -> S:
    """Makes the fields of a request. is_text: they come as text. Raises: BadRequest."""
    try:
        return convert(value, kind, strict=not is_text)
    except Invalid as error:
        raise refusal(error.fault) from error


def _as_gateway_error(error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, StoreError):
        return MemoryUnavailable.since(error.status)
    _log.error("A page failed by a fault in the gateway: %s", type(error).__name__, exc_info=error)
    return GatewayError("Something went wrong inside the gateway. Its log says more.", code="internal_error")


def _unknown() -> UnknownPath:
    return UnknownPath("There is no such page.")


def _redirect(to: str, status: int) -> _Reply:
    return _Reply(status, "text/plain; charset=utf-8", b"", [("location", to)])


def _typed_of(sent: Mapping[str, str]) -> str:
    """Returns the text that somebody has typed into a form, of a block or a fact."""
    return sent.get("value") or sent.get("text") or ""


def _up(request: _Request) -> str:
    """Returns the way from a page to `/ui/`."""
    return "../" * request.raw_path.count("/")


def _add_retry(reply: _Reply, error: GatewayError) -> None:
    if error.retry_after_s is not None:
        reply.headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))


def _bearer(headers: Iterable[RawHeader]) -> str | None:
    given = values_of(headers, b"authorization")
    if len(given) != 1 or given[0][:7].lower() != "bearer ":
        return None
    return given[0][7:].strip()


def _cookies_of(headers: Iterable[RawHeader]) -> dict[str, str]:
    """Returns the cookies of a request. Of several of one name the first counts, as browsers order them."""
    cookies: dict[str, str] = {}
    for part in ";".join(values_of(headers, b"cookie")).split(";"):
        name, _, value = part.partition("=")
        cookies.setdefault(name.strip(), value.strip())
    return cookies


def _theme(cookies: Mapping[str, str]) -> str | None:
    theme = cookies.get(THEME_COOKIE)
    return theme if theme in ("light", "dark") else None


def _single(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns fields by their names. Raises: BadRequest: one comes twice."""
    fields: dict[str, str] = {}
    for name, text in pairs:
        if name in fields:
            raise BadRequest(f"The field {name} is given twice.", param=name)
        fields[name] = text
    return fields


def _query_fields(scope: Scope) -> dict[str, str]:
    try:
        text = scope["query_string"].decode("ascii")
        return _single(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=100))
    except ValueError as error:
        raise BadRequest("The query cannot be read.") from error


def _next_of(request: _Request) -> str:
    """Returns the page that is asked for, as `next` of the sign-in."""
    query = request.scope["query_string"].decode("latin-1")
    return _safe_next(request.raw_path + (f"?{query}" if query else ""))


def _safe_next(text: str) -> str:
    """Returns a path below /ui/ that a redirect may lead to; "" of anything else."""
    is_safe = len(text) <= _MOST_NEXT and _NEXT.fullmatch(text) is not None
    return text if is_safe and "%2e" not in text.partition("?")[0].lower() else ""


def _referrer(request: _Request) -> str:
    """Returns the page that a form was sent from, relative to /ui/; "": nothing says it."""
    headers = request.scope["headers"]
    given, hosts = values_of(headers, b"referer"), values_of(headers, b"host")
    try:
        found = urlsplit(given[0] if given else "")
    except ValueError:
        return ""
    if found.netloc not in hosts:
        return ""
    path = found.path.partition(PREFIX)[2]
    return _safe_next(path + (f"?{found.query}" if found.query else ""))


async def _send(reply: _Reply, headers: list[RawHeader], began: float, send: Send) -> None:
    whole = [
        (b"content-type", reply.content_type.encode()),
        *((name.encode(), value.encode()) for name, value in reply.headers),
        *headers,
        (b"cache-control", b"max-age=31536000, immutable" if reply.may_be_cached else b"no-store"),
        (b"server-timing", f"total;dur={(time.perf_counter() - began) * 1000:.2f}".encode()),
    ]
    body = reply.body
    if isinstance(body, bytes):
        whole.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": whole})
    if isinstance(body, bytes):
        await send({"type": "http.response.body", "body": body, "more_body": False})
        return
    async for part in body:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
