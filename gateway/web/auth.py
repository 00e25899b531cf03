"""Who may ask. Once a gateway key exists every route but health demands one; without keys only this machine asks.

A credential that authenticated to us is taken out of what goes on; where `x-mnemogate-key` carries it, `Authorization`
is the caller's own, for the provider.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.errors import NotAllowed, NotAuthenticated, Overloaded
from gateway.settings import is_loopback
from storage.base import Keys
from storage.errors import StoreError

__all__ = ["KEY_PREFIX", "Caller", "Guard"]

KEY_PREFIX = "mg-"
DEFAULT_PROJECT = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """credential: the caller's own `Authorization`, for an upstream without a key of its own."""

    project: str = DEFAULT_PROJECT
    credential: str | None = None


class Guard:
    """Decides for each request. The store remembers the keys presented lately, so this costs no statement."""

    def __init__(
        self,
        keys: Keys | None,
        *,
        hosts: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
        is_local: bool = True,
    ) -> None:
        """hosts: names beside this machine's own under which it may be addressed while there are no keys.

        origins: of web pages from elsewhere that are answered then; `*` is none of them, it would be every page that
        somebody on this machine opens.
        is_local: only this machine can reach us, and there were no keys when we last knew. While the store has not yet
        been able to say whether there are keys, a local caller is served (chat does not depend on the store) and others
        are asked to wait.
        """
        self._keys = keys
        self._hosts = frozenset(name.lower() for name in hosts)
        self._origins = frozenset(origins)
        self._is_local = is_local
        self._demanded = False

    async def demands_key(self) -> bool:
        """Whether a key was ever made. Once known it stays so, whatever becomes of the store."""
        if not self._demanded:
            try:
                self._demanded = self._keys is not None and await self._keys.has_any()
            except StoreError:
                return not self._is_local
        return self._demanded or not (self._is_local or self._keys is not None)

    async def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """headers: lower-case names. Raises: NotAuthenticated, NotAllowed, Overloaded."""
        authorization = key = host = origin = None
        for name, value in headers:
            if name == b"authorization":
                authorization = value.decode("latin-1").strip()
            elif name == b"x-mnemogate-key":
                key = value.decode("latin-1").strip()
            elif name == b"host":
                host = value.decode("latin-1")
            elif name == b"origin":
                origin = value.decode("latin-1")
        bearer = _bearer(authorization)
        # A key of ours goes no further, be it the one that opened the door, a revoked one or one of another gateway.
        is_ours = authorization is None or (bearer or authorization).startswith(KEY_PREFIX)
        credential = None if is_ours else authorization or None
        if not await self.demands_key():
            self._check_local(host, origin)
            return Caller(credential=credential)
        if key is None:
            key, credential = bearer, None
        if not key:
            raise NotAuthenticated(
                "This gateway demands a key. Send it as `Authorization: Bearer mg-…` or in `x-mnemogate-key`."
            )
        if self._keys is None:
            raise Overloaded("The key cannot be checked: there is no store.", retry_after_s=2)
        try:
            found = await self._keys.find(key) if key.startswith(KEY_PREFIX) else None
        except StoreError as error:
            raise Overloaded(
                "The key cannot be checked: the store does not answer.", retry_after_s=2
            ) from error
        if found is None:
            raise NotAuthenticated("This key is not one of this gateway's, or it was revoked.")
        return Caller(found.project, credential)

    def _check_local(self, host: str | None, origin: str | None) -> None:
        """A web page may reach this machine through a name that resolves to it, or post to it blindly: not here."""
        if host is not None and not self._is_known(_name_of(host)):
            raise NotAllowed(
                "Without keys this gateway answers only under this machine's own name. "
                "Add the host to server.allowed_hosts, or make a key with `mnemogate keys create`."
            )
        if origin is not None and origin not in self._origins:
            match = re.fullmatch(r"[a-z][a-z0-9+.-]*://(.+)", origin)
            if match is None or not self._is_known(_name_of(match[1])):
                raise NotAllowed(
                    "Without keys this gateway does not answer web pages from elsewhere. "
                    "Name their origin in server.cors_origins."
                )

    def _is_known(self, name: str) -> bool:
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
