"""The services of agents put together: runs without a client, batches, sleeptime, and the parts of the agents API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from gateway.core.agent import AgentSpec
from gateway.limits import Limits
from gateway.providers import make_batches
from gateway.run.agents.background.accept import BackgroundRuns
from gateway.run.agents.runs import AgentRuns
from gateway.run.background.batches.accept import BatchRequests
from gateway.run.background.batches.items import ItemTurns
from gateway.run.background.callbacks import Callbacks
from gateway.run.background.runs import RunServices
from gateway.run.background.services import BackgroundServices
from gateway.run.background.sleeptime import Sleeping
from gateway.run.memory.blocks import follow_settings
from gateway.run.upstream.failover import Failover
from gateway.run.upstream.models import ModelList
from gateway.settings import Settings
from gateway.web.letta.api import AgentsApi
from gateway.web.letta.run_events import RunEvents
from storage.errors import StoreError

# A database that is busy as a gateway starts, as in the middle of an upgrade, is soon less so.
AGAIN_S = 5.0
_log = logging.getLogger("mnemogate")


class AgentServices:
    """The services of one gateway's agents.

    runs: those that go on without their clients; run_services: performs them. sleeping: performs the runs of sleeptime
    agents.
    """

    def __init__(
        self,
        settings: Settings,
        agents: AgentRuns,
        failover: Failover,
        services: BackgroundServices,
        now: Callable[[], float],
    ) -> None:
        """services: serve batches from here on. now: seconds since the epoch."""
        keeper, registry = agents.keeper, agents.registry
        self._settings, self._agents, self._failover = settings, agents, failover
        self._services, self._now = services, now
        self._store = store = keeper.store
        self.sleeping = Sleeping(keeper, registry, agents, services.budget, services.count_attempt)
        turns = ItemTurns(settings, keeper, registry, agents.toolboxes, failover)
        services.serve_batches(keeper, turns, make_batches(settings))
        shows = RunEvents(store, now)
        self.runs = BackgroundRuns(agents, registry, keeper, shows)
        peers = agents.peers
        peers.deliver(self.runs)
        self.run_services = RunServices(
            self.runs,
            agents.recover,
            store,
            Callbacks(store, agents.foreign.webhooks, shows.callback, now),
            services.count_attempt,
            now,
            lambda: peers.idle,
        )

    def agents_api(self, models: ModelList, limits: Limits) -> AgentsApi:
        """Returns the parts that the agents API speaks to."""
        registry = self._agents.registry
        return AgentsApi(
            self._settings,
            self._store,
            registry,
            self._agents,
            self.runs,
            BatchRequests(self._store, self._settings, registry, self._failover, self._now),
            self._agents.keeper,
            models,
            self._services.compactor,
            self._now,
            limits.send_timeout_s,
            limits.ping_s,
        )

    async def start(self, profiles: Sequence[AgentSpec], *, works: bool) -> list[asyncio.Task[None]]:
        """Takes up what an earlier process left, and returns the tasks that were started.

        Where the store does not work yet, that is taken up as soon as it does.
        profiles: of the settings. works: jobs are performed here, besides made due.
        """
        tasks: list[asyncio.Task[None]] = []
        # Runs come first, before this process has any that it could take for one of those.
        if is_ok := self._store.health.ok:
            await self._agents.recover()
        if not is_ok or not await self._take_up(profiles):
            tasks.append(asyncio.create_task(self._take_up_late(profiles, has_recovered=is_ok)))
        tasks += map(asyncio.create_task, self.run_services.tasks(works=works))
        if works:
            tasks.append(asyncio.create_task(self.sleeping.worker.run()))
        return tasks

    async def _take_up_late(self, profiles: Sequence[AgentSpec], *, has_recovered: bool) -> None:
        if not has_recovered:
            works = asyncio.Event()
            self._store.database.when_recovered(works.set)
            if not self._store.health.ok:
                await works.wait()
            await self._agents.recover()
        while True:
            if await self._take_up(profiles):
                return
            await asyncio.sleep(AGAIN_S)

    async def _take_up(self, profiles: Sequence[AgentSpec]) -> bool:
        try:
            await self.runs.recover()
            await follow_settings(self._store, self._agents.keeper.leases, profiles, self._now())
        except StoreError as error:
            _log.warning("runs and blocks of before are looked at in %g s: %s", AGAIN_S, error.message)
            return False
        return True
