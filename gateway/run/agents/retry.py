"""The same send again: what became of it before, so that it is answered once.

The sends of a conversation queue, so by the time it is asked the one before has ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from gateway.core.conversation.append import refused
from gateway.core.conversation.canonical import Canon, WireMessage, is_user
from gateway.run.agents.messages import exchanges_of
from gateway.run.memory.line import DEFAULT
from storage.commands import Line
from storage.records import Agent, Exchange, Run, RunState
from storage.sql.store import Store


@dataclass(frozen=True, slots=True)
class SentBefore:
    """A send that came before. run: that answered it. steps: the run's, with their words.

    is_answered: it has its answer. is_said_anew: its messages are said once more; else they stand already.
    """

    run: Run
    agent: Agent
    steps: tuple[Exchange, ...]
    is_answered: bool
    is_said_anew: bool


async def sent_before(
    store: Store,
    agent: Agent,
    name: str,
    messages: Sequence[WireMessage] | None,
    otid: bytes | None,
    head: Sequence[WireMessage] = (),
    ended: Callable[[Run], Awaitable[Run]] | None = None,
) -> SentBefore | None:
    """Returns what became of a send before; None: it is new.

    name: of the conversation. messages: None: answers to a pause. otid: the digest of the client's id; None: a send
    counts as the same whose messages are those of the conversation's newest run. head: messages with which a
    conversation begins. ended: looks at a run that has not ended, and ends it if nobody performs it any more.
    Raises: StoreError.
    """
    if otid is not None:
        run = await store.runs.by_otid(agent.id, otid)
    else:
        line = await _line(store, agent, name)
        found = None if line is None else line.look.conversation
        run = None if found is None else await store.runs.newest(agent.id, found.id)
    if run is not None and not run.is_over and ended is not None:
        run = await ended(run)
    if run is None or not run.is_over:
        return None
    entries = await store.runs.steps(run)
    exchanges = [await store.turns.exchange(agent, entry.step.exchange) for entry in entries]
    steps = tuple(e for e in exchanges if e is not None)
    is_completed = run.state is RunState.COMPLETED
    told = tuple(await exchanges_of(store, agent, run)) if is_completed else steps
    if messages is None:
        return SentBefore(run, agent, told, is_completed, is_said_anew=True)
    # A process that is gone has left no step behind of a call that it was making.
    first = steps[0] if steps else await _unanswered(store, agent, name)
    atoms = Canon(agent.secret).atoms
    said, begun = tuple(map(atoms, messages)), tuple(map(atoms, head))
    # One that went on in place of a run that had failed begins without a message, and has its id.
    goes_on = first is not None and not any(map(is_user, first.inputs)) and otid is not None
    if first is None or not (goes_on or first.inputs in (said, begun + said)):
        # Another send under the same id is a new one, and takes the id.
        return None if otid is None else SentBefore(run, agent, (), False, True)
    if is_completed:
        return SentBefore(run, agent, told, True, False)
    # Where something of a reply was shown, the message is answered anew.
    is_cut = bool(steps) and entries[-1].step.stop is not None and bool(steps[-1].size)
    return SentBefore(run, agent, steps, False, is_cut or await _is_withheld(store, agent, name, first))


async def _line(store: Store, agent: Agent, name: str) -> Line | None:
    """Returns the end of a conversation."""
    key, uid = (name, None) if name == DEFAULT else (None, name)
    return await store.append.line(agent, key, uid, 1)


async def _is_withheld(store: Store, agent: Agent, name: str, e: Exchange) -> bool:
    """Returns whether an exchange is in no prompt: the upstream has refused it, or one behind it."""
    line = await _line(store, agent, name)
    return e.superseded or (line is not None and e.id in refused(line.path))


async def _unanswered(store: Store, agent: Agent, name: str) -> Exchange | None:
    """Returns the exchange with which a conversation ends, if it has no reply."""
    line = await _line(store, agent, name)
    tip = line.path[-1] if line is not None and line.path else None
    return tip if tip is not None and tip.reply is None else None
