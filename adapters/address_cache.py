"""The addresses of upstreams' hosts, cached until no connection to one can be made.

aiohttp's own cache cannot be cleared while a request waits for an address: the request would fail with a KeyError.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, NamedTuple

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

# The seconds for which an address is used. Chosen, not measured: a failed connection clears the cache (`clear`).
_MAX_AGE_S: Final = 60.0


class _Lookup(NamedTuple):
    """A lookup of a host's addresses, which may be under way."""

    # The task that looks the host up.
    task: asyncio.Task[list[ResolveResult]]
    # The time at which the lookup began, by the loop's clock.
    began_at: float


class AddressCache(ThreadedResolver):
    """Looks hosts up, each once at a time, and caches their addresses for a minute."""

    def __init__(self) -> None:
        super().__init__()
        # The last lookup of each host, port and family.
        self._lookups: dict[tuple[str, int, int], _Lookup] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses of a host, each time with another one first.

        Raises: OSError; its `errno` is EMFILE or ENFILE if no file descriptor is left for the lookup.
        """
        key = (host, port, family)
        now = asyncio.get_running_loop().time()
        lookup = self._lookups.get(key)
        if lookup is None or (
            lookup.task.done() and (lookup.task.exception() or now - lookup.began_at > _MAX_AGE_S)
        ):
            lookup = _Lookup(asyncio.create_task(self._look_up(host, port, family)), now)
            self._lookups[key] = lookup
        # Other requests may wait for the same lookup, so a request that is cancelled does not end it.
        addresses = await asyncio.shield(lookup.task)
        ordered_addresses = [*addresses]
        addresses[:] = addresses[1:] + addresses[:1]
        return ordered_addresses

    def clear(self) -> None:
        """Clears the cache, so that hosts are looked up again. A lookup that is under way goes on."""
        self._lookups = {key: lookup for key, lookup in self._lookups.items() if not lookup.task.done()}

    async def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        try:
            return await super().resolve(host, port, family)
        except OSError:
            # Without a descriptor to read its files or to ask a server, the resolver reports an unknown name.
            socket.socket().close()
            raise
