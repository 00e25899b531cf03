"""The lists of models that upstreams give for callers' keys. They are cached for the key, as a hash of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from adapters.base import Provider
from gateway.run.upstream.list_fetcher import Entries, ListFetcher, Refusal, choose_pause_s
from storage.digests import digest_secret

# The keys with a cached answer, those that were used last. Each list may take a megabyte, so these take 64 at most.
_CACHED_KEYS = 64


@dataclass(slots=True)
class CallerList:
    """The answer of an upstream to one key."""

    # Held while the upstream is asked.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    # The time from which on the upstream is asked again, by the clock of `CallerLists`.
    valid_until: float = 0.0
    # The number of times in a row that the upstream gave no list.
    failures: int = 0
    # The last list; None: the upstream has given none, or has refused the key since.
    entries: Entries | None = None
    # The last refusal of the key; None: the key was not refused the last time.
    refusal: Refusal | None = None


class CallerLists:
    """The lists that upstreams give for callers' keys."""

    def __init__(self, fetcher: ListFetcher, refresh_s: float, clock: Callable[[], float]) -> None:
        """Begins without lists.

        fetcher: asks upstreams for their lists.
        refresh_s: the seconds for which a list is cached; 0: upstreams are never asked.
        clock: returns the seconds of a clock that never goes back.
        """
        self._fetcher = fetcher
        self._refresh_s = refresh_s
        self._clock = clock
        # The answers by upstream and the hash of a caller's key. The key that was used last comes last.
        self._answers: OrderedDict[tuple[str, bytes], CallerList] = OrderedDict()

    async def load(self, upstream: str, provider: Provider, credential: str) -> CallerList:
        """Returns an upstream's answer to a key, from the cache as long as it is valid.

        Concurrent callers with one key wait for one request.
        """
        key = (upstream, digest_secret(credential))
        answer = self._answers.setdefault(key, CallerList())
        self._answers.move_to_end(key)
        while len(self._answers) > _CACHED_KEYS:
            self._answers.popitem(last=False)
        async with answer.lock:
            if not self._refresh_s or self._clock() < answer.valid_until:
                return answer
            reply = await self._fetcher.fetch(upstream, provider, credential)
            answer.refusal = reply if isinstance(reply, Refusal) else None
            if isinstance(reply, list):
                answer.entries = reply
                answer.failures = 0
            else:
                answer.failures += 1
            if answer.refusal is not None:
                answer.entries = None
            answer.valid_until = self._clock() + choose_pause_s(answer.failures, self._refresh_s)
        return answer
