"""Decides who may ask. Once a gateway key exists every route but health demands one; before, only this machine asks.

The gateway's key comes in `x-mnemogate-key`, `x-api-key` (Anthropic's clients) or `Authorization`. It never goes
upstream. Where `x-mnemogate-key` carries it, the other two are the caller's own credential for the provider.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from adapters.types import X_API_KEY_PREFIX
from gateway.core.request.request_headers import RawHeaders
from gateway.errors import NotAllowed, NotAuthenticated, Overloaded
from gateway.run.request_context import RequestContext
from gateway.settings import MetricsKeys, is_loopback
from storage.errors import StoreError
from storage.records import Key
from storage.sql.keys import DEFAULT_PROJECT, Keys

KEY_PREFIX = "mg-"
METRICS_PATH = "/metrics"
# What keys of operators open, with all below it.
PAGE_PATH = "/ui"
_MOST_HOSTS = 64
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::\d*)?")
_READ = frozenset((b"authorization", b"x-api-key", b"x-mnemogate-key", b"host", b"origin"))


# A NamedTuple, because a frozen dataclass costs three times as much to make, and each request makes one.
class Caller(NamedTuple):
    """The caller of a request that was admitted."""

    project: str = DEFAULT_PROJECT
    # The caller's own credential, for an upstream without a key of its own, as `ModelRequest` has it: of
    # `Authorization`, else of `x-api-key`.
    credential: str | None = None
    # The mode of requests that ask for none, where the key defines it.
    memory: str | None = None
    # The one path that the key opens, where it is one: METRICS_PATH or PAGE_PATH.
    opens: str | None = None
    # The credential of `x-api-key`, which counts first where the caller speaks Anthropic's dialect.
    api_key: str | None = None
    # The number and the name of the key; 0: there are none.
    key: int = 0
    key_name: str = ""
    # Patterns of the models that the key may ask for; None: all.
    models: tuple[str, ...] | None = None
    # The user of all its requests; None: whom they name.
    user: str | None = None
    # From when on what it presented opens nothing, in seconds since the epoch; None: it never ends.
    expires: float | None = None

    def context(self, headers: RawHeaders) -> RequestContext:
        """Returns what comes with a request of this caller. headers: of the request."""
        return RequestContext(headers, self.project, self.credential, self.memory)

    def may_ask(self, model: str) -> bool:
        """Returns whether the key may ask for a model by this name."""
        return self.models is None or any(fnmatchcase(model, each) for each in self.models)

    def check_model(self, model: str) -> None:
        """Raises: NotAllowed: the key may not ask for a model by this name."""
        if not self.may_ask(model):
            raise NotAllowed(f"This key may not ask for the model {model!r}.", code="model_not_allowed")


ANONYMOUS = Caller()


class Guard:
    """The guard decides for each request. The store caches the keys presented lately, so this costs no statement."""

    def __init__(
        self,
        keys: Keys,
        *,
        hosts: tuple[str, ...] = (),
        origins: tuple[str, ...] = (),
        is_local: bool = True,
        is_keyed: bool = False,
        metrics_keys: MetricsKeys = "auto",
    ) -> None:
        """Sets what is allowed while there are no keys.

        hosts: names, besides this machine's own, under which the gateway may be addressed.
        origins: of web pages from elsewhere that are answered. `*` is not among them: it would let in every
            page that is opened on this machine.
        is_local: only this machine can reach the gateway, and there were no keys when that was last known.
            While the store cannot say whether there are keys, a local caller is served (chat does not depend
            on the store), and others are asked to wait.
        is_keyed: the settings give a key, so that one is demanded whatever the store has.
        metrics_keys: which keys open /metrics once there are keys.
        """
        self._keys = keys
        self._hosts = frozenset(name.lower() for name in hosts)
        self._origins = frozenset(origins)
        self._is_local = is_local
        self._demanded = is_keyed
        self._metrics_keys = metrics_keys
        self._has_metrics_key: bool | None = None  # None: the store was not asked yet
        self._seen_hosts: set[str] = set()  # as requests wrote them, and let in

    async def demands_key(self) -> bool:
        """Returns whether a key was ever made. Once known that holds, even when the store fails."""
        if not self._demanded:
            try:
                self._demanded = await self._keys.has_any()
            except StoreError:
                # Not known yet, so not remembered: the next request asks again.
                return not self._is_local
        return self._demanded

    async def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Admits a request. headers: lower-case names. Raises: NotAuthenticated, NotAllowed, Overloaded."""
        given = _given(headers)
        authorization, key = given.get(b"authorization"), given.get(b"x-mnemogate-key")
        api_key = given.get(b"x-api-key")
        host, origin = given.get(b"host"), given.get(b"origin")
        credential = authorization or None
        # A gateway key never goes upstream, whether it opens this door, was revoked or belongs to another gateway.
        if credential is not None and KEY_PREFIX in credential:
            is_gateway_key = (_bearer(credential) or credential).startswith(KEY_PREFIX)
            credential = None if is_gateway_key else credential
        own = None if not api_key or api_key.startswith(KEY_PREFIX) else X_API_KEY_PREFIX + api_key
        credential = credential or own
        anonymous = ANONYMOUS if credential is None else Caller(credential=credential, api_key=own)
        # Without `x-mnemogate-key` the others hold the gateway's key, so there is no key of the provider's.
        if key is None:
            is_gateway_key = api_key is not None and api_key.startswith(KEY_PREFIX)
            key = api_key if is_gateway_key else _bearer(authorization)
            credential = own = None
        if not (self._demanded or await self.demands_key()):
            self._check_local(host, origin)
            if key is not None and key.startswith(KEY_PREFIX) and await self._is_operators(key):
                return Caller(opens=PAGE_PATH)
            return anonymous
        if not key or not key.startswith(KEY_PREFIX):
            raise NotAuthenticated(
                "This gateway demands a key of its own. Send it as `Authorization: Bearer mg-…` or `x-api-key: mg-…`, "
                "or in `x-mnemogate-key`, which leaves the others to the provider's key."
            )
        found = await self._find(key)
        opens = PAGE_PATH if found.is_operator else None if found.opens is None else f"/{found.opens}"
        return Caller(
            found.project,
            credential,
            found.memory,
            opens,
            own,
            found.id,
            found.name,
            found.models,
            found.user,
            found.expires,
        )

    async def find_key(self, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        """Returns the gateway key that a request presents, whatever it opens. Raises: NotAuthenticated, Overloaded."""
        given = _given(headers)
        # Where `x-mnemogate-key` is sent the others are the caller's own.
        key = given.get(b"x-mnemogate-key")
        if key is None:
            api_key = given.get(b"x-api-key")
            is_gateway_key = api_key is not None and api_key.startswith(KEY_PREFIX)
            key = api_key if is_gateway_key else _bearer(given.get(b"authorization"))
        if key and key.startswith(KEY_PREFIX):
            return await self._find(key)
        raise NotAuthenticated("Send a key of an operator: `Authorization: Bearer mg-…`.")

    async def _find(self, key: str) -> Key:
        try:
            found = await self._keys.find(key)
        except StoreError as error:
            raise Overloaded(
                "The key cannot be checked: the store does not answer.", retry_after_s=2
            ) from error
        if found is None:
            raise NotAuthenticated("This key is not one of this gateway's, or it was revoked.")
        if self._keys.has_expired(found):
            raise NotAuthenticated("This key has expired. Ask for another one.")
        return found

    async def _is_operators(self, key: str) -> bool:
        try:
            found = await self._keys.find(key)
        except StoreError:
            return False
        return found is not None and found.is_operator and not self._keys.has_expired(found)

    async def check_metrics(self, caller: Caller) -> None:
        """Refuses a caller with a key that does not open /metrics. Raises: NotAllowed, Overloaded."""
        if caller.opens == METRICS_PATH or not await self.demands_key():
            return
        refuses = self._metrics_keys == "metrics"
        if self._metrics_keys == "auto":
            try:
                self._has_metrics_key = await self._keys.has_metrics_key()
            except StoreError as error:
                # What was known last holds: figures are asked for in an outage above all.
                if self._has_metrics_key is None:
                    raise Overloaded(
                        "The key cannot be checked: the store does not answer.", retry_after_s=2
                    ) from error
            refuses = self._has_metrics_key
        if refuses:
            raise NotAllowed(
                "This key does not open /metrics. `mnemogate keys create --metrics` makes one that does; "
                "server.metrics_keys decides which keys do."
            )

    def _check_local(self, host: str | None, origin: str | None) -> None:
        """Refuses web pages from elsewhere. Raises: NotAllowed.

        A page can reach this machine through a name of its own that resolves to it (DNS rebinding), or post to it
        without reading the answer; the Host and Origin headers give both away.
        """
        if host is not None and host not in self._seen_hosts and not self.knows_host(host):
            raise NotAllowed(
                "Without keys this gateway answers only under this machine's own name. "
                "Add the host to server.allowed_hosts, or make a key with `mnemogate keys create`."
            )
        if host is not None and len(self._seen_hosts) < _MOST_HOSTS:
            self._seen_hosts.add(host)
        # Browsers send an Origin with every post to another site; a page of this machine's own has a known name.
        if origin is not None and origin not in self._origins:
            match = re.fullmatch(r"[a-z][a-z0-9+.-]*://(.+)", origin)
            if match is None or not self.knows_host(match[1]):
                raise NotAllowed(
                    "Without keys this gateway does not answer web pages from elsewhere. "
                    "Name their origin in server.cors_origins."
                )

    def knows_host(self, host: str) -> bool:
        """Returns whether the gateway may be addressed so. host: with or without a port."""
        name = _name_of(host)
        return is_loopback(name) or name in self._hosts


def _given(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Returns the headers that the guard reads. Raises: NotAuthenticated: one was sent twice, differently."""
    given: dict[bytes, str] = {}
    for name, value in headers:
        if name in _READ:
            text = value.decode("latin-1").strip()
            # Of two keys a proxy might have checked the one, and we would take the other.
            if given.setdefault(name, text) != text:
                raise NotAuthenticated(f"The header `{name.decode()}` was sent twice, with different values.")
    return given


def _bearer(authorization: str | None) -> str | None:
    if authorization is None or authorization[:7].lower() != "bearer ":
        return None
    return authorization[7:].strip() or None


def _name_of(host: str) -> str:
    """Returns the name without its port: `example.org:80` -> `example.org`, `[::1]:80` -> `::1`; "" of what is none."""
    match = _HOST.fullmatch(host)
    return "" if match is None else (match[1] or match[2]).lower()
