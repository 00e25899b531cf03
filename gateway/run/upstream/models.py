"""The list of models: profiles and aliases of the settings, and the upstreams' own lists.

Those lists are fetched in the background, at start and again from time to time. No request waits for them, and an
upstream that does not answer keeps the list it had.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import orjson

from adapters.base import Provider
from adapters.errors import ProviderError
from adapters.types import ModelRequest
from gateway.core.request.identity import AGENT_PREFIX
from gateway.errors import UnknownModel
from gateway.run.upstream.route import resolve_route
from gateway.settings import Settings

MAX_LIST_BYTES = 8 * 1024 * 1024
RETRY_S = 15.0
_log = logging.getLogger("mnemogate")


class ModelList:
    """The models of all upstreams. `run` keeps them fresh until it is cancelled; `entries` is the current list."""

    def __init__(
        self, settings: Settings, providers: Mapping[str, Provider], created: int, refresh_s: float = 0.0
    ) -> None:
        """refresh_s: how often upstreams are asked for their lists; 0 means never."""
        self._settings = settings
        self._refresh_s = refresh_s
        self._providers = providers
        self._created = created
        self._fetched: dict[str, list[dict[str, Any]]] = {}
        self._entries = self._merge()

    @property
    def entries(self) -> list[dict[str, Any]]:
        return self._entries

    async def run(self) -> None:
        if not self._refresh_s:
            return
        async with asyncio.TaskGroup() as tasks:
            for name, provider in self._providers.items():
                tasks.create_task(self._keep_fresh(name, provider))

    async def _keep_fresh(self, name: str, provider: Provider) -> None:
        while True:
            is_fresh = await self.refresh(name, provider)
            await asyncio.sleep(self._refresh_s if is_fresh else RETRY_S)

    async def refresh(self, name: str, provider: Provider) -> bool:
        """Fetches one upstream's list; returns False when it gave none."""
        try:
            reply = await provider.send(ModelRequest(b"", path="/models", method="GET"))
            try:
                body = await reply.read(MAX_LIST_BYTES)
            finally:
                await reply.aclose()
            found = orjson.loads(body)["data"] if reply.status == 200 else None
        except (ProviderError, ValueError, KeyError, TypeError) as error:
            _log.info("upstream %s gave no list of models: %s", name, error)
            return False
        if not isinstance(found, list):
            return False
        self._fetched[name] = [
            each for each in found if isinstance(each, dict) and isinstance(each.get("id"), str)
        ]
        self._entries = self._merge()
        return True

    def _merge(self) -> list[dict[str, Any]]:
        merged: dict[str, dict[str, Any]] = {}
        for profile in self._settings.profiles:
            if profile.model is not None:
                self._add(merged, AGENT_PREFIX + profile.name)
        for alias in self._settings.models:
            self._add(merged, alias.alias)
        for name, entries in self._fetched.items():
            for entry in entries:
                public = self._public_name(name, entry["id"])
                # An alias hides a model of the same name, as it does when a request asks for it.
                if public is not None and public not in merged:
                    merged[public] = {**entry, "id": public}
        return list(merged.values())

    def _add(self, merged: dict[str, dict[str, Any]], name: str) -> None:
        merged[name] = {"id": name, "object": "model", "created": self._created, "owned_by": "mnemogate"}

    def _public_name(self, upstream: str, model: str) -> str | None:
        """Returns the name that routes a request to this model of an upstream, or None."""
        for name in (model, f"{upstream}/{model}"):
            try:
                route = resolve_route(self._settings, name)
            except UnknownModel:
                continue
            if (route.upstream, route.model) == (upstream, model):
                return name
        return None
