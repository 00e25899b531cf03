"""The public id of a conversation that begins."""

from __future__ import annotations

import random
from hashlib import blake2b

from gateway.core.conversation.hashed_list import HashedList
from gateway.run.memory.memory_context import MemoryRequest
from storage.commands import MemorySnapshot
from storage.records import Agent

# Not secure, since the name of a conversation opens nothing.
_id_generator = random.Random()


def make_uid_from_opening(
    request: MemoryRequest, agent: Agent, snapshot: MemorySnapshot, listing: HashedList
) -> str:
    """Returns the public id of a conversation that begins.

    Requests that begin the same conversation at the same time need the same name before one of them is written. So it
    is a hash of the client's own name for the conversation. Without such a name, it is a hash of the messages and of
    the memory's next number, since an earlier conversation may have begun alike. The epoch is hashed too: after a
    forgetting it is another conversation.
    """
    key = request.identity.conversation_key
    seed = (
        b"m%d " % snapshot.next_seq + listing.hash_path(len(listing)) if key is None else b"k" + key.encode()
    )
    return blake2b(b"%d %b" % (agent.epoch, seed), key=agent.secret, digest_size=16).hexdigest()


def make_conversation_uid() -> str:
    """Returns a public id for a conversation that no list of a client begins."""
    return f"{_id_generator.getrandbits(128):032x}"
