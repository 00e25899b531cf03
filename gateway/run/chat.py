"""A chat completion from the parsed request to the last byte: who asks, what is remembered, which upstream answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from zlib import crc32

import orjson

from adapters.base import Provider
from adapters.types import ModelRequest
from gateway.core.agent import AgentSpec
from gateway.core.request.chat import ChatRequest
from gateway.core.request.headers import forwardable
from gateway.core.request.identity import (
    AGENT_PREFIX,
    CONVERSATION_ORDER,
    USER_ORDER,
    Identity,
    IdentityRules,
    Mode,
    identify,
)
from gateway.core.request.side_requests import KNOWN_SIDE_REQUESTS
from gateway.core.turn.client import MakesView
from gateway.core.turn.spec import TurnSpec
from gateway.core.upstream.policy import Target
from gateway.errors import BadRequest, MemoryUnavailable, UpstreamError
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.run.call import ChatCall
from gateway.run.directory import Directory
from gateway.run.memory.assemble import Additions
from gateway.run.memory.turn_memory import MemoryKeeper, MemoryRequest, TurnMemory
from gateway.run.pending import Pending
from gateway.run.receipt import Receipt
from gateway.run.sink import Sink
from gateway.run.turn import TurnRun
from gateway.run.upstream.errors import kind_of
from gateway.run.upstream.failover import Attempts, Endpoint, Failover
from gateway.run.upstream.relay import relay
from gateway.run.upstream.route import Route, agent_route, check_models, resolve_route
from gateway.settings import Settings
from storage.base import Store
from storage.errors import StoreError

__all__ = ["Chat", "Served"]

_log = logging.getLogger("mnemogate")


@dataclass(frozen=True, slots=True)
class Served:
    """How a request was answered, for its log line. memory: on, read, off, none or unavailable."""

    status: int
    memory: str


class Chat:
    """One for the process. store: None where not even the lock could be had; chat goes on without memory."""

    def __init__(
        self,
        settings: Settings,
        store: Store | None,
        providers: Mapping[str, Provider],
        metrics: Metrics,
        now: Callable[[], float] = time.time,
        limits: Limits | None = None,
    ) -> None:
        check_models(settings)
        self._settings = settings
        self._commit_wait_s = (limits or Limits()).commit_wait_s
        self._metrics = metrics
        self.reach = Failover(settings, providers, metrics)
        self._now = now
        self.pending = Pending()
        self.recollector = MemoryKeeper(store, settings.memory, now) if store is not None else None
        self._rules: dict[str, IdentityRules] = {}
        self.directory = Directory(settings)

    async def answer(
        self,
        request: ChatRequest,
        headers: Sequence[tuple[bytes, bytes]],
        project: str,
        credential: str | None,
        sink: Sink,
        receipt: Receipt,
        view: MakesView,
    ) -> Served:
        """view: makes the view of the client's dialect. Raises: GatewayError while nothing was sent; ClientGone."""
        identity = identify(headers, request.json, self._rules_of(project), project)
        spec = self.directory.find(identity, request.model)
        if request.model.startswith(AGENT_PREFIX):
            route = agent_route(self._settings, spec)
        else:
            route = resolve_route(self._settings, request.model)
        # The one place where it is decided that the history is ours; it takes a conversation with a name.
        if not identity.append and spec.history == "append" and identity.conversation is not None:
            identity = replace(identity, append=True)
        tries = self.reach.tries(route, partial(_conversation_key, request), sink, receipt)
        memory, status = await self._recollect(request, tries.target, identity, spec)
        receipt.headers.append(("x-mnemogate-memory", status))
        call = ChatCall(request, forwardable(headers), credential, route.upstream, receipt)
        try:
            if memory is None and not spec.system and not _has_window(route, tries.target):
                tries.remake = call.make
                asked = await call.make(tries.target, tries.place)
                answered = await relay(
                    tries, asked, sink, receipt, self._settings.server.keep_alive_comment_s
                )
            else:
                answered = await self._turn(call, spec, memory, tries, view, sink, receipt)
            return Served(answered, status)
        except UpstreamError as error:
            if tries.is_answered:  # what failed without an answer is counted already
                tries.broke(kind_of(error))
            error.headers = tuple(receipt.lines())
            raise
        finally:
            tries.done()
            self._metrics.added_ms.observe(receipt.added_ms)
            self._metrics.memory(status)
            if memory is not None:
                memory.abandon()

    async def _turn(
        self,
        call: ChatCall,
        spec: AgentSpec,
        memory: TurnMemory | None,
        tries: Attempts,
        view: MakesView,
        sink: Sink,
        receipt: Receipt,
    ) -> int:
        request = call.request
        added = _additions(memory, spec)
        if memory is not None and memory.composition.breaks:
            self._metrics.prefix_breaks.inc()
        assembly = await call.assemble(added, tries.target, tries.place)
        if memory is not None:
            memory.overfull, memory.evicted = assembly.overfull, assembly.evicted
        _say(receipt, memory, added.injected_bytes + len(assembly.summary.encode()))
        facts = TurnSpec(
            wants_usage=request.wants_usage,
            usage_added=assembly.adds_usage,
            ours=added.offered,
            max_rounds=self._settings.memory.max_tool_rounds,
            budget_tokens=request.max_tokens,
            hold_end=memory is not None,
            choices=request.n,
        )
        run = TurnRun(
            tries,
            assembly,
            call.headers,
            call.credential_for(tries.target),
            memory,
            view,
            sink,
            receipt,
            self.pending,
            self._metrics,
            self._commit_wait_s,
            self._settings.server.keep_alive_comment_s,
        )

        async def remake(target: Target, place: Endpoint) -> ModelRequest:
            if memory is not None:
                await memory.answered_by(target.upstream, target.model)
            run.assembly = await call.assemble(_additions(memory, spec), target, place)
            if memory is not None:
                memory.overfull, memory.evicted = run.assembly.overfull, run.assembly.evicted
            run.credential = call.credential_for(target)
            return run.request(run.assembly.body())

        tries.remake = remake
        if memory is None:
            return await run.run(facts)
        scope = memory.agent.scope
        self.pending.began(scope)
        try:
            return await run.run(facts)
        finally:
            self.pending.ended(scope)

    async def _recollect(
        self, request: ChatRequest, target: Target, identity: Identity, spec: AgentSpec
    ) -> tuple[TurnMemory | None, str]:
        """Memory's part, and how it stands: a store that fails takes memory away, not the answer."""
        if identity.scope is None:
            if identity.mode is Mode.STRICT:
                raise BadRequest(
                    "x-mnemogate-memory: strict needs somebody to remember: send `user` or a conversation id.",
                    param="x-mnemogate-memory",
                )
            return None, "off" if identity.mode is Mode.OFF else "none"
        strict = identity.mode is Mode.STRICT or identity.append
        if self.recollector is None:
            return self._without(strict, "the database could not be opened")
        if strict and not (health := self.recollector.store.health).ok:
            # Reading may still work; but who asks for this would rather have no answer than one that is not kept.
            return self._without(strict, health.error or f"the store is {health.status}")
        await self.pending.written(identity.scope, self._commit_wait_s)
        try:
            asked = MemoryRequest(
                request, identity, spec, self._now(), target.model, target.context_window, target.upstream
            )
            memory = await self.recollector.begin(asked)
        except StoreError as error:
            _log.warning("answered without memory: %s", error.message)
            return self._without(strict, error.message)
        except Exception as error:
            # Memory never breaks chat: an error of ours in it must not either.
            _log.exception("answered without memory")
            return self._without(strict, type(error).__name__)
        if memory.recall_ms:
            self._metrics.recall_ms.observe(memory.recall_ms)
        return memory, "on" if identity.mode is Mode.STRICT else identity.mode.value

    def _without(self, strict: bool, why: str) -> tuple[None, str]:
        if strict:
            raise MemoryUnavailable(f"Memory is not available: {why}.", retry_after_s=1.0)
        return None, "unavailable"

    def _rules_of(self, project: str) -> IdentityRules:
        rules = self._rules.get(project)
        if rules is None:
            memory = self._settings.memory
            own = self._settings.projects.get(project)
            rules = self._rules[project] = IdentityRules(
                # One person, whoever a request names.
                user_order=() if memory.single_user else memory.user_order or USER_ORDER,
                default_user=self._settings.default_user,
                default_profile=self._settings.default_profile(project),
                default_mode=Mode(own.memory if own and own.memory else memory.default),
                profile_modes={p.name: Mode(p.memory) for p in self._settings.profiles if p.memory},
                conversation_order=memory.conversation_order or CONVERSATION_ORDER,
                side_rules=(
                    *KNOWN_SIDE_REQUESTS,
                    *memory.side_requests,
                ),
            )
        return rules


def _additions(memory: TurnMemory | None, spec: AgentSpec) -> Additions:
    if memory is None:
        return Additions(system=spec.system)
    if memory.asked.identity.mode is Mode.OFF:
        return Additions(memory.composition, spec.system)
    return memory.additions


def _conversation_key(request: ChatRequest) -> int:
    """The same for all turns of a conversation: its messages up to the user's first."""
    head = []
    for message in request.messages:
        head.append(message)
        if message["role"] == "user":
            break
    return crc32(orjson.dumps(head))


def _has_window(route: Route, target: Target) -> bool:
    return target.context_window is not None or any(each.context_window is not None for each in route.others)


def _say(receipt: Receipt, memory: TurnMemory | None, injected_bytes: int) -> None:
    """Receipt headers: whose memory, which conversation, and what was done to the prompt, in estimated tokens."""
    lines = receipt.headers
    if memory is None:
        return
    lines.append(("x-mnemogate-agent", memory.agent.uid))
    lines.append(("x-mnemogate-conversation", memory.conversation_uid))
    lines.append(("x-mnemogate-recalled-tokens", str(memory.recalled_tokens)))
    lines.append(("x-mnemogate-injected-tokens", str((injected_bytes + 3) // 4)))
    if memory.recall_failed:
        lines.append(("x-mnemogate-recall", "unavailable"))
