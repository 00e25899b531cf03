"""The ASGI applications of a gateway and of a worker, with their start and stop.

A request passes the edge first (ids, errors, logs, keys). Chat completions, responses and messages are then found by
their path alone; the router finds all others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.base import Provider
from gateway.agents.routes import list_error_forms
from gateway.agents.services import AgentServices
from gateway.errors import ErrorForm
from gateway.limits import Limits
from gateway.log import AccessLog
from gateway.open_database import may_have_keys
from gateway.page.page_app import PageApp
from gateway.page.page_request import MAX_BODY_BYTES
from gateway.routes import make_endpoints
from gateway.run.sink import ClientGone
from gateway.services import Services
from gateway.settings import Settings, is_loopback
from gateway.traces.otlp import OtlpSettings
from gateway.web.admin import ADMIN_PREFIX
from gateway.web.auth import PAGE_PATH, Guard
from gateway.web.body import BodyReader
from gateway.web.client_connection import find_connection
from gateway.web.completions import is_chat_of_agent
from gateway.web.health import Readiness, make_health_routes, make_home_routes
from gateway.web.manage.manage_guard import MANAGE_PREFIX
from gateway.web.messages_paths import choose_messages_error_form, refuse_unknown_messages_path
from gateway.web.middleware import Edge
from gateway.web.request_info import get_request_info
from gateway.web.sockets.responses_socket import ResponsesSockets
from storage.sql.store import Store

if TYPE_CHECKING:
    from gateway.web.mcp.mcp_endpoint import McpEndpoint

# The time to write the turns of requests that are cut at the end of `shutdown_s`. Not measured: a commit takes
# milliseconds, and the process ends this much later if the disk hangs.
_LAST_REQUESTS_S = 5.0
_log = logging.getLogger("mnemogate")


class Gateway:
    """The ASGI application that answers requests."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        providers: Mapping[str, Provider] | None = None,
        clock: Callable[[], float] | None = None,
        *,
        admin_token: str | None = None,
        access: AccessLog | None = None,
        limits: Limits | None = None,
        performs_jobs: bool = True,
        has_agents: bool = True,
        otlp: OtlpSettings | None = None,
    ) -> None:
        """Makes the services, and the routes to them.

        admin_token: the token with which the command line calls operations; None: no operation can be called so.
        access: the access log; None: a log on stderr, if the settings ask for one.
        has_agents: True if the agents API is served, and chat completions can name its agents.
        The other parameters are those of `Services`.

        Raises: SettingsError.
        """
        self.services = services = Services(
            settings,
            store,
            providers,
            clock,
            limits=limits,
            performs_jobs=performs_jobs,
            make_agents=AgentServices if has_agents else None,
            otlp=otlp,
        )
        limits = services.limits
        server = settings.server
        # The time in seconds of `time.monotonic()`; None: the gateway has not begun to stop.
        self._stop_began_at: float | None = None
        # The number of requests that were being answered then.
        self._active_at_stop = 0
        self.readiness = _make_readiness(store)
        self.access = access or AccessLog(is_enabled=server.access_log)
        self.guard = guard = _make_guard(settings, store)
        bodies = BodyReader(server.max_body_bytes, limits.bodies_in_flight_bytes, limits.body_timeout_s)
        self._page = _make_page(services, guard)
        self._mcp_endpoint = _make_mcp_endpoint(services, bodies) if server.mcp else None
        self._mcp_task: asyncio.Task[None] | None = None
        self._endpoints = make_endpoints(services, bodies, guard, admin_token)
        dialects = self._endpoints.dialects
        # The applications that answer before the router is asked, by their path.
        self._dialect_apps = {dialect.path: dialect.app for dialect in dialects}
        if services.tracer is not None:
            services.tracer.maker.add_routes((route.path_format, route.path_regex) for route in self._routes)
        self._edge = self._make_edge(
            open_prefixes=(f"{PAGE_PATH}/", MANAGE_PREFIX, *((ADMIN_PREFIX,) if admin_token else ())),
            error_forms=self._list_error_forms(has_agents=has_agents),
            user_paths=frozenset(dialect.path for dialect in dialects if dialect.is_for_users),
        )
        self._entry: ASGIApp = _with_cors(self._edge, server.cors_origins)
        self._sockets = ResponsesSockets(
            self._edge,
            bodies,
            lambda: self.readiness.is_draining,
            self._endpoints.owners.read_user,
            services.store.agents.exists,
        )

    # Made for the first request that needs it: making the routes takes a third of the time of making a gateway.
    @cached_property
    def _router(self) -> Router:
        return Router(self._routes, redirect_slashes=False)

    @cached_property
    def _routes(self) -> list[Route]:
        """The routes in the order in which the router tries them."""
        return [
            *self._endpoints.make_routes(),
            *make_home_routes(),
            *make_health_routes(self.readiness, self.services.metrics),
            *([] if self._mcp_endpoint is None else self._mcp_endpoint.make_routes()),
        ]

    def _list_error_forms(self, *, has_agents: bool) -> dict[str, ErrorForm]:
        """Returns the forms of errors by the beginning of the path."""
        dialects = self._endpoints.dialects
        return {
            **{dialect.path: dialect.error_form for dialect in dialects if dialect.error_form is not None},
            **(list_error_forms() if has_agents else {}),
            **({} if self._mcp_endpoint is None else self._mcp_endpoint.list_error_forms()),
        }

    def _make_edge(
        self,
        open_prefixes: tuple[str, ...],
        error_forms: Mapping[str, ErrorForm],
        user_paths: Set[str],
    ) -> Edge:
        """Returns the edge around `_dispatch`. The parameters are those of `Edge`."""
        return Edge(
            self._dispatch,
            self.guard,
            self.services.metrics,
            self.access,
            self.services.now,
            open_prefixes=open_prefixes,
            error_forms=error_forms,
            choose_shared_path_form=choose_messages_error_form,
            list_routes=lambda: self._routes,
            user_paths=user_paths,
            requests=self.services.requests,
            receipts=self.services.accounting.receipts,
            idle=self.services.idle,
            begin_work=self.services.store.begin_work,
        )

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return _run_lifespan(receive, send, self.start, self.stop)
        if scope["type"] == "websocket":
            return self._sockets(scope, receive, send)
        if _is_page_path(scope["path"]):
            return self._edge(scope, receive, send)  # without CORS: no other origin may ask for the page
        return self._entry(scope, receive, send)

    def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Has the page, a dialect's endpoint or the router answer a request."""
        if _is_page_path(scope["path"]):
            return self._page(scope, receive, send)
        if scope["method"] == "POST":
            if (endpoint := self._dialect_apps.get(scope["path"])) is not None:
                return endpoint(scope, receive, send)
            if is_chat_of_agent(scope["path"]):
                return self._endpoints.chat(scope, receive, send)
        refuse_unknown_messages_path(scope)
        # With `app` in the scope, the router raises for an unknown path instead of answering it.
        scope["app"] = self
        return self._router(scope, receive, send)

    async def start(self) -> None:
        """Starts the services; from then on the gateway is ready."""
        await self.services.start()
        if self._mcp_endpoint is not None:
            self._mcp_task = asyncio.create_task(self._mcp_endpoint.run())
        self.readiness.has_started = True

    def begin_stop(self, signal_name: str | None) -> None:
        """Logs that the gateway stops, and how many requests it waits for.

        signal_name: the name of the signal that stops the gateway; None: no signal.
        """
        store = self.services.store
        if store.database.is_shared:
            # Other processes can perform the jobs that are due. One that begins here could be cut at the end of
            # `shutdown_s`, and would be performed again.
            store.jobs.leases.stop_claiming()
        self._stop_began_at = time.monotonic()
        self._active_at_stop = self._edge.active_count
        cause = f" after {signal_name}" if signal_name else ""
        shutdown_s = self.services.settings.server.shutdown_s
        _log.info("Stopping%s: waiting up to %d s for %d requests.", cause, shutdown_s, self._active_at_stop)

    async def stop(self) -> None:
        """Waits for the last requests, and stops the services."""
        self.readiness.is_draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_REQUESTS_S):
                await self.services.idle.wait()
        if self._mcp_task is not None:
            self._mcp_task.cancel()
            await asyncio.gather(self._mcp_task, return_exceptions=True)
        await self._page.aclose()
        try:
            await self.services.stop()
        finally:
            self.access.flush()
        if self._stop_began_at is not None:
            stopped_after_s = time.monotonic() - self._stop_began_at
            _log.info(
                "Stopped after %.1f s: waited for %d requests, cut %d.",
                stopped_after_s,
                self._active_at_stop,
                self._edge.cut_count,
            )


class WorkerHealth:
    """The ASGI application of a worker: it serves `/health`, `/health/ready` and `/metrics`.

    It starts and stops the worker's services.
    """

    def __init__(self, services: Services) -> None:
        settings = services.settings
        store = services.store
        self._services = services
        self.readiness = _make_readiness(store)
        routes = make_health_routes(self.readiness, services.metrics)
        self._router = Router(routes, redirect_slashes=False)
        self._access = AccessLog(is_enabled=settings.server.access_log)
        guard = _make_guard(settings, store)
        self._edge = Edge(self._dispatch, guard, services.metrics, self._access, services.now)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return _run_lifespan(receive, send, self._start, self._stop)
        return self._edge(scope, receive, send)

    def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope["app"] = self  # so that the router raises for an unknown path
        return self._router(scope, receive, send)

    async def _start(self) -> None:
        await self._services.start()
        self.readiness.has_started = True

    async def _stop(self) -> None:
        self.readiness.is_draining = True
        try:
            await self._services.stop()
        finally:
            self._access.flush()


async def _run_lifespan(
    receive: Receive,
    send: Send,
    start: Callable[[], Awaitable[None]],
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Answers the server's lifespan events by `start` and `stop`."""
    await receive()
    try:
        await start()
    except Exception as error:
        _log.error("The gateway could not start.", exc_info=error)
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await stop()
    await send({"type": "lifespan.shutdown.complete"})


def _make_readiness(store: Store) -> Readiness:
    """Returns the readiness of a process, which depends on its store."""
    # Each change replaces `store.health`, so each report reads the attribute.
    return Readiness(read_store_status=lambda: store.health.status)


def _make_guard(settings: Settings, store: Store) -> Guard:
    """Returns the guard that checks keys, hosts and origins, as the settings configure it."""
    server = settings.server
    return Guard(
        store.keys,
        hosts=(server.host, *server.allowed_hosts),
        origins=server.cors_origins,
        serves_without_store=is_loopback(server.host) and not may_have_keys(settings),
        is_key_demanded=server.key is not None,
        metrics_keys=server.metrics_keys,
    )


def _make_page(services: Services, guard: Guard) -> PageApp:
    """Returns the page as an application."""
    limits = services.limits
    bodies = BodyReader(MAX_BODY_BYTES, limits.bodies_in_flight_bytes, limits.body_timeout_s)
    return PageApp(
        services.settings,
        services.page,
        bodies,
        services.now,
        knows_host=guard.knows_host,
        note_request=_note_page_request,
        has_left=_has_client_left,
        client_gone=ClientGone,
        read_s=limits.page_read_s,
    )


def _has_client_left(scope: Scope) -> bool:
    """Returns whether the client of a request has closed its connection."""
    connection = find_connection(scope)
    return connection is not None and connection.is_closing()


def _make_mcp_endpoint(services: Services, bodies: BodyReader) -> McpEndpoint:
    """Returns the endpoint of MCP."""
    from gateway.web.mcp.mcp_endpoint import McpEndpoint  # only here: it needs an extra package

    return McpEndpoint(services.mcp, services.chat.resolver.rules, bodies)


def _is_page_path(path: str) -> bool:
    """Returns whether the page answers a path."""
    return path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/")


def _note_page_request(scope: Scope, path: str) -> None:
    """Notes a request of the page for metrics and the log. path: the path that the log shows."""
    info = get_request_info(scope)
    info.route = "page"
    info.path = path


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Returns the application with CORS for these origins.

    A preflight request has no key, so it is answered before the edge asks for one.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PATCH", "PUT", "DELETE"),
        allow_headers=("*",),
        expose_headers=("*",),
        allow_private_network=True,
    )
