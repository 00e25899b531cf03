"""Fetches the list of models of one upstream, and remembers which upstreams gave none."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from adapters.base import Provider
from adapters.errors import ProviderError
from adapters.types import ModelRequest
from gateway.errors import GatewayError, NotAllowed, NotAuthenticated, UpstreamUnreachable
from gateway.settings import UpstreamSettings

# The most bytes of one list; a long list has about a megabyte. A larger one is a faulty upstream's.
_MAX_LIST_BYTES = 8 * 1024 * 1024
# The seconds that a caller waits for the list for its key; front ends wait about as long for a list.
_LIST_WAIT_S = 10.0
# The seconds after a failure until the upstream is asked again; twice as many after each further failure, up to
# `refresh_s`. Not measured: its list is old, or missing, for as long.
RETRY_S = 15.0
_log = logging.getLogger("mnemogate")

Entries = list[dict[str, Any]]


class Refusal(NamedTuple):
    """An upstream's refusal of a key."""

    # 401 or 403.
    status: int
    # The message for the caller: the upstream's own, if it gave one.
    message: str

    def make_error(self) -> GatewayError:
        return NotAuthenticated(self.message) if self.status == 401 else NotAllowed(self.message)


def choose_pause_s(failures: int, refresh_s: float) -> float:
    """Returns the seconds until an upstream is asked again.

    failures: the number of failures in a row.
    refresh_s: the pause after a success, in seconds.
    """
    if not failures:
        return refresh_s
    return min(RETRY_S * 2.0 ** min(failures - 1, 16), refresh_s)


class ListFetcher:
    """Fetches the lists of models from upstreams. A failure is logged once, until the upstream gives a list again."""

    def __init__(self, upstreams: Iterable[UpstreamSettings]) -> None:
        # The base URLs of the settings, by the names of the upstreams.
        self._addresses = {each.name: each.base_url for each in upstreams}
        # The upstreams without a list, each with the reason why it gave no answer; None: its answer was no list.
        self._failures: dict[str, str | None] = {}

    async def fetch(self, name: str, provider: Provider, credential: str | None) -> Entries | Refusal | None:
        """Returns an upstream's list, its refusal of the key, or None for any other failure, which is logged."""
        try:
            async with asyncio.timeout(_LIST_WAIT_S if credential is not None else None):
                request = ModelRequest(b"", credential=credential, path="/models", method="GET")
                reply = await provider.send(request)
                try:
                    body = await reply.read(_MAX_LIST_BYTES)
                finally:
                    await reply.aclose()
            if reply.status in (401, 403):
                return _read_refusal(name, reply.status, body)
            entries = _parse_list(body) if reply.status == 200 else None
            if entries is None:
                hint = self._make_hint(name) if reply.status in (200, 404) else ""
                raise ValueError(f"status {reply.status}, and no list{hint}")
        except (ProviderError, TimeoutError, ValueError) as error:
            self.note_failure(
                name, str(error) or type(error).__name__, is_down=not isinstance(error, ValueError)
            )
            return None
        self._failures.pop(name, None)
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    def _make_hint(self, name: str) -> str:
        """Returns the likely reason why an upstream's answer is no list; "": it is not known."""
        url = self._addresses.get(name) or ""
        return "" if re.search(r"/v\d", url) else "; its base_url has no /v1, and most addresses need it"

    def note_failure(self, name: str, reason: str, *, is_down: bool) -> None:
        """Notes that an upstream gave no list. is_down: True: the upstream gave no answer."""
        if name not in self._failures:
            _log.warning("The upstream %s gave no list of models: %s", name, reason)
        self._failures[name] = reason if is_down else None

    def check_answers(self) -> None:
        """Raises UpstreamUnreachable if an upstream is down, since it is unknown whether that upstream has models."""
        for name, reason in self._failures.items():
            if reason is not None:
                text = f"The gateway has no list of models: the upstream {name!r} gave none, {reason}."
                raise UpstreamUnreachable(text)


def _parse_list(body: bytes) -> list[Any] | None:
    """Returns the list of an answer; None: the answer is no list, but the page of a web front end or the like."""
    try:
        answer = orjson.loads(body)
    except ValueError:
        return None
    # Together has no object around its list.
    entries = answer.get("data") if isinstance(answer, dict) else answer
    return entries if isinstance(entries, list) else None


def _read_refusal(upstream: str, status: int, body: bytes) -> Refusal:
    """Returns the refusal in the reply of an upstream, which may have no message."""
    try:
        message = orjson.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = None
    if not isinstance(message, str) or not message:
        message = f"The upstream {upstream!r} refuses this key."
    return Refusal(status, message)
