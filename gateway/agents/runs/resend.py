"""Finds the earlier send that a resent send repeats, and its outcome, so that both are answered by one run.

The sends of a conversation queue, so the earlier send has ended when the resent send is first in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.repeated_messages import count_repeated_messages
from gateway.agents.runs.abandoned_runs import AbandonedRuns
from gateway.agents.runs.run import RoutedSend, RunRequest
from gateway.agents.runs.stored_run import find_step, load_exchanges_of_run
from gateway.core.conversation.canonical import MessageHasher, is_user
from gateway.core.conversation.kind import QueueName
from gateway.core.conversation.private import read_private
from gateway.core.conversation.stored_messages import list_messages
from gateway.core.conversation.stored_path import find_refused_ids
from gateway.core.ids import ObjectRef, parse_ref
from gateway.run.memory.keeper import MemoryKeeper
from storage.records import DEFAULT_CONVERSATION, Agent, Exchange
from storage.run_records import Run, RunState
from storage.sql.store import Store

# A client's library sends a request again within seconds. Without an id, a request with the words of a run that was
# answered longer ago is a new send. Not measured: with a longer window, words that a user repeats count as a retry.
_RETRY_WINDOW_S = 600.0


class EarlierSend(Struct, frozen=True):
    """An earlier send, and its run."""

    # The run that answers the earlier send.
    run: Run
    # The run's exchanges, with their messages.
    steps: tuple[Exchange, ...]
    # True: the earlier send is answered, so nothing is sent upstream.
    is_answered: bool
    # True: a model that is asked now would not answer the stored messages of the send, so they are stored again.
    needs_messages: bool


class _EndedRun(Struct, frozen=True):
    """A run that has ended."""

    # The run in its final state.
    run: Run
    # The exchanges of the run's steps. If the run is completed, the exchange with its last results follows.
    exchanges: tuple[Exchange, ...]
    # True: a part of its last reply was sent to the client.
    is_cut: bool
    # The run's first exchange and the exchanges that it replaced, newest first.
    first_exchanges: Sequence[Exchange]

    @property
    def is_completed(self) -> bool:
        """True if the run has neither failed nor been cancelled."""
        return self.run.state is RunState.COMPLETED


def hash_otid(agent: Agent, conversation_name: str, otid: str | None) -> bytes | None:
    """Returns the digest of the id that a client gives a send; None if the client gives none.

    conversation_name: the name of the send's conversation, since the same id in another conversation is another send.
    """
    if not otid:
        return None
    in_agent = otid if conversation_name == DEFAULT_CONVERSATION else f"{conversation_name} {otid}"
    return MessageHasher(agent.secret).digest(in_agent.encode())


async def find_earlier_send(
    keeper: MemoryKeeper, abandoned_runs: AbandonedRuns, agent: Agent, send: RoutedSend
) -> EarlierSend | None:
    """Returns the earlier send that a send repeats, or None. Raises: StoreError.

    send: a send that is first in the queue of its conversation.
    """
    conversation_name = send.conversation_name
    if send.heard_texts is not None and any(message.get("role") == "user" for message in send.messages):
        # The client's list has the answers that the client got, so a text with an answer in the list is a new send.
        path = await _load_newest_exchanges(keeper.store, agent, conversation_name)
        hasher = MessageHasher(agent.secret)
        count = count_repeated_messages(
            path, hasher, send.messages, send.heard_texts, send.spec.initial_messages
        )
        if not count:
            return None
        send = replace(send, messages=send.messages[-count:])
    otid = hash_otid(agent, conversation_name, send.otid)
    matcher = SendMatcher(keeper.store, agent, conversation_name, send, otid)
    run = await matcher.find_candidate(keeper.now())
    if run is not None and not run.is_over:
        run = await abandoned_runs.end_if_abandoned(run, QueueName(agent.uid, conversation_name))
    return None if run is None or not run.is_over else await matcher.match(run)


class SendMatcher(Struct, frozen=True):
    """Finds the earlier send that a send repeats."""

    # The store with the earlier runs.
    store: Store
    # The agent of the send.
    agent: Agent
    # The `Conversation.name` of the send's conversation.
    conversation_name: str
    # The send, with the messages or the answers to calls that an earlier send must have as well.
    send: RunRequest
    # `hash_otid` of the send. None: a send is a repetition if it has the messages or answers of the newest run.
    otid: bytes | None

    async def find_candidate(self, now: float) -> Run | None:
        """Returns the run that the send may repeat: the run with its otid, or else the newest of its conversation.

        Returns None if there is no such run, or if the newest run was answered long ago.

        now: seconds since the epoch.

        Raises: StoreError.
        """
        if self.otid is not None:
            return await self.store.runs.find_run_by_otid(self.agent.id, self.otid)
        conversation = await self.store.stored_paths.find_conversation(self.agent, self.conversation_name)
        if conversation is None:
            return None
        run = await self.store.runs.find_newest_run(self.agent.id, conversation.id)
        if run is None or run.state is not RunState.COMPLETED or run.ended is None:
            return run
        return run if run.ended >= now - _RETRY_WINDOW_S else None

    async def match(self, run: Run) -> EarlierSend | None:
        """Returns the send of an ended run, if this send repeats it, or None. Raises: StoreError."""
        ended_run = await self._load_ended(run)
        if self.send.decisions:
            return await self._match_answers(ended_run)
        return await self._match_messages(ended_run)

    async def _load_ended(self, run: Run) -> _EndedRun:
        """Returns an ended run with its exchanges. Raises: StoreError."""
        entries = await self.store.runs.load_steps(run)
        rows = [entry.step.exchange_row for entry in entries]
        exchanges_or_none = [await self.store.turns.find_exchange(self.agent, row) for row in rows]
        steps = tuple(exchange for exchange in exchanges_or_none if exchange is not None)
        is_completed = run.state is RunState.COMPLETED
        exchanges = tuple(await load_exchanges_of_run(self.store, self.agent, run)) if is_completed else steps
        is_cut = bool(steps) and entries[-1].step.stop is not None and bool(steps[-1].size)
        first_exchange = next(iter(exchanges), None)
        if first_exchange is None and run.begun is not None:
            # The process died during the first call of the model, or the run began with calls of another run's step.
            row = await self.store.runs.find_first_exchange(run)
            first_exchange = None if row is None else await self.store.turns.find_exchange(self.agent, row)
        first_exchanges = [] if first_exchange is None else await self._load_first_exchanges(first_exchange)
        return _EndedRun(run, exchanges, is_cut, first_exchanges)

    async def _match_answers(self, ended_run: _EndedRun) -> EarlierSend | None:
        """Returns the earlier send if it has the same answers to calls, or None."""
        run, is_completed = ended_run.run, ended_run.is_completed
        if any([await self._is_answered(exchange) for exchange in ended_run.first_exchanges]):
            # A model cannot be asked again after its own reply.
            is_answered = is_completed or ended_run.is_cut
            return EarlierSend(run, ended_run.exchanges, is_answered, needs_messages=False)
        if self.otid is None:
            return None
        return EarlierSend(run, ended_run.exchanges, is_completed, needs_messages=True)

    async def _match_messages(self, ended_run: _EndedRun) -> EarlierSend | None:
        """Returns the earlier send if it has the same messages, or None."""
        run, first_exchanges = ended_run.run, ended_run.first_exchanges
        if not first_exchanges or not self._begins_with(first_exchanges):
            # Under the same id this is another send, which takes the id over.
            return None if self.otid is None else EarlierSend(run, (), is_answered=False, needs_messages=True)
        if ended_run.is_completed:
            return EarlierSend(run, ended_run.exchanges, is_answered=True, needs_messages=False)
        # If a part of a reply was sent, the message is stored and answered again.
        needs_messages = ended_run.is_cut or await self._would_stay_unanswered(ended_run)
        return EarlierSend(run, ended_run.exchanges, is_answered=False, needs_messages=needs_messages)

    def _begins_with(self, first_exchanges: Sequence[Exchange]) -> bool:
        """Returns whether a run began with the messages of the send.

        first_exchanges: the run's first exchange and the exchanges that it replaced, newest first.
        """
        if self.otid is not None and not any(map(is_user, first_exchanges[0].inputs)):
            return True  # the run replaced another run of the send, and has its otid
        atoms, send = MessageHasher(self.agent.secret).make_atoms, self.send
        sent_atoms = tuple(map(atoms, send.messages))
        initial_atoms = tuple(map(atoms, send.spec.initial_messages))
        return first_exchanges[-1].inputs in (sent_atoms, initial_atoms + sent_atoms)

    async def _load_first_exchanges(self, first: Exchange) -> list[Exchange]:
        """Returns the first exchange of a run, and the exchanges before it that it replaced, newest first.

        An exchange without messages takes the place of the failed exchange before it. The last exchange that is
        returned has messages or answers to calls.
        """
        exchanges = [first]
        while exchanges[-1].parent is not None and not any(map(is_user, exchanges[-1].inputs)):
            parent = await self.store.turns.find_exchange(self.agent, exchanges[-1].parent)
            if parent is None or parent.conversation_row != first.conversation_row:
                break
            step = await find_step(self.store, self.agent, parent)
            if step is not None and step.waiting:
                break
            exchanges.append(parent)
        return exchanges

    async def _is_answered(self, exchange: Exchange) -> bool:
        """Returns whether an exchange begins with the results of the send's decisions.

        A model may give its calls the same ids again, so results may be for the calls that wait now. A permission never
        is, since perhaps no person has seen the calls that wait now.
        """
        messages = [listed.message for listed in list_messages(exchange)]
        results = [message for message in messages if message.get("role") == "tool"]
        call_ids = {result.get("tool_call_id") for result in results}
        request = await _find_approval_request(self.store, self.agent, exchange)
        step = await self.store.runs.find_waiting_step(self.agent.id, exchange.conversation_row)
        # `find_waiting_step` also returns a step with answered calls, until another step waits.
        waits = {} if step is None or step.exchange_row == exchange.parent else step.waiting
        for decision in self.send.decisions:
            if decision.request is not None and request != parse_ref("message", decision.request):
                return False
            if decision.call_id is None:
                # The decision was about all calls that a person had to allow.
                if not any(read_private(result).get("approval") for result in results):
                    return False
            elif decision.call_id not in call_ids or (
                decision.result is not None and decision.call_id in waits
            ):
                return False
        return True

    async def _would_stay_unanswered(self, ended_run: _EndedRun) -> bool:
        """Returns whether a model that is asked now would not answer a run's message.

        Either the upstream has refused the message or a later message, so that the message is in no prompt, or another
        send was answered since.
        """
        exchange = ended_run.first_exchanges[0]
        path = await _load_newest_exchanges(self.store, self.agent, self.conversation_name)
        if exchange.superseded or exchange.id in find_refused_ids(path):
            return True
        run_exchanges = {run_exchange.id for run_exchange in (exchange, *ended_run.exchanges)}
        return any(last.reply is not None and last.id not in run_exchanges for last in path[-1:])


async def _load_newest_exchanges(store: Store, agent: Agent, conversation_name: str) -> Sequence[Exchange]:
    """Returns the exchanges of a conversation that no window has evicted; empty if the agent is gone."""
    # The smallest window has evicted all that any window has.
    stored_path = await store.stored_paths.load_path(agent, conversation_name, window_tokens=1)
    return () if stored_path is None else stored_path.path


async def _find_approval_request(store: Store, agent: Agent, exchange: Exchange) -> ObjectRef | None:
    """Returns the reference to the message with the calls that the first results of an exchange answer."""
    parent = None if exchange.parent is None else await store.turns.find_exchange(agent, exchange.parent)
    return None if parent is None else ObjectRef(agent.uid, parent.reply_seq)
