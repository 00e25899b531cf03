"""Gateway keys. Only their SHA-256 is stored: keys are long and random, so nothing slower is needed to protect them."""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import orjson
from msgspec.structs import replace

from storage.database import KEYS, POLL_S, Connection, Database, Row
from storage.digests import digest_secret
from storage.errors import NotFound, StoreUnavailable, WriteConflict
from storage.key_record import KEY_PREFIX, Key
from storage.records import DEFAULT_PROJECT
from storage.sql.group import StoreGroup, reads
from storage.sql.key_uses import KeyUses
from storage.sql.keyed_file import update_keyed_file
from storage.sql.statements import load, load_column

SQL = load("keys.sql")

# The characters of a key that `keys list` shows: enough to distinguish keys, of 43 that are random.
SHOWN_CHARS = 7
# The random bytes of a key.
_SECRET_BYTES = 32
# Every number with so many digits fits into an integer of the database, of 64 bits.
_MAX_ID_DIGITS = 18
# The most keys in the cache. Not measured: a key that is not cached is read from the database.
CACHED_KEYS = 1024


def _make_key(row: Sequence[Any]) -> Key:
    (
        key_id, project, name, prefix, created, revoked, memory, opens, used, expires, models, user, rotated_until
    ) = row  # fmt: skip
    return Key(
        id=key_id,
        project=project,
        name=name,
        prefix=prefix,
        created=created,
        revoked=revoked,
        memory=memory,
        opens=opens,
        used=used,
        expires=expires,
        models=None if models is None else tuple(orjson.loads(models)),
        user=user,
        rotated_until=rotated_until,
    )


def _dump_patterns(models: Sequence[str] | None) -> str | None:
    return None if models is None else orjson.dumps(list(models)).decode()


async def _find_key(connection: Connection, digest: bytes, now: float) -> Key | None:
    """Returns the key with this digest, unless it is revoked. The digests are compared in constant time.

    A key that is found by its secret from before its last rotation is returned with the expiry of that secret.
    """
    row = await connection.fetch_row(SQL["key_find"], (digest,))
    if row is None:
        return None
    *values, present_digest, previous_digest = row
    key = _make_key(values)
    if hmac.compare_digest(present_digest, digest):
        return key
    valid_until = key.rotated_until or 0.0
    if previous_digest is None or not hmac.compare_digest(previous_digest, digest) or valid_until <= now:
        return None
    return replace(key, expires=valid_until if key.expires is None else min(key.expires, valid_until))


async def _revoke_key(connection: Connection, name_or_id: str, now: float) -> Key:
    """Revokes a key; a number counts before a name. Raises: NotFound; WriteConflict if several keys have that name."""
    is_number = name_or_id.isascii() and name_or_id.isdigit() and len(name_or_id) <= _MAX_ID_DIGITS
    number = int(name_or_id) if is_number else -1
    key_ids = await load_column(connection, SQL["key_named"], (number, name_or_id))
    if not key_ids:
        raise NotFound(f"there is no key in use with the name or number {name_or_id!r}")
    if len(key_ids) > 1 and key_ids[0] != number:
        raise WriteConflict(
            f"the keys {', '.join(map(str, key_ids))} are all named {name_or_id!r}; give a number"
        )
    row = await connection.fetch_row(SQL["key_revoke"], (now, key_ids[0]))
    assert row is not None  # the key was found in this transaction
    return _make_key(row)


class IssuedKey(NamedTuple):
    """A key with its secret, of which the store has only the digest."""

    # The key.
    key: Key
    # The secret, which the caller presents.
    secret: str


class _CachedKey(NamedTuple):
    """A key in the cache."""

    # The key.
    key: Key
    # The time, by `Keys._tick`, at which the key is read again.
    fresh_until: float


class Keys(StoreGroup):
    """The keys of callers. Keys that were presented lately are cached.

    So the common request costs no statement, and callers are still recognised while the store is down. A key of a file
    is cached until this process changes it, since no other process writes the file. A key of a shared database is read
    again after `POLL_S`, and at once if another process notifies of a change.
    """

    def __init__(self, database: Database, now: Callable[[], float], path: str | None) -> None:
        super().__init__(database)
        self._path = path
        self._now = now
        self._tick = time.monotonic
        # The keys by their digests. Replaced as a whole when keys change.
        self._cache: OrderedDict[bytes, _CachedKey] = OrderedDict()
        # True once the store was known to have a key.
        self._has_key = False
        # The time, by `_tick`, until which the database is not asked again whether it has keys.
        self._has_none_until = -math.inf
        # The seconds for which a key, or its absence, is cached.
        self._fresh_s = POLL_S if database.is_shared else math.inf
        self._uses = KeyUses(database, now)
        database.add_listener(KEYS, lambda _: self._expire_cache())
        database.add_recovery_listener(self._expire_cache)

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
    ) -> IssuedKey:
        """Creates a key. The parameters are as in `Key`."""
        secret = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        prefix = secret[:SHOWN_CHARS]
        now = self._now()
        bounds = expires, _dump_patterns(models), user
        values = (project, name, digest_secret(secret), prefix, now, memory, opens, *bounds)
        ((key_id,),) = await self._database.write_one(SQL["key_insert"], values)
        key = Key(
            id=key_id,
            project=project,
            name=name,
            prefix=prefix,
            created=now,
            memory=memory,
            opens=opens,
            expires=expires,
            models=models,
            user=user,
        )
        self._announce_created(demands_key=not key.is_operator)
        return IssuedKey(key, secret)

    async def install(self, secret: str, name: str, opens: str | None = None) -> bool:
        """Stores a key that was chosen elsewhere, unless it is stored. It replaces the key of the same name.

        opens: the part of the gateway that the key opens, as in `Key`; an operator's key is for all projects.

        Returns False, and changes nothing, if the key was revoked or has another secret now.
        """
        digest = digest_secret(secret)
        now = self._now()

        async def install(connection: Connection) -> bool:
            row = await connection.fetch_row(SQL["key_of"], (digest,))
            if row is None:
                project = DEFAULT_PROJECT if opens is None else ""
                values = (project, name, digest, secret[:SHOWN_CHARS], now, None, opens, None, None, None)
                await connection.fetch_rows(SQL["key_insert"], values)
            await connection.run(SQL["key_installed"], (digest,))
            if row is not None and (row[0] is not None or row[1] != digest):
                return False
            await connection.run(SQL["key_replace"], (now, name, digest))
            return True

        is_installed = await self._database.write(install)
        self._cache = OrderedDict()
        if is_installed:
            self._announce_created(demands_key=opens is None)
        return is_installed

    async def change(self, key_id: int, change: Callable[[Key], Key]) -> Key:
        """Changes name, memory, expiry, models and user of a key in use. Returns it as it is then.

        change: a function that returns the new key for the present key.

        Raises: NotFound, and the errors of `change`.
        """

        async def write(connection: Connection) -> Row | None:
            row = await connection.fetch_row(SQL["key_in_use"], (key_id,))
            if row is None:
                return None
            key = change(_make_key(row))
            values = (key_id, key.name, key.memory, key.expires, _dump_patterns(key.models), key.user)
            return await connection.fetch_row(SQL["key_change"], values)

        return await self._write_key(key_id, write)

    async def rotate(self, key_id: int, overlap_s: float) -> IssuedKey:
        """Gives a key in use another secret. Raises: NotFound, also for an expired key.

        overlap_s: the time for which the previous secret, and links made with it, stay valid. An earlier secret ends
            at once.
        """
        secret = KEY_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        now = self._now()
        valid_until = now + overlap_s

        async def rotate(connection: Connection) -> Row | None:
            await connection.run(SQL["key_links"], (key_id, valid_until))
            return await connection.fetch_row(
                SQL["key_rotate"], (key_id, digest_secret(secret), secret[:SHOWN_CHARS], valid_until, now)
            )

        return IssuedKey(await self._write_key(key_id, rotate), secret)

    async def _write_key(
        self, key_id: int, write: Callable[[Connection], Coroutine[Any, Any, Row | None]]
    ) -> Key:
        row = await self._await_write(self._database.write(write), self._drop_cache)
        if row is None:
            raise NotFound(f"there is no key in use with the number {key_id}")
        return _make_key(row)

    def compute_expiry(self, seconds: float) -> float:
        """Returns the time after a number of seconds, by the clock by which keys expire."""
        return self._now() + seconds

    def has_expired(self, key: Key) -> bool:
        """Returns whether a key opens nothing any more, since it has ended."""
        return key.expires is not None and key.expires <= self._now()

    async def revoke(self, name_or_id: str) -> Key:
        """Revokes a key by its number, else by its name. Raises: NotFound; WriteConflict if several have that name."""
        now = self._now()
        revoking = self._database.write(lambda connection: _revoke_key(connection, name_or_id, now))
        return await self._await_write(revoking, self._drop_cache)

    async def revoke_by_id(self, key_id: int) -> Key:
        """Revokes a key by its number alone. Raises: NotFound if there is none in use."""
        values = (self._now(), key_id)
        return await self._write_key(
            key_id, lambda connection: connection.fetch_row(SQL["key_revoke"], values)
        )

    @reads
    async def list(self, connection: Connection) -> tuple[Key, ...]:
        """Returns all keys, revoked ones too, oldest first."""
        return tuple(_make_key(row) for row in await connection.fetch_rows(SQL["key_list"]))

    @reads
    async def load_numbers(self, connection: Connection) -> dict[bytes, int]:
        """Returns the numbers of all keys by the digests of their secrets, also of those before a rotation."""
        return {bytes(digest): key_id for key_id, digest in await connection.fetch_rows(SQL["key_numbers"])}

    async def find(self, secret: str) -> Key | None:
        """Returns the key with this secret, unless it is revoked or unknown. It may have expired.

        Raises: StoreUnavailable.
        """
        return await self.find_digest(digest_secret(secret))

    async def find_digest(self, digest: bytes) -> Key | None:
        """Returns the key with this digest, as `find` does."""
        # Keys may change while this one is read: then it goes into the old cache, which is not used any more.
        cache = self._cache
        cached = cache.get(digest)
        if cached is not None and self._tick() < cached.fresh_until:
            self._uses.record(cached.key)
            return cached.key
        try:
            key = await self._database.read(lambda connection: _find_key(connection, digest, self._now()))
        except StoreUnavailable:
            if cached is None:
                raise
            return cached.key
        if key is None:
            cache.pop(digest, None)
            return None
        self._uses.record(key)
        cache[digest] = _CachedKey(key, self._tick() + self._fresh_s)
        if len(cache) > CACHED_KEYS:
            cache.popitem(last=False)
        return key

    async def has_any(self) -> bool:
        """Returns whether a key was ever created that opens more than the page.

        Revoked ones count: revoking the last must not open the server.
        """
        if not self._has_key and self._tick() >= self._has_none_until:
            cache = self._cache
            has_key = await self._database.read(lambda connection: connection.fetch_value(SQL["key_any"]))
            self._has_key = self._has_key or bool(has_key)
            # If keys have changed during the read, the next call reads again.
            if cache is self._cache:
                self._has_none_until = self._tick() + self._fresh_s
            self._update_keyed_file()
        return self._has_key

    @reads
    async def has_metrics_key(self, connection: Connection) -> bool:
        """Returns whether a key for /metrics alone was ever created. Revoked ones count, as with `has_any`."""
        return bool(await connection.fetch_value(SQL["key_any_metrics"]))

    def _announce_created(self, *, demands_key: bool = True) -> None:
        """Notifies all processes of a new key. demands_key: True if callers of the API need a key from now on."""
        if demands_key:
            self._has_key = True
            self._update_keyed_file()
        self._database.notify(KEYS)

    def _drop_cache(self) -> None:
        """Drops all cached keys, and notifies the other processes, which read their keys again."""
        self._cache = OrderedDict()
        self._database.notify(KEYS)

    def _expire_cache(self) -> None:
        """Makes all cached keys due to be read again. While the database is down, the cached keys still count."""
        self._cache = OrderedDict(
            (digest, cached._replace(fresh_until=-math.inf)) for digest, cached in self._cache.items()
        )
        self._has_none_until = -math.inf

    def _update_keyed_file(self) -> None:
        if self._path is not None:
            update_keyed_file(self._path, is_keyed=self._has_key)
