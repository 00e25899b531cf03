"""Memory's part of a turn: what is known when it begins, what is written when it has ended.

`MemoryKeeper` is one for the process. Its `begin` reads what a request needs (one round trip for a plain turn) and
leaves a `TurnMemory`, which knows the request's body with memory in it, runs the memory tools, and
writes the turn. What any of it decides is decided in gateway.core; here it is only asked for in order.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gateway.core.agent import AgentSpec
from gateway.core.conversation import plan as planning
from gateway.core.conversation import settle
from gateway.core.conversation.canonical import Canon, Listing, WireMessage, text_of
from gateway.core.conversation.change import decide
from gateway.core.conversation.fast_path import finish_plain, plan_plain
from gateway.core.conversation.lookup import REACH, full_probes, plain_probes
from gateway.core.conversation.match import Keeping, Query
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import Tree
from gateway.core.memory import edits
from gateway.core.memory import tools as memory_tools
from gateway.core.memory.visibility import messages_of
from gateway.core.prompt import note as recall
from gateway.core.prompt.compose import Composition, compose, compose_plain, known_note
from gateway.core.prompt.eviction import Eviction, evicted_before, find_beginning
from gateway.core.prompt.section import Section, learned, make_section
from gateway.core.prompt.summary import Overfull
from gateway.core.request.chat import ChatRequest
from gateway.core.request.identity import Identity, Mode
from gateway.core.turn.commands import End, TurnOutcome
from gateway.run.memory.assemble import Additions, Assembly, assemble, may_exceed
from gateway.run.memory.contents import with_contents
from gateway.run.memory.visible import VisibleContent
from gateway.run.tools.memory import MemoryTools
from gateway.settings import MemorySettings
from storage.base import Store
from storage.commands import Committed, Look, Probes, TurnWrite
from storage.errors import StoreError, TooSlow
from storage.records import Agent, Block, BlockOp, Evicted, Exchange, Snapshot, Vector

__all__ = ["EmbedQuery", "MemoryKeeper", "MemoryRequest", "TurnMemory"]

_log = logging.getLogger("mnemogate")

_ids = random.Random()  # conversations' names are no secrets: knowing one opens nothing
LINE_TOKENS = 40  # of a note, a line with its date: more of what was found than would fit need not be read
LEAST_HITS, MOST_HITS = 16, 40  # the most where what is found may be in sight, and is told no more
NOTE_SHARE = 16  # of the model's context, what one note may take at most
INDEX_CHARS = 32_000  # or that many characters: until they are indexed, every query reads them
INDEX_EVERY = 16  # messages a memory may grow before its search index follows
# Streamed replies get a fifth of the time for recall: 30 ms by default, since voice agents ask for them.
STREAM_HASTE = 5
OPEN_WAIT_S = 5.0  # chosen: a disk slower than that is down for a mode that cannot do without it


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """spec: the agent that the request asks for. now: seconds since the epoch.

    model: what the upstream calls it. context_tokens: its window; None: unknown, and nothing falls out of it.
    """

    request: ChatRequest
    identity: Identity
    spec: AgentSpec
    now: float
    model: str = ""
    context_tokens: int | None = None
    upstream: str = ""


WantsSummary = Callable[[Committed, Overfull], None]
# (agent, text, milliseconds that there are) -> the text's vector, or None
EmbedQuery = Callable[[int, str, float], Awaitable[Vector | None]]


class MemoryKeeper:
    def __init__(self, store: Store, settings: MemorySettings, now: Callable[[], float] = time.time) -> None:
        self.store = store
        self.settings = settings
        self.now = now
        self.open_wait_s = OPEN_WAIT_S
        self._queues: dict[tuple[str, str], asyncio.Lock] = {}
        self.grown: Callable[[int], None] = lambda agent: None  # told of agents whose index should follow
        self.moved: Callable[[], None] = lambda: None  # told that a conversation moved
        # Told of a person's memory, and how many messages it has more.
        self.said: Callable[[int, int], None] = lambda agent, messages: None
        self.overfull: WantsSummary | None = None  # told of conversations whose window fills up
        self.embed_query: EmbedQuery | None = None  # None: memory is searched by words alone

    async def begin(self, asked: MemoryRequest) -> TurnMemory:
        """Raises: StoreError when memory cannot be had."""
        if asked.identity.append:
            return await self._begin_appending(asked)
        found = await self._look(asked)
        await found.recollect()
        return found

    async def _begin_appending(self, asked: MemoryRequest) -> TurnMemory:
        """Sends of one conversation queue: each goes on from the one before."""
        scope, key = asked.identity.scope, asked.identity.conversation
        assert scope is not None
        assert key is not None
        agent = await self.store.agents.find(scope) or self.store.agents.draft(scope)
        lock = self._queues.setdefault((agent.uid, key), asyncio.Lock())
        await lock.acquire()
        try:
            found = await self._look(replace(asked, now=self.now()))
            found.release = lambda: self._release((agent.uid, key), lock)
            await found.recollect()
            if found.plan.appending:
                await found.open()
            return found
        except BaseException:
            self._release((agent.uid, key), lock)
            raise

    def _release(self, name: tuple[str, str], lock: asyncio.Lock) -> None:
        lock.release()
        if not lock.locked() and not getattr(lock, "_waiters", None):
            self._queues.pop(name, None)

    async def _look(self, asked: MemoryRequest) -> TurnMemory:
        scope, key = asked.identity.scope, asked.identity.conversation
        assert scope is not None
        agents = self.store.agents
        for _ in range(2):
            agent = await agents.find(scope) or agents.draft(scope)
            listing = Listing(Canon(agent.secret), asked.request.messages)
            path = listing.path(listing.said) if listing.said else None
            look = await self.store.turns.look(agent, key, path) if agent.id else Look()
            if look is not None:
                break
            agents.forget(scope)  # it was forgotten, and may be made anew
        else:
            raise StoreError("the memory of this user is being removed")
        if agent.epoch != look.epoch:
            agent = replace(agent, epoch=look.epoch)
            agents.remember(agent)
        mode = asked.identity.mode
        query = Query(
            listing,
            named=key is not None,
            mode=Keeping.ON if mode is Mode.STRICT else Keeping(mode.value),
            now=asked.now,
            idle_s=self.settings.idle_s,
            append=asked.identity.append,
            retry=asked.identity.retry,
            model=f"{asked.upstream}/{asked.model}",
            conversation=look.conversation.id if key is not None and look.conversation else None,
        )
        plan = plan_plain(look, query)
        if plan is not None:
            return TurnMemory(self, asked, agent, look, query, plan, None)
        if not agent.id:
            tree = Tree()
            return TurnMemory(self, asked, agent, look, query, planning.begin(tree, query), tree)
        # The end of a conversation tells nearly always; else what goes back to where its window began; else all of it.
        reach: int | None = REACH
        low: int | None = None
        while True:
            pool = await self.store.turns.pool(agent, full_probes(query, key, reach=reach, low=low))
            tree = Tree(pool.exchanges, pool.contents, pool.tombs)
            plan = await with_contents(self.store.turns, agent, tree, partial(planning.begin, tree, query))
            evicted = evicted_before(plan, asked.context_tokens)
            is_all = reach is None and low is None
            if is_all or not tree.is_partial or planning.is_enough(tree, plan, evicted):
                break
            low = max(0, evicted.depth - 1) if evicted is not None and reach is not None else None
            reach = None
        return TurnMemory(self, asked, agent, look, query, plan, tree)


def new_uid() -> str:
    return f"{_ids.getrandbits(128):032x}"


@dataclass(slots=True)
class TurnMemory:
    """One request's. tree: None for a plain turn. Call in this order: recollect, (body, run tools)*, commit."""

    by: MemoryKeeper
    asked: MemoryRequest
    agent: Agent
    look: Look
    query: Query
    plan: Plan
    tree: Tree | None
    offered: dict[str, str] = field(default_factory=dict)
    section: Section = field(default_factory=lambda: Section(None))
    composition: Composition = field(default_factory=Composition)
    overfull: Overfull | None = None  # as the request was sent, its window was filling up
    evicted: Evicted | None = None  # as the request was sent, this was left out
    beginning: Eviction = field(default_factory=Eviction)
    notes: dict[int, str] = field(default_factory=dict)  # by index among the new messages
    # Its exchanges, as far as they matter; empty where memory is off.
    path: set[int] = field(default_factory=set)
    tools: MemoryTools | None = None  # None where memory is off
    recalled_tokens: int = 0
    recall_ms: float = 0.0
    recall_failed: bool = False
    row: int = -1  # of the exchange; above 0 once its user message is written
    release: Callable[[], None] = lambda: None
    conversation_uid: str = ""

    # -- when it begins

    async def recollect(self) -> None:
        """Notes, memory section, tools: all that the request will carry of ours."""
        self.conversation_uid = await self._find_uid()
        identity, spec = self.asked.identity, self.asked.spec
        if identity.mode is Mode.OFF:
            if self.plan.appending:  # nobody else has the conversation
                self.composition = await self._compose({})
            return
        anchor = self.plan.place.anchor
        path = self.path = self._path_ids()
        blocks = await self._blocks()
        by = self.by
        self.tools = MemoryTools(
            by.store, self.agent, self.look, path, blocks, by.settings.recall_tokens, by.now, by.embed_query
        )
        pinned = self.look.snapshot
        if self.tree is not None:
            number = anchor.snapshot if anchor is not None else None
            pinned = await self.by.store.turns.snapshot(self.agent, number) if number is not None else None
        self.offered = self._offer(pinned.known.get("tools") if pinned else None)
        new = self.plan.messages
        last = len(new) - 1
        fresh = self._known_notes(new)
        is_asked = bool(new) and new[-1].get("role") == "user" and last not in fresh
        pin = partial(
            make_section,
            self.tools.blocks,
            pinned=pinned,
            goes_on=anchor is not None,
            offered=self.offered,
            system=spec.system,
            epoch=self.look.epoch,
            idle_s=0.0 if anchor is None else self.query.now - (anchor.ended or anchor.begun),
            cache_s=self.by.settings.cache_s,
            always=spec.rebuilds,
            can_tell=is_asked,
        )
        summary = pinned.known.get("summary", 0) if pinned is not None else 0
        self.section = pin(summary=summary)
        self.evicted = gone = evicted_before(self.plan, self.asked.context_tokens)
        if spec.history == "client":
            self.plan = replace(self.plan, fill=())
        elif gone is not None:
            fill = tuple(element for element in self.plan.fill if element.at[1] >= gone.offset)
            self.plan = replace(self.plan, fill=fill)
        self.composition = await self._compose(fresh)
        self.beginning = find_beginning(
            self.plan, self.composition, gone, is_plain=self.tree is None, in_use=summary
        )
        context = self.asked.context_tokens
        if gone is not None or (
            context is not None and may_exceed(self.asked.request, self.additions, context * 3 // 4)
        ):
            await self._find_cuts()
        cut = await self._assemble() if is_asked or self.beginning.cuts else None
        if cut is not None and cut.summary_id not in (0, summary):
            self.section = pin(
                summary=cut.summary_id
            )  # the prompt begins anew: what it knows is told anew too
        if is_asked:
            fresh[last] = await self._recall(text_of(new[last]), cut)
            if fresh[last]:
                self.composition.notes[self.query.listing.places[self.plan.new[-1]]] = fresh[last]
        self.notes = {} if self.plan.off else fresh

    async def answered_by(self, upstream: str, model: str) -> None:
        """Another one than was thought answers: what only that one could read stays here."""
        self.query = replace(self.query, model=f"{upstream}/{model}")
        self.plan = replace(self.plan, query=self.query)
        if self.asked.identity.mode is not Mode.OFF:
            notes = self.composition.notes
            self.composition = self.beginning.composition = await self._compose({})
            self.composition.notes = notes
            await self._find_cuts()  # its window may be a smaller one

    async def _compose(self, fresh: dict[int, str]) -> Composition:
        if self.tree is None:
            return compose_plain(self.query.listing, self.look, self.offered, fresh, self.query.model)
        composing = partial(compose, self.tree, self.plan, self.offered, fresh)
        return await with_contents(self.by.store.turns, self.agent, self.tree, composing)

    async def _find_cuts(self) -> None:
        """The newest summaries on this path: asked for only where the conversation may not fit whole."""
        anchor = self.plan.place.anchor
        if anchor is None or not self.agent.id or not self.asked.spec.summarises:
            return
        try:
            self.beginning.take(
                await self.by.store.summaries.of(self.agent.id, anchor.conversation), self.path
            )
        except StoreError as error:
            _log.warning("summaries could not be read: %s", error.message)

    @property
    def ops(self) -> list[BlockOp]:
        return self.tools.ops if self.tools is not None else []

    @property
    def additions(self) -> Additions:
        wants = self.by.overfull is not None and self.asked.spec.summarises and not self.plan.off
        return Additions(self.composition, self.section.text, self.offered, wants, self.beginning)

    async def _assemble(self) -> Assembly | None:
        """What of the conversation is in sight, before there is a note; None: all of it."""
        asked = self.asked
        if asked.context_tokens is None:
            return None
        found = await assemble(asked.request, asked.model, self.additions, asked.context_tokens)
        return found if found.evicted_tokens else None

    def _path_ids(self) -> set[int]:
        anchor = self.plan.place.anchor
        if self.tree is not None:
            return {x.id for x in self.tree.chain(anchor)}
        return {x.id for x in self.look.additions} | ({anchor.id} if anchor else set())

    async def _blocks(self) -> list[Block]:
        """As the settings order them, the same for every user of the profile; then what was made since."""
        if not self.agent.id:
            return await self._default_blocks()
        order = {b.label: i for i, b in enumerate(self.asked.spec.blocks)}
        return sorted(self.look.blocks, key=lambda block: (order.get(block.label, len(order)), block.id))

    async def _default_blocks(self) -> list[Block]:
        """What a user's memory will begin with."""
        spec = self.asked.spec
        defaults = [replace(b, id=i) for i, b in enumerate(spec.blocks)]
        if not spec.shared:
            return defaults
        stored = {b.label: b for b in await self.by.store.turns.shared_blocks(self.agent)}
        return [stored.get(b.label, b) for b in defaults]

    def _offer(self, agreed: Mapping[str, str] | None) -> dict[str, str]:
        request, identity = self.asked.request, self.asked.identity
        wanted = self.asked.spec.offers_tools and (identity.agent is not None or request.has_tools)
        if not wanted or identity.mode is Mode.READ or not memory_tools.may_offer(request.json):
            return {}
        enabled = memory_tools.MEMORY_TOOLS if self.agent.scope.is_person else memory_tools.BLOCK_TOOLS
        return memory_tools.offer(enabled, frozenset(request.tools), agreed)

    def _known_notes(self, new: Sequence[WireMessage]) -> dict[int, str]:
        """Notes written once stay: a retry, or a question asked again, gets the same."""
        if self.tree is None:
            return {}
        users = [i for i, m in enumerate(new) if m.get("role") == "user"]
        known = {i: known_note(self.tree, self.plan, i) for i in users}
        return {i: note for i, note in known.items() if note is not None}

    async def _recall(self, text: str, cut: Assembly | None) -> str:
        """The note for the user's last message; block changes ride in it. cut: the conversation, if it does not fit."""
        settings, scope = self.by.settings, self.asked.identity.scope
        anchor = self.plan.place.anchor
        hits: list[recall.Recalled] = []
        elsewhere = self.look.next_seq - 1 - (anchor.length if anchor else 0)
        if scope is not None and scope.is_person and settings.recall_tokens and (elsewhere > 0 or cut):
            begun = time.perf_counter()
            sight = VisibleContent(self.plan, self.look, self.tree, self.composition, self.path, cut)
            query, budget = recall.make_query(text), self._note_tokens()
            deadline = settings.recall_deadline_ms / (STREAM_HASTE if self.asked.request.stream else 1)
            vector, left_ms = None, float(deadline)
            if self.by.embed_query is not None:
                vector = await self.by.embed_query(self.agent.id, query, left_ms)
                left_ms = max(1.0, left_ms - (time.perf_counter() - begun) * 1000)
            try:
                found = await self.by.store.recall.search(
                    self.agent,
                    query,
                    messages_of,
                    size=self.look.next_seq,
                    indexed=self.look.indexed_seq,
                    skip=sight.numbers(),
                    limit=MOST_HITS if cut else max(LEAST_HITS, budget // LINE_TOKENS),
                    only_strong=True,
                    deadline_ms=left_ms,
                    vector=vector,
                )
                left_out = await with_contents(
                    self.by.store.turns, self.agent, self.tree, partial(sight.replaced, settings.idle_s)
                )
                is_whole = self.asked.spec.history != "client"
                hits = recall.choose(
                    [
                        m
                        for m in found
                        if m.exchange not in left_out and not (is_whole and sight.shows_origin(m))
                    ],
                    query,
                    exclude_atoms=sight.atoms(),
                    told=sight.told(),
                    budget_tokens=budget,
                    cut_chars=min(recall.CUT_CHARS, 2 * budget),
                )
            except StoreError as error:
                # A memory that answers late or not at all is one without hits; the reply does not wait for it.
                self.recall_failed = True
                _log.warning("recall failed: %s", error.message)
            self.recall_ms = (time.perf_counter() - begun) * 1000
        note = recall.render_note(hits, self.section.changes, self.query.now)
        self.recalled_tokens = recall.estimate_tokens(note) if hits else 0
        return note

    def _note_tokens(self) -> int:
        """A note stays in the conversation, so in a small window it has to be small as well."""
        budget, context = self.by.settings.recall_tokens, self.asked.context_tokens
        return budget if context is None else min(budget, context // NOTE_SHARE)

    async def _find_uid(self) -> str:
        found = self.look.conversation
        stored = self.plan.conversation
        uid: str | None = None
        if found is not None and found.id == stored:
            uid = found.uid
        elif stored is not None and stored > 0 and self.agent.id:
            uid = await self.by.store.turns.conversation_uid(self.agent, stored)
        return uid or new_uid()

    # -- when it ends

    async def open(self) -> None:
        """Append mode: the user's message is on disk before the model is asked. Raises: StoreError."""
        try:
            async with asyncio.timeout(self.by.open_wait_s):
                committed = await self._commit(self._ended(TurnOutcome(End.CANCELLED)), settle.open_)
        except TimeoutError:
            raise TooSlow("the disk did not take the message in time") from None
        self.row = committed.exchange
        self.plan = replace(self.plan, conversation=committed.conversation)
        self.agent = committed.agent
        self.by.store.turns.remember(committed)

    def commit(self, outcome: TurnOutcome) -> Coroutine[Any, Any, Committed | None]:
        """Writes what became of the turn. None: nothing was worth writing. Raises: StoreError.

        From here on the next send waits for the write and no longer for this request, which may well be over before.
        """
        release, self.release = self.release, lambda: None
        return self._write(outcome, release)

    async def _write(self, outcome: TurnOutcome, release: Callable[[], None]) -> Committed | None:
        try:
            finished = outcome.state is End.FINISHED
            if not finished and outcome.state is End.FAILED and not outcome.text and self.row < 0:
                return None
            committed = await self._commit(self._ended(outcome), settle.finish if finished else settle.cancel)
        finally:
            release()
        self.by.store.turns.remember(committed)
        waiting = self.look.next_seq - self.look.indexed_seq
        said = sum(len(text_of(m)) for m in self.plan.messages) + len(outcome.text)
        if waiting >= INDEX_EVERY or said > INDEX_CHARS:
            self.by.grown(committed.agent.id)
        if self.ops:
            self.by.moved()
        if not self.plan.off and committed.agent.scope.is_person:
            self.by.said(committed.agent.id, len(self.plan.messages) + 1)
        if finished and self.overfull is not None and self.by.overfull is not None:
            self.by.overfull(committed, self.overfull)
        return committed

    def _ended(self, outcome: TurnOutcome) -> settle.Ended:
        said = outcome.said or {"role": "assistant", "content": ""}
        full = list(outcome.full)
        if outcome.state is not End.FINISHED and not outcome.text:
            full = [m for m in full if outcome.hidden]
        visible = {str(c.get("id")) for c in said.get("tool_calls") or []}
        ours = frozenset(
            str(c.get("id"))
            for m in full
            for c in m.get("tool_calls") or []
            if str(c.get("id")) not in visible
        )
        return settle.Ended(
            id=self.row,
            full=full or ([said] if outcome.state is End.FINISHED or outcome.text else []),
            said=said,
            now=self.by.now(),
            notes=self.notes,
            ours=ours,
            edits=bool(self.ops),
            evicted=self.evicted,
        )

    async def _commit(
        self, ended: settle.Ended, how: Callable[[Tree, Plan, settle.Ended], Exchange]
    ) -> Committed:
        plan, key = self.plan, self.asked.identity.conversation
        plain: tuple[Exchange, int] | None = None
        if self.tree is None and how is settle.finish and self.look.conversation is not None:
            plain = (finish_plain(plan, ended), self.look.conversation.rev)
        snapshot = self.section.snapshot
        if self.ops:
            snapshot = learned(snapshot, self.tools.blocks if self.tools else [])
        if plan.off:  # nothing new is kept, and what the path knew before it knows after
            number = plan.place.anchor.snapshot if plan.place.anchor else None
            snapshot = None if number is None else Snapshot(number, "", {})
        probes = plain_probes(plan, key) if self.tree is None else self._probes(self.tree, key)
        write = TurnWrite(
            agent=self.agent,
            key=key,
            uid=self.conversation_uid,
            now=ended.now,
            plain=plain,
            probes=probes,
            decide=lambda pool: decide(pool, plan, ended, how),
            merge=edits.merge,
            carries=any(m.get("role") == "user" for m in plan.messages),
            ops=self.ops if how is not settle.open_ else (),
            snapshot=snapshot,
            defaults=self.asked.spec.own_blocks,
            shared=self.asked.spec.shared_blocks,
        )
        return await asyncio.shield(self.by.store.turns.commit(write))

    def _probes(self, tree: Tree, key: str | None) -> Probes:
        """What has to be looked at again in the transaction that writes the turn."""
        low = planning.low_of(tree, self.plan)
        if low is not None:
            return full_probes(self.query, key, low=max(0, low - REACH))
        return full_probes(self.query, key, reach=REACH if tree.is_partial else None)

    def abandon(self) -> None:
        """The turn never came to its end (an error of our own)."""
        with suppress(RuntimeError):
            self.release()
        self.release = lambda: None
