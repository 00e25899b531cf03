"""The services of a gateway: all objects that its routes call, made once, with their start and stop.

A worker process (`mnemogate worker`) has the services alone, without an application that serves requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from starlette.routing import Route

from adapters.base import Provider
from gateway.core.agent import AgentSpec
from gateway.dialects.responses.background import ShownResponses
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.open_database import preload
from gateway.operations import make_import_operations, make_mcp_memory, make_page_operations
from gateway.page.page_operations import PageOperations
from gateway.provider_factory import make_embedder, make_providers, make_separate_provider
from gateway.run.admin.access.key_draft import SETTINGS_KEY, SETTINGS_OPERATOR_KEY
from gateway.run.admin.access.sign_in import SignIn
from gateway.run.admin.imports.import_operations import ImportOperations
from gateway.run.admin.mcp.mcp_memory import McpMemory
from gateway.run.background.background_services import BackgroundServices
from gateway.run.background.tasks import run_at_start
from gateway.run.chat import Chat
from gateway.run.directory import Directory
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.profile_blocks import update_profile_blocks
from gateway.run.native_chat import NativeChat
from gateway.run.pending import PendingWrites
from gateway.run.request_log import RequestLog
from gateway.run.responses.background_responses import BackgroundResponses
from gateway.run.responses.response_runs import ResponseRuns
from gateway.run.responses.response_services import ResponseServices
from gateway.run.stored_agents import NoAgents, StoredAgents
from gateway.run.turn_services import TurnServices, make_turn_limits
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.model_list import ModelList
from gateway.run.usage.accounting import Accounting
from gateway.settings import ServerSettings, Settings
from gateway.steady_clock import SteadyClock
from gateway.trace_factory import make_tracer
from gateway.traces.otlp import OtlpSettings
from gateway.web.body import BodyReader
from storage.database import StoreHealth
from storage.errors import StoreError, StoreUnavailable
from storage.key_record import OPERATOR
from storage.sql.store import Store

if TYPE_CHECKING:
    from gateway.traces.tracer import Tracer

# The most seconds that a stop waits for the calls, and again for the writes, to end. Not measured: the process ends
# this much later for each of them that hangs.
DRAIN_S = 5.0
# The pause between two attempts to read the key of traces from a store that cannot be used. Not measured: each attempt
# is one read.
_TRACE_KEY_S = 5.0
_log = logging.getLogger("mnemogate")


class AgentsComponent(Protocol):
    """The service of the agents API, which gateway.agents implements."""

    @property
    def chat(self) -> StoredAgents:
        """The agents as chat completions use them."""

    def make_routes(self, models: ModelList, limits: Limits, bodies: BodyReader) -> list[Route]:
        """Returns the routes of the agents API."""

    async def start(self, *, performs_jobs: bool) -> list[asyncio.Task[None]]:
        """Starts its tasks, and returns them.

        performs_jobs: True if this process performs jobs; False: it only makes jobs due.
        """

    async def aclose(self) -> None: ...


class AgentServicesFactory(Protocol):
    """The type of the class `AgentServices`. This module does not import gateway.agents, which has the class."""

    def __call__(
        self,
        settings: Settings,
        keeper: MemoryKeeper,
        failover: Failover,
        background_failover: Failover,
        turn_services: TurnServices,
        limits: Limits,
        specs: Sequence[AgentSpec],
        background_services: BackgroundServices,
        accounting: Accounting,
    ) -> AgentsComponent:
        """Makes the service of agents. The parameters are those of `AgentServices`."""


class Services:
    """The services of one gateway. Nothing runs before `start`."""

    # Answers chat completions, and requests of other dialects that become one.
    chat: Chat
    # Adds memory to requests that go upstream in their own dialect.
    native_chat: NativeChat
    # Answers responses that run in the background.
    background_responses: BackgroundResponses
    # Schedules and performs jobs.
    background: BackgroundServices
    # Serves the agents API; None: the process has no such service.
    agents: AgentsComponent | None
    # The most recent requests.
    requests: RequestLog
    # Signs operators in to the page.
    sign_in: SignIn
    # Performs the tools of MCP.
    mcp: McpMemory
    # Performs imports.
    imports: ImportOperations
    # The operations of the page.
    page: PageOperations

    def __init__(
        self,
        settings: Settings,
        store: Store,
        providers: Mapping[str, Provider] | None = None,
        clock: Callable[[], float] | None = None,
        *,
        limits: Limits | None = None,
        performs_jobs: bool = True,
        takes_requests: bool = True,
        make_agents: AgentServicesFactory | None = None,
        otlp: OtlpSettings | None = None,
    ) -> None:
        """Makes the services.

        providers: the providers by the names of settings.upstreams; None: the settings' own providers.
        clock: a function that returns the seconds since the epoch; None: the clock of the store if processes share the
            store, or else the machine's.
        performs_jobs: True if this process performs jobs; False: only other processes perform jobs.
        takes_requests: True if this process answers requests; False: it performs jobs alone.
        make_agents: a function that makes the service of the agents API; None: the process has no such service.
        otlp: the settings of the export of traces; None: no traces are made.

        Raises: SettingsError: no upstream has the model of memory.background_model or memory.embedder.
        """
        self.settings = settings
        self.store = store
        self._performs_jobs = performs_jobs
        self.limits = limits = limits or Limits()
        clock = clock or (store.read_shared_clock if store.database.is_shared else time.time)
        self.now = now = SteadyClock(clock)
        self._tasks: list[asyncio.Task[None]] = []
        # Set while no request is being answered.
        self.idle = asyncio.Event()
        self.metrics = metrics = Metrics()
        _watch_store(metrics, store)
        # Runs that no client waits for have connections of their own, unless the caller gives the providers.
        self._run_providers = make_providers(settings) if providers is None else {}
        self.providers = providers = make_providers(settings) if providers is None else providers
        # One provider for each upstream: an upstream's other keys list the same models.
        upstream_names = [upstream.name for upstream in settings.upstreams]
        first_keys = {name: providers[name] for name in upstream_names if name in providers}
        self.models = ModelList(settings, first_keys, int(now()), limits.models_refresh_s)
        self._embedder = make_embedder(settings)
        self.tracer: Tracer | None = None if otlp is None else make_tracer(settings, otlp, providers, metrics)
        self.accounting = accounting = Accounting(
            settings=settings,
            store=store,
            now=now,
            metrics=metrics,
            limit_read_s=limits.limit_read_s,
            tracer=self.tracer,
            takes_requests=takes_requests,
        )
        self.background = BackgroundServices(
            settings=settings,
            store=store,
            metrics=metrics,
            now=now,
            make_provider=partial(make_separate_provider, settings),
            embedder=self._embedder,
            limits=limits,
            accounting=accounting,
        )
        self.embed_query = self.background.embed_query
        keeper = MemoryKeeper(store, settings.memory, now, self.background, self.embed_query)
        failover = Failover(settings, providers, metrics)
        turn_services = TurnServices(PendingWrites(), metrics, make_turn_limits(settings, limits))
        directory = Directory(settings)
        self.agents = None
        if make_agents is not None:
            self.agents = make_agents(
                settings,
                keeper,
                failover,
                background_failover=failover.with_providers(self._run_providers or providers),
                turn_services=turn_services,
                limits=limits,
                specs=directory.specs,
                background_services=self.background,
                accounting=accounting,
            )
        self.chat = Chat(
            settings=settings,
            keeper=keeper,
            failover=failover,
            turn_services=turn_services,
            directory=directory,
            agents=NoAgents(keeper) if self.agents is None else self.agents.chat,
            limiter=accounting.limiter,
        )
        self.native_chat = NativeChat(self.chat)
        dialect = ShownResponses()
        response_services = ResponseServices(
            store=store,
            chat=self.chat,
            dialect=dialect,
            now=now,
            receipts=accounting.receipts,
            limiter=accounting.limiter,
            runs=ResponseRuns(store, turn_services, dialect),
        )
        self.background_responses = BackgroundResponses(response_services, self.background.count_attempt)
        accounting.meter.add_write_listener(self.background_responses.maker.drop_ended)
        self.requests = RequestLog(now)
        store.forgetting.add_forget_listener(self.requests.note_forgetting)
        self.sign_in = SignIn(store, now, is_enabled=settings.ui.enabled)
        self.mcp = make_mcp_memory(settings, store, self.embed_query, now, accounting)
        self.imports = make_import_operations(settings, store, now, idle=self.idle)
        self.page = make_page_operations(
            settings,
            store,
            sign_in=self.sign_in,
            log=self.requests,
            embed_query=self.embed_query,
            passed_over=failover.find_passed_over,
        )
        store.database.add_failure_listener(_log_failure)
        store.database.add_recovery_listener(self._reinstall_keys)

    async def start(self) -> None:
        """Starts the background work, until `stop`."""
        for upstream in self.settings.upstreams:
            if upstream.name in self.providers:
                _log_responses(upstream.name, self.providers[upstream.name])
        self._tasks.append(asyncio.create_task(self.models.run()))
        self.store.database.start()
        # A task of the limiter reads the limits again, and logs each failure.
        with suppress(StoreError):
            await self.accounting.limiter.limits.load()
        self._tasks += self.accounting.start()
        leases = self.chat.keeper.leases
        if leases.is_needed:
            self._tasks.append(asyncio.create_task(leases.run()))
        if self.agents is not None:
            self._tasks += await self.agents.start(performs_jobs=self._performs_jobs)
        retry_task = await run_at_start(self.store, self._update_profile_blocks, "Changed memory blocks")
        if retry_task is not None:
            self._tasks.append(retry_task)
        self._tasks += self.background.start(performs_jobs=self._performs_jobs)
        if self._performs_jobs:
            self._tasks += map(asyncio.create_task, self.background_responses.make_tasks())
        self._tasks.append(asyncio.create_task(asyncio.to_thread(preload)))
        if self.tracer is not None:
            self.tracer.start()
            self._tasks.append(asyncio.create_task(self._read_trace_key(self.tracer)))

    async def _update_profile_blocks(self) -> None:
        keeper = self.chat.keeper
        await update_profile_blocks(self.store, keeper.leases, self.chat.directory.specs, keeper.now())

    async def _read_trace_key(self, tracer: Tracer) -> None:
        """Reads the key by which spans name users, as soon as the store works."""
        while tracer.maker.user_key is None:
            try:
                tracer.maker.user_key = await self.store.secrets.load_key("traces")
            except StoreError:  # the store has logged the error
                await asyncio.sleep(_TRACE_KEY_S)

    async def stop(self) -> None:
        """Stops the background work, then the store, then the upstreams: each of them uses those that stop later.

        If a step fails, the later steps run all the same, and the error is raised then.
        """
        async with AsyncExitStack() as stack:
            # The stack calls the last one first.
            if self.tracer is not None:
                stack.push_async_callback(asyncio.to_thread, self.tracer.stop)
            if self._embedder is not None:
                stack.push_async_callback(self._embedder.aclose)
            if self.agents is not None:
                stack.push_async_callback(self.agents.aclose)
            stack.push_async_callback(self.background.aclose)
            for provider in (*self.providers.values(), *self._run_providers.values()):
                stack.push_async_callback(provider.aclose)
            stack.push_async_callback(self.store.close)
            stack.push_async_callback(self.imports.aclose)
            stack.push_async_callback(self.page.forgetting.aclose)
            stack.push_async_callback(self._write_last_counts)
            stack.push_async_callback(self.background.drain, DRAIN_S)
            stack.push_async_callback(self.mcp.drain, DRAIN_S)
            stack.push_async_callback(self.chat.turn_services.pending.drain, DRAIN_S)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write_last_counts(self) -> None:
        with suppress(StoreError):  # the store has logged the error
            await self.accounting.meter.write()
            await self.accounting.limiter.leave()

    def _reinstall_keys(self) -> None:
        """Adds the settings' keys to a store that works again, since an operator may have restored an older file."""
        _log.warning("The database works again, after: %s", self.store.health.error)
        self.chat.turn_services.pending.add(install_keys(self.store, self.settings.server), SETTINGS_KEY)


async def install_keys(store: Store, server: ServerSettings) -> None:
    """Adds the keys of the settings to the store. Raises: StoreError."""
    keys = ((server.key, SETTINGS_KEY, None), (server.operator_key, SETTINGS_OPERATOR_KEY, OPERATOR))
    for key, name, scope in keys:
        if key is not None and not await store.keys.install(key, name, scope):
            variable = f"MNEMOGATE_{name.removeprefix('server.').upper()}"
            _log.warning(
                "%s (%s) was revoked or rotated, so it is not installed again. Set another one.",
                name,
                variable,
            )


def _log_responses(upstream: str, provider: Provider) -> None:
    """Logs how requests for responses are answered over an upstream."""
    is_native = provider.has_endpoint("/responses")
    handling = "are passed on, and stored there" if is_native else "are answered by way of chat completions"
    _log.info("Upstream %s: requests for responses %s", upstream, handling)


def _log_failure(fault: StoreUnavailable) -> None:
    is_read_only = StoreHealth(fault.status).is_read_only
    consequence = "Nothing new is stored" if is_read_only else "Requests are answered without memory"
    _log.error("%s until the database works again: %s", consequence, fault.message)


def _watch_store(metrics: Metrics, store: Store) -> None:
    """Adds the metrics of the store: its state, and the writes that wait for it."""
    # Each change replaces `store.health`, so each scrape reads the attribute.
    metrics.add_gauge(
        "store_up",
        "Whether the store can be used: 1, or 0 while chat goes on without memory.",
        lambda: {(): float(store.health.is_up)},
    )
    metrics.add_gauge("writer_queue", "Writes waiting for the store.", lambda: {(): store.health.waiting})
    metrics.add_gauge(
        "writer_queue_bytes", "Bytes waiting for the store.", lambda: {(): store.health.waiting_bytes}
    )
