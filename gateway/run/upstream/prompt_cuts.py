"""Cuts the prompt of a request that an upstream refuses as too long, to the context window that its error shows."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from adapters.types import ModelRequest
from gateway.core.turn.refusal import exceeds_context, find_named_context_length
from gateway.core.turn.upstream_error import ERROR_BYTES
from gateway.core.upstream.context_window import GUESSED_SCALE, ContextWindows, make_model_key
from gateway.core.upstream.policy import Target
from gateway.core.usage.estimate import estimate_prompt_tokens
from gateway.run.receipt import Receipt
from gateway.run.upstream.endpoint import Endpoint, RepairedRequest, RequestMaker

# The shares of a refused request that are tried in turn where the error names no length. Chosen so that a conversation
# that has just outgrown its window is cut once, and one of twice that length three times.
_SHARES: Final = (0.75, 0.55, 0.4)
_log = logging.getLogger("mnemogate")


@dataclass(slots=True)
class PromptCuts:
    """The cuts of one request for one endpoint."""

    # The windows of models, as far as they are known.
    windows: ContextWindows
    # The receipt of the request.
    receipt: Receipt
    # True: the prompt was cut to a guess of the window.
    _is_guess: bool = field(default=False, init=False)
    # The tokens of the request that was first refused by an error without a length; 0: there was no such error.
    _refused_tokens: int = field(default=0, init=False)
    # The number of `_SHARES` that were tried.
    _share_count: int = field(default=0, init=False)

    async def shorten(
        self, error_body: bytes, request: ModelRequest, make: RequestMaker, target: Target, endpoint: Endpoint
    ) -> RepairedRequest | None:
        """Returns a shorter request, or None if the error has another cause or the request cannot be cut any more.

        error_body: the body of the upstream's error.
        make: the function that makes the request again, for a target with a smaller window.
        """
        error_body = error_body[:ERROR_BYTES]
        tokens = find_named_context_length(error_body, request.body)
        if tokens is not None:
            return await self._cut_to_window(tokens, request, make, target, endpoint)
        if exceeds_context(error_body, request.body):
            return await self._cut_to_share(request, make, target, endpoint)
        return None

    def note_answer(self, target: Target) -> None:
        """Notes that the upstream has taken the prompt."""
        if self._is_guess:
            self.windows.note_guess(make_model_key(target))

    async def _cut_to_window(
        self, tokens: int, request: ModelRequest, make: RequestMaker, target: Target, endpoint: Endpoint
    ) -> RepairedRequest | None:
        """Cuts the request to the length that the error names. tokens: this length."""
        window = target.context_window
        lengths: list[int] = []
        if window is None or window > tokens:
            self.windows.note_window(make_model_key(target), tokens)
            window = self.windows.find_window(make_model_key(target), tokens) or tokens
            lengths.append(window)
        # A request that was cut to that length already has more tokens by the upstream's count than by the gateway's.
        # The difference is guessed, once.
        if not self._is_guess:
            lengths.append(int(window / GUESSED_SCALE))
        for length in lengths:
            cut_target = target._replace(context_window=length)
            shorter_request = await make(cut_target, endpoint)
            if shorter_request.body != request.body:  # else it fits by the gateway's count
                self._is_guess = length < window
                self.receipt.headers["x-mnemogate-context-tokens"] = str(tokens)
                return RepairedRequest(shorter_request, cut_target)
        return None

    async def _cut_to_share(
        self, request: ModelRequest, make: RequestMaker, target: Target, endpoint: Endpoint
    ) -> RepairedRequest | None:
        """Cuts to a share of the request.

        An accepted length is not noted as the model's window: it is an estimate from one caller's words, and the
        prompts of all other callers would be cut to it.
        """
        self._refused_tokens = self._refused_tokens or estimate_prompt_tokens(request.body)
        while self._share_count < len(_SHARES):
            length = int(self._refused_tokens * _SHARES[self._share_count])
            self._share_count += 1
            cut_target = target._replace(context_window=length)
            shorter_request = await make(cut_target, endpoint)
            if shorter_request.body != request.body:
                self.receipt.headers["x-mnemogate-context-tokens"] = str(length)
                _log.warning(
                    "The upstream %s refuses a prompt as too long for %s, and names no length: it is cut to %s tokens. "
                    "Set the model's `context_window`.",
                    *(endpoint.name, target.model, length),
                )
                return RepairedRequest(shorter_request, cut_target)
        return None
