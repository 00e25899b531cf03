"""Signing in to the page: sign-in codes, which work once, and operator keys.

A code opens everything. The command `mnemogate ui` asks for a code; only the account that runs the gateway can do so.
An operator's key opens one project or all projects, for reading alone or for changes, too.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from gateway.errors import GatewayError
from gateway.run.admin.operation_arguments import RawArguments
from storage.digests import digest_secret
from storage.key_record import KEY_PREFIX, OPERATOR, Key
from storage.sql.store import Store

# The seconds for which a code is valid.
_CODE_S = 60.0
# The random bytes of a code, which has two characters for each.
_CODE_BYTES = 16
# The most unused codes; a further code removes the oldest. People at terminals ask for codes, so there are few.
_MAX_CODES = 64
# The actor in the audit of a session that a code has opened.
CODE = "code"
# The actor in the audit of a failure to sign in.
UNKNOWN = "unknown"
LOGIN = "/ui/login"


class Operator(Struct, frozen=True):
    """An operator who has signed in."""

    # The name in the audit: the key's, or CODE.
    actor: str
    # The only project that is open; None: all projects.
    project: str | None
    may_write: bool
    # The digest of the key; None: a code opened the session.
    digest: bytes | None = None


class SignIn:
    """Makes codes, and finds the operators that codes and keys admit."""

    def __init__(self, store: Store, now: Callable[[], float], *, is_enabled: bool = True) -> None:
        """Begins with no codes.

        now: seconds since the epoch.
        is_enabled: True if there is a page to sign in to.
        """
        self._store = store
        self._now = now
        self._is_enabled = is_enabled
        # The times at which codes were made, by the digests of the codes; the oldest first.
        self._codes: dict[bytes, float] = {}

    async def make_code(self, _: RawArguments) -> dict[str, Any]:
        """Returns the path of the page with a new code. Raises: GatewayError: there is no page."""
        if not self._is_enabled:
            raise GatewayError("There is no page: ui.enabled is false.")
        code = secrets.token_hex(_CODE_BYTES)
        while len(self._codes) >= _MAX_CODES:
            del self._codes[next(iter(self._codes))]
        self._codes[digest_secret(code)] = self._now()
        return {"path": f"{LOGIN}#{code}"}

    async def load_database_id(self) -> str:
        """Returns the id of the database, 8 hex digits. Raises: StoreError: it was never read."""
        return (await self._store.secrets.load_database_id()).hex()[:8]

    async def admit(self, text: str) -> Operator | None:
        """Returns the operator that a code or a key admits; None: the text is neither. A code is valid for one call.

        Raises: StoreError.
        """
        made_at = self._codes.pop(digest_secret(text), None)
        # A code from the future was made before the clock was put back.
        if made_at is not None and 0 <= self._now() - made_at < _CODE_S:
            return Operator(CODE, None, may_write=True)
        return await self.find_by_key(text)

    def is_code(self, text: str) -> bool:
        """Returns whether a text has the form of a code, be it valid or not."""
        return re.fullmatch(f"[0-9a-f]{{{2 * _CODE_BYTES}}}", text) is not None

    async def find_by_key(self, text: str) -> Operator | None:
        """Returns the operator with a key; None: the text is no valid key of an operator. Raises: StoreError."""
        if not text.startswith(KEY_PREFIX):
            return None
        digest = digest_secret(text)
        return _make_operator(await self._find_valid_key(digest), digest)

    async def is_valid(self, operator: Operator) -> bool:
        """Returns whether the key of an operator is still valid. Raises: StoreError."""
        return operator.digest is None or await self._find_valid_key(operator.digest) is not None

    async def _find_valid_key(self, digest: bytes) -> Key | None:
        key = await self._store.keys.find_digest(digest)
        return None if key is None or self._store.keys.has_expired(key) else key


def _make_operator(key: Key | None, digest: bytes) -> Operator | None:
    if key is None or not key.is_operator:
        return None
    return Operator(key.name, key.project or None, may_write=key.opens == OPERATOR, digest=digest)
