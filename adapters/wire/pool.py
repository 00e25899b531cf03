"""The connections of a process: aiohttp opens them, and they are kept here between requests."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from adapters.wire.address import Address, Proxy
from adapters.wire.connection import Wire

# Chosen: below the idle time of common balancers (60 s), above the gaps of a conversation.
_KEEP_ALIVE_S: Final = 30.0
_MOST_ADDRESSES: Final = 256


class WirePool:
    """All connections of a transport; make it in the running loop and close it there."""

    __slots__ = ("_addresses", "_connector", "_every", "_proxy", "_resting", "_sweeper", "loop")

    def __init__(self, proxy: Proxy) -> None:
        self.loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
        self._proxy = proxy
        self._addresses: dict[str, Address] = {}
        self._every: set[Wire] = set()
        self._resting: dict[ConnectionKey, list[Wire]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def address(self, url: str) -> Address:
        """Returns where requests of a URL go. url: as it is written to an upstream."""
        return self._addresses.get(url) or self._new_address(url)

    def take(self, address: Address, now: float) -> Wire | None:
        """Returns a connection that was kept; None: there is none. now: by the loop's clock."""
        resting = address.resting
        while resting:
            wire = resting.pop()  # the one used last, so that those that are not needed grow old
            if not wire.transport.is_closing() and now - wire.idle_since <= _KEEP_ALIVE_S:
                return wire
            wire.abort()
        return None

    async def open(self, address: Address, timeout: aiohttp.ClientTimeout) -> Wire:
        """Opens a connection. Raises: what aiohttp raises; a TimeoutError is a ConnectionTimeoutError."""
        try:
            opened = await self._connector.connect(address.dialled, [], timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        handler = opened.protocol
        assert handler is not None
        transport, early = handler.transport, handler._tail
        # For aiohttp this connection is over: it is no longer aiohttp's to keep or to close.
        handler.connection_lost(None)
        opened.close()
        if transport is None or transport.is_closing():
            raise aiohttp.ServerDisconnectedError
        wire = Wire(self.loop, transport, self._every, address.resting)
        if early:  # it came before it was asked, as the refusal of a server that is full does
            self.loop.call_soon(wire.data_received, early)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(_KEEP_ALIVE_S, self._sweep)
        return wire

    async def aclose(self) -> None:
        """Closes every connection, busy ones too."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for wire in tuple(self._every):
            wire.abort()
        await self._connector.close()
        await asyncio.sleep(0)  # in which the loop lets go of them

    def _new_address(self, url: str) -> Address:
        # Paths may carry ids, so what is kept is bounded.
        if len(self._addresses) >= _MOST_ADDRESSES:
            self._addresses.clear()
        address = self._addresses[url] = Address(URL(url, encoded=True), self._proxy, self._resting)
        return address

    def _sweep(self) -> None:
        """Closes connections that have rested for long."""
        oldest = self.loop.time() - _KEEP_ALIVE_S
        for resting in self._resting.values():
            for wire in resting:
                if wire.idle_since < oldest:
                    wire.abort()
            resting[:] = [wire for wire in resting if not wire.transport.is_closing()]
        self._sweeper = self.loop.call_later(_KEEP_ALIVE_S, self._sweep) if self._every else None
