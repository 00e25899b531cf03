"""Turns the results of a batch's part into outcomes of its items, and decides about items without a result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from msgspec.structs import replace

from adapters.batch.batch_provider import MAX_MESSAGE_CHARS, PartResult, is_transient
from adapters.errors import ProviderError
from gateway.agents.batches.batch_ids import RequestId
from gateway.agents.batches.batch_log import BatchLog
from gateway.agents.batches.item_ending import EndedTurn
from gateway.agents.batches.item_failure import ItemFailed
from gateway.agents.batches.items import ItemReplayer
from gateway.agents.batches.outcomes import ItemOutcomes, OutcomeDraft
from gateway.agents.batches.parts import ProviderPart
from gateway.agents.runs.stored_run import INTERNAL_ERROR
from gateway.core.turn.stop_reason import StopReason
from gateway.core.turn.upstream_error import find_error_in_success_body
from gateway.run.background.job_context import JobPostponed
from storage.batch_records import ENDED_PART, EXPIRED, Batch, BatchItem, ItemRetry, ItemWrite
from storage.errors import StoreError
from storage.run_records import RunState
from storage.sql.store import Store

# The most items that one transaction writes.
PAGE_ITEMS: Final = 50
# An item fails with so many failed requests in a row, or with so many expired requests.
_MAX_ERRORS: Final = 2
_MAX_EXPIRIES: Final = 3
# The error of an item without a result, by the outcome of its part.
_NO_RESULT: Final = {
    "errored": "The provider's results say nothing of this item.",
    "expired": "The provider did not answer it in time.",
    "cancelled": "The batch was cancelled at its provider.",
}
_CANCELLED_ITEM: Final = ItemFailed("", StopReason.CANCELLED, RunState.CANCELLED)


@dataclass(eq=False, slots=True)
class PartResults:
    """Records results for the items of one batch, in one attempt of its job."""

    # The store with the items.
    store: Store
    # Feeds replies to the turns of items, and ends items early.
    replayer: ItemReplayer
    # The batch as it was before the attempt.
    batch: Batch
    # Writes the outcomes.
    outcomes: ItemOutcomes

    async def record(self, part: ProviderPart, results: AsyncIterator[PartResult]) -> None:
        """Records results as they arrive.

        Raises: ProviderError if the results break off, after the earlier results are recorded; JobPostponed if the
            batch was cancelled.
        """
        # The results by custom id: a provider may repeat a result, and the last result counts.
        page: dict[str, PartResult] = {}
        try:
            async for result in results:
                page[result.custom_id] = result
                if len(page) >= PAGE_ITEMS:
                    await self._record_page(part, page)
                    page = {}
        except ProviderError:
            await self._record_page(part, page)
            raise
        await self._record_page(part, page)

    async def end_without_result(
        self, part: ProviderPart, outcome: Literal["errored", "expired", "cancelled"]
    ) -> None:
        """Ends the items of a part that have no result with the outcome of the part."""
        result = PartResult("", outcome, message=_NO_RESULT[outcome])
        async for page in self.load_item_pages(part.number):
            drafts = [OutcomeDraft(item, partial(self._make_outcome, item, result)) for item in page]
            await self._write_all(drafts)

    async def resend(self, part: ProviderPart, *, was_lost_by_restart: bool) -> None:
        """Marks the items of a lost part to be sent again. An item that the provider has lost counts as expired again.

        An item that has begun to make the calls of its reply goes on with these calls, since its journal has the reply.
        An item that has expired too often stays in the part, for `end_without_result` to end.

        was_lost_by_restart: True if a process that sent the requests itself has died with them.
        """
        new_expiries = 0 if was_lost_by_restart else 1
        async for page in self.load_item_pages(part.number):
            drafts: list[OutcomeDraft] = []
            retries: list[ItemRetry] = []
            for item in page:
                if reply := await self.replayer.read_noted_reply(item):
                    result = PartResult("", "succeeded", reply)
                    drafts.append(OutcomeDraft(item, partial(self._make_outcome, item, result), reply))
                elif was_lost_by_restart or item.expiries + new_expiries < _MAX_EXPIRIES:
                    retries.append(ItemRetry(item, item.errors, item.expiries + new_expiries))
            await self.outcomes.write(retries)
            await self._write_all(drafts)

    async def fail_items(self, part: ProviderPart, failure: ItemFailed) -> None:
        """Fails the items of a part that will get no answer."""
        async for page in self.load_item_pages(part.number):
            await self.end_items(page, failure)

    async def cancel_items(self) -> None:
        """Cancels the items that have not ended."""
        while items := await self.store.batch_items.list_open(self.batch.id, PAGE_ITEMS):
            await self.end_items(items, _CANCELLED_ITEM)

    async def end_items(self, items: Sequence[BatchItem], failure: ItemFailed) -> None:
        """Ends items that cannot continue. The rounds that they have completed stay."""
        drafts = [OutcomeDraft(item, partial(self.replayer.make_early_end, item, failure)) for item in items]
        await self._write_all(drafts)

    async def load_item_pages(self, part_number: int | None) -> AsyncIterator[list[BatchItem]]:
        """Yields the items of a part, page by page. Items may leave the part meanwhile.

        part_number: the number of the part; None: all items of the batch.
        """
        after, list_items = 0, self.store.batch_items.list_page
        while page := await list_items(self.batch.id, part=part_number, after=after, limit=PAGE_ITEMS):
            after = page[-1].id
            yield page

    async def _write_all(self, drafts: Sequence[OutcomeDraft]) -> None:
        """Writes the outcomes of items, and waits for busy conversations."""
        await self.outcomes.write_outcomes(drafts)
        await self.outcomes.wait_for_deferred()

    async def _record_page(self, part: ProviderPart, page: Mapping[str, PartResult]) -> None:
        """Records a page of results. A result that was recorded before changes nothing."""
        drafts: list[OutcomeDraft] = []
        for custom_id, result in page.items():
            request_id = RequestId.parse(custom_id)
            if request_id is None or request_id.batch_uid != self.batch.uid:
                continue
            item = await self.store.batch_items.find_by_row(self.batch.id, request_id.item_row)
            if item is None or item.part not in (part.number, ENDED_PART):
                continue
            if request_id.number == item.request_number:
                drafts.append(
                    OutcomeDraft(item, partial(self._make_outcome, item, _reveal_error(result)), result.body)
                )
        await self.outcomes.write_outcomes(drafts)
        if not self.batch.is_over and await self.store.batches.is_over(self.batch.id):
            # The tools of a page may take minutes, and the tools of later pages need not run.
            raise JobPostponed("it was cancelled", 0.0, is_planned=True)

    async def _make_outcome(self, item: BatchItem, result: PartResult) -> ItemWrite | EndedTurn:
        """Returns the outcome of an item with a result."""
        if item.part == ENDED_PART:
            # The item was cancelled meanwhile. The tokens of its reply count nevertheless.
            return await self.replayer.make_early_end(item, _CANCELLED_ITEM, result.body)
        try:
            match result.outcome:
                case "succeeded":
                    return await self.replayer.feed_reply(item, result.body)
                case "errored" if result.is_transient and item.errors + 1 < _MAX_ERRORS:
                    return ItemRetry(item, item.errors + 1, item.expiries)
                case "errored":
                    failure = ItemFailed(result.message, StopReason.UPSTREAM_ERROR)
                case "expired" if item.expiries + 1 < _MAX_EXPIRIES:
                    return ItemRetry(item, item.errors, item.expiries + 1)
                case "expired":
                    failure = ItemFailed(result.message, EXPIRED)
                case _:
                    failure = ItemFailed(result.message, StopReason.CANCELLED, RunState.CANCELLED)
        except ItemFailed as error:
            failure = error
        except StoreError:
            raise
        except Exception:
            BatchLog(self.batch).exception(
                "a result could not be read, by a fault in the gateway; its item fails."
            )
            failure = ItemFailed(INTERNAL_ERROR)
        return await self.replayer.make_early_end(item, failure, result.body)


def _reveal_error(result: PartResult) -> PartResult:
    """Returns a result as an error if its body is an error under a status of success, else as it is."""
    error = find_error_in_success_body(result.body)
    if error is None:
        return result
    message = error.message[:MAX_MESSAGE_CHARS]
    return replace(result, outcome="errored", message=message, is_transient=is_transient(error.status))
