"""The services of agents put together: runs without a client, batches, sleeptime, and the parts of the agents API."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from msgspec.structs import replace
from starlette.routing import Route

from gateway.agents.api.agent_json import render_agents
from gateway.agents.api.agent_lookup import AgentLookup
from gateway.agents.api.dependencies import AgentsApi
from gateway.agents.api.run_events import RunEvents
from gateway.agents.batches.batch_requests import BatchRequests
from gateway.agents.batches.batch_service import BatchService
from gateway.agents.batches.items import ItemReplayer
from gateway.agents.chat_agents import ChatAgents
from gateway.agents.registry.registry import Registry
from gateway.agents.routes import make_routes
from gateway.agents.runs.agent_runs import AgentRuns
from gateway.agents.runs.background.background_runs import BackgroundRuns
from gateway.agents.runs.background.callbacks import CallbackJobs
from gateway.agents.runs.background.run_service import RunService
from gateway.agents.runs.reading_run import ReadingServices
from gateway.agents.runs.sleeptime import SleeptimeJobs, make_schedule
from gateway.core.agent import AgentSpec
from gateway.limits import Limits
from gateway.provider_factory import make_batches
from gateway.run.background.background_services import BackgroundServices
from gateway.run.background.tasks import run_at_start
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.turn_services import TurnServices
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.model_list import ModelList
from gateway.run.usage.accounting import Accounting
from gateway.settings import Settings
from gateway.web.body import BodyReader
from storage.errors import StoreError


class AgentServices:
    """The services of one gateway's agents."""

    def __init__(
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
    ) -> None:
        """Puts the services together; nothing runs before `start`.

        background_failover: the upstreams for runs without a client, with connections of their own.
        specs: the profiles of the settings.
        """
        self._settings, self._failover, self._background_services = settings, failover, background_services
        self._store = store = keeper.store
        self._now = now = keeper.now
        count_attempt = background_services.count_attempt
        wait_s = max(limits.commit_wait_s, limits.step_wait_s)
        run_turn_services = replace(turn_services, limits=replace(turn_services.limits, commit_wait_s=wait_s))
        self.registry = registry = Registry(store, settings, specs, now)
        # Performs runs with a client that waits.
        self.agent_runs = agent_runs = AgentRuns(
            settings, keeper, failover, background_failover=background_failover, turn_services=run_turn_services,
            resolver=registry.resolver, answer_wait_s=limits.answer_wait_s, accounting=accounting,
        )  # fmt: skip
        # The agents as chat completions use them.
        self.chat = ChatAgents(registry, agent_runs, failover.context_windows)
        # Performs the runs of sleeptime agents.
        reading_services = ReadingServices(
            keeper, agent_runs, background_services.budget, background_services.models
        )
        self.sleeptime_jobs = SleeptimeJobs(reading_services, registry, count_attempt)
        sleeptime_profiles = [spec.name for spec in specs if spec.sleeptime is not None]
        schedule = make_schedule(store, settings.memory.idle_s, now, sleeptime_profiles)
        background_services.add_sleeptime(schedule)
        item_replayer = ItemReplayer(settings, keeper, registry.resolver, agent_runs.toolboxes, failover)
        self._batch_providers = make_batches(settings)
        self._batches = BatchService(
            keeper, item_replayer, self._batch_providers, settings.batch, metrics=turn_services.metrics,
            count_outcome=count_attempt, receipts=accounting.receipts,
        )  # fmt: skip
        run_events = RunEvents(store, now)
        # Accepts runs that go on without their clients. `run_service` performs them.
        self.background_runs = BackgroundRuns(agent_runs, registry.resolver, keeper, run_events)
        # Only now, since the acceptance uses `agent_runs`, which has made its messaging.
        agent_runs.messaging.accept_send = self.background_runs.acceptance.accept
        self.run_service = RunService(
            self.background_runs,
            agent_runs.abandoned.end_all,
            store,
            CallbackJobs(store, agent_runs.defined_tools.webhooks, run_events.make_callback_body, now),
            count_outcome=count_attempt,
            count_waiting=lambda: agent_runs.messaging.released_slots,
        )

    def make_routes(self, models: ModelList, limits: Limits, bodies: BodyReader) -> list[Route]:
        """Returns the routes of the agents API."""
        registry = self.registry
        batches = BatchRequests(
            self._store, self._settings, registry.resolver, self._failover, self._batch_providers, self._now
        )
        make_json = partial(render_agents, self._store, self._settings, self._now)
        api = AgentsApi(
            settings=self._settings, store=self._store, registry=registry,
            agents=AgentLookup(self._store, registry, make_json), agent_runs=self.agent_runs,
            background_runs=self.background_runs, batches=batches, keeper=self.agent_runs.keeper, models=models,
            compactor=self._background_services.compactor, now=self._now, send_timeout_s=limits.send_timeout_s,
            ping_s=limits.ping_s,
        )  # fmt: skip
        return make_routes(api, bodies)

    async def start(self, *, performs_jobs: bool) -> list[asyncio.Task[None]]:
        """Continues the runs that an earlier process left, and returns the tasks that were started.

        performs_jobs: this process performs jobs. If False, it only makes them due, for another process.
        """
        # Before this process begins runs, which it could take for runs of an earlier process.
        recovery = await run_at_start(self._store, self._recover, "Interrupted runs")
        tasks = [] if recovery is None else [recovery]
        tasks += map(asyncio.create_task, self.run_service.make_coroutines(performs_jobs=performs_jobs))
        if performs_jobs:
            tasks.append(asyncio.create_task(self.sleeptime_jobs.worker.run()))
            tasks += map(asyncio.create_task, self._batches.make_coroutines())
        return tasks

    async def _recover(self) -> None:
        # If the ends of abandoned runs cannot be written now, `RunService` writes them later.
        with suppress(StoreError):
            await self.agent_runs.abandoned.end_all()
        await self.background_runs.recovery.reserve_tickets()

    async def aclose(self) -> None:
        """Closes the connections to the providers of batches."""
        await self._batches.aclose()
