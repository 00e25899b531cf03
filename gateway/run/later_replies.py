"""Native replies that an upstream makes after its answer: what is noted of each until it is seen to have ended.

A note is a run without a conversation and without a job. It holds the request, so whoever sees the reply, in any
process, can write the turn; a forgetting in its memory erases it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from gateway.core.request.identity import Identity
from gateway.run.memory.stored_turns import find_turn
from storage.commands import ForgetTarget
from storage.records import Agent, Run, RunState, Scope
from storage.sql.store import Store

_RESPONSE: Final = "response"  # the kind of the text


class LaterReply(Struct, frozen=True):
    """A request whose reply is still to come. Keys and headers of the caller are not in it."""

    body: str
    # Below the upstream's base URL, with the query.
    path: str
    # Who asks, as it was decided when the request came.
    identity: Identity
    # The names of conversation and turn that have the user's words until then.
    turn: tuple[str, str]


class NotedReply(Struct, frozen=True):
    """A note as it is stored."""

    agent: Agent
    run: Run
    reply: LaterReply


@dataclass(eq=False)
class LaterReplies:
    """All of the process. now: seconds since the epoch. Its methods raise StoreError."""

    store: Store
    now: Callable[[], float]

    async def note(self, scope: Scope, epoch: int, id: str, reply: LaterReply) -> None:
        """Notes a reply by its upstream's id, unless something was forgotten in its memory since that epoch."""
        agent = await self.store.agents.find_or_draft(scope)
        now = self.now()
        run = Run(0, _name(scope.project, id), agent.id, 0, RunState.COMPLETED, now)
        await self.store.runs.note_response(run, msgspec.json.encode(reply), epoch)

    async def find(self, project: str, id: str) -> NotedReply | None:
        """Returns the note of a reply; None: there is none, or its words were forgotten."""
        found = await self.store.runs.response(project, _name(project, id))
        if found is None:
            return None
        agent, run = found
        texts = await self.store.runs.texts(agent.id, run.id, _RESPONSE)
        if not texts or not texts[0].data:
            return None
        return NotedReply(agent, run, msgspec.json.decode(texts[0].data, type=LaterReply))

    async def forget(self, noted: NotedReply) -> None:
        """Forgets what a note is of: the reply was deleted before it was seen to have ended."""
        found = await find_turn(self.store, noted.agent.scope.project, noted.reply.turn)
        await self.remove(noted)
        if found is not None:
            await self.store.forgetting.forget(found.agent.id, ForgetTarget(exchanges=list(found.rows)))

    async def remove(self, noted: NotedReply) -> None:
        await self.store.runs.remove(noted.agent.id, noted.run.id)


def _name(project: str, id: str) -> str:
    """Returns the name of a note's run, which no response of the gateway's own has."""
    return "native-" + blake2b(f"{project}\0{id}".encode(), digest_size=28).hexdigest()
