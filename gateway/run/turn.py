"""The loop of a turn: feed the machine what happens, perform what it commands.

The machine (gateway.core.turn.machine) decides; the upstream, the client, the memory tools and the store are
reached from here. A client that leaves cancels whatever is waited for, and what had become of the turn is still
written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from adapters.base import MAX_REPLY_BYTES, ModelReply
from adapters.errors import ProviderError
from adapters.types import Event, Header, ModelRequest
from gateway.core.request.identity import Mode
from gateway.core.turn.client import MakesView
from gateway.core.turn.commands import (
    CallModel,
    CloseUpstream,
    Command,
    End,
    Finish,
    Refuse,
    RunTool,
    Save,
    SendBody,
    SendHead,
    TurnOutcome,
)
from gateway.core.turn.events import (
    ClientLeft,
    Received,
    ReceivedWhole,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Saved,
    ToolFinished,
    TurnEvent,
)
from gateway.core.turn.machine import Turn
from gateway.core.turn.spec import TurnSpec
from gateway.core.turn.stream import is_event_stream
from gateway.errors import GatewayError, MemoryUnavailable
from gateway.metrics import Metrics
from gateway.run.memory.assemble import Assembly
from gateway.run.memory.turn_memory import TurnMemory
from gateway.run.pending import Pending
from gateway.run.receipt import Receipt
from gateway.run.sink import ClientGone, Sink
from gateway.run.upstream.errors import kind_of, translate
from gateway.run.upstream.failover import Attempts
from gateway.run.upstream.keepalive import BEAT, await_with_beats, with_beats
from gateway.run.upstream.relay import handed_on
from storage.errors import StoreError

__all__ = ["TurnRun"]

_log = logging.getLogger("mnemogate")
LAST_BYTES_S = 0.25  # for an upstream to end its body after [DONE], so that its connection can be used again


@dataclass(slots=True)
class TurnRun:
    """One turn. memory: None where nothing is remembered of it. beat_s: the silence after which a comment is sent."""

    tries: Attempts
    assembly: Assembly
    headers: Sequence[Header]
    credential: str | None
    memory: TurnMemory | None
    view: MakesView
    sink: Sink
    receipt: Receipt
    pending: Pending
    metrics: Metrics
    commit_wait_s: float
    beat_s: float = 0.0
    _turn: Turn | None = None
    _reply: ModelReply | None = None
    _body: bytes | None = None
    _whole: list[bytes] | None = None
    _head: tuple[int, list[Header]] = (200, [])
    _refusal: GatewayError | None = None
    _finished: bool = False
    status: int = 0

    async def run(self, spec: TurnSpec) -> int:
        """Answers the client. Returns the status sent. Raises: GatewayError while nothing was sent; ClientGone."""
        self._turn = Turn(spec, self.view(spec))
        self._body = self.assembly.body()
        try:
            with self.sink.while_here():
                while self._body is not None:
                    body, self._body = self._body, None
                    await self._round(body)
        except ClientGone:
            await self._left()
            raise
        except asyncio.CancelledError:
            await self._left()
            raise
        finally:
            await self._close()
            if self.memory is not None:
                self.memory.abandon()
        if self._refusal is not None:
            raise self._refusal
        return self.status

    # -- a round of the model

    async def _round(self, body: bytes) -> None:
        assert self._turn is not None
        beats: AsyncGenerator[list[Event]] | None = None
        try:
            self.receipt.upstream_called()
            sending = self.tries.send(self.request(body))
            if self.beat_s and self.sink.started:
                reply = await await_with_beats(sending, self.beat_s, self._beat)
            else:
                reply = await sending
            self._reply = reply
            headers = tuple(handed_on(reply.headers))
            await self._feed(ReplyStarted(reply.status, headers))
            if is_event_stream(reply.status, headers):
                beats = with_beats(reply.events(), self.beat_s) if self.beat_s else None
                async for events in beats or reply.events():
                    if events is BEAT:
                        await self._beat()
                        continue
                    await self._feed(Received(events))
                    if self._finished or self._body is not None:
                        break
                else:
                    await self._feed(ReplyEnded())
            else:
                whole = await reply.read(MAX_REPLY_BYTES)
                await self._feed(ReceivedWhole(whole))
        except ProviderError as error:
            failure = translate(error)
            if self.sink.started and self.tries.is_answered:
                self.tries.broke(kind_of(failure))  # (what is raised is counted by who catches it)
            await self._feed(ReplyFailed(failure))
        finally:
            if beats is not None:
                await beats.aclose()
        await self._close()

    def request(self, body: bytes) -> ModelRequest:
        return ModelRequest(body, tuple(self.headers), self.credential)

    async def _beat(self) -> None:
        """A comment, unless it would commit us to a status that a later round may take back."""
        assert self._turn is not None
        if not self.sink.started:
            if self._reply is None or self._turn.spec.ours:
                return
            self._start(self._reply.status, handed_on(self._reply.headers))
        await self.sink.write(BEAT)

    async def _feed(self, fact: TurnEvent) -> None:
        assert self._turn is not None
        commands = self._turn.feed(fact)
        while commands:
            later: list[Command] = []
            for command in commands:
                later += await self._perform(command)
            commands = later

    async def _perform(self, command: Command) -> list[Command]:
        """What the machine commands next, where a command has a result."""
        assert self._turn is not None
        match command:
            case SendBody(data):
                if self._whole is not None:
                    self._whole.append(data)
                else:
                    await self.sink.write(data)
            case SendHead(status, headers):
                self._start(status, headers)
            case RunTool(call_id, tool, arguments):
                assert self.memory is not None
                assert self.memory.tools is not None
                try:
                    result = await self.memory.tools.run(call_id, tool, arguments)
                except Exception:
                    # Memory never breaks chat: the model is told, and answers without.
                    _log.exception("a memory tool failed")
                    result = "Error: memory is not available at the moment."
                return self._turn.feed(ToolFinished(call_id, result))
            case CallModel(messages, budget_tokens, tools_final):
                self._body = self.assembly.body(messages, budget_tokens, tools_final=tools_final)
            case Save(outcome):
                self._compare(outcome)
                return self._turn.feed(Saved(await self._save(outcome)))
            case Finish():
                await self._finish()
            case Refuse(error):
                self._refusal = error
            case CloseUpstream():
                await self._close()
        return []

    # -- the client

    def _start(self, status: int, headers: Sequence[Header]) -> None:
        if self.sink.started:  # by a comment
            return
        self.status = status
        self.receipt.upstream_answered()
        self._head = (status, [*headers])
        if is_event_stream(status, headers):
            self.sink.start(status, [*headers, *self.receipt.lines()])
        else:
            self._whole = []

    async def _finish(self) -> None:
        self._finished = True
        if self._refusal is not None:
            return
        if self._whole is not None:
            status, headers = self._head
            await self.sink.whole(status, [*headers, *self.receipt.lines()], b"".join(self._whole))
        else:
            await self.sink.end()
        if self._reply is not None:
            await _read_out(self._reply)

    async def _left(self) -> None:
        """The client is gone, or we are being stopped: nothing more is sent, and nothing is waited for."""
        assert self._turn is not None
        for command in self._turn.feed(ClientLeft()):
            match command:
                case Save(outcome) if self.memory is not None:
                    scope = self.memory.agent.scope
                    self.pending.add(self.memory.commit(outcome), "a cancelled turn", left=scope)
                    self.memory = None
                case CloseUpstream():
                    await self._close()

    async def _close(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            await reply.aclose()

    def _compare(self, outcome: TurnOutcome) -> None:
        """What the prompt took by the upstream's count, and by ours."""
        told = (outcome.usage or {}).get("prompt_tokens")
        if self.assembly.tokens and outcome.rounds == 1 and isinstance(told, int):
            self.tries.counted(self.assembly.tokens, told, self.assembly.most)

    # -- the store

    async def _save(self, outcome: TurnOutcome) -> bool:
        """Whether the turn is on disk, or there is nothing to be kept. A slow store is not waited for."""
        memory, self.memory = self.memory, None
        if memory is None:
            return True
        if outcome.state is not End.FINISHED:
            self.pending.add(memory.commit(outcome), "a turn that failed")
            return True
        begun = time.perf_counter()
        writing = asyncio.ensure_future(memory.commit(outcome))
        try:
            async with asyncio.timeout(self.commit_wait_s):
                await asyncio.shield(writing)
            return True
        except TimeoutError:
            self.pending.add(writing, "a turn that was answered already")
        except StoreError as error:
            _log.warning("a turn was not written: %s", error.message)
        except asyncio.CancelledError:
            self.pending.add(writing, "a turn whose client left at its end", left=memory.agent.scope)
            raise
        except Exception:
            # Memory never breaks chat: an error of ours in writing must not take the answer with it.
            _log.exception("a turn was not written")
        finally:
            self.metrics.commit_ms.observe((time.perf_counter() - begun) * 1000)
        self.metrics.not_durable.inc()
        self.receipt.headers.append(("x-mnemogate-durable", "false"))
        if memory.asked.identity.mode is Mode.STRICT and not self.sink.started:
            self._refusal = MemoryUnavailable("The turn could not be written in time.", retry_after_s=1.0)
        return False


async def _read_out(reply: ModelReply) -> None:
    """What is left after the client has everything, so that the upstream's connection is kept."""
    try:
        async with asyncio.timeout(LAST_BYTES_S):
            async for _ in reply.chunks():
                pass
    except (ProviderError, TimeoutError, RuntimeError):
        pass  # closed instead
