"""The export of one memory as JSON lines, a page at a time: as `mnemogate memory export` writes it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson
from msgspec import Struct

from gateway.errors import UnknownId
from gateway.run.admin.transfer import ExportPosition, TransferOperations
from storage.records import Agent
from storage.sql.store import Store


class ExportOperation(Struct, frozen=True):
    """Exports memories."""

    store: Store
    transfer: TransferOperations

    async def lines(self, project: str | None, uid: str) -> AsyncIterator[list[bytes]]:
        """Returns the pages of an export, each a list of lines without their ends. project: None: of any.

        Raises: UnknownId: there is no such memory.
        """
        agent = await self.store.agents.by_uid(uid)
        if agent is None or project not in (None, agent.scope.project):
            raise UnknownId("There is no such memory.")
        return self._pages(agent)

    async def _pages(self, agent: Agent) -> AsyncIterator[list[bytes]]:
        at: ExportPosition | None = None
        while True:
            lines, at = await self.transfer.read(agent, at)
            yield [orjson.dumps(line) for line in lines]
            if at is None:
                return
