"""Requests the summary of a conversation, for an operator."""

from __future__ import annotations

from msgspec import Struct

from gateway.core.prompt.summary import MAX_TOKENS
from gateway.core.prompt.summary_options import SummaryOptions
from gateway.errors import BadRequest
from gateway.run.admin.operation_arguments import Arguments, Defaults, RawArguments
from gateway.run.background.compact import COMPACT_JOB, CompactJob, read_summary_options
from gateway.run.background.summary_path import SummaryPath
from storage.sql.store import Store


class CompactOperation(Struct, frozen=True):
    """Requests a summary by hand. The process that serves performs the job."""

    store: Store
    defaults: Defaults
    # True: the settings name a background model, for agents that name no model of their own.
    has_model: bool

    async def enqueue(self, raw: RawArguments) -> dict[str, int]:
        """Enqueues the job. Returns {"job"}, its number.

        The argument `in` is one of the user's conversations, by its public id or the client's; without it, the one
        with the newest turn is summarised.

        Raises: BadRequest; StoreError.
        """
        arguments = Arguments(raw)
        scope = arguments.read_owner(self.defaults).scope
        name = arguments.read_optional_text("in")
        store = self.store
        agents = await store.forget_targets.list_memories(
            scope.project, scope.profile, scope.subject, limit=1
        )
        no_conversation = BadRequest("There is no such conversation here.", param="in" if name else "user")
        if not agents:
            # The first error is the same with a memory and without one.
            self._require_model(SummaryOptions())
            raise no_conversation
        agent = agents[0]
        options = await read_summary_options(store, agent)
        self._require_model(options)
        newest = await store.summaries.find_last_exchange(agent, name)
        if newest is None:
            raise no_conversation
        exchanges = await store.summaries.load_path(agent, newest.exchange_row)
        path = await SummaryPath.measure(store, agent, exchanges) if exchanges else None
        # Everything that may leave the window is summarised, with the largest size that a summary may have.
        if path is None or path.find_next_span(options, retained_tokens=0) is None:
            raise BadRequest("There is nothing to summarise yet: the last turn stays as it is.")
        request = CompactJob(newest.exchange_row, retained_tokens=0, max_tokens=MAX_TOKENS)
        job = await store.jobs.enqueue(COMPACT_JOB, agent, str(newest.conversation_row), request.payload)
        return {"job": job}

    def _require_model(self, options: SummaryOptions) -> None:
        if not self.has_model and options.model is None:
            raise BadRequest("There is no background model to summarise with: set memory.background_model.")
