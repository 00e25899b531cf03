"""The receipts of the process: the receipt of the work under way, and the listeners that get it when the work ends.

The functions are for code within the work, which finds the receipt in the context of its task. `Receipts` is for code
that begins and ends work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Protocol
from weakref import ref

from gateway.core.trace_context import TraceContext
from gateway.run.receipt import Receipt, Work

# The receipt of the current task's work. Searches and steps of jobs are called by way of journals, tools and partial
# functions, which do not pass receipts on. The reference is weak, because connections and tasks that go on hold the
# context in which they were made.
_current: ContextVar[ref[Receipt] | None] = ContextVar("receipt", default=None)


def set_current_receipt(receipt: Receipt) -> Token[ref[Receipt] | None]:
    """Sets the receipt that gets the calls of this task. Returns the token that resets it."""
    return _current.set(ref(receipt))


def find_current_receipt() -> Receipt | None:
    """Returns the receipt of the work within which this task runs, or None if it has none or the work has ended."""
    reference = _current.get()
    return None if reference is None else reference()


class RequestTracer(Protocol):
    """Decides which requests are traced, and makes spans of their receipts."""

    def begin(self, headers: Sequence[tuple[bytes, bytes]] = ()) -> TraceContext | None:
        """Returns the trace of a request or work that begins now, or None if it is not sampled.

        headers: the headers of the request.
        """

    def enqueue(self, receipt: Receipt) -> None:
        """Queues the receipt of a traced request that has ended."""


class Receipts:
    """Publishes the receipts of requests and of other work to listeners. One for the process."""

    def __init__(self, tracer: RequestTracer | None = None) -> None:
        """Begins without listeners. tracer: the tracer of requests; None: nothing is traced."""
        self.tracer = tracer
        # The functions that are called with each receipt.
        self._listeners: list[Callable[[Receipt], object]] = []

    def add_listener(self, listener: Callable[[Receipt], object]) -> None:
        """Adds a function that is called once with each receipt, after the reply's last byte.

        Listeners are called in the order in which they were added.
        """
        self._listeners.append(listener)

    def publish(self, receipt: Receipt) -> None:
        """Gives the receipt of ended work to all listeners and to the tracer."""
        for listener in self._listeners:
            listener(receipt)
        self.trace(receipt)

    def trace(self, receipt: Receipt) -> None:
        """Gives a receipt to the tracer alone, if its request is traced."""
        # The counter holds the prompt, and a connection holds the receipt of its last request until the next request.
        receipt.usage_counter = None
        if receipt.trace is not None and self.tracer is not None:
            self.tracer.enqueue(receipt)

    @contextmanager
    def work(
        self,
        project: str,
        agent_row: int = 0,
        kind: str = "run",
        *,
        key_id: int = 0,
        is_awaited: bool = False,
    ) -> Iterator[Receipt]:
        """Yields the receipt of work without a client, and publishes it when the work ends.

        project: the project of the work; "": not known.
        agent_row: the value of `Work.agent_row`; work that continues a request was counted with the request.
        kind: the value of `Work.kind`.
        key_id: the id of the key of the request that the work continues; 0: no key.
        is_awaited: True: the request or work of this task waits for the new work, so both are one trace.
        """
        receipt = Receipt(project=project, key_id=key_id, work=Work(kind, agent_row))
        if self.tracer is not None:
            waiting_receipt = find_current_receipt() if is_awaited else None
            if waiting_receipt is None:
                receipt.trace = self.tracer.begin()
            elif waiting_receipt.trace is not None:
                receipt.trace = self.tracer.begin(waiting_receipt.trace.make_own_headers())
        token = set_current_receipt(receipt)
        try:
            yield receipt
        finally:
            _current.reset(token)
            self.publish(receipt)
