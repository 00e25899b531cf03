"""Compaction: a job summarises what will soon leave a conversation's window.

A turn enqueues the job after it has been written, if its window fills up. Nothing waits for the job, which reads the
conversation from the store. While the model is down, refuses or answers nonsense, the window is cut without a summary,
and the job is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from gateway.core.conversation.exchange import count_atoms_to_end
from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.tree import Tree
from gateway.core.prompt.summary import ExchangeSize, WantedSummary, find_last_covered
from gateway.core.prompt.summary_check import UnusableSummary, check_summary, lacked_room
from gateway.core.prompt.summary_request import make_summary_request
from gateway.core.prompt.summary_source import PART_TOKENS, list_exchange_lines, split_into_parts
from gateway.core.prompt.summary_terms import SummaryTerms
from gateway.core.upstream.policy import Target
from gateway.errors import BadRequest, GatewayError, Overloaded, UpstreamError
from gateway.run.background.background_model import BackgroundModel, BackgroundModels, ModelAnswer
from gateway.run.background.job_context import JobContext, JobFailed, Postponed
from gateway.run.upstream.route import Route, route_for_agent_model
from gateway.run.usage.limiter import PlannedCall
from gateway.settings import Settings
from gateway.tokens import choose_tokenizer, count_message_tokens
from storage.commands import Committed
from storage.errors import Stale, StoreError
from storage.records import ANY_WINDOW, Agent, Conversation, Evicted, Exchange, Summary
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The kind of the job.
COMPACT_JOB = "compact"
# `max_tokens` of a request for a summary, as a multiple of the tokens that its prompt allows the summary.
_SLACK = 2
# The share of a conversation's tokens that stays when it is compacted at once; Letta's default.
_RETAINED_SHARE = 0.30
# The first clause is Letta's, by which its clients recognise that nothing has failed.
_NOTHING_TO_SUMMARISE = (
    "Summarization failed to reduce the number of messages: there is nothing to summarise yet. The last turn stays as "
    "it is, unless the mode is 'all'."
)

# Performs a step, given its name and its function, and returns the result. `JobContext.step` is one.
StepRunner = Callable[[str, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]


class CompactJob(
    Struct,
    frozen=True,
    rename={
        "exchange_row": "exchange",
        "keep_tokens": "keep",
        "max_tokens": "size",
        "keep_messages": "messages",
        "newest_summary_row": "newest",
    },
):
    """The payload of a job. It is stored as JSON with the names of `rename`."""

    # The row of the last exchange of the path.
    exchange_row: int
    # The fewest tokens at the end of the path that stay word for word.
    keep_tokens: int
    # The most tokens of the summary.
    max_tokens: int
    # The fewest messages at the end of the path that stay word for word.
    keep_messages: int = 0
    # The row of the newest summary of the path at the time of the turn; 0: there was none. None: an operator has
    # requested the job.
    newest_summary_row: int | None = None

    @property
    def is_by_hand(self) -> bool:
        return self.newest_summary_row is None

    @property
    def payload(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def parse(cls, payload: bytes) -> CompactJob:
        return msgspec.json.decode(payload, type=cls)


class SummarySpan(Struct, frozen=True):
    """The part of a path that a summary is to cover."""

    # The summary of the path before the span; None: the span begins the path.
    earlier: Summary | None
    # The exchanges of the span, oldest first.
    exchanges: Sequence[Exchange]
    # The tokens of the path up to the end of the span.
    path_tokens: int

    @property
    def end(self) -> Exchange:
        return self.exchanges[-1]

    @property
    def evicted(self) -> Evicted:
        """The beginning of the path that leaves the window with the summary of the span."""
        return Evicted(
            depth=self.end.depth + 1,
            offset=count_atoms_to_end(self.end),
            tokens=self.path_tokens,
            context=ANY_WINDOW,
        )


class SummaryPath(Struct, frozen=True):
    """A path of which a part is to be summarised. It begins at the last exchange with a summary, or at the root."""

    # The summary of the first exchange; None: the path begins at the root.
    earlier: Summary | None
    # Oldest first.
    exchanges: Sequence[Exchange]
    sizes: Sequence[ExchangeSize]

    @classmethod
    async def measure(cls, store: Store, agent_row: int, exchanges: Sequence[Exchange]) -> SummaryPath:
        """Reads the path's summary, and counts its tokens. exchanges: as `summaries.load_path` returns them."""
        earlier = await store.summaries.find_of_exchange(agent_row, exchanges[0].id)
        return cls(earlier, exchanges, await asyncio.to_thread(_measure_exchanges, exchanges))

    @property
    def tokens(self) -> int:
        return sum(each.tokens for each in self.sizes)

    def find_next_span(
        self, terms: SummaryTerms, keep_tokens: int, keep_messages: int = 0
    ) -> SummarySpan | None:
        """Returns the span that the next summary is to cover; None: there is nothing to cover.

        keep_tokens, keep_messages: the fewest that stay after the span. By the terms of mode `all` nothing stays,
            unless calls wait for their results.
        """
        is_whole = terms.covers_all and not self.sizes[-1].has_open_calls
        last = len(self.sizes) - 1 if is_whole else find_last_covered(self.sizes, keep_tokens, keep_messages)
        first = 0 if self.earlier is None else 1
        if last is None or last < first:
            return None
        tokens = sum(each.tokens for each in self.sizes[: last + 1])
        return SummarySpan(self.earlier, self.exchanges[first : last + 1], tokens)


class SummaryTask(Struct, frozen=True):
    """The model, the terms and the limits with which a summary is written."""

    project: str
    # The row of the memory of the conversation.
    agent_row: int
    model: BackgroundModel
    terms: SummaryTerms
    # The most tokens of the summary.
    max_tokens: int
    # An operator or a client has requested the summary, not a turn.
    is_by_hand: bool
    # Checks the limits of usage before each call, for the request that waits for the summary; None: no request waits.
    admit: Callable[[PlannedCall], Awaitable[None]] | None = None


class _WrittenSummary(Struct, frozen=True):
    """A summary as a model has written it."""

    text: str
    # The tokens of the text, as the model of the span's last exchange counts them.
    tokens: int


@dataclass(eq=False)
class Compactor:
    """Enqueues summaries of conversations with windows that fill up, and makes them."""

    store: Store
    settings: Settings
    models: BackgroundModels
    # Writes the summaries of agents that name no model of their own; None: such agents get no summaries.
    default_model: BackgroundModel | None
    # Seconds since the epoch.
    now: Callable[[], float]
    _enqueuing: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def enqueue_after(self, turn: Committed, wanted_summary: WantedSummary) -> None:
        """Enqueues a summary of the turn's conversation, and returns at once.

        If a job of the conversation still waits, it takes the new payload.
        """
        task = asyncio.ensure_future(self._enqueue(turn, wanted_summary))
        self._enqueuing.add(task)
        task.add_done_callback(self._enqueuing.discard)

    async def drain(self, timeout_s: float) -> None:
        """Waits until all jobs are in the queue, for `timeout_s` at most."""
        if self._enqueuing:
            await asyncio.wait(self._enqueuing, timeout=timeout_s)

    async def _enqueue(self, turn: Committed, wanted_summary: WantedSummary) -> None:
        payload = CompactJob(
            turn.exchange_row,
            wanted_summary.keep_tokens,
            wanted_summary.max_tokens,
            keep_messages=wanted_summary.keep_messages,
            newest_summary_row=wanted_summary.newest_summary_row,
        ).payload
        agent = turn.agent
        conversation = str(turn.conversation_row)
        try:
            await self.store.jobs.enqueue(COMPACT_JOB, agent.id, conversation, payload, epoch=agent.epoch)
        except Stale:
            # Something was forgotten since. The next turn requests the summary again.
            pass
        except StoreError as error:
            _log.warning(
                "A summary could not be scheduled; the next turn of its conversation tries again: %s",
                error.message,
            )

    async def run_job(self, job: JobContext) -> None:
        """Summarises the exchanges that may leave the window. Raises: JobFailed, Postponed, StoreError."""
        compact_job = CompactJob.parse(job.payload)
        project = await self.store.summaries.find_project(job.agent_row)
        exchanges = await self.store.summaries.load_path(job.agent_row, compact_job.exchange_row)
        if project is None or not exchanges:
            return
        terms = await read_summary_terms(self.store, job.agent_row)
        model = self.find_model(terms)
        if model is None:
            return
        path = await SummaryPath.measure(self.store, job.agent_row, exchanges)
        span = path.find_next_span(terms, compact_job.keep_tokens, compact_job.keep_messages)
        if span is None:
            # The whole path is covered already, or the whole path stays.
            return
        if _was_summarised_since(compact_job, span):
            # Another summary so soon would cover little more.
            return
        task = SummaryTask(
            project=project,
            agent_row=job.agent_row,
            model=model,
            terms=terms,
            max_tokens=compact_job.max_tokens,
            is_by_hand=compact_job.is_by_hand,
        )
        written = await _write_summary(span, task, job.step)
        if written is None:
            return
        await job.finish(
            self.store.summaries.add_effect(
                job.agent_row,
                span.end,
                written.text,
                tokens=written.tokens,
                at=self.now(),
                model=model.model,
            )
        )

    def find_model(self, terms: SummaryTerms) -> BackgroundModel | None:
        """Returns the model that writes an agent's summaries; None: there is no such model.

        Raises: JobFailed: the agent names an unknown model.
        """
        if terms.model is None:
            return self.default_model
        try:
            return self.models.get_model(route_for_agent_model(self.settings, terms.model))
        except GatewayError as error:
            raise JobFailed(f"the model of an agent's summaries: {error.message}") from error

    async def compact_now(
        self,
        agent: Agent,
        conversation: Conversation,
        terms: SummaryTerms,
        fallback: Callable[[], Route],
        max_tokens: int,
        admit: Callable[[PlannedCall], Awaitable[None]],
    ) -> str:
        """Summarises a stored conversation now, and returns the text. From then on its window begins after the summary.

        Call it with the conversation locked.

        terms: used instead of the agent's own terms.
        fallback: returns the route of the model to ask if neither the terms nor the settings name a model.
        max_tokens: the most tokens of the summary.
        admit: as in `SummaryTask`.

        Raises: BadRequest: there is nothing to summarise; UpstreamError, Overloaded: there is no summary; StoreError;
            what `fallback` and `admit` raise.
        """
        path = await self._load_whole_path(agent, conversation)
        # A share of the conversation's tokens here; for a job, it is one of the model's window.
        share = _RETAINED_SHARE if terms.own_retained_share is None else terms.own_retained_share
        try:
            model = self.find_model(terms) or self.models.get_model(fallback())
            span = path.find_next_span(terms, int(path.tokens * share))
            if span is None:
                raise BadRequest(_NOTHING_TO_SUMMARISE)
            task = SummaryTask(
                project=agent.scope.project,
                agent_row=agent.id,
                model=model,
                terms=terms,
                max_tokens=max_tokens,
                is_by_hand=True,
                admit=admit,
            )
            written = await _write_summary(span, task, _run_directly)
        except Postponed as error:
            raise Overloaded(f"There is no summary: {error.message}.", retry_after_s=error.delay_s) from error
        except JobFailed as error:
            raise UpstreamError(f"There is no summary: {error.message}.") from error
        if written is None:
            raise BadRequest(_NOTHING_TO_SUMMARISE)
        summary = Summary(
            id=0,
            exchange=span.end,
            text=written.text,
            tokens=written.tokens,
            at=self.now(),
            model=model.model,
        )
        await self.store.summaries.put(agent, conversation, summary, span.evicted)
        return written.text

    async def _load_whole_path(self, agent: Agent, conversation: Conversation) -> SummaryPath:
        """Returns the path of a stored conversation. Raises: BadRequest: it has none; StoreError."""
        exchanges: Sequence[Exchange] = []
        if conversation.has_stored_path:
            exchanges = await self.store.summaries.load_path(agent.id, conversation.last_exchange)
        if not exchanges:
            raise BadRequest(_NOTHING_TO_SUMMARISE)
        return await SummaryPath.measure(self.store, agent.id, exchanges)


def _was_summarised_since(job: CompactJob, span: SummarySpan) -> bool:
    """Returns whether the path has a newer summary than at the turn that enqueued a job; False for a job by hand."""
    if job.newest_summary_row is None or span.earlier is None:
        return False
    return span.earlier.id > job.newest_summary_row


async def _write_summary(
    span: SummarySpan, task: SummaryTask, run_step: StepRunner
) -> _WrittenSummary | None:
    """Lets the model write a summary, part by part. Returns None if no message of the span may be shown to a model.

    run_step: performs the call for one part; a job's steps are in its journal.

    Raises: JobFailed: the model wrote no summary; Postponed.
    """
    text = "" if span.earlier is None else span.earlier.text
    summarised_lines = 0
    for part in split_into_parts(list_exchange_lines(span.exchanges), PART_TOKENS):
        # The step's name identifies its input, so that a later run of another span does not take its result.
        name = f"{span.end.id}: {summarised_lines} and {len(part)}"
        text = (await run_step(name, partial(_ask_for_part, part, text, task))).decode()
        summarised_lines += len(part)
    if not text:
        return None
    return _WrittenSummary(text, await asyncio.to_thread(choose_tokenizer(span.end.model).count, text))


async def read_summary_terms(store: Store, agent_row: int) -> SummaryTerms:
    """Returns an agent's own terms for its summaries, or the default terms."""
    entries = await store.defined_agents.load_entries([agent_row])
    definition = entries[0].definition if entries else None
    return SummaryTerms.of({} if definition is None else definition.body.get("compaction") or {})


async def _run_directly(_: str, ask: Callable[[], Awaitable[bytes]]) -> bytes:
    return await ask()


async def _ask_for_part(part: Sequence[str], earlier_text: str, task: SummaryTask) -> bytes:
    """Returns the summary of the earlier text and this part. Raises: JobFailed: there is none; Postponed."""
    max_tokens = task.max_tokens
    question = make_summary_request(earlier_text, part, max_tokens, task.terms.instructions)
    reply = await _ask(task, question, _SLACK * max_tokens)
    if lacked_room(reply.text, max_tokens=max_tokens, finish_reason=reply.finish_reason):
        # A model that thinks first may have spent the limit on its thoughts.
        reply = await _ask(task, question, None)
    if reply.message.get("refusal"):
        raise JobFailed("the background model refused to summarise")
    try:
        text = check_summary(
            reply.text,
            part,
            earlier_text,
            max_tokens=max_tokens,
            finish_reason=reply.finish_reason,
            is_by_hand=task.is_by_hand,
        )
    except UnusableSummary as error:
        raise JobFailed(error.message) from None
    return task.terms.clip(text).encode()


async def _ask(task: SummaryTask, question: Sequence[dict[str, Any]], max_tokens: int | None) -> ModelAnswer:
    """Asks the model of a task. max_tokens: of its reply; None: no limit. Raises: JobFailed; Postponed."""
    model = task.model
    if task.admit is not None:
        target = Target(model.upstream.name, model.model)
        await task.admit(PlannedCall(orjson.dumps(question), max_tokens, target))
    return await model.ask(
        task.project,
        question,
        max_tokens=max_tokens,
        agent_row=task.agent_row,
        is_background=task.admit is None,
    )


def _measure_exchanges(path: Sequence[Exchange]) -> list[ExchangeSize]:
    return [_measure_exchange(exchange, choose_tokenizer(path[-1].model).count) for exchange in path]


def _measure_exchange(exchange: Exchange, count: Callable[[str], int]) -> ExchangeSize:
    content = Tree([exchange]).get_content(exchange)
    messages = content.messages or []
    # `full_reply` has all replies of a turn, those of hidden rounds among them.
    replies = content.full_reply or ([content.shown_reply] if content.shown_reply is not None else [])
    tokens = sum(count_message_tokens(message, count) for message in (*messages, *replies))
    # A nudge, which an agent's rules send to its model, continues the run of its turn.
    begins_turn = bool(messages) and messages[0].get("role") == "user" and not is_nudge(messages[0])
    has_open_calls = bool(replies) and bool(replies[-1].get("tool_calls"))
    return ExchangeSize(tokens, begins_turn, len(messages) + len(replies), has_open_calls)
