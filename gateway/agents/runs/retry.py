"""The same send again: what became of it before, so that it is answered once.

The sends of a conversation queue, so by the time it is asked the one before has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from gateway.agents.runs.message_listing import exchanges_of
from gateway.core.conversation.canonical import Canon, WireMessage, is_user
from gateway.core.conversation.listed import listed
from gateway.core.conversation.private import private_of
from gateway.core.conversation.stored_path import refused
from gateway.core.ids import Place, place_of
from gateway.core.turn.calls import CallDecision
from storage.commands import ConversationPath
from storage.errors import NotFound
from storage.records import Agent, Exchange, Run, RunState
from storage.sql.store import Store


class SentBefore(Struct, frozen=True):
    """A send that came before."""

    # The run that the earlier request began.
    run: Run
    agent: Agent
    # The run's exchanges, with their messages.
    steps: tuple[Exchange, ...]
    # The earlier request is answered; nothing is sent upstream.
    is_answered: bool
    # The messages have to be written again; else they are stored already.
    is_resent: bool


class SendMarks(Struct, frozen=True):
    """The marks by which a send is known again."""

    # The conversation's name.
    conversation: str
    # messages, decisions: those of the send, the decisions first.
    messages: Sequence[WireMessage]
    decisions: Sequence[CallDecision]
    # The digest of the client's id of the request. None: a request is the same if it has the messages or answers
    # of the conversation's newest run.
    otid: bytes | None
    # The initial messages of a conversation.
    initial: Sequence[WireMessage] = ()


class _EndedRun(Struct, frozen=True):
    """A run that has ended."""

    run: Run
    # The run's exchanges, if the last one is an answer.
    answered: tuple[Exchange, ...]
    # A part of its last reply was sent to the client.
    is_cut: bool
    # The run's first exchange and those that it replaced, newest first.
    begins: Sequence[Exchange]

    @property
    def is_completed(self) -> bool:
        return self.run.state is RunState.COMPLETED


async def sent_before(
    store: Store,
    agent: Agent,
    marks: SendMarks,
    ended: Callable[[Run], Awaitable[Run]] | None = None,
) -> SentBefore | None:
    """Returns what became of a send before; None: it is new.

    ended: looks at a run that has not ended, and ends it if no process performs it any more. Raises: StoreError.
    """
    run = await _run_before(store, agent, marks)
    if run is not None and not run.is_over and ended is not None:
        run = await ended(run)
    if run is None or not run.is_over:
        return None
    before = await _ended_run(store, agent, marks.conversation, run)
    if marks.decisions:
        return await _decided_before(store, agent, marks, before)
    return await _resent(store, agent, marks, before)


async def _run_before(store: Store, agent: Agent, marks: SendMarks) -> Run | None:
    """Returns the run that a send may have been before: the one of its id, else the newest of its conversation."""
    if marks.otid is not None:
        return await store.runs.by_otid(agent.id, marks.otid)
    own = await path_of(store, agent, marks.conversation)
    found = None if own is None else own.snapshot.conversation
    return None if found is None else await store.runs.newest(agent.id, found.id)


async def _ended_run(store: Store, agent: Agent, conversation: str, run: Run) -> _EndedRun:
    entries = await store.runs.steps(run)
    exchanges = [await store.turns.exchange(agent, entry.step.exchange) for entry in entries]
    steps = tuple(e for e in exchanges if e is not None)
    answered = tuple(await exchanges_of(store, agent, run)) if run.state is RunState.COMPLETED else steps
    is_cut = bool(steps) and entries[-1].step.stop is not None and bool(steps[-1].size)
    # A process that died has left no step of a call that it was making.
    first = next(iter(answered), None) or await _unanswered(store, agent, conversation)
    begins = [] if first is None else await _beginnings(store, agent, first)
    return _EndedRun(run, answered, is_cut, begins)


async def _decided_before(
    store: Store, agent: Agent, marks: SendMarks, before: _EndedRun
) -> SentBefore | None:
    """Returns what became of answers to calls."""
    run, answered, is_completed = before.run, before.answered, before.is_completed
    if any([await _is_answered(store, agent, e, marks.decisions) for e in before.begins]):
        # A model cannot be asked again after its own reply.
        return SentBefore(run, agent, answered, is_completed or before.is_cut, is_resent=False)
    return None if marks.otid is None else SentBefore(run, agent, answered, is_completed, is_resent=True)


async def _resent(store: Store, agent: Agent, marks: SendMarks, before: _EndedRun) -> SentBefore | None:
    """Returns what became of messages."""
    run, answered, begins = before.run, before.answered, before.begins
    if not begins or not _begins_with(agent, marks, begins):
        # Another send under the same id is a new one, and takes the id.
        return None if marks.otid is None else SentBefore(run, agent, (), is_answered=False, is_resent=True)
    if before.is_completed:
        return SentBefore(run, agent, answered, is_answered=True, is_resent=False)
    # Where a part of a reply was sent, the message is answered again.
    is_resent = before.is_cut or await _is_withheld(store, agent, marks.conversation, begins[0])
    return SentBefore(run, agent, answered, is_answered=False, is_resent=is_resent)


def _begins_with(agent: Agent, marks: SendMarks, begins: Sequence[Exchange]) -> bool:
    """Returns whether a run began with these messages. One that went on in place of another has that one's id."""
    if marks.otid is not None and not any(map(is_user, begins[0].inputs)):
        return True
    atoms = Canon(agent.secret).atoms
    sent, initial = tuple(map(atoms, marks.messages)), tuple(map(atoms, marks.initial))
    return begins[-1].inputs in (sent, initial + sent)


async def _beginnings(store: Store, agent: Agent, first: Exchange) -> list[Exchange]:
    """Returns the first exchange of a run, and where it has no message, since it goes on in place of one that had
    failed, those above it up to the one that has: a message, or answers to a pause."""
    found = [first]
    while found[-1].parent is not None and not any(map(is_user, found[-1].inputs)):
        above = await store.turns.exchange(agent, found[-1].parent)
        if (
            above is None
            or above.conversation != first.conversation
            or await _has_waited(store, agent, above)
        ):
            break
        found.append(above)
    return found


async def _has_waited(store: Store, agent: Agent, e: Exchange) -> bool:
    """Returns whether a run ended with this exchange, because its calls wait for an answer."""
    try:
        return bool((await store.runs.step(agent.scope.project, agent.uid, e.seq)).step.waiting)
    except NotFound:
        # It is of a chat completion that was written as a whole.
        return False


async def _is_answered(store: Store, agent: Agent, e: Exchange, decisions: Sequence[CallDecision]) -> bool:
    """Returns whether an exchange begins with what these answers gave.

    Results may be for calls that wait now, where a model names its calls alike. A permission is not: no one has seen
    yet, perhaps, what waits now.
    """
    results = [m.message for m in listed(e) if m.message.get("role") == "tool"]
    given = {m.get("tool_call_id") for m in results}
    asks = await _asking(store, agent, e)
    step = await store.runs.waiting(agent.id, e.conversation)
    # The step that was answered here may be known as one that waits until another one does.
    waits = {} if step is None or step.exchange == e.parent else step.waiting
    for each in decisions:
        if each.request is not None and asks != place_of("message", each.request):
            return False
        if each.call_id is None:
            # About all calls that a person had to allow.
            if not any(private_of(m).get("approval") for m in results):
                return False
        elif each.call_id not in given or (each.result is not None and each.call_id in waits):
            return False
    return True


async def _asking(store: Store, agent: Agent, e: Exchange) -> Place | None:
    """Returns the place of the message that asked for what an exchange begins with."""
    above = None if e.parent is None else await store.turns.exchange(agent, e.parent)
    return None if above is None else Place(agent.uid, above.seq + len(above.inputs))


async def path_of(store: Store, agent: Agent, name: str) -> ConversationPath | None:
    """Returns the end of a conversation."""
    return await store.stored_paths.path(agent, name, 1)


async def _is_withheld(store: Store, agent: Agent, name: str, e: Exchange) -> bool:
    """Returns whether an exchange is in no prompt: the upstream has refused it, or one after it."""
    own = await path_of(store, agent, name)
    return e.superseded or (own is not None and e.id in refused(own.path))


async def _unanswered(store: Store, agent: Agent, name: str) -> Exchange | None:
    """Returns the exchange with which a conversation ends, if it has no reply."""
    own = await path_of(store, agent, name)
    last = own.path[-1] if own is not None and own.path else None
    return last if last is not None and last.reply is None else None
