"""The requests of native replies that an upstream makes in the background, after its answer.

Each request is stored until its reply ends, as a run without a conversation and without a job. So any process that sees
the end of the reply can write the turn. A forgetting in its memory erases the request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import msgspec
from msgspec import Struct

from gateway.core.request.identity import Identity
from gateway.core.turn_name import TurnName
from gateway.run.memory.named_turns import find_turn
from storage.forget_commands import ForgetTarget
from storage.records import Agent, Scope
from storage.run_records import Run, RunState, RunTextKind
from storage.sql.store import Store


class DeferredReply(Struct, frozen=True):
    """The request of a reply that is still to come. Keys and headers of the caller are not in it."""

    # The body of the client's request.
    body: str
    # The path below the upstream's base URL, with the query.
    path: str
    # The user and the memory, as they were decided when the request came.
    identity: Identity
    # The turn that has the user's message until then.
    turn: TurnName


class DeferredReplyRow(Struct, frozen=True):
    """A deferred reply as it is stored."""

    # The owner of the memory.
    agent: Agent
    # The run as which the reply is stored.
    run: Run
    # The request of the reply.
    reply: DeferredReply


@dataclass(eq=False)
class DeferredReplies:
    """The deferred replies in the store. Its methods raise StoreError."""

    # The store of the replies.
    store: Store
    # Returns the seconds since the epoch.
    now: Callable[[], float]

    async def add(self, scope: Scope, epoch: int, reply_id: str, reply: DeferredReply) -> None:
        """Stores a reply by its upstream's id, unless its memory has another epoch by now.

        epoch: the epoch of the memory when the request was read.
        """
        agent = await self.store.agents.find_or_draft(scope)
        run = Run(
            id=0,
            uid=_make_run_uid(scope.project, reply_id),
            agent_row=agent.id,
            conversation_row=0,
            state=RunState.COMPLETED,
            created=self.now(),
        )
        await self.store.responses.add_made_upstream(run, msgspec.json.encode(reply), epoch)

    async def find(self, project: str, reply_id: str) -> DeferredReplyRow | None:
        """Returns a reply by its upstream's id, or None if it is not stored or its request was forgotten."""
        stored_response = await self.store.responses.find(project, _make_run_uid(project, reply_id))
        if stored_response is None:
            return None
        agent, run = stored_response
        texts = await self.store.run_texts.load_texts(agent.id, run.id, RunTextKind.RESPONSE)
        if not texts or not texts[0].data:
            return None
        return DeferredReplyRow(agent, run, msgspec.json.decode(texts[0].data, type=DeferredReply))

    async def forget(self, row: DeferredReplyRow) -> None:
        """Forgets the turn of a reply, which was deleted before it was seen to have ended."""
        turn = await find_turn(self.store, row.agent.scope.project, row.reply.turn)
        if turn is not None:
            target = ForgetTarget(exchange_rows=list(turn.rows), keeps_replaced=True)
            await self.store.forgetting.forget(turn.agent.id, target)
        # The last step, so that a client can ask again after an error.
        await self.remove(row)

    async def remove(self, row: DeferredReplyRow) -> None:
        await self.store.responses.remove(row.agent.id, row.run.id)


def _make_run_uid(project: str, reply_id: str) -> str:
    """Returns the public id of a reply's run. No response of the gateway's own has such an id."""
    return "native-" + blake2b(f"{project}\0{reply_id}".encode(), digest_size=28).hexdigest()
