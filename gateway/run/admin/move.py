"""`mnemogate move`: everything that one store holds is put into another, memory by memory.

The source is only read. A memory takes its place in the target in one transaction, when all of it is there, so a move
that was killed is begun again and goes on with the memories that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from gateway.errors import BadRequest, GatewayError
from gateway.run.admin.transfer_operations import ExportPosition, ImportPosition, TransferOperations
from storage.records import Agent
from storage.sql.store import Store
from storage.usage_records import UsageKey

# Before every key of counters.
_BEFORE_USAGE = UsageKey(-1, "", "", -1, "", "")


@dataclass(slots=True)
class Moved:
    """How many memories were moved now, and were there already. refused: the reasons for those that were not."""

    moved: int = 0
    there: int = 0
    refused: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Move:
    """A move from one store into another. then: kinds of the jobs that make again what an export leaves out."""

    source: Store
    target: Store
    then: Sequence[str] = ()

    async def run(self, report: Callable[[Moved, int], None] = lambda done, count: None) -> Moved:
        """Moves everything. report: called after each memory, with how many there are.

        Raises: GatewayError: something goes on that would be lost; StoreError.
        """
        await self._check()
        source, target = self.source.moving, self.target.moving
        await target.put_keys(await source.keys())
        await self._move_usage()
        at = 0
        while definitions := await source.definitions(at):
            for row in definitions:
                await target.put_definition(row)
            at = definitions[-1][0]
        done, count, at = Moved(), await source.count(), 0
        while memories := await source.memories(at):
            for agent in memories:
                await self._move(agent, done)
                report(done, count)
            at = memories[-1].id
        at = 0
        while blocks := await source.blocks(at):
            for _, block in blocks:
                await target.put_block(block)
            at = blocks[-1][0]
        at = 0
        # When all are there: they refer to each other.
        while memories := await source.memories(at):
            for agent in memories:
                await target.put_links(agent.scope, agent.created, await source.links(agent.id))
            at = memories[-1].id
        return done

    async def _move_usage(self) -> None:
        """Moves limits and what was used. Keys are there, with numbers of their own."""
        source, target = self.source.moving, self.target.moving
        there = await target.key_numbers()
        keys = {id: there[digest] for digest, id in (await source.key_numbers()).items() if digest in there}
        await target.put_limits(await source.limits(), keys)
        after = _BEFORE_USAGE
        while rows := await source.usage(after):
            await target.put_usage(rows, keys)
            after = UsageKey(*rows[-1][: len(after)])

    async def _check(self) -> None:
        """Ends what was being forgotten. Raises: GatewayError: something goes on that cannot go on in the target."""
        batches, runs = await self.source.moving.unfinished()
        if batches or runs:
            raise GatewayError(
                f"{batches} batches and {runs} runs of agents go on; they would be lost. Have the gateway finish them, "
                "or cancel them, and stop it then."
            )
        for store in (self.source, self.target):
            # A half that another move took away when it was killed holds its public names until it has gone.
            for id in await store.forgetting.unfinished():
                await store.forgetting.run(id)

    async def _move(self, agent: Agent, done: Moved) -> None:
        there = await self.target.agents.find(agent.scope)
        if there is not None and there.uid == agent.uid:
            if there.next_seq >= agent.next_seq:
                done.there += 1
            else:
                done.refused.append(
                    f"{_named(agent)}: more was said after it was moved; forget it in the new database, and move again"
                )
            return
        try:
            await self._copy(agent)
        except BadRequest as error:
            done.refused.append(f"{_named(agent)}: {error.message}")
            return
        # Nothing is remembered there either, for who has asked for that.
        if agent.paused is not None and (moved := await self.target.agents.find(agent.scope)) is not None:
            await self.target.forgetting.pause(moved.id, agent.paused)
        done.moved += 1

    async def _copy(self, agent: Agent) -> None:
        """Moves one memory. Raises: BadRequest: there is one in its place."""
        source = TransferOperations(self.source)
        target = TransferOperations(self.target, then=self.then)
        read: ExportPosition | None = None
        written: ImportPosition | None = None
        while True:
            page, read = await source.read(agent, read)
            # What is attached may not be there yet.
            lines = [orjson.dumps(line) for line in page if "attached" not in line]
            if lines or read is None:
                written = await target.write(agent.scope, written, lines, is_end=read is None)
            if read is None:
                return


def _named(agent: Agent) -> str:
    scope = agent.scope
    return f"{scope.subject} of profile {scope.profile!r} in project {scope.project!r}"
