"""Operations on batches, of all projects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from gateway.core import ids
from gateway.errors import BadRequest
from gateway.run.admin.operation_arguments import Arguments, RawArguments
from storage.batch_records import Batch
from storage.errors import NotFound
from storage.listing import Page
from storage.sql.store import Store

# The most batches of a list, if no limit is named.
_LISTED_BATCHES = 100
# The items that are read at once.
_PAGE_ITEMS = 200


class BatchOperations(Struct, frozen=True):
    """The batches of all projects, as the command line shows and cancels them."""

    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]

    async def show_all(self, raw: RawArguments) -> list[dict[str, Any]]:
        """Returns batches, the newest first."""
        limit = Arguments(raw).read_optional_number("limit") or _LISTED_BATCHES
        return [
            await self._render_batch(batch)
            for batch in await self.store.batches.list_page(None, Page(limit=limit))
        ]

    async def show(self, raw: RawArguments) -> dict[str, Any]:
        """Returns a batch, and of each item that failed, expired or was cancelled the reason."""
        batch = await self._get_batch(raw)
        items = self.store.batch_items
        unsuccessful_items: list[dict[str, Any]] = []
        after = 0
        while page := await items.list_page(batch.id, after=after, limit=_PAGE_ITEMS):
            messages = await items.load_error_messages(batch.id, after, page[-1].id)
            after = page[-1].id
            for item in page:
                if item.state not in ("failed", "expired", "cancelled"):
                    continue
                run = item.run
                unsuccessful_items.append(
                    {
                        "agent": ids.make_id("agent", item.agent_uid) if item.agent_uid else None,
                        "run": None if run is None else ids.make_id("run", run.uid),
                        "state": item.state,
                        "stop": None if run is None else run.stop,
                        "error": item.explain_failure(messages.get(item.id)),
                    }
                )
        return {**await self._render_batch(batch), "items": unsuccessful_items}

    async def cancel(self, raw: RawArguments) -> dict[str, Any]:
        """Cancels the items of a batch that have not ended. The batch may have been cancelled before."""
        batch = await self.store.batches.cancel(await self._get_batch(raw), self.now())
        return await self._render_batch(batch)

    async def _get_batch(self, raw: RawArguments) -> Batch:
        """Returns the batch that the argument `batch` names. Raises: BadRequest: there is no such batch."""
        name = Arguments(raw).read_text("batch")
        try:
            return await self.store.batches.get(None, ids.parse_uid("job", name) or name)
        except NotFound as error:
            raise BadRequest(f"{error.message}; `mnemogate batches` shows them", param="batch") from error

    async def _render_batch(self, batch: Batch) -> dict[str, Any]:
        counts = await self.store.batch_items.count(batch.id)
        return {
            "id": ids.make_id("job", batch.uid),
            "project": batch.project,
            "state": batch.state.value,
            "created": batch.created,
            "ended": batch.ended,
            "counts": {"total": counts.total, **asdict(counts)},
        }
