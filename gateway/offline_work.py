"""Work on a database that no gateway serves: operations, imports of files, migrations, and moves to other databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from msgspec.structs import replace

from gateway.errors import GatewayError
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.open_database import database_session
from gateway.operations import list_embedding_jobs, make_import_operations, make_mcp_memory, make_operations
from gateway.provider_factory import make_embedder
from gateway.run.admin.imports.import_operations import open_file
from gateway.run.admin.operation_arguments import RawArguments
from gateway.run.admin.transfer.move import Move, MoveOutcome
from gateway.run.background.embedder import MeteredEmbedder
from gateway.run.background.question_embedder import QuestionEmbedder
from gateway.run.usage.accounting import Accounting
from gateway.settings import DatabaseSettings, Settings

# The pause between two reports of an import: a progress bar needs no more.
_REPORT_S = 0.2
# The most seconds that the calls of MCP which an operation has begun may take to end.
_DRAIN_S = 5.0


async def import_file(
    settings: Settings, path: str, arguments: RawArguments, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Imports a file into the database while no gateway serves it. Returns the import as it ended.

    arguments: the arguments of the operation `imports-begin`, without the path.
    report: a function that is called with the import from time to time while it runs.

    Raises: GatewayError.
    """
    async with database_session(settings) as store:
        operations = make_import_operations(settings, store)
        try:
            request = operations.read_request(arguments)
            while True:
                running_import = await operations.begin(open_file(path), request)
                task = running_import.task
                while task is not None and not task.done():
                    report(running_import.to_json())
                    await asyncio.wait([task], timeout=_REPORT_S)
                if task is not None:
                    return running_import.to_json()
                # Another process performs the import. If that process is killed, the import is soon shown as stopped,
                # and this process continues it.
                while (import_record := await operations.show(running_import.uid))["status"] == "running":
                    report(import_record)
                    await asyncio.sleep(_REPORT_S)
                if import_record["status"] != "stopped":
                    return import_record
        finally:
            await operations.aclose()


async def move_store(
    settings: Settings,
    source: DatabaseSettings,
    target: DatabaseSettings,
    report: Callable[[MoveOutcome, int], None],
) -> MoveOutcome:
    """Moves the content of one database to another.

    report: a function that is called after each memory, with the outcome so far and the number of memories.

    Raises: GatewayError: one of the two cannot be used; SettingsError.
    """
    async with (
        database_session(replace(settings, database=source)) as source_store,
        database_session(replace(settings, database=target)) as target_store,
    ):
        return await Move(source_store, target_store, list_embedding_jobs(settings)).run(report)


async def migrate(settings: Settings) -> None:
    """Brings the database to the present schema. Raises: GatewayError."""
    async with database_session(settings) as store:
        health = store.health
        if not health.is_up:
            raise GatewayError(health.error or f"the database is {health.status}")


async def perform_operation(settings: Settings, operation: str, arguments: Mapping[str, Any]) -> Any:
    """Returns the answer of an operation. Raises: GatewayError."""
    async with database_session(settings) as store, AsyncExitStack() as stack:
        accounting = Accounting(settings, store, store.read_shared_clock, Metrics(), Limits().limit_read_s)
        embed_query = None
        is_search = arguments.get("query") or arguments.get("tool") == "memory_search"
        embedder = make_embedder(settings) if is_search else None
        if embedder is not None:
            stack.push_async_callback(embedder.aclose)
            metered_embedder = MeteredEmbedder(embedder, accounting.meter)
            await metered_embedder.warm()
            embed_query = QuestionEmbedder(
                store, metered_embedder, settings.memory.embedder_wait_ms
            ).embed_query
        mcp = make_mcp_memory(settings, store, embed_query, store.read_shared_clock, accounting)
        operations = make_operations(settings, store, embed_query, mcp=mcp)
        answer = await operations.perform(operation, arguments)
        await mcp.drain(_DRAIN_S)
        await accounting.meter.write()
        return answer
