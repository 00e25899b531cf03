"""Counts the usage of responses that their upstreams make in the background.

The answer to the request has no usage; a client's GET brings it once the response has ended. A request counts by what
it sent until then, and for good where another process sees the end, or where no client asks for it.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from gateway.core.usage.reported import UsageReader
from gateway.run.receipt import Receipt
from gateway.run.upstream_call import UpstreamCall
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.meter import Meter
from storage.usage_records import FORGOTTEN_USER

# The latest responses that this process knows, each with its receipt and its call.
_MAX_RESPONSES: Final = 10_000


class PendingUsage:
    """The responses without a known usage. One for the process."""

    def __init__(self, meter: Meter, limiter: Limiter) -> None:
        self._meter = meter
        self._limiter = limiter
        # Project and id of a response -> the receipt of its payer, and the call that asked for it.
        self._awaited: dict[tuple[str, str], tuple[Receipt, UpstreamCall]] = {}

    def forget(self, project: str, user: str) -> None:
        """Takes a user's name off the responses that are not counted yet."""
        for payer, _ in self._awaited.values():
            if (payer.project, payer.user) == (project, user):
                payer.user = FORGOTTEN_USER

    def note(self, receipt: Receipt) -> None:
        """Notes the responses that are made after the end of a request."""
        for call in receipt.calls:
            if call.pending_id is not None and call.counts is None:
                # Without the prompt and the reply of the request.
                payer = Receipt(
                    receipt.begun, project=receipt.project, key_id=receipt.key_id, user=receipt.user
                )
                noted = replace(call, tries=[], first_piece=None, last_pieces=None)
                self._awaited[receipt.project, call.pending_id] = payer, noted
                if len(self._awaited) > _MAX_RESPONSES:
                    del self._awaited[next(iter(self._awaited))]

    def count(self, project: str, id: str, response: bytes) -> None:
        """Counts what a response has used that has ended, in place of what its request was estimated to use.

        id: the upstream's. It may come again.
        """
        reader = UsageReader("/responses")
        reader.take_body(response)
        if reader.counts is None or (found := self._awaited.pop((project, id), None)) is None:
            return
        payer, before = found
        after = replace(before, counts=reader.counts)
        self._limiter.count(payer, self._meter.correct(payer, before, after))
