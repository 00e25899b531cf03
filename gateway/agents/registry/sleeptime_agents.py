"""Creates, attaches and deletes sleeptime agents, which read the memory of another agent or of a user."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from gateway.agents.core.kinds import BUILT_IN_NUMBERS, KINDS, VOICE_KIND, make_base_rules
from gateway.agents.core.sleeptime_agent import PERSONA, SLEEP_JOB, make_sleeptime_agent
from gateway.agents.registry.memory_scope import draft_memory
from gateway.core.definition import AgentDefinition, Sleeptime
from gateway.run.store_errors import retry_changed_record
from storage.definition_records import DefinitionKind
from storage.listing import AgentDraft, AgentEntry, BlockDraft, ReaderEntry
from storage.sql.store import Store

_SUFFIX = "-sleeptime"


def find_sleeptime(definition: AgentDefinition) -> Sleeptime | None:
    """Returns the rule by which sleeptime agents read an agent's messages; None: none do.

    The messages of a voice agent are read when the agent rests.
    """
    is_voice = definition.kind == VOICE_KIND
    return None if definition.sleeptime is None else replace(definition.sleeptime, at_rest=is_voice)


class SleeptimeAgentRegistry:
    """Creates, attaches and deletes sleeptime agents."""

    def __init__(self, store: Store, model: str | None, now: Callable[[], float]) -> None:
        """Makes the registry.

        model: the model of agents that read users' memories, by the name that a definition has; None: no model.
        now: the clock, in seconds since the epoch.
        """
        self._store = store
        self._model = model
        self._now = now

    async def turn_on(self, entry: AgentEntry) -> None:
        """Creates a sleeptime agent for an agent, unless the agent has one. Raises: RecordChanged."""

        async def create_sleeptime_agent() -> None:
            current = await self._reload(entry)
            record = current.definition
            definition = AgentDefinition("") if record is None else AgentDefinition.of(record.body)
            if await self._load_readers(current) or await self._adopt_named_readers(current, definition):
                return
            draft = self._make_draft(current, definition)
            sleeptime = definition.sleeptime or Sleeptime()
            definition_after = replace(definition, sleeptime=replace(sleeptime, agents=(draft.agent.uid,)))
            body = None if record is None else definition_after.dump()
            await self._store.sleeptime_agents.add(current, draft, body, at=self._now())

        await retry_changed_record(create_sleeptime_agent)

    async def _adopt_named_readers(self, entry: AgentEntry, definition: AgentDefinition) -> bool:
        """Registers the readers that an imported memory's definition names. Returns whether a reader was registered."""
        project, has_adopted = entry.agent.scope.project, False
        for uid in () if definition.sleeptime is None else definition.sleeptime.agents:
            reader = await self._store.definitions.find(project, DefinitionKind.AGENT, uid)
            if reader is not None and not await self._store.readers.load_read_by(reader.memory_row):
                reader_row, now = reader.memory_row, self._now()
                await self._store.sleeptime_agents.adopt(project, entry.agent.id, reader_row, at=now)
                has_adopted = True
        return has_adopted

    async def turn_off(self, entry: AgentEntry) -> None:
        """Deletes the sleeptime agents of an agent. Raises: RecordChanged."""
        for reader in await self._load_readers(entry):
            await self.detach(entry, reader.uid)
            await self._store.forgetting.wipe(reader.agent_row)

    async def detach(self, entry: AgentEntry, uid: str) -> None:
        """Stops a sleeptime agent from reading an agent's memory. Both agents stay. Raises: RecordChanged.

        uid: the uid of the sleeptime agent.
        """

        async def write_detachment() -> None:
            current = await self._reload(entry)
            readers = await self._load_readers(current)
            detached = [reader.agent_row for reader in readers if reader.uid == uid]
            body = _remove_reader(current, uid)
            await self._store.sleeptime_agents.remove(current, detached, body, SLEEP_JOB, at=self._now())

        await retry_changed_record(write_detachment)

    async def _load_readers(self, entry: AgentEntry) -> Sequence[ReaderEntry]:
        return (await self._store.readers.load_by_memory([entry.agent.id]))[entry.agent.id]

    async def _reload(self, entry: AgentEntry) -> AgentEntry:
        return await self._store.defined_agents.get(entry.agent.scope.project, entry.agent.uid)

    def _make_draft(self, entry: AgentEntry, primary: AgentDefinition) -> AgentDraft:
        """Returns the draft of a sleeptime agent, named after the agent that it reads.

        primary: the definition of that agent; for a user's memory, a definition without a model.
        """
        model = self._model if primary.model is None else primary.model
        definition = make_sleeptime_agent(replace(primary, model=model))
        tools = KINDS[definition.kind].tools
        definition = replace(definition, rules=tuple(make_base_rules(tools, ())))
        return AgentDraft(
            agent=draft_memory(self._store, entry.agent.scope.project, DefinitionKind.AGENT),
            name=f"{entry.name}{_SUFFIX}",
            body=definition.dump(),
            own_blocks=[BlockDraft(PERSONA, {})],
            tools=[BUILT_IN_NUMBERS[name] for name in tools],
        )


def _remove_reader(entry: AgentEntry, uid: str) -> dict[str, Any] | None:
    """Returns the body of an agent's definition without a reader; None if the definition stays as it is."""
    definition = None if entry.definition is None else AgentDefinition.of(entry.definition.body)
    if definition is None or definition.sleeptime is None:
        return None
    other_uids = tuple(agent_uid for agent_uid in definition.sleeptime.agents if agent_uid != uid)
    sleeptime = replace(definition.sleeptime, agents=other_uids) if other_uids else None
    return replace(definition, sleeptime=sleeptime).dump()
