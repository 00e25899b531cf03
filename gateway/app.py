"""The application: its routes, what serves them, and their start and stop.

Routes are data. The chat route comes before the router, and the edge (ids, errors, logs, keys) around both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.base import Provider
from gateway.agents.routes import agents_routes, error_forms
from gateway.agents.services import AgentServices
from gateway.dialects.responses.background import ShownResponses
from gateway.dialects.responses.errors import ResponsesErrors
from gateway.errors import UnknownPath
from gateway.limits import Limits
from gateway.log import AccessLog
from gateway.metrics import Metrics
from gateway.open_database import may_be_keyed, preload
from gateway.operations import (
    import_operations,
    limit_operations,
    make_mcp_memory,
    make_operations,
    make_page_operations,
    request_operations,
)
from gateway.page.page_app import PageApp
from gateway.page.page_request import MAX_BODY_BYTES
from gateway.provider_factory import make_embedder, make_providers, own_provider
from gateway.run.admin.key_management import KeyHolder, KeyManagement
from gateway.run.admin.link_operations import LinkOperations
from gateway.run.admin.sign_in import SignIn
from gateway.run.admin.usage_operations import UsageOperations
from gateway.run.background.background_services import BackgroundServices
from gateway.run.background.loop import run_at_start
from gateway.run.background_responses import BackgroundResponses
from gateway.run.chat import Chat
from gateway.run.directory import Directory, NoAgents
from gateway.run.memory.block_edits import follow_settings
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.pending import Pending
from gateway.run.receipt import Accounts
from gateway.run.request_log import RequestLog
from gateway.run.sink import ClientGone
from gateway.run.stored_responses import StoredResponses
from gateway.run.turn_saving import turn_limits_of
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.forward import Forwarding
from gateway.run.upstream.model_list import ModelList
from gateway.run.usage.gen_ai_metrics import GenAIMetrics
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.meter import Meter
from gateway.settings import ServerSettings, Settings, is_loopback
from gateway.trace_factory import make_tracer
from gateway.traces.otlp import OtlpSettings
from gateway.web.admin import ADMIN_PREFIX, admin_routes
from gateway.web.auth import PAGE_PATH, Guard
from gateway.web.body import BodyReader
from gateway.web.completions import CHAT_PATHS, ChatRoute, is_chat
from gateway.web.forwarding import forwarding_routes
from gateway.web.health import Readiness, health_routes
from gateway.web.manage.access import Access
from gateway.web.manage.import_routes import import_routes
from gateway.web.manage.key_routes import key_routes
from gateway.web.manage.records import LIMITS_PATH, record_routes
from gateway.web.manage.usage_routes import MANAGE_PREFIX, usage_routes
from gateway.web.memory_api import memory_routes
from gateway.web.messages import is_unknown, messages_errors, messages_routes
from gateway.web.middleware import Edge, trace_of
from gateway.web.models import model_routes
from gateway.web.response_compaction import COMPACT_PATH, INPUT_TOKENS_PATH, CompactPath, InputTokensPath
from gateway.web.responses import RESPONSES_PATH, ResponsesPath, stored_routes
from gateway.web.sockets.responses_socket import OpensSocket, ResponsesSockets
from gateway.web.stored_responses import OwnResponses, unknown_response
from storage.errors import StoreError, Unavailable
from storage.records import OPERATOR
from storage.sql.store import Store

if TYPE_CHECKING:
    from gateway.traces.tracer import Tracer
    from gateway.web.mcp.endpoint import McpEndpoint

# Requests that are cut at the end of `shutdown_s` get so long to write what became of them.
LAST_REQUESTS_S = 5.0
# A store that cannot be used is asked again so often for the key of traces.
TRACE_KEY_S = 5.0
# The names of the keys that the settings give.
GIVEN_KEY, GIVEN_OPERATOR_KEY = "server.key", "server.operator_key"
_log = logging.getLogger("mnemogate")


class Gateway:
    """The ASGI application. The server and tests use `readiness`, `metrics` and `guard`.

    background: the background services; agent_services: those of agents.
    """

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
        works: bool = True,
        has_agents: bool = True,
        otlp: OtlpSettings | None = None,
    ) -> None:
        """providers: by the names of settings.upstreams; made of the settings if left out.
        works: performs jobs; without it other processes do, which share the database.
        has_agents: serves the agents API, and agents made over it in chat completions.
        otlp: how traces are exported; None: there are none.

        Raises: SettingsError: no upstream answers to memory.background_model or memory.embedder.
        """
        limits, server = limits or Limits(), settings.server
        clock = clock or (store.now if store.database.is_shared else time.time)
        self.settings = settings
        self.store = store
        self._works = works
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: tuple[float, int] | None = None  # since when, and how many requests were active then
        self.readiness = Readiness()
        self.metrics = Metrics()
        _watch_store(self.readiness, self.metrics, store)
        self.access = access or AccessLog(enabled=server.access_log)
        self.guard = _make_guard(settings, store)
        # Runs that no client waits for have connections of their own, as far as the gateway makes them.
        self._own = make_providers(settings) if providers is None else {}
        self.providers = providers = make_providers(settings) if providers is None else providers
        named = {each.name: providers[each.name] for each in settings.upstreams if each.name in providers}
        self.models = ModelList(settings, named, int(clock()), limits.models_refresh_s)
        self._embedder = make_embedder(settings)
        # Never one of `providers`, which have the connections for live turns.
        make_own = partial(own_provider, settings)
        # Each reader is handed the account of every request after its last byte, and of work without one.
        self.tracer = None if otlp is None else make_tracer(settings, otlp, providers, self.metrics)
        self.accounts = Accounts(self.tracer)
        self.meter = Meter(store.usage, store.agents.load, clock, settings)
        self.background = services = BackgroundServices(
            settings, store, self.metrics, clock, make_own, self._embedder, limits, self.meter, self.accounts
        )
        self.limiter = Limiter(store, self.meter, clock, self.metrics)
        figures = GenAIMetrics(self.metrics, settings)
        self.accounts.readers += [self.meter.take, self.limiter.settle, figures.take]
        self.meter.after_write.append(self.limiter.refresh)
        keeper = MemoryKeeper(store, settings.memory, clock, services, services.embed_query)
        failover, pending = Failover(settings, providers, self.metrics), Pending()
        directory = Directory(settings)
        self.agent_services: AgentServices | None = None
        if has_agents:
            self.agent_services = AgentServices(
                settings,
                keeper,
                failover,
                failover.over(self._own or providers),
                self.metrics,
                pending,
                limits,
                directory.specs,
                services,
                self.accounts,
                self.limiter,
            )
        self.chat = Chat(
            settings,
            keeper,
            failover,
            self.metrics,
            pending,
            turn_limits_of(settings, limits),
            directory,
            NoAgents(keeper) if self.agent_services is None else self.agent_services.chat,
            self.limiter,
        )
        self._background_responses = BackgroundResponses(
            store, self.chat, ShownResponses(), clock, self.accounts, services.count_attempt
        )
        bodies = BodyReader(server.max_body_bytes, limits.bodies_in_flight_bytes, limits.body_timeout_s)
        self.requests = RequestLog(clock)
        store.forgetting.when_gone(self.requests.forget)
        self._chat = ChatRoute(server, self.chat, bodies, limits.send_timeout_s, self.requests)
        self.sign_in = SignIn(store, clock, is_enabled=settings.ui.enabled)
        self._page = self._make_page(limits, clock)
        self.mcp = make_mcp_memory(settings, store, services.embed_query, clock, self.accounts, self.limiter)
        self._mcp_endpoint = self._make_mcp_endpoint(bodies) if server.mcp else None
        self._imports = import_operations(settings, store, clock)
        self._router = Router(self._routes(bodies, limits, admin_token), redirect_slashes=False)
        if self.tracer is not None:
            self.tracer.maker.add_routes(
                (each.path_format, each.path_regex) for each in self._router.routes if isinstance(each, Route)
            )
        self._edge = Edge(
            self._dispatch,
            self.guard,
            self.metrics,
            self.access,
            clock,
            open_prefixes=(f"{PAGE_PATH}/", MANAGE_PREFIX, *((ADMIN_PREFIX,) if admin_token else ())),
            error_forms={RESPONSES_PATH: ResponsesErrors(), **(error_forms() if has_agents else {})},
            error_form_of=messages_errors,
            paths=[each.path for each in self._router.routes if isinstance(each, Route)],
            requests=self.requests,
            accounts=self.accounts,
        )
        self._entry: ASGIApp = _with_cors(self._edge, server.cors_origins)
        self._sockets = ResponsesSockets(self._edge, bodies, lambda: self.readiness.draining)
        store.database.when_failed(_log_failure)
        store.database.when_recovered(self._recovered)

    def _routes(self, bodies: BodyReader, limits: Limits, admin_token: str | None) -> list[BaseRoute]:
        settings, max_upload_bytes = self.settings, self.settings.server.max_upload_bytes
        agents, names = [], _no_names
        if self.agent_services is not None:
            agents = agents_routes(self.agent_services.agents_api(self.models, limits), bodies)
            names = self.agent_services.chat.names
        forwarding = Forwarding(settings, self.providers, self.chat.failover, self.chat.rules, self.limiter)
        own = OwnResponses(
            self._stored_responses(),
            self.chat.rules,
            self.chat.conversations,
            bodies,
            self._background_responses,
            limits.send_timeout_s,
        )
        parts_of_responses = ("responses", forwarding, bodies, max_upload_bytes, limits, self._chat, own)
        self._responses = ResponsesPath(*parts_of_responses)
        access, limits_of_use = Access(self.guard, admin_token), limit_operations(settings, self.store)
        routes: list[BaseRoute] = [
            # Gives other methods their 405; posts never come this far.
            *(Route(path, _only_post, methods=["POST"]) for path in (RESPONSES_PATH, *CHAT_PATHS)),
            *messages_routes(
                self._chat, forwarding
            ),  # before the agents, which have other paths below theirs
            *agents,  # before the models: `/v1/models/` is a list of the agents API
            *model_routes(self.models, names),
            *(
                Route(path, of_path(*parts_of_responses), methods=["POST"])
                for path, of_path in ((INPUT_TOKENS_PATH, InputTokensPath), (COMPACT_PATH, CompactPath))
            ),
            Route(RESPONSES_PATH, OpensSocket(), methods=["GET"]),
            *stored_routes(
                forwarding,
                bodies,
                max_upload_bytes,
                limits,
                [spec.system for spec in self.chat.directory.specs],
                own,
            ),
            *forwarding_routes(forwarding, bodies, max_upload_bytes, limits),
            *memory_routes(
                request_operations(settings, self.store, self.requests),
                LinkOperations(self.store, self.requests.now, settings.default_profile),
                bodies,
                settings.ui,
            ),
            *usage_routes(UsageOperations(self.store.usage, self.requests.now, self.meter), access),
            *record_routes(LIMITS_PATH, limits_of_use, access, bodies),
            *import_routes(self._imports, access, bodies, max_upload_bytes, limits.body_timeout_s),
            *key_routes(
                KeyManagement(self.store.keys, limits_of_use, self.requests.now),
                KeyHolder(self.store.usage, self.meter, self.limiter, self.requests.now),
                access,
                bodies,
            ),
            *health_routes(self.readiness, self.metrics),
            *([] if self._mcp_endpoint is None else self._mcp_endpoint.routes()),
        ]
        if admin_token is not None:
            operations = make_operations(
                settings,
                self.store,
                self.background.embed_query,
                self.requests,
                self.sign_in,
                self.meter,
                self.mcp,
                self._imports,
            )
            routes += admin_routes(operations, admin_token)
        return routes

    def _make_page(self, limits: Limits, clock: Callable[[], float]) -> PageApp:
        operations = self._page_operations = make_page_operations(
            self.settings,
            self.store,
            self.sign_in,
            self.requests,
            self.background.embed_query,
            self.chat.failover.passed_over,
        )
        bodies = BodyReader(MAX_BODY_BYTES, limits.bodies_in_flight_bytes, limits.body_timeout_s)
        return PageApp(
            self.settings, operations, bodies, clock, self.guard.knows_host, _note_page, ClientGone
        )

    def _make_mcp_endpoint(self, bodies: BodyReader) -> McpEndpoint:
        from gateway.web.mcp.endpoint import McpEndpoint

        return McpEndpoint(self.mcp, self.chat.rules, bodies)

    def _stored_responses(self) -> StoredResponses:
        chat = self.chat
        return StoredResponses(self.store, chat.pending, chat.commit_wait_s, unknown_response)

    @property
    def idle(self) -> asyncio.Event:
        """Set while no request is being answered."""
        return self._edge.idle

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "lifespan":
            return self._live(receive, send)
        if scope["type"] == "websocket":
            return self._sockets(scope, receive, send)
        if is_page(scope["path"]):
            return self._edge(scope, receive, send)  # no other origin may ask, whatever the settings say
        return self._entry(scope, receive, send)

    def _recovered(self) -> None:
        """Goes on with a store that works again. Its file may be another one, which an operator has restored."""
        _log.warning("The database works again, after: %s", self.store.health.error)
        self.chat.pending.add(install_keys(self.store, self.settings.server), GIVEN_KEY)

    def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if is_page(scope["path"]):
            return self._page(scope, receive, send)
        if scope["method"] == "POST":
            if is_chat(scope["path"]):
                return self._chat(scope, receive, send)
            if scope["path"] == RESPONSES_PATH:
                return self._responses(scope, receive, send)
        if is_unknown(scope):
            raise UnknownPath(f"Unknown path: {scope['method']} {scope['path']}")
        # With `app` in the scope, the router raises for an unknown path instead of answering it.
        scope["app"] = self
        return self._router(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            _log.error("The gateway could not start.", exc_info=error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def start(self) -> None:
        """Starts the background work, until `stop`."""
        self._log_ways()
        self._tasks += [
            asyncio.create_task(each) for each in (self.models.run(), self.meter.run(), self.limiter.run())
        ]
        self.store.database.start()
        if self._mcp_endpoint is not None:
            self._tasks.append(asyncio.create_task(self._mcp_endpoint.run()))
        leases = self.chat.keeper.leases
        if leases.is_needed:
            self._tasks.append(asyncio.create_task(leases.run()))
        if self.agent_services is not None:
            self._tasks += await self.agent_services.start(works=self._works)
        if (
            late := await run_at_start(self.store, self._follow_settings, "Changed memory blocks")
        ) is not None:
            self._tasks.append(late)
        self._tasks += self.background.start(works=self._works)
        if self._works:
            self._tasks += map(asyncio.create_task, self._background_responses.tasks())
        self._tasks.append(asyncio.create_task(asyncio.to_thread(preload)))
        if self.tracer is not None:
            self.tracer.start()
            self._tasks.append(asyncio.create_task(self._read_trace_key(self.tracer)))
        self.readiness.started = True

    async def _read_trace_key(self, tracer: Tracer) -> None:
        """Reads the key by which spans name users, as soon as the store works."""
        while tracer.maker.user_key is None:
            try:
                tracer.maker.user_key = await self.store.secrets.key("traces")
            except StoreError:  # it was logged
                await asyncio.sleep(TRACE_KEY_S)

    async def _follow_settings(self) -> None:
        keeper = self.chat.keeper
        await follow_settings(self.store, keeper.leases, self.chat.directory.specs, keeper.now())

    def begin_stop(self, signal_name: str | None) -> None:
        """Logs that the gateway stops, and what it waits for; `stop` logs the end. signal_name: what made it stop."""
        self._stopping = time.monotonic(), self._edge.active
        _log.info(
            "Stopping%s: waiting up to %d s for %d requests.",
            f" after {signal_name}" if signal_name else "", self.settings.server.shutdown_s, self._edge.active,
        )  # fmt: skip

    def _log_ways(self) -> None:
        """Logs for each upstream how requests for responses are answered."""
        for each in self.settings.upstreams:
            if each.name not in self.providers:
                continue
            is_native = self.providers[each.name].has_endpoint("/responses")
            way = (
                "are passed on, and stored there" if is_native else "are answered by way of chat completions"
            )
            _log.info("upstream %s: requests for responses %s", each.name, way)

    async def stop(self) -> None:
        """Stops requests, background work, store and upstreams, in this order: each needs those after it."""
        self.readiness.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_REQUESTS_S):
                await self.idle.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.chat.pending.drain(LAST_REQUESTS_S)
        await self.mcp.drain(LAST_REQUESTS_S)
        await self.background.drain(LAST_REQUESTS_S)
        with suppress(StoreError):  # it was logged
            await self.meter.write()
        await self._page_operations.forgetting.aclose()
        await self._imports.aclose()
        await self.store.close()
        for provider in (*self.providers.values(), *self._own.values()):
            await provider.aclose()
        await self.background.aclose()
        if self.agent_services is not None:
            await self.agent_services.aclose()
        if self._embedder is not None:
            await self._embedder.aclose()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.stop)
        self.access.flush()
        if self._stopping is not None:
            begun, waited = self._stopping
            took, cut = time.monotonic() - begun, self._edge.cut
            _log.info("Stopped after %.1f s: waited for %d requests, cut %d.", took, waited, cut)


async def install_keys(store: Store, server: ServerSettings) -> None:
    """Makes the keys that the settings give the store's. Raises: StoreError."""
    given = ((server.key, GIVEN_KEY, None), (server.operator_key, GIVEN_OPERATOR_KEY, OPERATOR))
    for key, name, opens in given:
        if key is not None and not await store.keys.install(key, name, opens):
            variable = f"MNEMOGATE_{name.removeprefix('server.').upper()}"
            _log.warning("%s (%s) was revoked, so it opens nothing. Set another one.", name, variable)


def _make_guard(settings: Settings, store: Store) -> Guard:
    server = settings.server
    return Guard(
        store.keys,
        hosts=(server.host, *server.allowed_hosts),
        origins=server.cors_origins,
        is_local=is_loopback(server.host) and not may_be_keyed(settings),
        is_keyed=server.key is not None,
        metrics_keys=server.metrics_keys,
    )


def is_page(path: str) -> bool:
    return path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/")


def _note_page(scope: Scope, path: str) -> None:
    trace = trace_of(scope)
    trace.route, trace.path = "page", path


def _log_failure(fault: Unavailable) -> None:
    _log.error("Requests are answered without memory until the database works again: %s", fault.message)


def _watch_store(readiness: Readiness, metrics: Metrics, store: Store) -> None:
    """Shows whether the store works, and what waits to be written to it."""
    writes, size = "Writes waiting for the store.", "Bytes waiting for the store."
    # `health` is a value, so it is read each time.
    readiness.checks["store"] = lambda: store.health.status
    up = "Whether the store can be used: 1, or 0 while chat goes on without memory."
    metrics.watch("store_up", up, lambda: {(): float(store.health.is_up)})
    metrics.watch("writer_queue", writes, lambda: {(): store.health.waiting})
    metrics.watch("writer_queue_bytes", size, lambda: {(): store.health.waiting_bytes})


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Lets pages of these origins in. A preflight request has no key, so it is answered before keys are asked for."""
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


async def _no_names(project: str) -> Sequence[tuple[str, str, float]]:
    """Returns the names of agents where none can be made."""
    return ()


async def _only_post(request: Request) -> Any:
    raise HTTPException(404)
