"""The page as an ASGI application: it checks who may come in, and calls the screen or action of a path.

It is apart from the API: keys of applications do not open it, no other origin may read or write it, and its errors are
pages of its own, with the same headers as all its answers. Each screen has a twin in JSON, under its path with the end
`.json`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from gateway.errors import (
    CallerError,
    GatewayError,
    MemoryUnavailable,
    NotAllowed,
    Overloaded,
    UnknownId,
    UnknownPath,
)
from gateway.page.defence import compare_origin, make_security_headers, read_header_values
from gateway.page.page_answers import NotSignedIn, ReplyMaker
from gateway.page.page_operations import PageOperations
from gateway.page.page_reply import PageReply, redirect, send_reply
from gateway.page.page_request import (
    PAGE_PREFIX,
    PERSON_PREFIX,
    Bodies,
    PageRequest,
    make_next,
    read_bearer,
    read_cookies,
    read_fields,
    read_form,
    read_query_fields,
    read_referrer,
    read_typed_text,
    resume_at,
)
from gateway.page.page_routes import list_routes
from gateway.page.route_table import RouteTable
from gateway.page.screen import Action, LimitQuery, Screen, ScreenRequest
from gateway.page.sign_in_pages import SIGN_IN_PATHS, SignInPages
from gateway.page.visitor import Visitor, make_session_name
from gateway.run.admin.access.link_operations import Right
from gateway.run.admin.memory.editor import LINK
from gateway.run.admin.page_paths import STATIC
from gateway.run.admin.page_reads import limit_reads
from gateway.settings import Settings
from storage.digests import digest_secret
from storage.errors import StoreError, StoreTimeout

_log = logging.getLogger("mnemogate")

# The most screens that read at once, since turns read by the same connection.
_MAX_READS = 2
# The most reads of memories, by session, memory and hour, that are cached as noted in the audit.
_MAX_NOTED_READS = 10_000


class PageApp:
    """The page."""

    def __init__(
        self,
        settings: Settings,
        operations: PageOperations,
        bodies: Bodies,
        now: Callable[[], float],
        knows_host: Callable[[str], bool],
        note_request: Callable[[Scope, str], None],
        has_left: Callable[[Scope], bool],
        client_gone: type[Exception],
        read_s: float,
    ) -> None:
        """Makes the page.

        settings: the settings of the gateway.
        operations: the operations of the screens.
        bodies: the reader of forms.
        now: the function that returns the seconds since the epoch.
        knows_host: the function that returns whether the gateway may be addressed by a `Host`.
        note_request: the function that is called with the scope and the path as the log may show it.
        has_left: the function that returns whether the client of a request has left.
        client_gone: the exception that `bodies` raises where the client has left.
        read_s: the most seconds that one read of a screen may take.
        """
        ui = settings.ui
        self._is_enabled = ui.enabled
        self._has_tls = ui.https
        self._operations = operations
        self._bodies = bodies
        self._now = now
        self._knows_host = knows_host
        self._note_request = note_request
        self._has_left = has_left
        self._client_gone = client_gone
        self._read_s = read_s
        self._audit = operations.audit
        self._read_slots = asyncio.Semaphore(_MAX_READS)
        # One screen is rendered at a time, since each thread takes its share of the interpreter from the event loop.
        self._render_lock = asyncio.Lock()
        # The task that loads the templates; None: no page was asked for.
        self._loading: asyncio.Task[None] | None = None
        # A search may take seconds. Other searches wait for it, and other screens do not.
        self._search_lock = asyncio.Lock()
        self._noted_reads: OrderedDict[tuple[str, str, int], None] = OrderedDict()
        self._headers = make_security_headers()
        self._person_headers = make_security_headers(ui.frame_origins)
        routes = list_routes(operations)
        self._routes = RouteTable(routes)
        self._first_parts = {each.path.partition("/")[0] for each in routes} | {
            STATIC.rstrip("/"),
            *(path.removesuffix(".json") for path in SIGN_IN_PATHS),
        }
        self._reply_maker = ReplyMaker(now, {each.path for each in routes})
        self._sign_in_pages = SignInPages(
            settings, operations.sign_in, operations.audit, bodies, self._reply_maker, now
        )
        self.sessions = self._sign_in_pages.sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_at = time.perf_counter()
        path: str = scope["path"].removeprefix(PAGE_PREFIX)
        self._note_request(scope, self._mask_path(path))
        has_begun = False
        headers = self._person_headers if path.startswith(PERSON_PREFIX) else self._headers

        async def send_page(reply: PageReply) -> None:
            nonlocal has_begun
            has_begun = True
            await send_reply(reply, headers, began_at, send)

        raw_path = scope.get("raw_path", b"").decode("latin-1").partition("?")[0].removeprefix(PAGE_PREFIX)
        request = PageRequest(scope, receive, path, raw_path, read_cookies(scope["headers"]))
        request.referrer = self._routes.choose_screen(read_referrer(request))
        try:
            await send_page(await self._respond(request))
        except asyncio.CancelledError:
            if not has_begun:
                await send_page(
                    self._reply_maker.make_error(
                        request, Overloaded("The gateway is shutting down.", retry_after_s=1)
                    )
                )
            raise
        except Exception as error:
            if has_begun or isinstance(error, self._client_gone):
                raise
            await send_page(self._reply_maker.make_error(request, _as_gateway_error(error)))

    async def aclose(self) -> None:
        """Ends the loading of templates."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)

    def _mask_path(self, path: str) -> str:
        """Returns the path as the log may show it: no token, uid or label."""
        first_part, _, other_parts = path.removesuffix(".json").partition("/")
        if path in ("/ui", ""):
            return path or PAGE_PREFIX
        shown_part = first_part if first_part in self._first_parts else "…"
        return f"{PAGE_PREFIX}{shown_part}{'/…' if other_parts else ''}"

    # -- admission

    async def _respond(self, request: PageRequest) -> PageReply:
        """Returns the reply. Raises: GatewayError: the request is not admitted, or cannot be answered."""
        scope = request.scope
        if not self._is_enabled:
            raise UnknownPath("There is no page here: ui.enabled is false.")
        hosts = read_header_values(scope["headers"], b"host")
        if len(hosts) != 1 or not self._knows_host(hosts[0]):
            raise NotAllowed(
                "The page is not served under this host name. server.allowed_hosts names those under which it is."
            )
        if scope["path"] == "/ui":
            return redirect("ui/", 307)
        if self._loading is None and not request.is_twin:
            self._loading = asyncio.create_task(self._load_templates())
        if request.path.startswith(STATIC):
            return self._reply_maker.get_static(request)
        bearer = read_bearer(scope["headers"]) if request.is_twin and not request.is_for_person else None
        if not request.is_read and bearer is None:
            await self._check_origin(request)
        if not request.is_for_person:
            request.visitor = await self._sign_in_pages.find_visitor(request, bearer)
        if request.path in SIGN_IN_PATHS:
            return await self._sign_in_pages.respond(request)
        return await self._serve(request)

    async def _load_templates(self) -> None:
        """Loads all templates, one at a time, so that the first look at a screen does not wait for its templates."""
        renderer = self._reply_maker.renderer
        for name in renderer.list_templates():
            async with self._render_lock:
                await asyncio.to_thread(renderer.load, name)

    async def _check_origin(self, request: PageRequest) -> None:
        """Raises: NotAllowed: a change comes from another origin, or names none where it has to."""
        is_same = compare_origin(request.scope["headers"], has_tls=self._has_tls)
        needs_origin = request.is_for_person or (
            request.path != "login" and await self._sign_in_pages.bears_session(request)
        )
        if is_same is False or (is_same is None and needs_origin):
            raise NotAllowed(
                "A change must come from a page of this gateway, and this one does not. "
                "Open the page again and repeat the change. A proxy before it must pass on the `Host` header."
            )

    # -- routes

    async def _send_to_sign_in(self, request: PageRequest) -> PageReply:
        """Returns a redirect to the sign-in. Raises: NotSignedIn: the request cannot be repeated after the sign-in."""
        if request.method == "GET" and not request.is_twin:
            return redirect(request.path_to_root + "login?next=" + quote(make_next(request), safe=""), 303)
        await self._retain_unsaved(request)
        raise NotSignedIn("You are not signed in, or your session has ended. Sign in to go on.")

    async def _serve(self, request: PageRequest) -> PageReply:
        """Returns the reply of the screen or the action at a path."""
        if request.visitor is None and not request.is_for_person:
            return await self._send_to_sign_in(request)
        route, params = self._routes.get(request)
        if request.is_for_person:
            request.visitor = await self._open_link(request, str(params["token"]), route.right)
        assert request.visitor is not None  # a person by the link above, an operator by the first check
        if isinstance(route, Action) and not request.visitor.may_write:
            raise NotAllowed("Your key may read, and not change anything.")
        screen_request = self._make_screen_request(request, request.visitor, route, params)
        if isinstance(route, Screen):
            reply = await self._show(request, route, screen_request)
        else:
            result = await route.perform(screen_request, await self._read_form(request, route.form))
            # Without a wait: the answer reports what was done, even if the gateway is stopping.
            reply = self._reply_maker.make_reply(request, result)
        if not isinstance(reply.body, bytes):
            reply.body = self._read_parts(request, reply.body)
        return reply

    def _make_screen_request(
        self, request: PageRequest, visitor: Visitor, route: Screen | Action, params: dict[str, Any]
    ) -> ScreenRequest:
        """Reads the query of a request, and returns the request as a screen or an action gets it.

        Raises: BadRequest: the query has a field that is unknown or mistyped.
        """
        request.query = read_query_fields(request.scope, getattr(route.query, "repeated", ()))
        query = read_fields(request.query, route.query, is_text=True)
        if isinstance(query, LimitQuery) and not request.is_twin:
            query = replace(query, limit=min(query.limit, query.page_limit))
        return ScreenRequest(
            visitor=visitor,
            params=params,
            query=query,
            is_twin=request.is_twin,
            note_read=partial(self._note_read, visitor),
            origin=self._make_origin(request.scope),
            referrer=request.referrer,
        )

    def _make_origin(self, scope: Scope) -> str:
        """Returns the gateway's address, as a request has reached it."""
        (host,) = read_header_values(scope["headers"], b"host")
        return f"{'https' if self._has_tls else scope['scheme']}://{host}"

    async def _show(self, request: PageRequest, screen: Screen, screen_request: ScreenRequest) -> PageReply:
        """Returns a screen."""
        async with self._search_lock if screen.searches else nullcontext(), self._read_slots:
            with limit_reads(self._read_s):
                answer = await screen.show(screen_request, screen_request.query)
        # In a thread: rendering a long list takes some ten milliseconds, and streams must go on meanwhile.
        async with self._render_lock:
            return await asyncio.to_thread(self._reply_maker.make_reply, request, answer)

    async def _read_parts(self, request: PageRequest, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yields the parts of a body until the client has left. Reading a part counts as one of `_MAX_READS`."""
        if request.method == "HEAD":
            return
        while True:
            async with self._read_slots:
                part = await anext(body, None)
            if part is None:
                return
            if self._has_left(request.scope):
                raise self._client_gone
            yield part

    async def _read_form(self, request: PageRequest, form_type: type[Struct]) -> Struct:
        """Returns the form that was sent. Raises: CallerError."""
        form = await read_form(self._bodies, request, getattr(form_type, "repeated", ()))
        request.unsaved_text = "" if request.is_twin else read_typed_text(form)
        return read_fields(form, form_type, is_text=not request.is_twin)

    async def _retain_unsaved(self, request: PageRequest) -> None:
        """Notes the text of a form that is refused, so that the page of the error has it.

        Its ticks are in the address that follows a sign-in: that of the screen at the path of its action.
        """
        if request.method == "POST" and not request.is_twin:
            with suppress(CallerError):  # the form is refused in any case
                route, _ = self._routes.get(request)
                assert isinstance(route, Action)  # a screen takes no POST
                form_type = route.form
                form = await read_form(self._bodies, request, getattr(form_type, "repeated", ()))
                request.unsaved_text = read_typed_text(form)
                if resumed := getattr(form_type, "resumed", {}):
                    request.referrer = resume_at(make_next(request), form, resumed)

    async def _open_link(self, request: PageRequest, token: str, right: Right) -> Visitor:
        """Returns the person with a link. Raises: UnknownId: no link has this token; NotAllowed: it lacks the right."""
        try:
            link = await self._operations.links.open(token, right)
        except UnknownId:
            await self._retain_unsaved(request)
            raise
        session_name = make_session_name(digest_secret(token))
        return Visitor(LINK, link.scope.project, may_write=True, session_name=session_name, link=link)

    async def _note_read(self, visitor: Visitor, uid: str) -> None:
        """Notes in the audit that a memory was read, once in an hour of a session. Raises: StoreError."""
        noted_read = visitor.session_name, uid, int(self._now() // 3600)
        if noted_read in self._noted_reads:
            return
        # The audit comes before the cache: if the audit fails, a second read at the same time must fail, too.
        await self._audit.add(visitor.actor, "read", uid)
        self._noted_reads[noted_read] = None
        if len(self._noted_reads) > _MAX_NOTED_READS:
            self._noted_reads.popitem(last=False)


def _as_gateway_error(error: Exception) -> GatewayError:
    if isinstance(error, GatewayError):
        return error
    if isinstance(error, StoreTimeout):
        return MemoryUnavailable(
            "Reading this took too long, and was stopped, since replies wait meanwhile. Try it again in a moment.",
            retry_after_s=1.0,
        )
    if isinstance(error, StoreError):
        return MemoryUnavailable.for_status(error.status)
    _log.error("A page failed by a fault in the gateway: %s", type(error).__name__, exc_info=error)
    return GatewayError("Something went wrong inside the gateway. Its log says more.", code="internal_error")
