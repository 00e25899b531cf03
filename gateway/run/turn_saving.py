"""Saves turns: of the turn machine, and of an upstream that is called in its own dialect.

The end of a reply waits for the commit, up to a limit. A turn that was cut or failed is written without a wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from gateway.core.request.memory_mode import Mode
from gateway.core.turn import commands, events
from gateway.core.turn.commands import FINISHED, TurnOutcome
from gateway.core.upstream.endpoint_form import EndpointForm
from gateway.core.upstream.policy import Target
from gateway.errors import Conflict, GatewayError, MemoryUnavailable
from gateway.run.call import ChatCall
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.memory.prompt import Prompt
from gateway.run.tools.toolbox import ToolAnswer, Toolbox
from gateway.run.turn_services import TurnServices
from storage.commands import CommittedTurn
from storage.errors import RunEnded, StaleWrite, StoreError
from storage.records import Scope

_log = logging.getLogger("mnemogate")
SAVED_EVENT = events.Saved()


class SavedStep(NamedTuple):
    """A step that was committed."""

    # The event for the machine.
    event: events.StepSaved
    # The prompt of the model's next call, which has all stored rounds; the earlier prompt, if no step was opened.
    prompt: Prompt


class TurnMemory(Protocol):
    """The memory of one turn: the read context, and the write of the turn."""

    @property
    def context(self) -> MemoryContext:
        """The context that was read, for the target that answers."""

    @property
    def toolbox(self) -> Toolbox:
        """The tools that the gateway runs in the turn."""

    async def retarget(self, prompt: Prompt, target: Target, form: EndpointForm) -> Prompt:
        """Returns the prompt for another target than was expected. Raises: ContextExceeded."""

    def note_target(self, prompt: Prompt) -> None:
        """Changes the context to the target of a prompt that `retarget` has returned: this target is asked now."""

    async def note_changes(self, prompt: Prompt, answers: dict[int, ToolAnswer]) -> None:
        """Adds a note about memory blocks that have changed since the model has seen them to a round's last answer.

        Does nothing for a run: its steps get such notes when they are stored.

        answers: the answers by the index of the call in the round; the last answer is replaced.
        """

    async def save_step(self, prompt: Prompt, step: commands.SaveStep) -> SavedStep:
        """Commits a step, opens the next one, or both. Raises: StoreError, which ends the turn."""

    def write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        """Begins the write of a turn that has ended. Returns an awaitable of its result.

        The result is a `StepSaved`, if the machine waits for one after the last step.
        Raises, when it is awaited: StoreError.
        """


@dataclass(slots=True)
class TurnSaving:
    """Saves one turn."""

    # The request of the turn.
    call: ChatCall
    # The memory that gets the turn.
    memory: TurnMemory
    # The services that the process's turns share.
    services: TurnServices
    # True: each step is saved. So a turn that failed has steps to end, and its end waits for the commit as well.
    saves_steps: bool = False
    # True: a later attempt resumes the turn as it is on disk, so a fault of the store ends this attempt.
    is_resumable: bool = False
    # True: the write of the turn has begun.
    is_written: bool = field(default=False, init=False)
    # The error that the client gets in place of the reply; None: the client gets the reply.
    error: GatewayError | None = field(default=None, init=False)
    # The write of the newest step; None: no step was saved yet.
    _step_write: asyncio.Future[SavedStep] | None = field(default=None, init=False)

    @property
    def _scope(self) -> Scope:
        return self.memory.context.agent.scope

    def track_turn(self) -> AbstractContextManager[None]:
        """Counts the turn as being answered, inside of the block."""
        return self.services.pending.track_turn(self._scope, self.call.sink)

    def begin_step(self, prompt: Prompt, step: commands.SaveStep) -> asyncio.Future[SavedStep]:
        """Begins the write of a step, which goes on even if nothing waits for it any more."""
        self._step_write = asyncio.ensure_future(self.memory.save_step(prompt, step))
        return self._step_write

    async def wait_step(self) -> None:
        """Waits for the write of a step, if there is one."""
        if self._step_write is not None:
            await asyncio.wait([self._step_write])

    def write_unwaited(self, prompt: Prompt, outcome: TurnOutcome, subject: str) -> None:
        """Begins the write of the turn, unless it has begun. The client's next request waits for it.

        subject: the name of the work, as for `PendingWrites.add`.
        """
        if not self.is_written:
            self.services.pending.add(self._write(prompt, outcome), subject, turn_scope=self._scope)

    async def save(self, prompt: Prompt, outcome: TurnOutcome) -> events.Saved:
        """Writes the turn, and waits for the commit up to a limit.

        Returns whether the turn is durable, is still being written (`is_late`) or was lost; after a run's last step
        also the results that were saved then (`after_stop`). Sets `error` if the turn is not durable and the client
        asked for strict memory.

        Raises: StoreError: the turn is resumable.
        """
        if outcome.state is not FINISHED and not self.saves_steps and outcome.background_id is None:
            self.write_unwaited(prompt, outcome, "A turn that failed")
            return SAVED_EVENT
        started_at = time.perf_counter()
        loss = None
        is_late = False
        work = self._write(prompt, outcome)
        writing = work if isinstance(work, asyncio.Future) else asyncio.ensure_future(work)
        try:
            if not writing.done():
                await _make_waiter(writing, self.services.limits.commit_wait_s)
            if writing.done():
                return self._note_durable(writing.result(), started_at)
            is_late = True
            self.services.pending.add(writing, "A turn that was answered already", turn_scope=self._scope)
        except StoreError as error:
            if self.is_resumable:
                raise
            _log.warning("A turn was answered and could not be stored: %s", error.message)
            loss = explain_loss(error)
        except asyncio.CancelledError:
            self.services.pending.add(
                writing, "A turn that its client left at its end", turn_scope=self._scope
            )
            if self.is_resumable:
                # The next attempt begins after this write.
                await asyncio.wait([writing])
            raise
        except Exception:
            # Memory never breaks chat: an error in writing must not take the answer with it.
            _log.exception("A turn was answered and could not be stored, by a fault in the gateway.")
        finally:
            self.services.metrics.commit_s.observe(time.perf_counter() - started_at)
        return self._note_not_durable(started_at, loss, is_late=is_late)

    def _note_durable(self, result: object, started_at: float) -> events.Saved:
        """Notes that the turn is on disk. result: the result of `TurnMemory.write`."""
        if isinstance(result, CommittedTurn):
            self.call.receipt.memory.exchange_row = result.exchange_row
        self.call.receipt.note_write(started_at)
        return events.Saved(after_stop=result) if isinstance(result, events.StepSaved) else SAVED_EVENT

    def _note_not_durable(self, started_at: float, loss: str | None, *, is_late: bool) -> events.Saved:
        """Notes that the reply leaves although the turn is not on disk.

        loss: the reason why the turn will never be on disk; None: the write may still succeed.
        """
        self.call.receipt.note_write(started_at, is_durable=False)
        self.services.metrics.not_durable.inc()
        self.call.receipt.headers["x-mnemogate-durable"] = "false"
        if self.memory.context.request.identity.mode is Mode.STRICT and not self.call.sink.has_started:
            timeout_error = MemoryUnavailable("The turn could not be written in time.", retry_after_s=1.0)
            self.error = timeout_error if loss is None else Conflict(loss)
        return events.Saved(is_durable=False, is_late=is_late, loss=loss)

    def _write(self, prompt: Prompt, outcome: TurnOutcome) -> Awaitable[object]:
        """Begins the write of the turn, which goes on even if nothing waits for it any more."""
        self.is_written = True
        # At once, since the write takes over the ticket of the request, which may end before the step is written.
        writing = self.memory.write(prompt, outcome)
        if isinstance(writing, asyncio.Future) and not self.memory.context.agent.is_stored:
            writing.add_done_callback(self._note_new_memory)
        return writing if self._step_write is None else self._await_after_step(writing)

    def _note_new_memory(self, writing: asyncio.Future[object]) -> None:
        """Notes the row of a memory that began with this turn, whether or not the reply has waited for the write."""
        if not writing.cancelled() and writing.exception() is None:
            result = writing.result()
            if isinstance(result, CommittedTurn):
                self.call.receipt.memory.note_stored(result.agent.id)

    async def _await_after_step(self, writing: Awaitable[object]) -> object:
        """Returns the result of a write, once the write of the newest step has ended."""
        await self.wait_step()
        return await writing


def explain_loss(error: StoreError) -> str | None:
    """Returns the client's reason why the turn will never be stored, or None if it may still be after this error."""
    match error:
        case StaleWrite():
            return events.FORGOTTEN_LOSS
        case RunEnded():
            return events.TAKEN_OVER_LOSS
        case _:
            return None


def _make_waiter(work: asyncio.Future[Any], timeout_s: float) -> asyncio.Future[None]:
    """Returns a future that is done when the work is, or after the timeout. Cancelling it does not cancel the work.

    Each turn waits like this. `asyncio.wait` does the same in thirteen calls, which take 10 us of a turn (measured).
    """
    loop = work.get_loop()
    waiter = loop.create_future()

    def end(_: object = None) -> None:
        timer.cancel()
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(timeout_s, end)
    work.add_done_callback(end)
    return waiter
