"""Agents that speak to one another: a message of one is a send to the other's own conversation.

Who waits for an answer has the other's run within its own: it ends when the one that waits is cancelled, and goes on
when its answer only came too late. The message is shown as the system's, with the sender's name and id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.kinds import READING_KINDS
from gateway.agents.core.waits import Wait, Waiter, Waits, WaitsInCircle
from gateway.agents.registry.registry import Registry
from gateway.agents.registry.resolved_agents import ResolvedAgent
from gateway.agents.runs.run import RunRequest, RunResult, RunStart
from gateway.agents.tools.agent_messages import AgentAnswer
from gateway.core import ids
from gateway.core.conversation.canonical import WireMessage
from gateway.core.conversation.fillers import without_fillers_and_thoughts
from gateway.core.conversation.private import as_system
from gateway.core.turn.client_view import MakesUnseen, MakesView
from gateway.core.turn.guide import StopReason
from gateway.errors import BadRequest, Conflict, GatewayError, TooManySends
from gateway.run.call import Forwarded
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.pending import PendingWrites
from gateway.run.receipt import Accounts, Receipt
from gateway.run.sink import ClientGone, Sink, UnseenSink
from storage.errors import NotFound, StoreError
from storage.listing import MOST_TAGS, AgentEntry, AgentFilter
from storage.records import DEFAULT, Run, RunState
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")
# Agents that one message goes to, and how many of them run at a time. No measurement.
MOST_AGENTS = 32
AT_ONCE = 8
# How many agents one message may pass through.
MOST_DEPTH = 4
# Slots of runs that wait, which other runs may have meanwhile.
MOST_IDLE = 112
_PAGE = 100  # agents that one read returns
_TOO_DEEP = f"messages between agents go {MOST_DEPTH} agents deep at most, and this turn is the last. Nothing was sent"
_CIRCLE = "{name} waits for the end of this turn, so neither would ever go on. Nothing was sent"
_PAUSED = "{name} waits for a person's answer to calls that it has made. Nothing was sent; try again later"
_LATE = "{name} did not answer within {seconds:.0f} s. It has the message, and goes on by itself"
_CLOSED = "messages are delivered once the gateway has started. Nothing was sent"
_NO_TIME = "the others took all of the time. Nothing was sent to {name}"


class SendsRuns(Protocol):
    """Performs a run while its caller waits."""

    async def send(
        self,
        run_request: RunRequest,
        view: Callable[[RunStart], MakesView],
        sink: Sink,
        receipt: Receipt,
        awaited_by: Wait | None = None,
    ) -> RunResult: ...


class AcceptsRuns(Protocol):
    """Performs runs in the background."""

    async def accept(self, run_request: RunRequest) -> Run: ...


class Speaker(Struct, frozen=True):
    """A turn of an agent that speaks to others."""

    project: str
    # Its public id.
    agent: str
    name: str
    waiter: Waiter
    # Headers and fields of its request that are passed on with the other agents' requests.
    forwarded: Forwarded
    # It is a background run, which occupies a slot of the worker.
    holds_slot: bool = False

    @staticmethod
    def of(
        context: MemoryContext, waiter: Waiter, forwarded: Forwarded, *, holds_slot: bool = False
    ) -> Speaker:
        scope, spec = context.agent.scope, context.request.spec
        return Speaker(
            scope.project, ids.id_of("agent", context.agent.uid), spec.name, waiter, forwarded, holds_slot
        )


class AgentMessaging:
    """Delivers messages between the agents of a project. There is one for the process."""

    def __init__(
        self,
        registry: Registry,
        store: Store,
        runs: SendsRuns,
        pending: PendingWrites,
        wait_s: float,
        accounts: Accounts,
    ) -> None:
        """wait_s: how long an answer is waited for."""
        self._registry = registry
        self._accounts = accounts
        self._store = store
        self._runs = runs
        self._pending = pending
        self._wait_s = wait_s
        self._waits = Waits()
        self._accepts: AcceptsRuns | None = None
        self._idle: Counter[Waiter] = Counter()

    @property
    def idle(self) -> int:
        """How many runs in the background do nothing but wait for others, which may need their slots to answer."""
        return min(len(self._idle), MOST_IDLE)

    def deliver(self, accepts: AcceptsRuns) -> None:
        """Delivers messages without an answer as runs in the background, which need those of live turns themselves."""
        self._accepts = accepts

    def of(self, sender: Speaker, run: int | None) -> SenderMessages:
        """Returns what a turn sends messages with. run: the row of the sender's run, if it has one."""
        return SenderMessages(self, sender, run)

    async def find(self, project: str, name: str) -> tuple[str, str]:
        """Returns (public name, name) of an agent. name: its id or its name. Raises: NotFound, BadRequest."""
        uid = ids.uid_of("agent", name)
        if uid is None:
            found = await self._registry.resolve(project, name)
            if found is None:
                raise NotFound(f"there is no agent {name!r}")
            return found.spec.uid, found.spec.name
        entry = await self._registry.get_entry(project, uid)
        return uid, entry.name

    async def tagged(
        self, project: str, every: Sequence[str], some: Sequence[str], but: str
    ) -> Sequence[tuple[str, str]]:
        """Returns (public name, name) of agents that were made over REST to speak, by tags.

        every: tags that an agent has all of.
        some: tags that it has one of; empty: any will do.
        but: the id of an agent that is left out.
        """
        found: list[tuple[str, str]] = []
        # A statement looks for so many; with more of them each agent's own tags decide alone, as they do at last.
        sieve = every or some
        wanted = AgentFilter(tags=sieve if len(sieve) <= MOST_TAGS else (), needs_all_tags=bool(every))
        after: str | None = None
        while len(found) < MOST_AGENTS:
            page = await self._store.defined_agents.list(
                project, wanted, after=after, limit=_PAGE, newest_first=False
            )
            found += [(each.agent.uid, each.name) for each in await self._among(page, every, some, but)]
            if len(page) < _PAGE:
                break
            after = page[-1].agent.uid
        return found[:MOST_AGENTS]

    async def _among(
        self, page: Sequence[AgentEntry], every: Sequence[str], some: Sequence[str], but: str
    ) -> Sequence[AgentEntry]:
        tags = await self._store.defined_agents.tags_of([each.agent.id for each in page])
        return [
            each
            for each in page
            if each.definition is not None
            and each.definition.body.get("kind") not in READING_KINDS
            and ids.id_of("agent", each.agent.uid) != but
            and set(every).issubset(tags[each.agent.id])
            and (not some or not set(some).isdisjoint(tags[each.agent.id]))
        ]

    async def ask(
        self, sender: Speaker, run: int | None, uid: str, name: str, text: str, until: float
    ) -> AgentAnswer:
        """Returns an agent's answer.

        run: the row of the one that waits, if it has one.
        until: by the loop's clock.
        """
        to = AgentAnswer(ids.id_of("agent", uid), name)
        if sender.waiter.depth >= MOST_DEPTH:
            return to.failed("depth", _TOO_DEEP)
        try:
            with self._idling(sender), self._waits.begin(sender.waiter, (uid, DEFAULT)) as wait:
                found = await self._registry.resolve_uid(sender.project, uid)
                return await self._answer(sender, run, found, to, text, wait, until)
        except WaitsInCircle:
            return to.failed("circle", _CIRCLE.format(name=name))
        except StoreError as error:
            return to.failed("missing" if isinstance(error, NotFound) else "failed", error.message)

    @contextmanager
    def _idling(self, sender: Speaker) -> Iterator[None]:
        """Releases the slot of the run that waits, until its answer is there."""
        if not sender.holds_slot:
            yield
            return
        self._idle[sender.waiter] += 1
        self._store.jobs.wake_here()
        try:
            yield
        finally:
            self._idle[sender.waiter] -= 1
            if not self._idle[sender.waiter]:
                del self._idle[sender.waiter]

    async def _answer(
        self,
        sender: Speaker,
        parent: int | None,
        resolved: ResolvedAgent,
        to: AgentAnswer,
        text: str,
        wait: Wait,
        until: float,
    ) -> AgentAnswer:
        asked = replace(_request(sender, resolved, text, is_awaited=True), parent=parent)
        sink = UnseenSink()
        run = asyncio.ensure_future(self._run(asked, to, sink, wait))
        # The process waits for it when it stops, also if its caller does not any more.
        self._pending.add(run, "An answer to an agent")
        try:
            seconds = max(0.0, until - asyncio.get_running_loop().time())
            done, _ = await asyncio.wait([run], timeout=seconds)
        except asyncio.CancelledError:
            sink.presence.leave()
            raise
        if done:
            return run.result()
        return to.failed("timeout", _LATE.format(name=to.name, seconds=self._wait_s))

    async def _run(
        self, run_request: RunRequest, to: AgentAnswer, sink: UnseenSink, wait: Wait
    ) -> AgentAnswer:
        """Returns what becomes of a run. It never raises."""
        try:
            with self._accounts.work(run_request.scope.project) as receipt:
                result = await self._runs.send(run_request, lambda _: MakesUnseen(), sink, receipt, wait)
        except TooManySends as error:
            return to.failed("busy", error.message)
        except Conflict:
            return to.failed("waiting", _PAUSED.format(name=to.name))
        except GatewayError as error:
            return to.failed("failed", f"{to.name} failed: {error.message}")
        except ClientGone:
            return to.failed("failed", f"{to.name} was cancelled")
        except Exception:
            _log.exception("A message from one agent to another failed by a fault in the gateway.")
            return to.failed("failed", f"{to.name} is not available at the moment")
        return _answer_of(result, to)

    async def send(self, sender: Speaker, uid: str, name: str, text: str) -> AgentAnswer:
        """Sends an agent a message. The result confirms that it is on disk, no more."""
        to = AgentAnswer(ids.id_of("agent", uid), name)
        if sender.waiter.depth >= MOST_DEPTH:
            return to.failed("depth", _TOO_DEEP)
        try:
            found = await self._registry.resolve_uid(sender.project, uid)
            if await self._is_paused(found):
                return to.failed("waiting", _PAUSED.format(name=name))
            if self._accepts is None:
                return to.failed("failed", _CLOSED)
            await self._accepts.accept(_request(sender, found, text, is_awaited=False))
        except NotFound:
            return to.failed("missing", f"there is no agent {to.id!r}")
        except (GatewayError, StoreError) as error:
            return to.failed("failed", f"{name} cannot be told: {error.message}")
        return to

    async def _is_paused(self, resolved: ResolvedAgent) -> bool:
        agent = await self._store.agents.find(resolved.scope)
        return agent is not None and bool(await self._store.runs.paused([agent.id], DEFAULT))

    async def ask_tagged(
        self, sender: Speaker, run: int | None, every: Sequence[str], some: Sequence[str], text: str
    ) -> Sequence[AgentAnswer]:
        """Returns the answers of all agents with these tags, which share the time of one wait."""
        until = asyncio.get_running_loop().time() + self._wait_s
        slots = asyncio.Semaphore(AT_ONCE)

        async def ask(uid: str, name: str) -> AgentAnswer:
            try:
                async with asyncio.timeout_at(until):
                    await slots.acquire()
            except TimeoutError:
                return AgentAnswer(ids.id_of("agent", uid), name).failed(
                    "timeout", _NO_TIME.format(name=name)
                )
            try:
                return await self.ask(sender, run, uid, name, text, until)
            finally:
                slots.release()

        others = await self.tagged(sender.project, every, some, sender.agent)
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(*other)) for other in others]
        return [each.result() for each in asked]

    def end_of_wait(self) -> float:
        """Returns when a wait that begins now ends, by the loop's clock."""
        return asyncio.get_running_loop().time() + self._wait_s


class SenderMessages(Struct, frozen=True):
    """Sends the messages of one turn (`SendsToAgents`). Errors are answers."""

    messaging: AgentMessaging
    sender: Speaker
    # The row of the sender's run, if it has one.
    run: int | None

    async def ask(self, agent: str, text: str) -> AgentAnswer:
        found = await self._find_agent(agent)
        if isinstance(found, AgentAnswer):
            return found
        return await self.messaging.ask(self.sender, self.run, *found, text, self.messaging.end_of_wait())

    async def ask_tagged(self, every: Sequence[str], some: Sequence[str], text: str) -> Sequence[AgentAnswer]:
        return await self.messaging.ask_tagged(self.sender, self.run, every, some, text)

    async def send(self, agent: str, text: str) -> AgentAnswer:
        found = await self._find_agent(agent)
        return (
            found if isinstance(found, AgentAnswer) else await self.messaging.send(self.sender, *found, text)
        )

    async def _find_agent(self, agent: str) -> tuple[str, str] | AgentAnswer:
        try:
            return await self.messaging.find(self.sender.project, agent)
        except NotFound:
            return AgentAnswer(agent, agent).failed("missing", f"there is no agent {agent!r}")
        except (BadRequest, StoreError) as error:
            return AgentAnswer(agent, agent).failed("failed", error.message)


def _request(sender: Speaker, resolved: ResolvedAgent, text: str, *, is_awaited: bool) -> RunRequest:
    return RunRequest(
        resolved.spec,
        resolved.scope,
        messages=(message_of(sender, text, is_awaited=is_awaited),),
        forwarded=sender.forwarded,
        depth=sender.waiter.depth + 1,
        spares_pauses=True,
    )


def message_of(sender: Speaker, text: str, *, is_awaited: bool) -> WireMessage:
    """Returns a message of an agent as the other one gets it."""
    how = "It waits for your answer: what you say in this turn." if is_awaited else "It waits for no answer."
    return as_system(
        f"Message from the agent {sender.name} ({sender.agent}). {how}\n\n{text}", sender=sender.agent
    )


def _answer_of(result: RunResult, to: AgentAnswer) -> AgentAnswer:
    replies = [
        without_fillers_and_thoughts(orjson.loads(e.shown_reply)) for e in result.steps if e.shown_reply
    ]
    text = "\n\n".join(each["content"] for each in replies if isinstance(each.get("content"), str))
    run = result.run
    if run.stop == StopReason.REQUIRES_APPROVAL:
        so_far = f" So far it has said: {text}" if text else ""
        error = f"{to.name} has no answer yet: a person has to answer calls that it has made.{so_far}"
        return to.failed("waiting", error)
    if run.state is not RunState.COMPLETED:
        return to.failed("failed", f"{to.name} did not finish its turn: {run.stop}")
    return replace(to, text=text)
