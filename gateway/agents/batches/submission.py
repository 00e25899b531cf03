"""The submission of a batch: the requests of ready items are composed, gathered into parts, and submitted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec
import orjson
from msgspec import Struct

from adapters.batch.batch_provider import BatchProvider
from adapters.errors import BatchQueueFull, ProviderError, ProviderRefused
from gateway.agents.batches.batch_ids import RequestId
from gateway.agents.batches.batch_log import BatchLog
from gateway.agents.batches.item_failure import AGENT_GONE, FORGOTTEN, ItemFailed
from gateway.agents.batches.items import ComposedRequest, ItemReplayer
from gateway.agents.batches.outcomes import ItemOutcomes, OutcomeDraft
from gateway.agents.batches.part_draft import PartDraft
from gateway.agents.batches.parts import MAX_TRIES, PartJournal, ProviderPart, SubmissionFailure
from gateway.agents.batches.results import PAGE_ITEMS, PartResults
from gateway.agents.runs.stored_run import INTERNAL_ERROR
from gateway.core.dates import DAY_S
from gateway.core.turn.stop_reason import StopReason
from gateway.run.memory.prompt_tokens import count_request_tokens
from storage.batch_records import READY_PART, AssignedItem, Batch, BatchItem, ItemRetry
from storage.errors import StoreError
from storage.sql.store import Store


class _ReadyItem(Struct, frozen=True):
    """An item with the request for its next reply."""

    # The item as it was when its request was composed.
    item: BatchItem
    # The request.
    request: ComposedRequest
    # The line of the request in the provider's file.
    line: bytes
    # The record of the item in its part.
    assigned: AssignedItem


@dataclass(eq=False, slots=True)
class PartSubmitter:
    """Submits the parts of one batch, in one attempt of its job."""

    # The store with the items.
    store: Store
    # Composes the requests of items.
    replayer: ItemReplayer
    # The batch as it was before the attempt.
    batch: Batch
    # The batch APIs, by the names of upstreams.
    providers: Mapping[str, BatchProvider]
    # The most tokens that a project's batches may use on a day; 0: any number.
    daily_tokens: int
    # The journal of the batch's job, with the parts of the batch.
    journal: PartJournal
    # Writes the outcomes of items that cannot be submitted.
    outcomes: ItemOutcomes
    # Reads the items of parts, and ends items.
    results: PartResults

    @property
    def _log(self) -> BatchLog:
        return BatchLog(self.batch)

    async def submit_ready(self) -> float | None:
        """Composes and submits the items that are ready.

        Returns the seconds until the project has tokens again; None if it has some.
        """
        if not await self.store.batch_items.count_in_part(self.batch.id, READY_PART):
            return None
        if (wait_s := await self._find_budget_wait_s()) is not None:
            return wait_s
        await self.store.batches.mark_running(self.batch.id)
        drafts: dict[tuple[str, str], PartDraft] = {}
        try:
            async for ready in self._compose_items(READY_PART):
                upstream, model = ready.request.upstream, ready.request.model
                draft = drafts.get((upstream, model))
                if draft is not None and draft.is_full(self.providers[upstream], len(ready.line)):
                    await self._make_part(draft)
                    drafts.pop((upstream, model)).release()
                draft = drafts.setdefault((upstream, model), PartDraft(upstream, model))
                draft.add(ready.line, ready.assigned)
            for draft in drafts.values():
                await self._make_part(draft)
        finally:
            for draft in drafts.values():
                draft.release()
        return None

    async def find_or_submit(self, part: ProviderPart, provider: BatchProvider) -> bool:
        """Looks for a part whose submission was interrupted, and submits it if its provider does not have it.

        Returns whether the provider has the part. Raises: BatchOutcomeUnknown if the provider cannot tell yet.
        """
        provider_id = await self.find(part, provider)
        if provider_id is not None:
            self._log.info("a part that was submitted before an interruption was found at %s.", part.upstream)
            await self.journal.note_provider_id(part, provider_id)
            return True
        if await self._find_budget_wait_s() is not None:
            return False
        draft = PartDraft(part.upstream, part.model)
        try:
            async for ready in self._compose_items(part.number):
                is_of_part = (ready.request.upstream, ready.request.model) == (part.upstream, part.model)
                if is_of_part and not draft.is_full(provider, len(ready.line)):
                    draft.add(ready.line, ready.assigned)
                else:
                    # The item's agent has changed since the part was composed, or the part has no room.
                    await self.outcomes.write([ItemRetry(ready.item, ready.item.errors, ready.item.expiries)])
            await self._assign_items(part, draft)
            return await self.submit(part, draft, provider)
        finally:
            draft.release()

    async def find(
        self, part: ProviderPart, provider: BatchProvider, *, includes_ended: bool = False
    ) -> str | None:
        """Returns the provider's id of a part, found by the part's items; None if the part was not submitted.

        includes_ended: True if the part's items may have ended since, so all items of the batch are looked for.

        Raises: ProviderError.
        """
        known_parts = await self.store.batches.load_known_parts()
        known_ids = {orjson.loads(data)["id"] for data in known_parts}
        custom_ids: set[str] = set()
        async for page in self.results.load_item_pages(None if includes_ended else part.number):
            for item in page:
                newest = item.request_number
                numbers = {newest, newest - 1} if includes_ended else {newest}
                custom_ids |= {str(RequestId(self.batch.uid, item.id, number)) for number in numbers}
        return await provider.find(part.submission, custom_ids, known_ids)

    async def divide(self, part: ProviderPart, message: str, room: int | None) -> None:
        """Divides a part for which its provider has no room in two. A part of a single item waits instead.

        message: the provider's error message.
        room: the tokens that the provider's queue takes when it is empty; None: the number is not known.
        """
        self._log.info("the queue of %s has no room for a part, which is divided or waits.", part.upstream)
        count = await self.store.batch_items.count_in_part(self.batch.id, part.number)
        if count == 1 and room is not None and await self._count_tokens(part) > room:
            message = f"The request alone is larger than its provider's queue for the model: {message}"
            await self.fail(part, message)
            return
        if not self.journal.may_wait(part):
            for waiting_part in self.journal.list_waiting(part):
                await self.fail(waiting_part, message)
            return
        counts = (count // 2, count - count // 2)
        halves = [await self.journal.add(part.upstream, part.model, n) for n in counts if n]
        numbers = iter([half.number for half in halves for _ in range(half.count)])
        async for page in self.results.load_item_pages(part.number):
            retries = [ItemRetry(item, item.errors, item.expiries, next(numbers)) for item in page]
            await self.outcomes.write(retries)
        await self.journal.note_over(part, found_no_room=True)

    async def note_failure(
        self, part: ProviderPart, message: str, *, is_refused: bool, until: float = 0.0
    ) -> None:
        """Notes that a provider did not take a part, and gives the part up after `MAX_TRIES` failures.

        message: the provider's error message.
        is_refused, until: the fields of the `SubmissionFailure`.
        """
        await self.journal.note_failed_submission(part, SubmissionFailure(is_refused, until))
        attempt = len(part.failures)
        self._log.warning("%s did not take a part (attempt %d of %d).", part.upstream, attempt, MAX_TRIES)
        if attempt >= MAX_TRIES:
            await self.fail(part, message)

    async def fail(self, part: ProviderPart, message: str) -> None:
        """Fails the items of a part that cannot be submitted. message: the error that callers read."""
        await self.results.fail_items(part, ItemFailed(message, StopReason.UPSTREAM_ERROR))
        await self.journal.note_over(part)

    async def submit(self, part: ProviderPart, draft: PartDraft, provider: BatchProvider) -> bool:
        """Submits a part. Returns whether its provider has taken it."""
        await self._leave_out_forgotten(part, draft)
        # A batch that was cancelled meanwhile costs nothing if it is not submitted.
        if not draft.items or await self.store.batches.is_over(self.batch.id):
            # Items of a part that is over are not read again, so their outcomes are written first.
            await self.outcomes.wait_for_deferred()
            await self.journal.note_over(part, was_submitted=False)
            return False
        try:
            provider_id = await provider.submit(part.submission, draft.hand_over())
        except BatchQueueFull as error:
            await self.divide(part, error.message, error.queue_tokens)
            return False
        except ProviderError as error:
            is_refused = isinstance(error, ProviderRefused) and error.status < 500
            wait_s = error.retry_after_s if isinstance(error, ProviderRefused) else None
            until = self.journal.now() + min(wait_s or 0.0, DAY_S)
            await self.note_failure(part, error.message, is_refused=is_refused, until=until)
            return False
        await self.journal.note_provider_id(part, provider_id)
        return True

    async def _make_part(self, draft: PartDraft) -> None:
        """Makes a part of a draft, and submits it unless the provider's queue is full."""
        part = await self.journal.add(draft.upstream, draft.model, len(draft.items))
        await self._assign_items(part, draft)
        if self.journal.choose_submission_wait_s(part) <= 0:
            await self.submit(part, draft, self.providers[draft.upstream])

    async def _leave_out_forgotten(self, part: ProviderPart, draft: PartDraft) -> None:
        """Leaves out and fails the items that quote messages which were forgotten while the part was composed.

        Composing a part may take minutes.
        """
        load_sendable = self.store.batch_items.load_sendable
        # Until no item is left out: writing the part again takes seconds, in which more may be forgotten.
        while forgotten := {item.run_row for item in draft.items} - await load_sendable(
            self.batch.id, part.number
        ):
            # Up to 256 MB are read and written: longer than the event loop may wait.
            await asyncio.to_thread(draft.leave_out, forgotten)
            async for page in self.results.load_item_pages(part.number):
                items = [item for item in page if item.id in forgotten]
                await self.results.end_items(items, ItemFailed(FORGOTTEN))

    async def _compose_item(self, item: BatchItem) -> _ReadyItem | None:
        """Returns an item with the request for its next reply; None if the item has ended instead."""
        # Lets live turns come in between.
        await asyncio.sleep(0)
        try:
            if item.run is None or item.run.is_over:
                raise ItemFailed(AGENT_GONE)
            composed = await self.replayer.compose(item)
            provider = self.providers[composed.upstream]
            request_id = RequestId(self.batch.uid, item.id, item.request_number)
            line = provider.make_line(str(request_id), composed.body)
            if len(line) > provider.max_bytes:
                raise ItemFailed("The request is larger than its provider takes.")
        except ItemFailed as error:
            failure = error
        except ProviderRefused as error:
            failure = ItemFailed(error.message, StopReason.UPSTREAM_ERROR)
        except StoreError:
            raise
        except Exception:
            self._log.exception("an item could not be composed, by a fault in the gateway; the item fails.")
            failure = ItemFailed(INTERNAL_ERROR)
        else:
            state = msgspec.json.encode(composed.state)
            assigned = AssignedItem(
                item.run.agent_row, item.id, composed.last_exchange, composed.epoch, state
            )
            return _ReadyItem(item, composed, line, assigned)
        make_early_end = partial(self.replayer.make_early_end, item, failure)
        await self.outcomes.write_outcomes([OutcomeDraft(item, make_early_end)])
        return None

    async def _assign_items(self, part: ProviderPart, draft: PartDraft) -> None:
        """Puts the items of a draft into a part, by pages."""
        for n in range(0, len(draft.items), PAGE_ITEMS):
            page = draft.items[n : n + PAGE_ITEMS]
            effect = self.store.batch_items.make_assign_effect(part.number, page, self.journal.now())
            await self.journal.job.commit(effect)

    async def _compose_items(self, part_number: int) -> AsyncIterator[_ReadyItem]:
        """Yields the items of a part with their requests. Items that have ended instead are left out."""
        async for page in self.results.load_item_pages(part_number):
            for item in page:
                if (ready := await self._compose_item(item)) is not None:
                    yield ready

    async def _count_tokens(self, part: ProviderPart) -> int:
        """Returns an estimate of the tokens of a part's requests."""
        tokens = 0
        async for ready in self._compose_items(part.number):
            tokens += await count_request_tokens(part.model, orjson.loads(ready.request.body))
        return tokens

    async def _find_budget_wait_s(self) -> float | None:
        """Returns the seconds until the project has tokens again; None if it has some."""
        if not self.daily_tokens:
            return None
        day, passed_s = divmod(self.journal.now(), DAY_S)
        spent = await self.store.usage.count_batch_tokens(self.batch.project, int(day))
        if spent < self.daily_tokens:
            return None
        message = (
            "it waits until midnight UTC: its project has used %d of %d tokens of today (batch.daily_tokens)."
        )
        self._log.info(message, spent, self.daily_tokens)
        return DAY_S - passed_s
