"""Work on a database that no gateway serves: operations, imports of files, migrations, and moves to other databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

from msgspec.structs import replace

from gateway.errors import GatewayError
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.open_database import database_session
from gateway.operations import list_embedding_jobs, make_import_operations, make_mcp_memory, make_operations
from gateway.provider_factory import make_embedder
from gateway.run.admin.imports.import_operations import ImportOperations, open_file
from gateway.run.admin.operation_arguments import RawArguments
from gateway.run.admin.transfer.move import Move, MoveOutcome
from gateway.run.background.embedder import MeteredEmbedder
from gateway.run.background.question_embedder import QuestionEmbedder
from gateway.run.usage.accounting import Accounting
from gateway.settings import DatabaseSettings, Settings
from storage.errors import StoreError

# The seconds between two reports of an import: a progress bar needs no more.
_REPORT_INTERVAL_S = 0.2
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
                if running_import.task is not None:
                    while not running_import.task.done():
                        report(running_import.to_json())
                        await asyncio.wait([running_import.task], timeout=_REPORT_INTERVAL_S)
                    return running_import.to_json()
                import_record = await _follow(operations, running_import.uid, report)
                if import_record["status"] != "stopped":
                    return import_record
        finally:
            await operations.aclose()


async def _follow(
    operations: ImportOperations, uid: str, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Reports an import that another process performs, until it has ended. Returns the import as it is then.

    If the other process is killed, the import soon has the status "stopped", and this process can continue it.
    """
    while (import_record := await operations.show(uid))["status"] == "running":
        report(import_record)
        await asyncio.sleep(_REPORT_INTERVAL_S)
    return import_record


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
    """Returns the answer of an operation. Its usage is counted even if it fails. Raises: GatewayError."""
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
        try:
            return await operations.perform(operation, arguments)
        finally:
            await mcp.drain(_DRAIN_S)
            with suppress(StoreError):  # the meter or the store has logged the error
                await accounting.meter.write()
