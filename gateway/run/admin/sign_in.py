"""Signing in to the page: one-time codes, keys of operators, and the audit of who did what.

A code is made for whoever may run commands of the account that serves (`mnemogate ui`): it opens everything. A key of
an operator opens its project or all of them, to read or to change.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from gateway.errors import GatewayError
from gateway.run.admin.operation_arguments import RawArguments
from storage.records import OPERATOR, Key
from storage.sql.keys import PREFIX, digest_of
from storage.sql.store import Store

CODE_S = 60.0
_CODE_BYTES = 16
# Codes that wait; older ones go. Each is asked for by a person at a terminal.
_MOST_CODES = 64
# The actor of an audit entry: a session that a code opened, and a failure to sign in.
CODE, UNKNOWN = "code", "unknown"
LOGIN = "/ui/login"


class Operator(Struct, frozen=True):
    """Who has signed in."""

    # As the audit names it: the key's name, or CODE.
    actor: str
    # The only project that it sees; None: all.
    project: str | None
    may_write: bool
    # The digest of its key; None: a code opened the session.
    digest: bytes | None = None


class SignIn:
    """Makes codes and recognises codes and keys.

    now: seconds since the epoch.
    is_enabled: there is a page to sign in to.
    """

    def __init__(self, store: Store, now: Callable[[], float], *, is_enabled: bool = True) -> None:
        self._store = store
        self._now = now
        self._is_enabled = is_enabled
        # The digests of codes, each with the time until which it holds.
        self._codes: dict[bytes, float] = {}

    async def make_code(self, _: RawArguments) -> dict[str, Any]:
        """Returns the path of the page with a new code. Raises: GatewayError: there is no page."""
        if not self._is_enabled:
            raise GatewayError("There is no page: ui.enabled is false.")
        code = secrets.token_hex(_CODE_BYTES)
        while len(self._codes) >= _MOST_CODES:
            del self._codes[next(iter(self._codes))]
        self._codes[_digest(code)] = self._now() + CODE_S
        return {"path": f"{LOGIN}#{code}"}

    async def admit(self, text: str) -> Operator | None:
        """Returns who a code or key is of; None: it opens nothing. A code is used up. Raises: StoreError."""
        until = self._codes.pop(_digest(text), None)
        if until is not None and self._now() < until:
            return Operator(CODE, None, may_write=True)
        return await self.by_key(text)

    async def by_key(self, text: str) -> Operator | None:
        """Returns the operator whose key this is; None: there is no such operator. Raises: StoreError."""
        if not text.startswith(PREFIX):
            return None
        digest = digest_of(text)
        return _operator(await self._found(digest), digest)

    async def holds(self, operator: Operator) -> bool:
        """Returns whether the key of an operator is in use still. Raises: StoreError."""
        return operator.digest is None or await self._found(operator.digest) is not None

    async def _found(self, digest: bytes) -> Key | None:
        key = await self._store.keys.find_digest(digest)
        return None if key is None or self._store.keys.has_expired(key) else key

    async def note(self, actor: str, action: str, memory: str | None = None, what: str = "") -> None:
        """Notes in the audit what was done. memory: the uid of one. what: a kind and a number, no words."""
        await self._store.audit.add(self._now(), actor, action, memory, what)


def _operator(key: Key | None, digest: bytes) -> Operator | None:
    if key is None or not key.is_operator:
        return None
    return Operator(key.name, key.project or None, may_write=key.opens == OPERATOR, digest=digest)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
