"""Compaction: a job summarises what will soon leave a conversation's window.

A turn with a window that fills up enqueues the job after it has been written, and nothing waits for it. The job reads
the conversation from the store. A model that is down, refuses or answers nonsense changes nothing: meanwhile the window
is cut without a summary, and the job is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import orjson
from msgspec import Struct

from gateway.core.conversation.private import is_nudge
from gateway.core.conversation.tree import Tree, end_offset
from gateway.core.prompt.summary import (
    MOST_TOKENS,
    PART_CHARS,
    Nonsense,
    Overfull,
    Share,
    SummaryTerms,
    ask_for,
    check,
    end_of_span,
    lacked_room,
    parts,
    spoken_lines,
)
from gateway.errors import BadRequest, GatewayError, Overloaded, UpstreamError
from gateway.run.admin.operation_arguments import Arguments, Defaults, RawArguments
from gateway.run.background.background_model import BackgroundModel, BackgroundModels
from gateway.run.background.worker import JobContext, JobFailed, Postponed
from gateway.run.upstream.route import Route, named_route
from gateway.settings import Settings
from gateway.tokens import message_tokens, tokenizer_for
from storage.commands import Committed
from storage.errors import Stale, StoreError
from storage.records import ANY_WINDOW, Agent, Conversation, Evicted, Exchange, Summary
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The kind of the job.
COMPACT = "compact"
# The limit of an answer's tokens, as a multiple of those that the model is asked for; an answer that was cut there, as
# of a model that thinks first, is asked for again without a limit.
_SLACK = 2
# The share of a conversation's tokens that stays when it is compacted by hand, as Letta has it.
_STAYING_SHARE = 0.30
# Programs know the first clause, which is Letta's, and distinguish this from a failure by it.
_NOTHING_TO_SUMMARISE = (
    "Summarization failed to reduce the number of messages: there is nothing to summarise yet. The last turn stays as "
    "it is, unless the mode is 'all'."
)

# Performs a step by its name and returns its result, as `JobContext.step` does, which asks a model once for each name.
PerformsStep = Callable[[str, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]


class SummaryRequest(Struct, frozen=True):
    """The payload of a job. Its fields are stored by these names."""

    # The id of the last exchange of the path.
    exchange: int
    # The fewest tokens at the end of the path that stay word for word.
    keep: int
    # The most tokens of the summary.
    size: int
    # The fewest messages at the end of the path that stay word for word.
    messages: int = 0
    # The id of the newest summary when the turn was made; None: the summary is requested by hand.
    newest: int | None = None

    @property
    def payload(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def read(cls, payload: bytes) -> SummaryRequest:
        return cls(**orjson.loads(payload))


class SummarySpan(Struct, frozen=True):
    """The part of a path that a summary is to cover."""

    # The text of the summary of what is before; "" where the span begins the path.
    earlier: str
    # Oldest first.
    exchanges: Sequence[Exchange]
    # Of the path up to the end of the span.
    tokens: int

    @property
    def end(self) -> Exchange:
        return self.exchanges[-1]


@dataclass(eq=False)
class Compactor:
    """Enqueues summaries of conversations with windows that fill up, and makes them."""

    store: Store
    settings: Settings
    models: BackgroundModels
    # Writes the summaries of agents that name no model of their own; None: these get none.
    model: BackgroundModel | None
    # Seconds since the epoch.
    now: Callable[[], float]
    _enqueuing: set[asyncio.Task[None]] = field(default_factory=set)

    def request_summary(self, turn: Committed, overfull: Overfull) -> None:
        """Enqueues a summary of a conversation with a window that fills up. Returns at once.

        A job of the conversation that still waits takes over this request.
        """
        task = asyncio.ensure_future(self._enqueue(turn, overfull))
        self._enqueuing.add(task)
        task.add_done_callback(self._enqueuing.discard)

    async def drain(self, timeout_s: float) -> None:
        """Waits until all requests are in the queue, for `timeout_s` at most."""
        if self._enqueuing:
            await asyncio.wait(self._enqueuing, timeout=timeout_s)

    async def _enqueue(self, turn: Committed, overfull: Overfull) -> None:
        request = SummaryRequest(
            turn.exchange, overfull.keep, overfull.size, overfull.messages, overfull.newest
        )
        agent, conversation = turn.agent, str(turn.conversation)
        try:
            await self.store.jobs.enqueue(COMPACT, agent.id, conversation, request.payload, epoch=agent.epoch)
        except Stale:
            # Something was forgotten since; the next turn requests it again.
            pass
        except StoreError as error:
            _log.warning(
                "A summary could not be scheduled; the next turn of its conversation tries again: %s",
                error.message,
            )

    async def run(self, job: JobContext) -> None:
        """Summarises what may leave the window, and stores the summary. Raises: JobFailed, Postponed, StoreError."""
        request = SummaryRequest.read(job.payload)
        project = await self.store.summaries.project(job.agent)
        path = await self.store.summaries.path(job.agent, request.exchange)
        if project is None or not path:
            return
        terms = await _terms(self.store, job.agent)
        model = self.model_for(terms)
        if model is None:
            return
        earlier = await self.store.summaries.at(job.agent, path[0].id)
        if earlier is not None and request.newest is not None and earlier.id > request.newest:
            # The turn before requested that one; another so soon would cover next to nothing more.
            return
        span = await _span(path, earlier, request.keep, request.messages, is_all=terms.is_all)
        if span is None:
            # All of it is covered already, or all of it stays.
            return
        by_hand = request.newest is None
        text = await self.summarise(
            span,
            project=project,
            memory=job.agent,
            model=model,
            terms=terms,
            size=request.size,
            perform_step=job.step,
            by_hand=by_hand,
        )
        if not text:
            # Nothing of the span may be shown to a model.
            return
        tokens = await asyncio.to_thread(tokenizer_for(span.end.model).count, text)
        await job.finish(
            self.store.summaries.adding(
                job.agent, span.end, text, tokens=tokens, at=self.now(), model=model.model
            )
        )

    def model_for(self, terms: SummaryTerms) -> BackgroundModel | None:
        """Returns the model that writes an agent's summaries; None: there is none.

        Raises: JobFailed: the agent names one that is not there.
        """
        if terms.model is None:
            return self.model
        try:
            return self.models.of(named_route(self.settings, terms.model))
        except GatewayError as error:
            raise JobFailed(f"the model of an agent's summaries: {error.message}") from error

    async def compact(
        self, agent: Agent, conversation: Conversation, terms: SummaryTerms, fallback: Route, size: int
    ) -> str:
        """Summarises a stored conversation now; its window begins after the summary from then on. Returns the text.

        The caller holds the conversation's queue.

        terms: in place of the agent's.
        fallback: the route of the model that is asked where neither the terms nor the settings name one.
        size: the most tokens of the summary.

        Raises: BadRequest: there is nothing to summarise; UpstreamError, Overloaded: there is no summary;
            StoreError.
        """
        last = conversation.last_exchange
        path = await self.store.summaries.path(agent.id, last) if last > 0 else []
        if not path:
            raise BadRequest(_NOTHING_TO_SUMMARISE)
        shares = await asyncio.to_thread(_shares, path)
        keep = int(sum(x.tokens for x in shares) * (_STAYING_SHARE if terms.share is None else terms.share))
        try:
            model = self.model_for(terms) or self.models.of(fallback)
            earlier = await self.store.summaries.at(agent.id, path[0].id)
            span = await _span(path, earlier, keep, 0, is_all=terms.is_all)
            if span is None:
                raise BadRequest(_NOTHING_TO_SUMMARISE)
            text = await self.summarise(
                span,
                project=agent.scope.project,
                memory=agent.id,
                model=model,
                terms=terms,
                size=size,
                perform_step=_perform_unjournaled,
                by_hand=True,
            )
        except Postponed as error:
            raise Overloaded(f"There is no summary: {error.message}.", retry_after_s=error.delay_s) from error
        except JobFailed as error:
            raise UpstreamError(f"There is no summary: {error.message}.") from error
        if not text:
            raise BadRequest(_NOTHING_TO_SUMMARISE)
        tokens = await asyncio.to_thread(tokenizer_for(span.end.model).count, text)
        summary = Summary(0, span.end, text, tokens, self.now(), model.model)
        evicted = Evicted(span.end.depth + 1, end_offset(span.end), span.tokens, ANY_WINDOW)
        await self.store.summaries.put(agent, conversation, summary, evicted)
        return text

    async def summarise(
        self,
        span: SummarySpan,
        *,
        project: str,
        memory: int,
        model: BackgroundModel,
        terms: SummaryTerms,
        size: int,
        perform_step: PerformsStep,
        by_hand: bool,
    ) -> str:
        """Returns the text of a summary, which the model writes part by part.

        memory: the number of the agent whose memory it is for.
        size: the most tokens of the summary.
        perform_step: asks for one part, under a name for the job's journal.
        by_hand: it was requested by hand, not by a turn.

        Raises: JobFailed: the model gave none; Postponed.
        """
        text, done = span.earlier, 0
        for part in parts(spoken_lines(span.exchanges), PART_CHARS):
            ask = partial(
                _ask_for_part,
                part,
                earlier=text,
                project=project,
                memory=memory,
                model=model,
                terms=terms,
                size=size,
                by_hand=by_hand,
            )
            # The step's name identifies its input, so that a later run of another span does not take its result.
            text = (await perform_step(f"{span.end.id}: {done} and {len(part)}", ask)).decode()
            done += len(part)
        return text


async def _span(
    path: Sequence[Exchange], earlier: Summary | None, keep: int, messages: int, *, is_all: bool
) -> SummarySpan | None:
    """Returns what a summary is to cover; None: there is nothing to cover.

    path: oldest first; its first exchange is the last one that `earlier` covers, if there is an earlier summary.
    keep, messages: the fewest tokens and messages that stay.
    is_all: nothing stays, unless calls wait for their results.
    """
    first = 1 if earlier is not None else 0
    shares = await asyncio.to_thread(_shares, path)
    is_whole = is_all and not shares[-1].waits
    end = len(path) - 1 if is_whole else end_of_span(shares, keep, messages)
    if end is None or end < first:
        return None
    text = "" if earlier is None else earlier.text
    return SummarySpan(text, path[first : end + 1], sum(x.tokens for x in shares[: end + 1]))


async def _terms(store: Store, agent: int) -> SummaryTerms:
    """Returns an agent's definition of its summaries; an empty one where it has none."""
    entries = await store.defined_agents.among([agent])
    definition = entries[0].definition if entries else None
    return SummaryTerms.of({} if definition is None else definition.body.get("compaction") or {})


async def _perform_unjournaled(_: str, ask: Callable[[], Awaitable[bytes]]) -> bytes:
    return await ask()


async def _ask_for_part(
    part: Sequence[str],
    *,
    earlier: str,
    project: str,
    memory: int,
    model: BackgroundModel,
    terms: SummaryTerms,
    size: int,
    by_hand: bool,
) -> bytes:
    """Returns the earlier summary with this part added. Raises: JobFailed: the model gave none."""
    question = ask_for(earlier, part, size, terms.instructions)
    reply = await model.ask(project, question, max_tokens=_SLACK * size, memory=memory)
    if lacked_room(reply.text, size=size, finish_reason=reply.finish_reason):
        reply = await model.ask(project, question, memory=memory)
    if reply.message.get("refusal"):
        raise JobFailed("the background model refused to summarise")
    try:
        text = check(reply.text, part, earlier, size=size, finish_reason=reply.finish_reason, by_hand=by_hand)
    except Nonsense as error:
        raise JobFailed(error.message) from None
    return terms.clip(text).encode()


def _shares(path: Sequence[Exchange]) -> list[Share]:
    return [_share(x, tokenizer_for(path[-1].model).count) for x in path]


def _share(x: Exchange, count: Callable[[str], int]) -> Share:
    content = Tree([x]).content(x)
    messages = content.messages or []
    replies = content.full or ([content.shown_reply] if content.shown_reply is not None else [])
    tokens = sum(message_tokens(m, count) for m in (*messages, *replies))
    # A nudge, which an agent's rules send to its model, begins no turn: the run goes on.
    opens = bool(messages) and messages[0].get("role") == "user" and not is_nudge(messages[0])
    waits = bool(replies) and bool(replies[-1].get("tool_calls"))
    return Share(tokens, opens, len(messages) + len(replies), waits)


class CompactOperation(Struct, frozen=True):
    """Requests a summary by hand. The process that serves performs the job."""

    store: Store
    defaults: Defaults
    # The settings name a model for agents that name none of their own.
    has_model: bool

    async def compact(self, raw: RawArguments) -> dict[str, int]:
        """Enqueues the job. Returns {"job"}, its number.

        The argument `in` is one of the user's conversations, by its public name or the client's; without it, the one
        with the newest turn is summarised.

        Raises: BadRequest; StoreError.
        """
        arguments = Arguments(raw)
        scope, name = arguments.owner(self.defaults).scope, arguments.optional_text("in")
        store = self.store
        agents = await store.forgetting.find(scope.project, scope.profile, scope.subject, limit=1)
        terms = await _terms(store, agents[0]) if agents else SummaryTerms()
        if not self.has_model and terms.model is None:
            raise BadRequest("There is no background model to summarise with: set memory.background_model.")
        last = await store.summaries.last_exchange(agents[0], name) if agents else None
        if last is None:
            raise BadRequest("There is no such conversation here.", param="in" if name else "user")
        exchange, conversation = last
        # All that may leave the window is summarised, as long as the longest summary of a model's window.
        request = SummaryRequest(exchange, keep=0, size=MOST_TOKENS)
        path = await store.summaries.path(agents[0], exchange)
        earlier = await store.summaries.at(agents[0], path[0].id) if path else None
        if (
            not path
            or await _span(path, earlier, request.keep, request.messages, is_all=terms.is_all) is None
        ):
            raise BadRequest("There is nothing to summarise yet: the last turn stays as it is.")
        job = await store.jobs.enqueue(COMPACT, agents[0], str(conversation), request.payload)
        return {"job": job}
