"""The list of models: profiles and aliases of the settings, and the upstreams' own lists.

The upstreams' lists are fetched in the background, at start and again from time to time. No request waits for them. An
upstream that does not answer keeps its earlier list. An upstream that lists its models only for the caller's key is
asked with that key when the caller asks (`caller_lists`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from adapters.base import Provider
from gateway.core.request.requested_agent import AGENT_PREFIX
from gateway.errors import BadRequest, UnknownModel
from gateway.run.upstream.caller_lists import CallerList, CallerLists
from gateway.run.upstream.list_fetcher import Entries, ListFetcher, Refusal, choose_pause_s
from gateway.run.upstream.route import UPSTREAM_HEADER, make_unknown_upstream_error, resolve_route
from gateway.settings import Settings

_log = logging.getLogger("mnemogate")


class ModelList:
    """The models of all upstreams. `run` refreshes the list until it is cancelled; `entries` is the current list."""

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        created_at: int,
        refresh_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the list, without the models of upstreams.

        created_at: the date of the gateway's own entries, in seconds since the epoch.
        refresh_s: the pause before upstreams are asked for their lists again; 0: upstreams are never asked.
        clock: returns the seconds of a clock that never goes back.
        """
        self._settings = settings
        self._refresh_s = refresh_s
        # Asks upstreams for their lists.
        self._fetcher = ListFetcher(settings.upstreams)
        self._providers = providers
        self._created_at = created_at
        # The list that each upstream gave without a caller's key.
        self._lists: dict[str, Entries] = {}
        # The refusal of each upstream that lists its models only for a caller's key.
        self._refusals: dict[str, Refusal] = {}
        # The lists that upstreams give for a caller's key.
        self._caller_lists = CallerLists(self._fetcher, refresh_s, clock)
        # The entries of the gateway's list that all callers get.
        self.entries = self._merge(self._lists)

    # -- without a caller's key, in the background

    async def run(self) -> None:
        """Fetches the lists of all upstreams from time to time, until it is cancelled."""
        if not self._refresh_s:
            return
        async with asyncio.TaskGroup() as tasks:
            for name, provider in self._providers.items():
                tasks.create_task(self._refresh_repeatedly(name, provider))

    async def _refresh_repeatedly(self, name: str, provider: Provider) -> None:
        """Asks an upstream for its list again and again, until it asks for the caller's key."""
        failures = 0
        # An upstream that asks for the caller's key is not asked without a key again.
        while name not in self._refusals:
            failures = 0 if await self.refresh(name, provider) else failures + 1
            await asyncio.sleep(choose_pause_s(failures, self._refresh_s))

    async def refresh(self, name: str, provider: Provider) -> bool:
        """Fetches the list of one upstream. Returns False if it gave no list."""
        answer = await self._fetcher.fetch(name, provider, credential=None)
        if answer is None:
            return False
        if isinstance(answer, Refusal):
            self._note_refusal(name, answer)
            return False
        self._lists[name] = answer
        self.entries = self._merge(self._lists)
        return True

    def _note_refusal(self, name: str, refusal: Refusal) -> None:
        """Notes that an upstream gave no list without a caller's key."""
        if name in self._list_keyless_upstreams():
            text = f"The upstream {name!r} lists its models for callers with a key. "
            hint = "Send it as `Authorization`; a gateway key goes into `x-mnemogate-key` then. "
            self._refusals[name] = refusal._replace(message=f"{text}{hint}It says: {refusal.message}")
            _log.info("The upstream %s lists its models only for callers with a key of their own.", name)
            return
        # The upstream's own message may quote the key, in a form that the log does not mask.
        reason = f"it refuses the key of the settings (status {refusal.status})"
        # A key that gets a 403 may be for chats alone.
        self._fetcher.note_failure(name, reason, is_down=refusal.status == 401)

    # -- with a caller's key

    async def list_entries_for(
        self, credential: str | None, upstream: str | None = None, *, has_others: bool = False
    ) -> Entries:
        """Returns the list for a caller.

        credential: the caller's own `Authorization`.
        upstream: the upstream that the caller names; None: the key goes to an upstream only if no other upstream could
            be meant.
        has_others: True: the caller is shown other models, too.

        Raises:
            NotAuthenticated, NotAllowed: the upstream refuses the key or needs one, and no other upstream has models.
            UpstreamUnreachable: an upstream is down, and there is nothing else to list.
            BadRequest: there is no such upstream, or several need a key and the caller has named none.
        """
        entries = await self._choose_entries(credential, upstream, has_others=has_others)
        if not entries and not has_others:
            self._fetcher.check_answers()
        return entries

    async def _choose_entries(
        self, credential: str | None, upstream: str | None, *, has_others: bool
    ) -> Entries:
        """Returns the list as `list_entries_for` documents it, without a check that upstreams have answered."""
        if upstream is not None and upstream not in self._providers:
            raise make_unknown_upstream_error(upstream)
        candidates = self._find_candidates(upstream)
        # An empty list would look like an upstream without models.
        is_empty = not self.entries and not has_others
        if len(candidates) > 1 and is_empty:
            names = ", ".join(candidates)
            text = f"Name one of the upstreams, which list their models for callers with a key: {names}."
            raise BadRequest(text, param=UPSTREAM_HEADER)
        if len(candidates) != 1:
            return self.entries
        (name,) = candidates
        if credential is None:
            if is_empty and (refusal := self._refusals.get(name)) is not None:
                raise refusal.make_error()
            return self.entries
        answer = await self._caller_lists.load(name, self._providers[name], credential)
        if answer.refusal is not None and (upstream is not None or len(self._settings.upstreams) == 1):
            raise answer.refusal.make_error()
        return self._merge_answer(name, answer)

    def _find_candidates(self, upstream: str | None) -> list[str]:
        """Returns the upstreams for which a caller's key may be. upstream: the upstream that the caller names."""
        keyless_upstreams = self._list_keyless_upstreams()
        if upstream is not None:
            return [upstream] if upstream in keyless_upstreams else []
        unlisted_upstreams = [name for name in keyless_upstreams if name not in self._lists]
        if len(unlisted_upstreams) < 2:
            return unlisted_upstreams
        # If there are several, the key is only for an upstream that has asked for it.
        return [name for name in unlisted_upstreams if name in self._refusals]

    async def get(self, name: str, credential: str | None) -> dict[str, Any]:
        """Returns the entry of one model.

        credential: the caller's own `Authorization`.

        Raises: UnknownModel; NotAuthenticated, NotAllowed, UpstreamUnreachable: as `list_entries_for`.
        """
        entries = self.entries
        if credential is not None and not any(entry["id"] == name for entry in entries):
            # The key goes where a chat with this model would take it.
            upstream = resolve_route(self._settings, name).upstream
            if upstream in self._list_keyless_upstreams():
                answer = await self._caller_lists.load(upstream, self._providers[upstream], credential)
                if answer.refusal is not None:
                    raise answer.refusal.make_error()
                entries = self._merge_answer(upstream, answer)
        for entry in entries:
            if entry["id"] == name:
                return entry
        if not entries:
            self._fetcher.check_answers()
        if self._is_built_in(name):
            return self._make_entry(name)
        raise UnknownModel.for_name(name)

    def _is_built_in(self, name: str) -> bool:
        """Returns whether a name is routed to the built-in model, which answers to any name."""
        built_in_upstreams = {each.name for each in self._settings.upstreams if each.kind == "scripted"}
        return bool(built_in_upstreams) and resolve_route(self._settings, name).upstream in built_in_upstreams

    def _list_keyless_upstreams(self) -> list[str]:
        """Returns the upstreams without a key in the settings. They get the caller's key."""
        return [each.name for each in self._settings.upstreams if each.gets_caller_key]

    def _merge_answer(self, upstream: str, answer: CallerList) -> Entries:
        """Returns the list with an upstream's answer to the caller's key."""
        if answer.entries is None:
            return self.entries
        return self._merge({**self._lists, upstream: answer.entries})

    def _merge(self, lists: Mapping[str, Entries]) -> Entries:
        """Returns profiles and aliases, then the models of upstreams under the names that route to them."""
        merged_entries: dict[str, dict[str, Any]] = {}
        for profile in self._settings.profiles:
            if profile.model is not None:
                merged_entries[AGENT_PREFIX + profile.name] = self._make_entry(AGENT_PREFIX + profile.name)
        for alias in self._settings.models:
            merged_entries[alias.alias] = self._make_entry(alias.alias)
        for name, entries in lists.items():
            for entry in entries:
                public_name = self._find_public_name(name, entry["id"])
                # An alias hides a model of the same name, as it does when a request asks for the name.
                if public_name is not None and public_name not in merged_entries:
                    merged_entries[public_name] = {**entry, "id": public_name}
        return list(merged_entries.values())

    def _make_entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created_at, "owned_by": "mnemogate"}

    def _find_public_name(self, upstream: str, model: str) -> str | None:
        """Returns the name that routes a request to this model of an upstream, if there is one."""
        for name in (model, f"{upstream}/{model}"):
            try:
                route = resolve_route(self._settings, name)
            except UnknownModel:
                continue
            if (route.upstream, route.model) == (upstream, model):
                return name
        return None
