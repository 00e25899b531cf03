"""The request of a chat completion as one upstream gets it, whichever that will be."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from adapters.types import ModelRequest
from gateway.core.request.chat import ChatRequest
from gateway.core.request.envelope import consumed, developer_places, spent
from gateway.core.request.splice import Splice
from gateway.core.upstream.policy import Target
from gateway.run.memory.assemble import Additions, Assembly, assemble
from gateway.run.receipt import Receipt
from gateway.run.upstream.failover import Endpoint

__all__ = ["ChatCall"]


@dataclass(slots=True)
class ChatCall:
    """What is asked of an upstream, whichever that will be. upstream: the one the caller named or was routed to."""

    request: ChatRequest
    headers: tuple[tuple[str, str], ...]
    credential: str | None
    upstream: str
    receipt: Receipt
    told: tuple[str, ...] = ()  # what was said to be consumed
    is_adapted: bool = False

    async def make(self, target: Target, place: Endpoint) -> ModelRequest:
        """The request as it came, where nothing of ours goes in."""
        if target.context_window is not None:
            assembly = await self.assemble(Additions(), target, place)
            return ModelRequest(assembly.body(), self.headers, self.credential_for(target))
        request, names, as_system = self.request, self._consumed(place), self._as_system(place)
        body = request.raw
        if names or as_system or target.model != request.model:
            splice = Splice(request.layout, request.raw)
            for name in names:
                splice.drop_member(name)
            for index in as_system:
                splice.set_role(index, "system")
            if target.model != request.model:
                splice.set_member("model", orjson.dumps(target.model))
            body = splice.render()
        return ModelRequest(body, self.headers, self.credential_for(target))

    async def assemble(self, added: Additions, target: Target, place: Endpoint) -> Assembly:
        takes_usage = place.provider.capabilities.stream_usage
        found = await assemble(
            self.request, target.model, added, target.context_window, takes_usage=takes_usage
        )
        found.consumed = self._consumed(place)
        found.as_system = self._as_system(place)
        self.receipt.say("x-mnemogate-evicted-tokens", str(found.evicted_tokens))
        return found

    def credential_for(self, target: Target) -> str | None:
        return self.credential if target.gets_credential(self.upstream) else None

    def _consumed(self, place: Endpoint) -> tuple[str, ...]:
        body, known = self.request.json, place.provider.capabilities
        names = consumed(body, known.metadata)
        told = (*names, *(each for each in spent(body, known.spends) if each not in names))
        if told != self.told:
            self.told = told
            self.receipt.say("x-mnemogate-consumed", ",".join(told) or None)
        return names

    def _as_system(self, place: Endpoint) -> tuple[int, ...]:
        if place.provider.capabilities.developer_role is not False:
            found: tuple[int, ...] = ()
        else:
            found = developer_places(self.request.messages)
        if found or self.is_adapted:
            self.is_adapted = bool(found)
            self.receipt.say("x-mnemogate-adapted", "developer_role" if found else None)
        return found
