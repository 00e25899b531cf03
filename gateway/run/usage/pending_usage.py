"""Counts the usage of responses that their upstreams make in the background.

The reply to the request has no usage; a client's GET brings it once the response has ended. Until then the request
counts by an estimate, which stays if another process sees the end or no client asks for it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec.structs import replace

from gateway.core.usage.reported import UsageReader
from gateway.run.receipt import Receipt
from gateway.run.upstream_call import UpstreamCall
from gateway.run.usage.limiter import Limiter
from gateway.run.usage.meter import Meter
from storage.usage_records import FORGOTTEN_USER

# The most responses that this process waits for; the oldest are dropped, and their usage is not counted. Not measured:
# it bounds the memory that they take.
_MAX_RESPONSES: Final = 10_000


class _AwaitedUsage(NamedTuple):
    """A response with an unknown usage."""

    # The receipt of the request that pays for the response.
    payer: Receipt
    # The call that asked for the response.
    call: UpstreamCall


class PendingUsage:
    """The responses with an unknown usage, in one object for the process."""

    def __init__(self, meter: Meter, limiter: Limiter) -> None:
        self._meter = meter
        self._limiter = limiter
        # The responses by project and by the upstream's id of the response.
        self._awaited_usages: dict[tuple[str, str], _AwaitedUsage] = {}

    def forget(self, project: str, user: str) -> None:
        """Removes a user's name from the responses that are not counted yet."""
        for awaited in self._awaited_usages.values():
            if (awaited.payer.project, awaited.payer.user) == (project, user):
                awaited.payer.user = FORGOTTEN_USER

    def note(self, receipt: Receipt) -> None:
        """Notes the responses that upstreams go on making after the end of a request."""
        for call in receipt.calls:
            if call.pending_id is not None and call.counts is None:
                # Another receipt, which does not hold the prompt and the reply of the request.
                payer = Receipt(
                    project=receipt.project, key_id=receipt.key_id, user=receipt.user, clock=receipt.clock
                )
                noted_call = replace(call, tries=[], first_piece=None, last_pieces=None)
                self._awaited_usages[receipt.project, call.pending_id] = _AwaitedUsage(payer, noted_call)
                if len(self._awaited_usages) > _MAX_RESPONSES:
                    del self._awaited_usages[next(iter(self._awaited_usages))]

    def count(self, project: str, response_id: str, response: bytes) -> None:
        """Counts the usage of a response that has ended, in place of the estimate. A second time changes nothing.

        response_id: the upstream's id of the response.
        """
        reader = UsageReader("/responses")
        reader.read_body(response)
        if (
            reader.counts is None
            or (awaited := self._awaited_usages.pop((project, response_id), None)) is None
        ):
            return
        payer, estimated_call = awaited
        counted_call = replace(estimated_call, counts=reader.counts)
        self._limiter.count(payer, self._meter.correct(payer, estimated_call, counted_call))
