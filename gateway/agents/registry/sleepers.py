"""Sleeptime agents: made for another agent or for a user's memory, and taken away again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from gateway.agents.core.kinds import BUILT_IN, KINDS, VOICE_KIND, base_rules
from gateway.agents.core.sleeper import PERSONA, SLEEP, sleeper_of
from gateway.core import ids
from gateway.core.definition import AgentDefinition, Sleeptime
from gateway.run.latest import on_latest
from storage.listing import AgentDraft, AgentEntry
from storage.records import API_PROFILE, DefinitionKind, Scope
from storage.sql.store import Store

SUFFIX = "-sleeptime"


def sleeptime_of(defined: AgentDefinition) -> Sleeptime | None:
    """Returns when others read an agent's messages. With a voice agent they do once it rests."""
    is_voice = defined.kind == VOICE_KIND
    return None if defined.sleeptime is None else replace(defined.sleeptime, at_rest=is_voice)


class SleeperRegistry:
    """Sleeptime agents of all projects. model: as a definition names it, for users' memories; None: they have none."""

    def __init__(self, store: Store, model: str | None, now: Callable[[], float]) -> None:
        self._store = store
        self._model = model
        self._now = now

    async def turn_on(self, entry: AgentEntry) -> None:
        """Makes an agent that reads this one's memory, unless there is one. Raises: Overtaken."""

        async def turn_on() -> None:
            now = await self._as_it_is(entry)
            made = now.definition
            definition = AgentDefinition("") if made is None else AgentDefinition.of(made.body)
            if (await self._store.readers.of([now.agent.id]))[now.agent.id]:
                return
            if await self._adopt(now, definition):
                return
            draft = self._draft(now, definition)
            sleeptime = definition.sleeptime or Sleeptime()
            changed = replace(definition, sleeptime=replace(sleeptime, agents=(draft.agent.uid,)))
            body = None if made is None else changed.body()
            await self._store.sleepers.add(now, draft, body, at=self._now())

        await on_latest(turn_on)

    async def _adopt(self, entry: AgentEntry, definition: AgentDefinition) -> bool:
        """Registers the readers that an imported memory's definition names."""
        project, has_any = entry.agent.scope.project, False
        for uid in () if definition.sleeptime is None else definition.sleeptime.agents:
            sleeper = await self._store.definitions.find(project, DefinitionKind.AGENT, uid)
            if sleeper is not None and not await self._store.readers.read_by(sleeper.memory):
                await self._store.sleepers.adopt(project, entry.agent.id, sleeper.memory, at=self._now())
                has_any = True
        return has_any

    async def turn_off(self, entry: AgentEntry) -> None:
        """Deletes the agents that read this one's memory. Raises: Overtaken."""
        for reader in (await self._store.readers.of([entry.agent.id]))[entry.agent.id]:
            await self.leave(entry, reader.uid)
            await self._store.forgetting.wipe(reader.reader)

    async def leave(self, entry: AgentEntry, uid: str) -> None:
        """Has an agent read this one's memory no more. uid: its public name. Raises: Overtaken."""

        async def leave() -> None:
            now = await self._as_it_is(entry)
            readers = (await self._store.readers.of([now.agent.id]))[now.agent.id]
            gone = [reader.reader for reader in readers if reader.uid == uid]
            await self._store.sleepers.remove(now, gone, _without(now, uid), SLEEP, at=self._now())

        await on_latest(leave)

    async def _as_it_is(self, entry: AgentEntry) -> AgentEntry:
        return await self._store.defined_agents.get(entry.agent.scope.project, entry.agent.uid)

    def _draft(self, entry: AgentEntry, primary: AgentDefinition) -> AgentDraft:
        uid = ids.new_uid()
        made = sleeper_of(primary if primary.model is not None else replace(primary, model=self._model))
        tools = KINDS[made.kind].tools
        made = replace(made, rules=tuple(base_rules(tools, ())))
        draft = self._store.agents.draft(Scope(entry.agent.scope.project, API_PROFILE, f"agent:{uid}"))
        return AgentDraft(
            agent=replace(draft, uid=uid),
            name=f"{entry.name}{SUFFIX}",
            body=made.body(),
            own=[(PERSONA, {})],
            tools=[-1 - BUILT_IN.index(name) for name in tools],
        )


def _without(entry: AgentEntry, uid: str) -> dict[str, Any] | None:
    """Returns a definition's body without a reader; None: it stays as it is."""
    definition = None if entry.definition is None else AgentDefinition.of(entry.definition.body)
    if definition is None or definition.sleeptime is None:
        return None
    left = tuple(each for each in definition.sleeptime.agents if each != uid)
    sleeptime = replace(definition.sleeptime, agents=left) if left else None
    return replace(definition, sleeptime=sleeptime).body()
