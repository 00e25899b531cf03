"""Who may ask. Once a gateway key exists every route but health demands one; without keys only this machine asks.

A key is looked up by its SHA-256 and answers are remembered for a short time. A credential that authenticated to us is
taken out of what goes on; where `x-mnemogate-key` carries it, `Authorization` is the caller's own, for the provider.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass

from starlette.types import Scope

from gateway.errors import NotAllowed, NotAuthenticated, Overloaded
from gateway.run.operate import KeyBook
from gateway.settings import is_loopback
from storage.errors import StoreError
from storage.records import Key

__all__ = ["KEY_PREFIX", "Caller", "Guard", "NoKeys", "digest_of"]

KEY_PREFIX = "mg-"
DEFAULT_PROJECT = "default"
CACHE_S = 30.0  # chosen: how long a key revoked behind the gateway's back may still work
CACHE_ENTRIES = 10_000


class NoKeys:
    """The key book of a gateway without a store."""

    async def find(self, digest: bytes) -> Key | None:
        return None

    async def has_keys(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Caller:
    """credential: the caller's own `Authorization`, for an upstream without a key of its own."""

    project: str = DEFAULT_PROJECT
    key_id: int | None = None
    credential: str | None = None


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


class Guard:
    """Decides for each request. `forget()` after a key was made or revoked."""

    def __init__(self, keys: KeyBook, *, hosts: tuple[str, ...] = (), is_local: bool = True) -> None:
        """hosts: names beside this machine's own under which it may be addressed while there are no keys.

        is_local: only this machine can reach us. While the store cannot say whether there are keys, chat goes on for
        a local caller who is not known to need one; others are asked to wait.
        """
        self._is_local = is_local
        self._keys = keys
        self._hosts = frozenset(name.lower() for name in hosts)
        self._known: dict[bytes, tuple[float, Key | None]] = {}
        self._demands: tuple[float, bool] | None = None

    def forget(self) -> None:
        self._known.clear()
        self._demands = None

    async def demands_key(self) -> bool:
        """Whether any key exists. Once one does, the answer is remembered; while none does, for a short time."""
        now = time.monotonic()
        if self._demands is None or now > self._demands[0]:
            try:
                found = await self._keys.has_keys()
            except StoreError:
                found = self._demands[1] if self._demands is not None else not self._is_local
            self._demands = (now + (CACHE_S if found else 1.0), found)
        return self._demands[1]

    async def admit(self, scope: Scope) -> Caller:
        """Raises: NotAuthenticated, NotAllowed."""
        authorization = key = host = origin = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value.decode("latin-1").strip()
            elif name == b"x-mnemogate-key":
                key = value.decode("latin-1").strip()
            elif name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
        if not await self.demands_key():
            self._check_local(host, origin)
            bearer = _bearer(authorization)
            # A key of ours that is no longer (or not yet) known here is still no business of the provider's.
            ours = bearer is not None and bearer.startswith(KEY_PREFIX)
            return Caller(credential=None if ours else authorization or None)
        if key is not None:
            secret, credential = key, authorization or None
            bearer = _bearer(authorization)
            if bearer is not None and bearer.startswith(KEY_PREFIX):
                credential = None
        else:
            secret, credential = _bearer(authorization) or "", None
        if not secret:
            raise NotAuthenticated(
                "This gateway demands a key. Send it as `Authorization: Bearer mg-…`, or as `x-mnemogate-key`."
            )
        found = await self._find(digest_of(secret)) if secret.startswith(KEY_PREFIX) else None
        if found is None or found.revoked is not None:
            raise NotAuthenticated(
                "The gateway key is not known or was revoked. `mnemogate keys list` shows them."
            )
        return Caller(found.project, found.id, credential)

    async def _find(self, digest: bytes) -> Key | None:
        # Looked up by digest: timing could tell something about the hash of a guess, and nothing about a secret.
        now = time.monotonic()
        until, key = self._known.get(digest, (0.0, None))
        if now < until:
            return key
        try:
            key = await self._keys.find(digest)
        except StoreError as error:
            raise Overloaded(
                "The key cannot be checked: the store does not answer.", retry_after_s=2
            ) from error
        if key is not None:  # only what exists is remembered: guesses cannot fill the memory
            if len(self._known) >= CACHE_ENTRIES:
                self._known.clear()
            self._known[digest] = (now + CACHE_S, key)
        return key

    def _check_local(self, host: str | None, origin: str | None) -> None:
        """A web page may reach this machine through a name that resolves to it, or post to it blindly: not here."""
        if host is not None and not self._is_ours(_name_of(host)):
            raise NotAllowed(
                "Without keys this gateway answers only under this machine's own name. "
                "Add the host to server.allowed_hosts, or make a key with `mnemogate keys create`."
            )
        if origin is not None:
            match = re.fullmatch(r"[a-z][a-z0-9+.-]*://(.+)", origin)
            if match is None or not self._is_ours(_name_of(match[1])):
                raise NotAllowed("Without keys this gateway does not answer web pages from elsewhere.")

    def _is_ours(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts


def _bearer(authorization: str | None) -> str | None:
    if authorization is None or authorization[:7].lower() != "bearer ":
        return None
    return authorization[7:].strip() or None


def _name_of(host: str) -> str:
    """`example.org:80` -> `example.org`, `[::1]:80` -> `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
