"""Reads the results of a part into outcomes of its items, and decides about items that have no result."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from adapters.base import PartResult
from adapters.errors import ProviderError
from gateway.agents.batches.items import Ending, ItemFailed, ItemTurns, expired
from gateway.agents.batches.outcomes import ItemOutcomes, Work
from gateway.agents.batches.parts import ProviderPart
from gateway.core import ids
from gateway.core.turn.guide import StopReason
from storage.batch_records import Batch, BatchItem, ItemBack, ItemWrite
from storage.errors import StoreError
from storage.records import RunState
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")
PAGE: Final = 50  # items of one transaction
_ERRORS: Final = 2  # requests of an item that may fail one after the other
_EXPIRIES: Final = 3
# The error of an item without a result, by the outcome of its part.
_LEFT: Final = {
    "errored": "The provider's results say nothing of this item.",
    "expired": "The provider did not answer it in time.",
    "cancelled": "The batch was cancelled at its provider.",
}
INTERNAL: Final = "An error of the gateway's own; its log says more."


@dataclass(eq=False, slots=True)
class PartResults:
    """Takes what came back for the items of one batch, in one attempt of its job."""

    store: Store
    turns: ItemTurns
    batch: Batch
    outcomes: ItemOutcomes

    async def take(self, part: ProviderPart, results: AsyncIterator[PartResult]) -> None:
        """Takes results; what there was before they broke off as well. Raises: ProviderError."""
        page: dict[str, PartResult] = {}
        try:
            async for result in results:
                page[result.custom_id] = result
                if len(page) >= PAGE:
                    await self._record_page(part, page)
                    page = {}
        except ProviderError:
            await self._record_page(part, page)
            raise
        await self._record_page(part, page)

    async def take_left(self, part: ProviderPart, left: Literal["errored", "expired", "cancelled"]) -> None:
        """Decides about the items of a part that have no result. left: the outcome of the part."""
        result = PartResult("", left, words=_LEFT[left])
        async for page in self.pages(part.number):
            await self._settle([(item, partial(self._answered, item, result)) for item in page])

    async def again(self, part: ProviderPart, *, is_local: bool) -> None:
        """Sends the items of a lost part again. is_local: it was lost because this process restarted."""
        async for page in self.pages(part.number):
            again = [
                ItemBack(each, each.errors, each.expiries + (not is_local))
                for each in page
                if is_local or each.expiries + 1 < _EXPIRIES
            ]
            await self.outcomes.write(again)

    async def fail(self, part: ProviderPart, failure: ItemFailed) -> None:
        """Ends the items of a part that will get no answer."""
        async for page in self.pages(part.number):
            await self._settle([(item, partial(self.turns.give_up, item, failure)) for item in page])

    async def cancel(self) -> None:
        """Cancels the items that have not ended. Rounds that were done stay."""
        failure = ItemFailed("", StopReason.CANCELLED, RunState.CANCELLED)
        while items := await self.store.batches.open_items(self.batch.id, PAGE):
            await self._settle([(item, partial(self.turns.give_up, item, failure)) for item in items])

    async def pages(self, part: int | None) -> AsyncIterator[list[BatchItem]]:
        """Yields the items that are in a part, and may leave it meanwhile; None: all of the batch."""
        after, items = 0, self.store.batches.items
        while page := await items(self.batch.id, part=part, after=after, limit=PAGE):
            after = page[-1].id
            yield page

    async def _settle(self, works: Sequence[Work]) -> None:
        """Writes the outcomes of items, those of busy conversations as well."""
        await self.outcomes.settle(works)
        await self.outcomes.done()

    async def _record_page(self, part: ProviderPart, page: Mapping[str, PartResult]) -> None:
        """Takes results; those that were taken before change nothing."""
        works: list[Work] = []
        for custom_id, result in page.items():
            uid, _, sent = custom_id.rpartition("-")
            item = await self.store.batches.item(self.batch.id, uid)
            if item is not None and item.part == part.number and sent == str(item.sent):
                works.append((item, partial(self._answered, item, result)))
        await self.outcomes.settle(works)

    async def _answered(self, item: BatchItem, result: PartResult) -> ItemWrite | Ending:
        """Returns the outcome of an item with a result."""
        words = result.words
        try:
            match result.outcome:
                case "succeeded":
                    return await self.turns.take(item, result.body)
                case "errored" if result.is_transient and item.errors + 1 < _ERRORS:
                    return ItemBack(item, item.errors + 1, item.expiries)
                case "errored":
                    failure = ItemFailed(words, StopReason.UPSTREAM_ERROR)
                case "expired" if item.expiries + 1 < _EXPIRIES:
                    return ItemBack(item, item.errors, item.expiries + 1)
                case "expired":
                    failure = expired(words)
                case _:
                    failure = ItemFailed(words, StopReason.CANCELLED, RunState.CANCELLED)
        except ItemFailed as error:
            failure = error
        except StoreError:
            raise
        except Exception:
            _log.exception(
                "Batch %s: a result could not be read, by a fault in the gateway; its item fails.",
                ids.named("job", self.batch.uid),
            )
            failure = ItemFailed(INTERNAL)
        return await self.turns.give_up(item, failure)
