"""The requests of a turn: one for each round and each endpoint that is asked."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from msgspec.structs import replace

from adapters.types import ModelRequest
from gateway.core.turn.commands import CallModel
from gateway.core.turn.refusal import RefusedContent
from gateway.core.turn.upstream_error import with_message_indexes
from gateway.core.upstream.policy import Target
from gateway.run.call import ChatCall
from gateway.run.memory.fit import fit_prompt, fit_rounds
from gateway.run.memory.prompt import Prompt
from gateway.run.memory.prompt_body import list_message_origins
from gateway.run.refused_parts import RefusedParts
from gateway.run.turn_saving import TurnMemory
from gateway.run.upstream.endpoint import Endpoint
from gateway.run.upstream.form_choice import choose_endpoint_form

_log = logging.getLogger("mnemogate")


@dataclass(slots=True)
class RoundRequests:
    """Makes the requests of one turn. The prompt is made for one endpoint, and again when another one is asked.

    Implements `RequestRepairer`, which documents `repair_request` and `note_answer`.
    """

    # The request of the turn.
    call: ChatCall
    # The memory of the turn; None: nothing is remembered of the turn.
    memory: TurnMemory | None
    # The prompt for the target that is asked.
    prompt: Prompt
    # The parts of the prompt that the upstream has refused to read.
    refused_parts: RefusedParts
    # The call of the model that the requests are for.
    model_call: CallModel
    # The endpoint that the prompt is for; None before `begin`.
    endpoint: Endpoint | None = field(default=None, init=False)
    # The prompt of the last request.
    _sent_prompt: Prompt | None = field(default=None, init=False)

    def begin(self, endpoint: Endpoint) -> None:
        """Notes the endpoint that the prompt was made for, in the receipt too."""
        self.endpoint = endpoint
        self._fill_receipt(self.prompt)

    def set_prompt(self, prompt: Prompt) -> None:
        """Sets the prompt of the next rounds, without the parts that the upstream has refused."""
        self.prompt = self.refused_parts.without(prompt)

    async def make(self, target: Target, endpoint: Endpoint) -> ModelRequest:
        """Returns the round's request for a target. Raises: ContextExceeded, before anything has changed."""
        receipt = self.call.receipt
        is_other = target != self.prompt.target or endpoint is not self.endpoint
        whole_prompt = await self._make_prompt_for(target, endpoint) if is_other else self.prompt
        hidden_rounds = self.refused_parts.without_results(self.model_call.messages)
        prompt = self.refused_parts.without(whole_prompt)
        if hidden_rounds:
            prompt = await fit_rounds(prompt, hidden_rounds)
        if is_other:
            self._set_target(whole_prompt, endpoint)
        else:
            receipt.clock.note_call()
        if hidden_rounds:
            receipt.prompt = replace(receipt.prompt, tokens=0)  # these messages are not counted
        receipt.hides_usage = prompt.adds_usage and not self.call.request.wants_usage
        self._sent_prompt = prompt
        return self.call.make_request_with_prompt(
            target,
            endpoint,
            prompt,
            hidden_rounds,
            budget_tokens=self.model_call.budget_tokens,
            offer=self.model_call.offer,
        )

    async def repair_request(
        self, refused: RefusedContent, target: Target, endpoint: Endpoint
    ) -> ModelRequest | None:
        part = self.refused_parts.leave_out(refused, self.prompt, self.model_call.messages)
        if part is None:
            return None
        _log.warning("The upstream %s is asked again without %s, which it refused.", endpoint.name, part)
        self.call.left_out_parts = tuple(dict.fromkeys((*self.call.left_out_parts, part)))
        self._fill_receipt(self.refused_parts.without(self.prompt))
        return await self.make(target, endpoint)

    def with_client_indexes(self, error: bytes) -> bytes:
        """Returns an upstream's error, in which each message has the index that it has in the client's request.

        An error about a message that was added stays as it is, and so does an error of another dialect's list.
        """
        call, prompt, endpoint = self.call, self._sent_prompt, self.endpoint
        speaks_chat = endpoint is not None and not endpoint.provider.capabilities.speaks_messages
        if prompt is None or not speaks_chat or call.native_request is not None or call.request.is_translated:
            return error
        return with_message_indexes(error, list_message_origins(prompt))

    def note_answer(self) -> None:
        self.set_prompt(self.prompt)
        self.refused_parts.note_answer()

    async def _make_prompt_for(self, target: Target, endpoint: Endpoint) -> Prompt:
        """Returns the prompt for another target. Raises: ContextExceeded."""
        form = choose_endpoint_form(self.call.request, endpoint, target.model)
        if self.memory is not None:
            return await self.memory.retarget(self.prompt, target, form)
        prompt = replace(self.prompt, target=target, form=form)
        return replace(prompt, window=await fit_prompt(prompt))

    def _set_target(self, prompt: Prompt, endpoint: Endpoint) -> None:
        """Notes that another target is asked, with this prompt."""
        self.prompt, self.endpoint = prompt, endpoint
        if self.memory is not None:
            self.memory.note_target(prompt)
        self._fill_receipt(self.refused_parts.without(prompt))

    def _fill_receipt(self, prompt: Prompt) -> None:
        self.call.fill_receipt(prompt.form, prompt, None if self.memory is None else self.memory.context)
