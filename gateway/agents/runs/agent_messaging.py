"""Agents that speak to one another: a message of one is a send to the other's own conversation.

A run that waits for an answer owns the other agent's run: if the first is cancelled, so is the second. After a timeout
the second goes on alone. The message is shown as the system's, with the sender's name and id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.kinds import READING_KINDS
from gateway.agents.core.waits import Deadlock, Wait, Waiter, Waits
from gateway.agents.registry.agent_resolver import AgentResolver
from gateway.agents.registry.resolved_agents import ResolvedAgent
from gateway.agents.runs.calls.call_record import is_awaiting_answers
from gateway.agents.runs.run import RunOutput, RunRequest, RunResult
from gateway.agents.tools.agent_messages import AgentAnswer, AnswerFailure
from gateway.core import ids
from gateway.core.conversation.fillers import without_fillers_and_thoughts
from gateway.core.conversation.kind import QueueName
from gateway.core.conversation.private import make_framed_system_message
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.request.requested_agent import AGENT_PREFIX
from gateway.core.turn.client_view import UnseenView
from gateway.core.turn.stop_reason import StopReason
from gateway.errors import BadRequest, Conflict, GatewayError, NotAllowed, TooManySends
from gateway.run.call import Forwarded
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.pending import PendingWrites
from gateway.run.receipts import Receipts
from gateway.run.request_context import may_ask
from gateway.run.sink import ClientGone, UnseenSink
from storage.errors import NotFound, StoreError
from storage.listing import MAX_TAGS, AgentEntry, AgentFilter, Page
from storage.records import DEFAULT_CONVERSATION
from storage.run_records import Run, RunState
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")
# The most agents that one message goes to, and the most of them that run at a time. Not measured: each is a run with
# calls of a model.
MAX_AGENTS = 32
_MAX_SENDS_AT_ONCE = 8
# The most agents that one message may pass through.
_MAX_DEPTH = 4
# The most slots of waiting runs that are released for other runs. Not measured: it bounds the runs that a chain of
# agents can begin in addition.
_MAX_RELEASED_SLOTS = 112
# The most agents that one read returns.
_PAGE = 100
_TOO_DEEP = f"messages between agents go {_MAX_DEPTH} agents deep at most, and this turn is the last. Nothing was sent"
_DEADLOCK = "{name} waits for the end of this turn, so neither would ever go on. Nothing was sent"
_AWAITS_APPROVAL = (
    "{name} waits for a person's answer to calls that it has made. Nothing was sent; try again later"
)
_LATE_ANSWER = "{name} did not answer within {seconds:.0f} s. It has the message, and goes on by itself"
_NOT_STARTED = "messages are delivered once the gateway has started. Nothing was sent"
_NO_TIME = "the others took all of the time. Nothing was sent to {name}"


class Sender(Struct, frozen=True):
    """A turn of an agent that sends messages to others."""

    # The project of the agent.
    project: str
    # The public id of the agent.
    agent_id: str
    # The name of the agent.
    name: str
    # The turn in the graph of waiting turns.
    waiter: Waiter
    # The headers and fields of the sender's request that the requests of the other agents get.
    forwarded: Forwarded
    # True: the turn is a background run, which occupies a slot of the worker.
    holds_slot: bool = False
    # The row of the turn's run; None: the turn is no run.
    run_row: int | None = None

    @staticmethod
    def of(
        context: MemoryContext, waiter: Waiter, forwarded: Forwarded, *, holds_slot: bool = False
    ) -> Sender:
        """Returns the agent of a turn as a sender, without the row of its run."""
        return Sender(
            project=context.agent.scope.project,
            agent_id=ids.make_id("agent", context.agent.uid),
            name=context.request.spec.name,
            waiter=waiter,
            forwarded=forwarded,
            holds_slot=holds_slot,
        )


class Recipient(Struct, frozen=True):
    """The agent to which a message goes."""

    # The uid of the agent.
    uid: str
    # The name of the agent.
    name: str

    def make_answer(self, text: str = "") -> AgentAnswer:
        """Returns an answer of the agent; "": the message is delivered."""
        return AgentAnswer(ids.make_id("agent", self.uid), self.name, text)

    def make_failure(self, failure: AnswerFailure, error: str) -> AgentAnswer:
        """Returns an error in place of an answer. error: the text for the model that asked."""
        return replace(self.make_answer(), failure=failure, error=error)


@dataclass(eq=False, slots=True)
class AgentMessaging:
    """Delivers messages between the agents of a project. There is one for the process."""

    # Finds the agents to which messages go.
    resolver: AgentResolver
    # The store with the agents of all projects.
    store: Store
    # Performs the send to which an agent answers, as `AgentRuns.send` does.
    perform_send: Callable[[RunRequest, RunOutput, Wait], Awaitable[RunResult]]
    # The work for which a stopping process waits, with the answers that are being made.
    pending: PendingWrites
    # The longest wait of a run for an answer, in seconds.
    wait_s: float
    # Makes the receipts of the answering runs.
    receipts: Receipts
    # Accepts a send for which no caller waits, as `RunAcceptance.accept` does. None: the gateway has not started, since
    # the acceptance is made after this object, which it uses.
    accept_send: Callable[[RunRequest], Awaitable[Run]] | None = field(default=None, init=False)
    # The graph of waiting turns, by which a deadlock is noticed.
    _waits: Waits = field(default_factory=Waits, init=False)
    # The turns that have released their slots, with the number of answers that each waits for.
    _waiting_senders: Counter[Waiter] = field(default_factory=Counter, init=False)

    @property
    def released_slots(self) -> int:
        """The number of background runs that may start in place of runs that only wait for answers."""
        return min(len(self._waiting_senders), _MAX_RELEASED_SLOTS)

    async def get_recipient(self, project: str, name: str) -> Recipient:
        """Returns an agent by its id or its name. Raises: NotFound, BadRequest."""
        uid = ids.parse_uid("agent", name)
        if uid is not None:
            return Recipient(uid, (await self.store.defined_agents.get(project, uid)).name)
        resolved = await self.resolver.resolve(project, name)
        if resolved is None:
            raise NotFound(f"there is no agent {name!r}")
        return Recipient(resolved.spec.uid, resolved.spec.name)

    async def _find_tagged(
        self, sender: Sender, match_all: Sequence[str], match_some: Sequence[str]
    ) -> Sequence[Recipient]:
        """Returns up to `MAX_AGENTS` other agents with these tags. Agents that read memories are left out."""
        recipients: list[Recipient] = []
        # A statement takes at most MAX_TAGS tags. With more tags, all agents are read, since `_has_tags` checks each.
        tags = match_all or match_some
        agent_filter = AgentFilter(tags=tags if len(tags) <= MAX_TAGS else (), needs_all_tags=bool(match_all))
        page: Page[str] = Page(limit=_PAGE, newest_first=False)
        while len(recipients) < MAX_AGENTS:
            entries = await self.store.defined_agents.list_page(sender.project, agent_filter, page)
            tags_of = await self.store.defined_agents.load_tags([entry.agent.id for entry in entries])
            recipients += [
                Recipient(entry.agent.uid, entry.name)
                for entry in entries
                if _is_conversational(entry)
                and ids.make_id("agent", entry.agent.uid) != sender.agent_id
                and _has_tags(tags_of[entry.agent.id], match_all, match_some)
            ]
            if len(entries) < _PAGE:
                break
            page = replace(page, after=entries[-1].agent.uid)
        return recipients[:MAX_AGENTS]

    async def ask(self, sender: Sender, recipient: Recipient, text: str) -> AgentAnswer:
        """Sends an agent a message, and returns its answer; an error is an answer, too.

        sender: the turn that waits for the answer, and releases its slot meanwhile.
        """
        return await self._ask_until(sender, recipient, text, self._make_deadline())

    async def _ask_until(
        self, sender: Sender, recipient: Recipient, text: str, deadline: float
    ) -> AgentAnswer:
        """Returns an agent's answer, as `ask` does. deadline: the end of the wait, by the loop's clock."""
        if sender.waiter.depth >= _MAX_DEPTH:
            return recipient.make_failure(AnswerFailure.DEPTH, _TOO_DEEP)
        queue = QueueName(recipient.uid, DEFAULT_CONVERSATION)
        try:
            with self._release_slot(sender), self._waits.begin(sender.waiter, queue) as wait:
                resolved = await self._resolve(sender, recipient)
                request = _make_run_request(sender, resolved, text, is_awaited=True)
                return await self._await_answer(request, recipient, wait, deadline)
        except Deadlock:
            return recipient.make_failure(AnswerFailure.DEADLOCK, _DEADLOCK.format(name=recipient.name))
        except NotAllowed as error:
            return recipient.make_failure(AnswerFailure.FAILED, error.message)
        except StoreError as error:
            failure = AnswerFailure.MISSING if isinstance(error, NotFound) else AnswerFailure.FAILED
            return recipient.make_failure(failure, error.message)

    async def _resolve(self, sender: Sender, recipient: Recipient) -> ResolvedAgent:
        """Returns the agent that a message goes to.

        Raises: NotFound; NotAllowed if the key of the first request may use neither the agent nor its model.
        """
        resolved = await self.resolver.resolve_uid(sender.project, recipient.uid)
        name = f"{AGENT_PREFIX}{resolved.spec.name}"
        model = resolved.spec.model or ""
        if not any(may_ask(sender.forwarded.models, model_name) for model_name in (name, model)):
            raise NotAllowed(f"the key of this request may ask neither for {name!r} nor for {model!r}")
        return resolved

    @contextmanager
    def _release_slot(self, sender: Sender) -> Iterator[None]:
        """Releases the slot of the waiting run until its answer has come."""
        if not sender.holds_slot:
            yield
            return
        self._waiting_senders[sender.waiter] += 1
        self.store.jobs.wake_here()
        try:
            yield
        finally:
            self._waiting_senders[sender.waiter] -= 1
            if not self._waiting_senders[sender.waiter]:
                del self._waiting_senders[sender.waiter]

    async def _await_answer(
        self, request: RunRequest, recipient: Recipient, wait: Wait, deadline: float
    ) -> AgentAnswer:
        """Starts the run of an agent, and returns its answer, or an error if the deadline passes first.

        If the caller is cancelled, the run is cancelled, too.
        """
        sink = UnseenSink()
        task = asyncio.ensure_future(self._run(request, recipient, sink, wait))
        # A stopping process waits for this run, even if the caller has stopped waiting.
        self.pending.add(task, "An answer to an agent")
        try:
            wait_s = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait([task], timeout=wait_s)
        except asyncio.CancelledError:
            sink.presence.leave()
            raise
        if task.done():
            return task.result()
        error = _LATE_ANSWER.format(name=recipient.name, seconds=self.wait_s)
        return recipient.make_failure(AnswerFailure.TIMEOUT, error)

    async def _run(
        self, request: RunRequest, recipient: Recipient, sink: UnseenSink, wait: Wait
    ) -> AgentAnswer:
        """Performs a run, and returns its outcome as an answer. An error is an answer, too."""
        try:
            key_id = request.forwarded.key_id
            with self.receipts.work(request.scope.project, key_id=key_id, is_awaited=True) as receipt:
                output = RunOutput(lambda _: UnseenView, sink, receipt)
                result = await self.perform_send(request, output, wait)
        except TooManySends as error:
            return recipient.make_failure(AnswerFailure.BUSY, error.message)
        except Conflict:
            return recipient.make_failure(AnswerFailure.WAITING, _AWAITS_APPROVAL.format(name=recipient.name))
        except GatewayError as error:
            return recipient.make_failure(AnswerFailure.FAILED, f"{recipient.name} failed: {error.message}")
        except ClientGone:
            return recipient.make_failure(AnswerFailure.FAILED, f"{recipient.name} was cancelled")
        except Exception:
            _log.exception("A message from one agent to another failed by a fault in the gateway.")
            return recipient.make_failure(
                AnswerFailure.FAILED, f"{recipient.name} is not available at the moment"
            )
        return _make_answer(result, recipient)

    async def send(self, sender: Sender, recipient: Recipient, text: str) -> AgentAnswer:
        """Sends an agent a message, and does not wait. Returns an empty answer once the message is stored, or an error.

        sender: the turn that sends the message.
        """
        name = recipient.name
        if sender.waiter.depth >= _MAX_DEPTH:
            return recipient.make_failure(AnswerFailure.DEPTH, _TOO_DEEP)
        try:
            resolved = await self._resolve(sender, recipient)
            agent = await self.store.agents.find(resolved.scope)
            if agent is not None and await is_awaiting_answers(self.store, agent, DEFAULT_CONVERSATION):
                return recipient.make_failure(AnswerFailure.WAITING, _AWAITS_APPROVAL.format(name=name))
            if self.accept_send is None:
                return recipient.make_failure(AnswerFailure.FAILED, _NOT_STARTED)
            await self.accept_send(_make_run_request(sender, resolved, text, is_awaited=False))
        except NotFound:
            error_text = f"there is no agent {ids.make_id('agent', recipient.uid)!r}"
            return recipient.make_failure(AnswerFailure.MISSING, error_text)
        except (GatewayError, StoreError) as error:
            return recipient.make_failure(AnswerFailure.FAILED, f"{name} got no message: {error.message}")
        return recipient.make_answer()

    async def ask_tagged(
        self, sender: Sender, match_all: Sequence[str], match_some: Sequence[str], text: str
    ) -> Sequence[AgentAnswer]:
        """Sends a message to all agents with these tags, and returns their answers. All share the time of one wait.

        match_all: the tags that an agent must have.
        match_some: the tags of which an agent must have one; empty: none is required.
        """
        deadline = self._make_deadline()
        slots = asyncio.Semaphore(_MAX_SENDS_AT_ONCE)

        async def ask_in_slot(recipient: Recipient) -> AgentAnswer:
            try:
                async with asyncio.timeout_at(deadline):
                    await slots.acquire()
            except TimeoutError:
                return recipient.make_failure(AnswerFailure.TIMEOUT, _NO_TIME.format(name=recipient.name))
            try:
                return await self._ask_until(sender, recipient, text, deadline)
            finally:
                slots.release()

        recipients = await self._find_tagged(sender, match_all, match_some)
        async with asyncio.TaskGroup() as tasks:
            tasks_of_recipients = [tasks.create_task(ask_in_slot(recipient)) for recipient in recipients]
        return [task.result() for task in tasks_of_recipients]

    def _make_deadline(self) -> float:
        """Returns the deadline of a wait that begins now, by the loop's clock."""
        return asyncio.get_running_loop().time() + self.wait_s


class AgentOutbox(Struct, frozen=True):
    """Sends the messages of one turn (`AgentMessenger`). Errors are answers."""

    # Delivers the messages.
    messaging: AgentMessaging
    # The turn that sends the messages.
    sender: Sender

    async def ask(self, agent: str, text: str) -> AgentAnswer:
        return await self._deliver(self.messaging.ask, agent, text)

    async def ask_tagged(
        self, match_all: Sequence[str], match_some: Sequence[str], text: str
    ) -> Sequence[AgentAnswer]:
        return await self.messaging.ask_tagged(self.sender, match_all, match_some, text)

    async def send(self, agent: str, text: str) -> AgentAnswer:
        return await self._deliver(self.messaging.send, agent, text)

    async def _deliver(
        self, deliver: Callable[[Sender, Recipient, str], Awaitable[AgentAnswer]], agent: str, text: str
    ) -> AgentAnswer:
        """Delivers a message to an agent. agent: the agent's id or name."""
        try:
            recipient = await self.messaging.get_recipient(self.sender.project, agent)
        except NotFound:
            error_text = f"there is no agent {agent!r}"
            return AgentAnswer(agent, agent, error=error_text, failure=AnswerFailure.MISSING)
        except (BadRequest, StoreError) as error:
            return AgentAnswer(agent, agent, error=error.message, failure=AnswerFailure.FAILED)
        return await deliver(self.sender, recipient, text)


def _is_conversational(entry: AgentEntry) -> bool:
    """Returns whether an agent has a definition, and does not read other agents' memories."""
    definition = entry.definition
    return definition is not None and definition.body.get("kind") not in READING_KINDS


def _has_tags(tags: Collection[str], match_all: Sequence[str], match_some: Sequence[str]) -> bool:
    return set(match_all).issubset(tags) and (not match_some or not set(match_some).isdisjoint(tags))


def _make_run_request(sender: Sender, resolved: ResolvedAgent, text: str, *, is_awaited: bool) -> RunRequest:
    """Returns the send of a message to another agent. is_awaited: True if the sender waits for an answer."""
    return RunRequest(
        resolved.spec,
        resolved.scope,
        messages=(_make_message(sender, text, is_awaited=is_awaited),),
        forwarded=sender.forwarded,
        depth=sender.waiter.depth + 1,
        parent_run_row=sender.run_row if is_awaited else None,
        spares_pauses=True,
    )


def _make_message(sender: Sender, text: str, *, is_awaited: bool) -> WireMessage:
    """Returns the message that the recipient gets. is_awaited: True if the sender waits for an answer."""
    wait = "It waits for your answer: what you say in this turn." if is_awaited else "It waits for no answer."
    introduction = f"Message from the agent {sender.name} ({sender.agent_id}). {wait}"
    return make_framed_system_message(f"{introduction}\n\n{text}", sender=sender.agent_id)


def _make_answer(result: RunResult, recipient: Recipient) -> AgentAnswer:
    """Returns the answer of an agent that was asked, from the result of its run."""
    shown_replies = [step.shown_reply for step in result.steps if step.shown_reply]
    replies = [without_fillers_and_thoughts(orjson.loads(reply)) for reply in shown_replies]
    text = "\n\n".join(reply["content"] for reply in replies if isinstance(reply.get("content"), str))
    run = result.run
    if run.stop == StopReason.REQUIRES_APPROVAL:
        so_far = f" So far it has said: {text}" if text else ""
        error = f"{recipient.name} has no answer yet: a person has to answer calls that it has made.{so_far}"
        return recipient.make_failure(AnswerFailure.WAITING, error)
    if run.state is not RunState.COMPLETED:
        error = f"{recipient.name} did not finish its turn: {run.stop}"
        return recipient.make_failure(AnswerFailure.FAILED, error)
    return recipient.make_answer(text)
