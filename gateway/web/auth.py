"""Decides which callers are admitted: once there are keys, callers with a key; before, callers on this machine.

The gateway's key comes in `x-mnemogate-key`, `x-api-key` (Anthropic's clients) or `Authorization`. It never goes
upstream. If `x-mnemogate-key` has the key, the other two headers are the caller's own credential for the provider.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from adapters.types import X_API_KEY_PREFIX
from gateway.core.request.request_headers import RawHeaders, make_repeated_header_error
from gateway.errors import NotAllowed, NotAuthenticated, Overloaded
from gateway.run.request_context import RequestContext, may_ask
from gateway.settings import MetricsKeys, is_loopback
from storage.errors import StoreError
from storage.key_record import KEY_PREFIX, Key
from storage.records import DEFAULT_PROJECT
from storage.sql.keys import Keys

METRICS_PATH = "/metrics"
# Keys of operators open this path and all below it.
PAGE_PATH = "/ui"
# The most values of `host` that are cached, so that each is looked up once.
_MAX_ADMITTED_HOSTS = 64
_HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::\d*)?")
_KEY_HEADER = b"x-mnemogate-key"
_GUARD_HEADERS = frozenset((b"authorization", b"x-api-key", _KEY_HEADER, b"host", b"origin"))


# A NamedTuple, because a frozen dataclass costs three times as much to make, and each request makes one.
class Caller(NamedTuple):
    """The caller of a request that was admitted."""

    # The project of the key.
    project: str = DEFAULT_PROJECT
    # The caller's own credential, for an upstream without a key of its own, as in `ModelRequest`: the value of
    # `Authorization`, otherwise of `x-api-key`.
    credential: str | None = None
    # The memory mode of requests that name no mode; None: the key defines no mode.
    memory: str | None = None
    # The only path that the key opens: METRICS_PATH, or PAGE_PATH for an operator; None: no such limit.
    only_path: str | None = None
    # The credential of `x-api-key`, which counts first in requests of Anthropic's dialect.
    api_key: str | None = None
    # The id of the key; 0: the caller has presented no key.
    key_id: int = 0
    # The name of the key.
    key_name: str = ""
    # Patterns of the models that the key may ask for; None: all models.
    models: tuple[str, ...] | None = None
    # The user to whom the key is bound; None: each request names its user.
    user: str | None = None
    # The time at which the key expires, in seconds since the epoch; None: never.
    expires_at: float | None = None

    def make_context(self, headers: RawHeaders) -> RequestContext:
        """Returns the context of a request of this caller. headers: the headers of the request."""
        return RequestContext(
            headers=headers,
            project=self.project,
            credential=self.credential,
            memory_mode=self.memory,
            models=self.models,
            key_id=self.key_id,
            bound_user=self.user,
        )

    def may_ask(self, model: str) -> bool:
        """Returns whether the key may ask for a model by this name."""
        return may_ask(self.models, model)

    def check_model(self, model: str) -> None:
        """Checks that the key may ask for a model by this name. Raises: NotAllowed."""
        if not self.may_ask(model):
            raise NotAllowed(f"This key may not ask for the model {model!r}.", code="model_not_allowed")


ANONYMOUS = Caller()


@dataclass(eq=False, slots=True)
class Guard:
    """Admits or refuses each request. The store caches the keys presented lately, so most checks cost no statement."""

    # The keys of the store.
    keys: Keys
    # The names of hosts, besides this machine's own, under which the gateway may be addressed while there are no keys.
    hosts: Collection[str] = ()
    # The origins of other sites' pages that are answered. `*` is not among them: it would admit every page that is
    # opened on this machine.
    origins: Collection[str] = ()
    # True if requests without a key are served while it is not known whether there are keys, because the store is down.
    # Only for a gateway that no other machine can reach, and that had no keys when they were last counted.
    serves_without_store: bool = True
    # True if the settings have a key, or the store has once had one: then a key is demanded, also in an outage.
    is_key_demanded: bool = False
    # The kinds of keys that open /metrics once there are keys.
    metrics_keys: MetricsKeys = "auto"
    # Whether there is a key for /metrics; None: not read from the store yet.
    _has_metrics_key: bool | None = field(default=None, init=False)
    # The values of `host` that were admitted.
    _admitted_hosts: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.hosts = frozenset(name.lower() for name in self.hosts)

    async def demands_key(self) -> bool:
        """Returns whether a key that opens more than the page was ever made. True is remembered, also in an outage."""
        if not self.is_key_demanded:
            try:
                self.is_key_demanded = await self.keys.has_any()
            except StoreError:
                # This is not remembered: the next request reads the store again.
                return not self.serves_without_store
        return self.is_key_demanded

    async def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Admits a request. headers: the request's headers, with names in lower case.

        Raises: BadRequest, NotAuthenticated, NotAllowed, Overloaded.
        """
        values = _read_headers(headers)
        secret = _find_secret(values)
        caller = _make_anonymous_caller(values)
        if not (self.is_key_demanded or await self.demands_key()):
            self._check_local(values.get(b"host"), values.get(b"origin"))
            if secret is not None and secret.startswith(KEY_PREFIX) and await self._is_operator_key(secret):
                # Keys of operators open only the page. While there are no other keys, other requests need no key.
                return Caller(only_path=PAGE_PATH)
            return caller
        if not secret or not secret.startswith(KEY_PREFIX):
            raise NotAuthenticated(
                "This gateway demands a key of its own. Send it as `Authorization: Bearer mg-…` or `x-api-key: mg-…`, "
                "or in `x-mnemogate-key`, which leaves the others to the provider's key."
            )
        key = await self._get_valid_key(secret)
        if _KEY_HEADER not in values:
            # The other headers hold the gateway's key, so the caller has sent no credential for the provider.
            caller = ANONYMOUS
        return Caller(
            project=key.project,
            credential=caller.credential,
            memory=key.memory,
            only_path=_find_only_path(key),
            api_key=caller.api_key,
            key_id=key.id,
            key_name=key.name,
            models=key.models,
            user=key.user,
            expires_at=key.expires,
        )

    async def get_key(self, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        """Returns the gateway key that a request presents, whichever paths the key opens.

        Raises: BadRequest, NotAuthenticated, Overloaded.
        """
        secret = _find_secret(_read_headers(headers))
        if secret and secret.startswith(KEY_PREFIX):
            return await self._get_valid_key(secret)
        raise NotAuthenticated(
            "Send a gateway key as `Authorization: Bearer mg-…`. `mnemogate keys create --operator` makes one that "
            "opens /v1/manage; /v1/manage/me takes any that an application has."
        )

    async def check_metrics(self, caller: Caller) -> None:
        """Refuses a caller with a key that does not open /metrics. Raises: NotAllowed, Overloaded."""
        if caller.only_path == METRICS_PATH or not await self.demands_key():
            return
        is_refused = self.metrics_keys == "metrics"
        if self.metrics_keys == "auto":
            try:
                self._has_metrics_key = await self.keys.has_metrics_key()
            except StoreError as error:
                # The last known answer counts, since metrics are needed above all in an outage.
                if self._has_metrics_key is None:
                    raise Overloaded(
                        "The key cannot be checked: the store does not answer.", retry_after_s=2
                    ) from error
            is_refused = self._has_metrics_key
        if is_refused:
            raise NotAllowed(
                "This key does not open /metrics. `mnemogate keys create --metrics` makes one that does; "
                "server.metrics_keys decides which keys do."
            )

    def knows_host(self, host: str) -> bool:
        """Returns whether the gateway may be addressed by a host. host: the name, with or without a port."""
        name = _read_host_name(host)
        return is_loopback(name) or name in self.hosts

    async def _get_valid_key(self, secret: str) -> Key:
        try:
            key = await self.keys.find(secret)
        except StoreError as error:
            raise Overloaded(
                "The key cannot be checked: the store does not answer.", retry_after_s=2
            ) from error
        if key is None:
            raise NotAuthenticated("This key is not one of this gateway's, or it was revoked.")
        if self.keys.has_expired(key):
            raise NotAuthenticated("This key has expired. Ask for another one.")
        return key

    async def _is_operator_key(self, secret: str) -> bool:
        try:
            key = await self.keys.find(secret)
        except StoreError:
            return False
        return key is not None and key.is_operator and not self.keys.has_expired(key)

    def _check_local(self, host: str | None, origin: str | None) -> None:
        """Refuses the pages of other sites. Raises: NotAllowed.

        A page can reach this machine through a name of its own that resolves to this machine (DNS rebinding), or post
        without reading the answer. The Host and Origin headers show both.
        """
        if host is not None and host not in self._admitted_hosts and not self.knows_host(host):
            raise NotAllowed(
                "Without keys this gateway answers only under this machine's own name. "
                "Add the host to server.allowed_hosts, or make a key with `mnemogate keys create`."
            )
        if host is not None and len(self._admitted_hosts) < _MAX_ADMITTED_HOSTS:
            self._admitted_hosts.add(host)
        # Browsers send an Origin with every post to another site; pages of this machine have a known name.
        if origin is not None and origin not in self.origins:
            match = re.fullmatch(r"[a-z][a-z0-9+.-]*://(.+)", origin)
            if match is None or not self.knows_host(match[1]):
                raise NotAllowed(
                    "Without keys this gateway does not answer web pages from elsewhere. "
                    "Name their origin in server.cors_origins."
                )


def _find_only_path(key: Key) -> str | None:
    """Returns the only path that a key opens, or None if the key is not limited to one path."""
    if key.is_operator:
        return PAGE_PATH
    return f"/{key.opens}" if key.opens is not None else None


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, str]:
    """Returns the headers that the guard reads. Raises: BadRequest: a header was sent with two values."""
    values: dict[bytes, str] = {}
    for name, value in headers:
        if name in _GUARD_HEADERS:
            text = value.decode("latin-1").strip()
            # A proxy might check the first of two keys, and the gateway the second.
            if values.setdefault(name, text) != text:
                raise make_repeated_header_error(name)
    return values


def _find_secret(values: dict[bytes, str]) -> str | None:
    """Returns the text that a request presents as the gateway's key, valid or not, or None if it presents no text."""
    secret = values.get(_KEY_HEADER)
    if secret is not None:
        return secret
    api_key = values.get(b"x-api-key")
    if api_key is not None and api_key.startswith(KEY_PREFIX):
        return api_key
    return _read_bearer(values.get(b"authorization"))


def _make_anonymous_caller(values: dict[bytes, str]) -> Caller:
    """Returns the caller without a gateway key, with its own credentials for the provider.

    A gateway key never counts as a credential, whether it is valid, revoked or another gateway's: no upstream may see
    it.
    """
    credential = values.get(b"authorization") or None
    if credential is not None and (_read_bearer(credential) or credential).startswith(KEY_PREFIX):
        credential = None
    api_key = values.get(b"x-api-key")
    provider_key = None
    if api_key and not api_key.startswith(KEY_PREFIX):
        provider_key = X_API_KEY_PREFIX + api_key
    credential = credential or provider_key
    return Caller(credential=credential, api_key=provider_key) if credential is not None else ANONYMOUS


def _read_bearer(authorization: str | None) -> str | None:
    if authorization is None or authorization[:7].lower() != "bearer ":
        return None
    return authorization[7:].strip() or None


def _read_host_name(host: str) -> str:
    """Returns a host's name without its port: `example.org:80` -> `example.org`, `[::1]:80` -> `::1`; "": no host."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else ""
