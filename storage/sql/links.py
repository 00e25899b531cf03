"""Links: each opens one memory to its person, for a time.

Only the hash of a link's token is stored, so the database reveals no token. Every gateway of the database knows a link,
also after a restart.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import orjson

from storage.database import Connection
from storage.digests import digest_secret
from storage.link_record import FoundLink
from storage.records import Scope
from storage.sql.group import StoreGroup, reads, writes
from storage.sql.statements import load

SQL = load("links.sql")

# The random bytes of a token, of which only the digest is stored.
_TOKEN_BYTES = 32


class Links(StoreGroup):
    """Makes links and finds them again."""

    @writes
    async def _add_link(
        self, connection: Connection, digest: bytes, values: Sequence[object], now: float
    ) -> None:
        """Adds a link, and deletes the links that ended more than a day ago."""
        await connection.run(SQL["links_age"], (now,))
        await connection.run(SQL["link_add"], (digest, *values))

    async def create(
        self, agent_row: int, key_id: int, expires_at: float, rights: Sequence[str], now: float
    ) -> str:
        """Returns the token of a new link to a memory. key_id: the id of the gateway key that makes it; 0: no key."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        await self._add_link(
            digest_secret(token), (agent_row, key_id, expires_at, orjson.dumps(list(rights)).decode()), now
        )
        return token

    @reads
    async def find(self, connection: Connection, token: str, now: float) -> FoundLink | None:
        """Returns the link of a token; None: there is no such link, or it or its key has ended.

        It has ended as well if its key is bound to another user now.
        """
        row = await connection.fetch_row(SQL["link_find"], (digest_secret(token), now))
        if row is None:
            return None
        expires_at, rights, uid, *scope, paused_at = row
        return FoundLink(uid, Scope(*scope), expires_at, tuple(orjson.loads(rights)), paused_at)
