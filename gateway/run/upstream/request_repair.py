"""Makes requests again without the content that an endpoint has refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from adapters.reply_quota import MAX_REPLY_BYTES
from adapters.types import CHAT_PATH, ModelRequest
from adapters.whole_reply import BufferedReply
from gateway.core.turn.refusal import RefusedContent, find_refused_content
from gateway.core.turn.upstream_error import ERROR_BYTES
from gateway.core.upstream.context_window import ContextWindows
from gateway.core.upstream.policy import Target
from gateway.run.receipt import Receipt
from gateway.run.upstream.candidates import Candidate
from gateway.run.upstream.endpoint import RepairedRequest, RequestMaker, RequestRepairer
from gateway.run.upstream.prompt_cuts import PromptCuts

# The statuses of refusals that may concern the length of a request.
_TOO_LONG_STATUSES: Final = frozenset((400, 413, 422))


class RequestSource(NamedTuple):
    """The functions that make the requests of one round."""

    # Makes the request for a target.
    make: RequestMaker
    # Makes a request again if its content is refused; None: nothing can be left out.
    repairer: RequestRepairer | None


@dataclass(slots=True)
class RequestRepair:
    """Repairs the refused requests of one request of a client, for one endpoint at a time."""

    # The windows of models, as far as they are known.
    windows: ContextWindows
    # The receipt of the client's request.
    receipt: Receipt
    # The cuts of the prompt for the current endpoint; None: the endpoint has not refused the prompt.
    _cuts: PromptCuts | None = field(default=None, init=False)

    def begin_endpoint(self) -> None:
        """Notes that another endpoint is asked from now on."""
        self._cuts = None

    async def repair(
        self, error: BufferedReply, request: ModelRequest, source: RequestSource, candidate: Candidate
    ) -> RepairedRequest | None:
        """Returns the request without the content that an error refuses, or None if nothing can be left out."""
        body = await error.read(MAX_REPLY_BYTES)
        if error.status in _TOO_LONG_STATUSES and request.path == CHAT_PATH:
            if self._cuts is None:
                self._cuts = PromptCuts(self.windows, self.receipt)
            shorter_request = await self._cuts.shorten(
                body, request, source.make, candidate.target, candidate.endpoint
            )
            if shorter_request is not None:
                return shorter_request
        refused_content = find_refused_content(error.status, body[:ERROR_BYTES])
        if source.repairer is None or refused_content is None:
            return None
        return await self.leave_out(refused_content, source.repairer, candidate)

    async def leave_out(
        self, refused_content: RefusedContent, repairer: RequestRepairer, candidate: Candidate
    ) -> RepairedRequest | None:
        """Returns the request without the refused content, or None if the gateway has added no such content."""
        request = await repairer.repair_request(refused_content, candidate.target, candidate.endpoint)
        return None if request is None else RepairedRequest(request, candidate.target)

    def note_answer(self, target: Target, repairer: RequestRepairer | None) -> None:
        """Notes that the endpoint has taken the request as it is now."""
        if self._cuts is not None:
            self._cuts.note_answer(target)
        if repairer is not None:
            repairer.note_answer()
