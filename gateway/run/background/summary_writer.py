"""Makes a model write a summary, part by part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import orjson
from msgspec import Struct

from gateway.core.prompt.summary_check import UnusableSummary, extract_summary, spent_tokens_on_thoughts
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.core.prompt.summary_request import make_summary_request
from gateway.core.prompt.summary_source import PART_TOKENS, list_exchange_lines, split_into_parts
from gateway.core.upstream.policy import Target
from gateway.run.background.background_model import BackgroundModel, ModelAnswer
from gateway.run.background.job_context import JobFailed
from gateway.run.background.summary_path import SummarySpan
from gateway.run.usage.planned_call import PlannedCall
from gateway.tokens import choose_tokenizer

# `max_tokens` of a request for a summary, as a multiple of the tokens that its prompt allows the summary.
_SLACK = 2

# Performs a step, given its name and its function, and returns the result. `JobContext.step` is one.
StepRunner = Callable[[str, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]


async def _run_directly(_: str, ask: Callable[[], Awaitable[bytes]]) -> bytes:
    """Performs a step that is in no journal."""
    return await ask()


class WrittenSummary(Struct, frozen=True):
    """A summary as a model has written it."""

    # The text of the summary.
    text: str
    # The tokens of the text, as the model of the span's last exchange counts them.
    tokens: int


class SummaryWriter(Struct, frozen=True):
    """Writes one summary."""

    # The project that pays for the calls.
    project: str
    # The row of the memory of the conversation.
    agent_row: int
    # The model that writes.
    model: BackgroundModel
    # The agent's options for summaries.
    options: SummaryOptions
    # The most tokens of the summary.
    max_tokens: int
    # True: an operator or a client has requested the summary, not a turn.
    is_manual: bool
    # Performs the call for one part; a job's steps are in its journal.
    run_step: StepRunner = _run_directly
    # Checks the limits of usage before each call, for the request that waits for the summary; None: no request waits.
    admit: Callable[[PlannedCall], Awaitable[None]] | None = None

    async def write(self, span: SummarySpan) -> WrittenSummary | None:
        """Returns the summary of a span; None: no message of it may be shown to a model.

        Raises: JobFailed: the model wrote no summary; JobPostponed; the errors of `admit`.
        """
        text = "" if span.earlier_summary is None else span.earlier_summary.text
        summarised_lines = 0
        for part in split_into_parts(list_exchange_lines(span.exchanges), PART_TOKENS):
            # The step's name identifies its input, so that a later run of another span does not take its result.
            name = f"{span.end.id}: {summarised_lines} and {len(part)}"
            text = (await self.run_step(name, partial(self._summarise_part, part, text))).decode()
            summarised_lines += len(part)
        if not text:
            return None
        return WrittenSummary(text, await asyncio.to_thread(choose_tokenizer(span.end.model).count, text))

    async def _summarise_part(self, part: Sequence[str], earlier_text: str) -> bytes:
        """Returns the summary of the earlier text and this part. Raises: JobFailed: there is none; JobPostponed."""
        max_tokens = self.max_tokens
        question = make_summary_request(earlier_text, part, max_tokens, self.options.instructions)
        reply = await self._ask(question, _SLACK * max_tokens)
        if spent_tokens_on_thoughts(reply.text, max_tokens=max_tokens, finish_reason=reply.finish_reason):
            # A model that thinks first may have spent the limit on its thoughts.
            reply = await self._ask(question, None)
        if reply.message.get("refusal"):
            raise JobFailed("the background model refused to summarise")
        try:
            text = extract_summary(
                reply.text,
                part,
                earlier_text,
                max_tokens=max_tokens,
                finish_reason=reply.finish_reason,
                is_manual=self.is_manual,
            )
        except UnusableSummary as error:
            raise JobFailed(error.message) from None
        return self.options.clip(text).encode()

    async def _ask(self, question: Sequence[dict[str, Any]], max_tokens: int | None) -> ModelAnswer:
        """Asks the model. max_tokens: the most tokens of its reply; None: no limit. Raises: JobFailed; JobPostponed."""
        if self.admit is not None:
            target = Target(self.model.upstream.name, self.model.model)
            await self.admit(PlannedCall(orjson.dumps(question), max_tokens, target))
        return await self.model.ask(
            self.project,
            question,
            max_tokens=max_tokens,
            agent_row=self.agent_row,
            is_background=self.admit is None,
        )
