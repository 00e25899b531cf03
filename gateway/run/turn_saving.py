"""The saving of a turn, whoever makes its reply: the turn machine, or an upstream that is asked in its own dialect.

The end of a reply waits for the commit, but only so long. A turn that was cut or failed is written without a wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from msgspec import Struct

from gateway.core.request.identity import Mode
from gateway.core.turn import commands, events
from gateway.core.turn.commands import FINISHED, TurnOutcome
from gateway.core.upstream.policy import Target
from gateway.errors import Conflict, GatewayError, MemoryUnavailable
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.run.call import ChatCall
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import EndpointForm, Prompt
from gateway.run.pending import PendingWrites
from gateway.run.tools.toolbox import ToolAnswer, Toolbox
from gateway.settings import Settings
from storage.commands import Committed
from storage.errors import Stale, StoreError
from storage.records import Scope

_log = logging.getLogger("mnemogate")
SAVED = events.Saved()


class TurnMemory(Protocol):
    """Memory's part of a turn, wherever its conversation is stored.

    context: what was read, for the target that answers. toolbox: the tools that the gateway runs in the turn.
    """

    @property
    def context(self) -> MemoryContext: ...

    @property
    def toolbox(self) -> Toolbox: ...

    async def aim(self, prompt: Prompt, target: Target, form: EndpointForm) -> Prompt:
        """Returns the prompt for another target than was expected, and knows it from now on."""

    async def note_changes(self, prompt: Prompt, answers: dict[int, ToolAnswer]) -> None:
        """Adds to the last answer of a round a note of the memory blocks that it does not show as they are.

        Where steps are stored this is done with these.

        answers: by their order in the round.
        """

    async def save_step(self, prompt: Prompt, step: commands.SaveStep) -> tuple[events.StepSaved, Prompt]:
        """Commits a step, opens the next one, or both. Raises: StoreError, which ends the turn.

        Returns also the prompt of the model's next call. It has all that is stored, so its body takes no `more`; where
        no step was opened it is the one given.
        """

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        """Writes the turn when it has ended; its result is `StepSaved` where that comes after the last step.

        Raises, when it is awaited: StoreError.
        """


class TurnLimits(Struct, frozen=True):
    """The limits of a turn."""

    # How long the end of a reply waits for the commit.
    commit_wait_s: float
    # How many hidden tool rounds a turn without rules may have.
    max_rounds: int
    # Of a stream that is remembered.
    streamed_bytes: int
    # The silence after which a keep-alive comment is sent; 0: never.
    beat_s: float = 0.0


def turn_limits_of(settings: Settings, limits: Limits) -> TurnLimits:
    return TurnLimits(
        commit_wait_s=limits.commit_wait_s,
        max_rounds=settings.memory.max_tool_rounds,
        streamed_bytes=limits.streamed_bytes,
        beat_s=settings.server.keep_alive_comment_s,
    )


class TurnServices(Struct, frozen=True):
    """Holds what all turns of a process share."""

    # The writes that go on after their turns.
    pending: PendingWrites
    metrics: Metrics
    limits: TurnLimits

    async def wait_written(self, scope: Scope) -> None:
        """Waits for the turns of a memory that are being written, as long as a turn waits for its own commit."""
        await self.pending.wait_written(scope, self.limits.commit_wait_s)


@dataclass(slots=True)
class TurnSaving:
    """How one turn is saved. Inside its `with` block the turn counts as being answered."""

    call: ChatCall
    memory: TurnMemory
    services: TurnServices
    # Each step is saved, so a turn that failed has steps to end, and its end waits as well.
    saves_steps: bool = False
    # A later attempt takes the turn up as it is on disk, so a fault of the store breaks it off.
    is_taken_up: bool = False
    # The turn was handed to memory.
    is_written: bool = False
    # Why the client gets an error in place of the reply; None: it gets the reply.
    refusal: GatewayError | None = None
    _step: asyncio.Future[tuple[events.StepSaved, Prompt]] | None = None  # the newest one

    @property
    def _scope(self) -> Scope:
        return self.memory.context.agent.scope

    def __enter__(self) -> None:
        self.services.pending.turn_began(self._scope)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.services.pending.turn_ended(self._scope)

    def begin_step(
        self, prompt: Prompt, step: commands.SaveStep
    ) -> asyncio.Future[tuple[events.StepSaved, Prompt]]:
        self._step = asyncio.ensure_future(self.memory.save_step(prompt, step))
        return self._step

    async def step_saved(self) -> None:
        """Waits until a step that is being stored is stored."""
        if self._step is not None:
            await asyncio.wait([self._step])

    def write_unwaited(self, prompt: Prompt, outcome: TurnOutcome, what: str) -> None:
        """Has the turn written without a wait, unless it was. The client's next request waits for it.

        what: as in `PendingWrites.add`.
        """
        if not self.is_written:
            self.services.pending.add(self._write(prompt, outcome), what, awaited_by=self._scope)

    async def save(self, prompt: Prompt, outcome: TurnOutcome) -> events.Saved:
        """Returns whether the turn is on disk, or nothing of it is stored. A slow store is waited for only so long.

        Where it is not stored and the client asked for strict memory, `refusal` is set.
        Raises: StoreError, where the turn is taken up later.
        """
        if outcome.state is not FINISHED and not self.saves_steps and outcome.background_id is None:
            self.write_unwaited(prompt, outcome, "A turn that failed")
            return SAVED
        is_lost = False
        begun = time.perf_counter()
        work = self._write(prompt, outcome)
        writing = work if isinstance(work, asyncio.Future) else asyncio.ensure_future(work)
        try:
            if not writing.done():
                await _ended(writing, self.services.limits.commit_wait_s)
            if writing.done():
                after_stop = writing.result()
                if isinstance(after_stop, Committed):
                    # A memory that began with this turn has had no row before.
                    self.call.receipt.memory_row = after_stop.agent.id
                self.call.receipt.wrote(begun)
                return (
                    events.Saved(after_stop=after_stop) if isinstance(after_stop, events.StepSaved) else SAVED
                )
            self.services.pending.add(writing, "A turn that was answered already")
        except StoreError as error:
            if self.is_taken_up:
                raise
            _log.warning("A turn was answered and could not be stored: %s", error.message)
            is_lost = isinstance(error, Stale)
        except asyncio.CancelledError:
            self.services.pending.add(
                writing, "A turn that its client left at its end", awaited_by=self._scope
            )
            if self.is_taken_up:
                await asyncio.wait([writing])  # the later attempt finds it as it is
            raise
        except Exception:
            # Memory never breaks chat: an error in writing must not take the answer with it.
            _log.exception("A turn was answered and could not be stored, by a fault in the gateway.")
        finally:
            self.services.metrics.commit_s.observe(time.perf_counter() - begun)
        self.call.receipt.wrote(begun, is_durable=False)
        self.services.metrics.not_durable.inc()
        self.call.receipt.headers["x-mnemogate-durable"] = "false"
        if self.memory.context.request.identity.mode is Mode.STRICT and not self.call.sink.started:
            late = MemoryUnavailable("The turn could not be written in time.", retry_after_s=1.0)
            self.refusal = Conflict(events.LOST) if is_lost else late
        return events.Saved(durable=False, is_lost=is_lost)

    def _write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        """Hands the turn over to memory, which writes it even if nothing waits for the write any more."""
        self.is_written = True
        if self._step is None:
            return self.memory.write(prompt, outcome)
        return self._write_after_step(prompt, outcome)

    async def _write_after_step(self, prompt: Prompt, outcome: TurnOutcome) -> object:
        await self.step_saved()
        return await self.memory.write(prompt, outcome)


def _ended(work: asyncio.Future[Any], seconds: float) -> asyncio.Future[None]:
    """Returns what is done when the work is, or after so many seconds. To give up this wait gives up no work.

    Each turn waits so. `asyncio.wait` does the same in thirteen calls, which take 10 us of a turn (measured).
    """
    loop = work.get_loop()
    over = loop.create_future()

    def end(_: object = None) -> None:
        timer.cancel()
        if not over.done():
            over.set_result(None)

    timer = loop.call_later(seconds, end)
    work.add_done_callback(end)
    return over
