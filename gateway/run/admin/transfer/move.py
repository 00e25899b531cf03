"""`mnemogate move`: copies everything that one store holds into another, memory by memory.

In the source the schema is brought to this version's, and interrupted forgettings are completed; all else is only read.
A memory becomes visible in the target in one transaction, when all of it is there. So a move that was killed is begun
again, and goes on with the memories that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from gateway.errors import BadRequest, GatewayError
from gateway.run.admin.transfer.transfer_operations import ExportPosition, ImportPosition, TransferOperations
from storage.records import Agent
from storage.sql.store import Store
from storage.usage_records import UsageKey

# A key that sorts before all keys of counters.
_FIRST_USAGE_KEY = UsageKey(-1, project="", user="", key=-1, upstream="", model="")


@dataclass(slots=True)
class MoveOutcome:
    """The memories of a move, counted by their outcome."""

    # The number of memories that were moved now.
    moved: int = 0
    # The number of memories that were in the target already.
    already_there: int = 0
    # The reasons why other memories, and some shared blocks, were not moved: a sentence for each.
    refused: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.moved + self.already_there + len(self.refused)


@dataclass(eq=False)
class Move:
    """A move from one store into another."""

    source: Store
    target: Store
    # The kinds of jobs that compute the data that an export leaves out.
    follow_up_jobs: Sequence[str] = ()

    async def run(
        self, report: Callable[[MoveOutcome, int], None] = lambda outcome, count: None
    ) -> MoveOutcome:
        """Moves everything. report: called after each memory, with the outcome so far and the number of memories.

        Raises: GatewayError: batches or runs that are not finished would be lost; StoreError.
        """
        await self._prepare_stores()
        await self.target.move_target.put_keys(await self.source.move_source.list_keys())
        await self._move_usage()
        await self._move_definitions()
        outcome = await self._move_memories(report)
        await self._name_forgotten(outcome)
        await self._move_blocks(outcome)
        # Last, since links connect memories, which all have to be there.
        await self._move_links()
        return outcome

    async def _move_definitions(self) -> None:
        """Moves the definitions of tools, servers and identities."""
        after = 0
        while definitions := await self.source.move_source.list_definitions(after):
            for definition in definitions:
                await self.target.move_target.put_definition(definition)
            after = definitions[-1].id

    async def _move_memories(self, report: Callable[[MoveOutcome, int], None]) -> MoveOutcome:
        """Moves all memories, and returns their counts. report: the value for `run`."""
        count = await self.source.move_source.count()
        outcome = MoveOutcome()
        after = 0
        while agents := await self.source.move_source.list_agents(after):
            for agent in agents:
                await self._move_memory(agent, outcome)
                report(outcome, count)
            after = agents[-1].id
        return outcome

    async def _name_forgotten(self, outcome: MoveOutcome) -> None:
        """Names the memories in the target that were moved from this source, and were forgotten in the source since."""
        source_id = await self.source.secrets.load_database_id()
        after = 0
        while agents := await self.target.move_target.list_agents_from(source_id, after):
            for agent in agents:
                if await self.source.agents.find(agent.scope) is None:
                    outcome.refused.append(
                        f"{_name_memory(agent)}: it was forgotten after it was moved; forget it in the new database, "
                        "too"
                    )
            after = agents[-1].id

    async def _move_blocks(self, outcome: MoveOutcome) -> None:
        """Moves the blocks that no memory owns. Names the blocks that were changed in the source since."""
        after = 0
        while blocks := await self.source.move_source.list_blocks(after):
            for block in blocks:
                if not await self.target.move_target.put_block(block):
                    outcome.refused.append(
                        f"block {block.label!r} of {block.uid} in project {block.project!r}: it was changed after it "
                        "was moved; change it in the new database, too"
                    )
            after = blocks[-1].id

    async def _move_links(self) -> None:
        """Moves the links between each memory and others."""
        after = 0
        while agents := await self.source.move_source.list_agents(after):
            for agent in agents:
                links = await self.source.move_source.load_links(agent.id)
                await self.target.move_target.put_links(agent.scope, agent.created, links)
            after = agents[-1].id

    async def _move_usage(self) -> None:
        """Moves limits and usage. The keys were moved before, and have other numbers in the target."""
        source = self.source.move_source
        target = self.target.move_target
        target_ids = await self.target.keys.load_numbers()
        source_ids = await self.source.keys.load_numbers()
        keys = {key_id: target_ids[digest] for digest, key_id in source_ids.items() if digest in target_ids}
        await target.put_limits(await self.source.limits.list(), keys)
        after = _FIRST_USAGE_KEY
        while rows := await source.list_usage(after):
            await target.put_usage(rows, keys)
            after, _ = rows[-1]

    async def _prepare_stores(self) -> None:
        """Checks that nothing would be lost, then completes interrupted forgettings in both stores.

        Raises: GatewayError: batches or runs are not finished; nothing was changed.
        """
        unfinished = await self.source.move_source.count_unfinished()
        if unfinished.batches or unfinished.runs:
            raise GatewayError(
                f"{unfinished.batches} batches and {unfinished.runs} runs of agents go on; they would be lost. "
                "Have the gateway finish them, or cancel them, and stop it then."
            )
        for store in (self.source, self.target):
            # Until they are complete, a copy that a killed move was removing would still have its public ids.
            for forgetting_id in await store.forgetting.list_unfinished():
                await store.forgetting.run(forgetting_id)

    async def _move_memory(self, agent: Agent, outcome: MoveOutcome) -> None:
        """Moves one memory, and counts it."""
        copy = await self.target.agents.find(agent.scope)
        if copy is not None and copy.uid == agent.uid:
            source = self.source.move_source
            target = self.target.move_target
            if await target.find_moved_digest(copy.id) == await source.compute_state_digest(agent.id):
                outcome.already_there += 1
            else:
                outcome.refused.append(
                    f"{_name_memory(agent)}: it was changed after it was moved; forget it in the new database, and "
                    "move again"
                )
            return
        try:
            await self._copy_memory(agent)
        except BadRequest as error:
            outcome.refused.append(f"{_name_memory(agent)}: {error.message}")
            return
        outcome.moved += 1

    async def _copy_memory(self, agent: Agent) -> None:
        """Copies one memory. Raises: BadRequest: the target has another memory for the same scope."""
        source = TransferOperations(self.source)
        target = TransferOperations(self.target, follow_up_jobs=self.follow_up_jobs)
        # Read first: a change of the memory during the copy may be missing in the copy, and shows in the digest.
        state_digest = await self.source.move_source.compute_state_digest(agent.id)
        export_position: ExportPosition | None = None
        import_position: ImportPosition | None = None
        is_end = False
        while not is_end:
            page, export_position = await source.read_page(agent, export_position)
            is_end = export_position is None
            # Blocks, tools and the like that are attached may not be in the target yet.
            lines = [orjson.dumps(line) for line in page if "attached" not in line]
            if is_end:
                await self._mark_copy(agent, state_digest)
            if lines or is_end:
                import_position = await target.write_page(agent.scope, import_position, lines, is_end=is_end)

    async def _mark_copy(self, agent: Agent, state_digest: bytes | None) -> None:
        """Writes into a copy two facts that exports leave out: the pause, and the digest of the source's memory.

        This is done before the copy is visible, so that a move that is killed leaves no copy without them.

        state_digest: the digest of the memory in the source when its copy began.
        """
        copy = await self.target.import_writer.find_unfinished(agent.scope)
        if copy is None:
            return
        if agent.paused_at is not None:
            await self.target.forgetting.pause(copy.id, agent.paused_at)
        if state_digest is not None:
            source_id = await self.source.secrets.load_database_id()
            await self.target.move_target.mark_moved(copy.id, state_digest, source_id)


def _name_memory(agent: Agent) -> str:
    """Returns the name of a memory in the sentences of `MoveOutcome.refused`."""
    scope = agent.scope
    return f"{scope.subject} of profile {scope.profile!r} in project {scope.project!r}"
