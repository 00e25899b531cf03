"""Gateway keys. Only their SHA-256 is stored: keys are long and random, so nothing slower is needed to protect them.

An empty file next to the database, `<real path>.keyed`, marks that there are keys: a gateway whose database cannot be
read any more must still know that it has a door.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import math
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import orjson
from msgspec.structs import replace

from storage.database import KEYS, POLL_S, Connection, Database, Row
from storage.errors import Broken, NotFound, Unavailable, WriteConflict, is_known
from storage.records import Key
from storage.sidecar import KEYED, has_sidecar, make_sidecar, remove_sidecar, resolved
from storage.sql.group import Group, reads
from storage.sql.statements import load

SQL = load("statements.sql")
_log = logging.getLogger("mnemogate")

PREFIX = "mg-"
DEFAULT_PROJECT = "default"
# Characters of a key that `keys list` shows: enough to distinguish keys, of 43 that are random.
SHOWN = 7
CACHED_KEYS = 1024
# The use of a key is recorded at most so often, so that requests do not write. Chosen: whoever asks whether a key is
# still used asks about days.
RECORDED_S = 3600.0
# After a failure.
_AGAIN_S = 60.0


def was_keyed(database: str | Path) -> bool:
    """Returns whether keys were made for this database, as far as that is known without opening it."""
    try:
        return has_sidecar(resolved(database), KEYED)
    except Broken:  # its path is not trusted, so its door stays closed
        return True


def digest_of(presented: str) -> bytes:
    """Returns the digest of a key. Any string has one, so that whatever a caller sends can be looked up."""
    return hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()


def _key(row: Sequence[Any]) -> Key:
    id, project, name, prefix, created, revoked, memory, opens, used, expires, models, *rest = row
    patterns = None if models is None else tuple(orjson.loads(models))
    return Key(id, project, name, prefix, created, revoked, memory, opens, used, expires, patterns, *rest)


def _patterns(models: Sequence[str] | None) -> str | None:
    return None if models is None else orjson.dumps(list(models)).decode()


async def _find(connection: Connection, digest: bytes, now: float) -> Key | None:
    """Returns the key with this digest, unless it is revoked. The digests are compared in constant time.

    By the secret before its last rotation it ends when that does.
    """
    row = await connection.row(SQL["key_find"], (digest,))
    if row is None:
        return None
    *values, present, before = row
    key = _key(values)
    if hmac.compare_digest(present, digest):
        return key
    is_good = before is not None and hmac.compare_digest(before, digest) and now < (key.rotated_until or 0.0)
    return replace(key, expires=min(key.expires or math.inf, key.rotated_until or 0.0)) if is_good else None


async def _revoke(connection: Connection, name_or_id: str, now: float) -> Key:
    """Revokes a key; a number counts before a name. Raises: NotFound; WriteConflict: several keys have that name."""
    number = int(name_or_id) if name_or_id.isascii() and name_or_id.isdigit() and len(name_or_id) < 19 else -1
    found = [row[0] for row in await connection.rows(SQL["key_named"], (number, name_or_id))]
    if not found:
        raise NotFound(f"there is no key in use with the name or number {name_or_id!r}")
    if len(found) > 1 and found[0] != number:
        raise WriteConflict(
            f"the keys {', '.join(map(str, found))} are all named {name_or_id!r}; give a number"
        )
    row = await connection.row(SQL["key_revoke"], (now, found[0]))
    assert row is not None  # it was found in this transaction
    return _key(row)


class Keys(Group):
    """The keys of callers. Those presented lately are cached.

    So the common request costs no statement, and known callers stay known while the store is down. No other process
    writes a file; what is known of a shared database is asked again after `POLL_S`, and at once where another process
    notifies of a change.
    """

    def __init__(self, database: Database, now: Callable[[], float], path: str | None) -> None:
        super().__init__(database)
        self._path = path
        self._now = now
        self._tick = time.monotonic
        # With the time until which each is believed.
        self._known: OrderedDict[bytes, tuple[Key, float]] = OrderedDict()
        self._any = False
        self._none_until = -math.inf  # there were no keys, and that is believed until then
        self._age_s = POLL_S if database.is_shared else math.inf
        # By a key's id: from when on its use is recorded again.
        self._due: dict[int, float] = {}
        database.listen(KEYS, lambda _: self._changed())

    async def create(
        self,
        project: str,
        name: str,
        memory: str | None = None,
        opens: str | None = None,
        *,
        expires: float | None = None,
        models: tuple[str, ...] | None = None,
        user: str | None = None,
    ) -> tuple[Key, str]:
        """Returns a new key and its plain text, which cannot be retrieved again. The parameters are as in `Key`."""
        plain = PREFIX + secrets.token_urlsafe(32)
        shown, now = plain[:SHOWN], self._now()
        bounds = expires, _patterns(models), user
        values = (project, name, digest_of(plain), shown, now, memory, opens, *bounds)
        ((id,),) = await self._database.write_one(SQL["key_insert"], values)
        key = Key(id, project, name, shown, now, None, memory, opens, None, expires, models, user)
        self._made(demands_key=not key.is_operator)
        return key, plain

    async def install(self, plain: str, name: str, opens: str | None = None) -> bool:
        """Makes a key that was chosen elsewhere, unless it is there; it takes the place of the one before of that name.

        opens: as in `Key`; one of an operator is for all projects.

        Returns: False: this key was revoked. It stays revoked, and the others stay as they are.
        """
        digest, now = digest_of(plain), self._now()

        async def install(connection: Connection) -> bool:
            row = await connection.row(SQL["key_of"], (digest,))
            if row is not None and row[0] is not None:
                return False
            await connection.run(SQL["key_replace"], (now, name, digest))
            if row is None:
                project = DEFAULT_PROJECT if opens is None else ""
                values = (project, name, digest, plain[:SHOWN], now, None, opens, None, None, None)
                await connection.rows(SQL["key_insert"], values)
            return True

        done = await self._database.write(install)
        self._known = OrderedDict()
        if done:
            self._made(demands_key=opens is None)
        return done

    async def change(
        self,
        id: int,
        name: str,
        memory: str | None,
        expires: float | None,
        models: tuple[str, ...] | None,
        user: str | None,
    ) -> Key:
        """Changes a key in use. The parameters are as in `Key`. Raises: NotFound."""
        values = (id, name, memory, expires, _patterns(models), user)
        return await self._rewrite(id, lambda connection: connection.row(SQL["key_change"], values))

    async def rotate(self, id: int, overlap_s: float) -> tuple[Key, str]:
        """Gives a key in use another secret. Returns it and its plain text. Raises: NotFound, of an expired one, too.

        overlap_s: how long the present one is good still, and the links that were made with it; one before that ends
            now.
        """
        plain, now = PREFIX + secrets.token_urlsafe(32), self._now()
        until = now + overlap_s

        async def rotate(connection: Connection) -> Row | None:
            await connection.run(SQL["key_links"], (id, until))
            return await connection.row(SQL["key_rotate"], (id, digest_of(plain), plain[:SHOWN], until, now))

        return await self._rewrite(id, rotate), plain

    async def _rewrite(self, id: int, write: Callable[[Connection], Coroutine[Any, Any, Row | None]]) -> Key:
        try:
            row = await self._database.write(write)
        finally:
            self._known = OrderedDict()
            self._database.notify(KEYS)
        if row is None:
            raise NotFound(f"there is no key in use with the number {id}")
        return _key(row)

    def expiry(self, seconds: float) -> float:
        """Returns the time in so many seconds, by the clock by which keys expire."""
        return self._now() + seconds

    def has_expired(self, key: Key) -> bool:
        """Returns whether a key opens nothing any more, since it has ended."""
        return key.expires is not None and key.expires <= self._now()

    async def revoke(self, name_or_id: str) -> Key:
        """Revokes a key by its number, else by its name. Raises: NotFound; WriteConflict: several have that name."""
        now = self._now()
        try:
            return await self._database.write(lambda connection: _revoke(connection, name_or_id, now))
        finally:
            self._known = OrderedDict()
            self._database.notify(KEYS)

    @reads
    async def list(self, connection: Connection) -> tuple[Key, ...]:
        """Returns all keys, revoked ones too, oldest first."""
        return tuple(_key(row) for row in await connection.rows(SQL["key_list"]))

    async def find(self, presented: str) -> Key | None:
        """Returns the key that was presented, unless it is revoked or unknown. It may have expired.

        Raises: Unavailable.
        """
        return await self.find_digest(digest_of(presented))

    async def find_digest(self, digest: bytes) -> Key | None:
        """Returns the key with this digest, as `find` does."""
        # Keys may change while this one is read. What was read before goes into the book of before then.
        book = self._known
        known, until = book.get(digest, (None, -math.inf))
        if known is not None and self._tick() < until:
            self._record_use(known)
            return known
        try:
            key = await self._database.read(lambda connection: _find(connection, digest, self._now()))
        except Unavailable:
            if known is None:
                raise
            return known
        if key is None:
            book.pop(digest, None)
            return None
        self._record_use(key)
        book[digest] = key, self._tick() + self._age_s
        if len(book) > CACHED_KEYS:
            book.popitem(last=False)
        return key

    async def has_any(self) -> bool:
        """Returns whether a key was ever created that opens more than the page.

        Revoked ones count: revoking the last must not open the server.
        """
        if not self._any and self._tick() >= self._none_until:
            book = self._known
            found = await self._database.read(lambda connection: connection.value(SQL["key_any"]))
            self._any = self._any or bool(found)
            if book is self._known:  # else keys have changed meanwhile
                self._none_until = self._tick() + self._age_s
            self._leave_sign(self._any)
        return self._any

    @reads
    async def has_metrics_key(self, connection: Connection) -> bool:
        """Returns whether a key for /metrics alone was ever created. Revoked ones count, as with `has_any`."""
        return bool(await connection.value(SQL["key_any_metrics"]))

    def _record_use(self, key: Key) -> None:
        """Records that a key was presented, if that is due. Nothing waits for it."""
        now, due = self._now(), self._due.get(key.id)
        if due is None and key.used is not None:
            due = key.used + RECORDED_S  # by this process before, or by another
        if due is not None and due - RECORDED_S <= now < due:  # else the clock was put back
            return
        if len(self._due) >= CACHED_KEYS:
            self._due.pop(next(iter(self._due)))
        self._due[key.id] = now + RECORDED_S
        values = (now, key.id, now - RECORDED_S)

        def end(write: asyncio.Future[int]) -> None:
            if write.cancelled() or (error := write.exception()) is None:
                return
            self._due[key.id] = now + _AGAIN_S
            if not is_known(error):
                _log.warning("The last use of key %d was not recorded: %s", key.id, error)

        try:
            write = self._database.bulk(lambda connection: connection.run(SQL["key_used"], values))
        except Unavailable:  # the store's health shows it
            self._due[key.id] = now + _AGAIN_S
        else:
            write.add_done_callback(end)

    def _made(self, *, demands_key: bool = True) -> None:
        if demands_key:
            self._any = True
            self._leave_sign(True)
        self._database.notify(KEYS)

    def _changed(self) -> None:
        """Has everything asked again, but stays with what it knows while the database is down."""
        self._known = OrderedDict((digest, (key, -math.inf)) for digest, (key, _) in self._known.items())
        self._none_until = -math.inf

    def _leave_sign(self, keyed: bool) -> None:
        if self._path is None:
            return
        # Where nothing can be written the database alone has to say it.
        with contextlib.suppress(OSError, Unavailable):
            if keyed != has_sidecar(self._path, KEYED):
                if keyed:
                    os.close(make_sidecar(self._path, KEYED))
                    return
                remove_sidecar(self._path, KEYED)
                _log.warning(
                    "This database had gateway keys and now has none, as an older copy. Requests from this machine "
                    "need no key until `mnemogate keys create` makes one."
                )
