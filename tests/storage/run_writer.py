"""Runs of an agent through a real store, planned and written as a gateway does it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from gateway.core.conversation.canonical import MessageHasher
from gateway.core.conversation.hashed_list import HashedList
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.match_query import MemoryUse, Query
from gateway.core.conversation.stored_path import begin_step, finish_step, plan_step
from gateway.core.conversation.tree import Tree
from gateway.core.conversation.wire_message import WireMessage
from storage.commands import MemorySnapshot
from storage.job_records import Job
from storage.records import Agent, EvictedPart, Exchange, Scope, SentSection
from storage.run_commands import ConversationPath, StepEnd, StepOpen, StepOpened
from storage.run_records import Run, RunState, RunStep, TokenCounts
from storage.sql.store import Store
from tests.core.conversations import IDLE_S, assistant, user
from tests.stored import HUMAN

AGENT = Scope("default", "@", "agent:a1")


@dataclass
class RunWriter:
    """Runs of one agent in its default conversation, each step planned and written as a gateway does it."""

    store: Store
    scope: Scope = AGENT
    context: int | None = 1000
    now: float = 100.0
    agent: Agent = field(init=False)
    opened: StepOpened = field(init=False)
    number: int = 0

    async def read(self, name: str = "default") -> ConversationPath:
        self.agent = await self.store.agents.find(self.scope) or self.store.agents.get_draft(self.scope)
        if not self.agent.id:
            return ConversationPath(MemorySnapshot())
        own = await self.store.stored_paths.load_path(self.agent, name, self.context)
        assert own is not None
        self.agent = replace(self.agent, epoch=own.snapshot.epoch)
        return own

    async def begin(
        self,
        *messages: WireMessage,
        own: ConversationPath | None = None,
        evicted: EvictedPart | None = None,
        **more: Any,
    ) -> StepOpened:
        """Opens a run's first step. more: of `StepOpen`."""
        own = own or await self.read()
        self.number = 0
        run = Run(0, uuid.uuid4().hex, 0, 0, RunState.RUNNING, self.now, begun=self.now)
        last = own.path[-1] if own.path else None
        found = own.snapshot.conversation
        write = self.planned(own, last, messages, evicted)
        return await self._open(
            replace(
                write,
                conversation_row=None if found is None else found.id,
                rev=0 if found is None else found.rev,
                run=run,
                section=own.snapshot.section or SentSection(0, "section", {"blocks": {}}),
                defaults=(HUMAN,),
                **more,
            )
        )

    async def go_on(self, *messages: WireMessage, **more: Any) -> StepOpened:
        """Opens the next step of the run, after the one that was finished."""
        before = self.opened
        write = self.planned(
            ConversationPath(MemorySnapshot(), (before.exchange,)), before.exchange, messages, None
        )
        conversation, rev = before.exchange.conversation_row, before.rev
        return await self._open(
            replace(write, conversation_row=conversation, rev=rev, section=before.section, **more)
        )

    def planned(
        self,
        own: ConversationPath,
        last: Exchange | None,
        messages: Sequence[WireMessage],
        evicted: EvictedPart | None,
    ) -> StepOpen:
        listing = HashedList(MessageHasher(self.agent.secret), messages)
        query = Query(
            listing, True, MemoryUse.ON, self.now, IDLE_S, kind=ConversationKind.AGENT, model="up/m"
        )
        plan = plan_step(Tree(own.path), query, last, None if last is None else last.conversation_row)
        e = begin_step(plan, {}, evicted)
        return StepOpen(self.agent, "default", uuid.uuid4().hex, None, 0, self.now, e)

    async def _open(self, write: StepOpen) -> StepOpened:
        before = getattr(self, "opened", None)
        self.opened = await self.store.stored_paths.open(write)
        if self.opened.run is None and before is not None:
            self.opened = replace(self.opened, run=before.run)
        self.agent = self.opened.agent
        self.store.agents.cache(self.agent)
        return self.opened

    async def finish(
        self,
        reply: WireMessage | None,
        above: bytes = b"",
        *,
        stop: str | None = "end_turn",
        job: Job | None = None,
        **more: Any,
    ) -> Exchange:
        """Ends the step. more: of `RunStep`."""
        e, run = self.opened.exchange, self.opened.run
        assert run is not None
        self.number += 1
        e = finish_step(
            e,
            MessageHasher(self.agent.secret),
            above,
            full_reply=[reply] if reply else [],
            shown_reply=None,
            model="up/m",
            evicted=e.evicted,
            now=self.now,
        )
        step = RunStep(
            e.id, self.agent.id, run.id, self.number, self.now, self.now, TokenCounts(7, 3), stop, **more
        )
        await self.store.stored_paths.finish(StepEnd(self.agent, e, step, job=job))
        self.opened = replace(self.opened, exchange=e)
        return e

    async def say(self, text: str, reply: str = "Yes.", **more: Any) -> Exchange:
        """One plain message and its reply."""
        own = await self.read()
        await self.begin(user(text), own=own, **more)
        return await self.finish(assistant(reply), own.path[-1].path_hash if own.path else b"")
