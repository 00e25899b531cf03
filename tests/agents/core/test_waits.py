"""The graph of waiting turns: which waits close a cycle, and which only seem to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gateway.agents.core.waits import Deadlock, Wait, Waiter, Waits
from gateway.core.conversation.kind import QueueName

DEFAULT = "default"


class Stage:
    """Turns that wait for one another. A name is an agent's; each has a queue `default`."""

    def __init__(self, ends: ExitStack) -> None:
        self.waits = Waits()
        self._ends = ends

    def turn(self, agent: str, above: Wait | None = None, queue: str | None = DEFAULT) -> Waiter:
        held = None if queue is None else QueueName(agent, queue)
        return Waiter(agent, held, 0 if above is None else above.waiter.depth + 1, above)

    def ask(self, by: Waiter, agent: str) -> Wait:
        return self._ends.enter_context(self.waits.begin(by, queue(agent)))

    def refuses(self, by: Waiter, agent: str) -> bool:
        try:
            with self.waits.begin(by, queue(agent)):
                return False
        except Deadlock:
            return True


def queue(agent: str) -> QueueName:
    return QueueName(agent, DEFAULT)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with ExitStack() as ends:
        yield Stage(ends)


def test_an_agent_that_asks_itself(stage: Stage) -> None:
    assert stage.refuses(stage.turn("a"), "a")
    assert stage.refuses(stage.turn("a", queue=None), "a")


def test_a_cycle_of_turns_that_were_asked(stage: Stage) -> None:
    b = stage.turn("b", stage.ask(stage.turn("a"), "b"))
    assert stage.refuses(b, "a")
    c = stage.turn("c", stage.ask(b, "c"))
    assert stage.refuses(c, "a")
    assert stage.refuses(c, "b")
    assert not stage.refuses(c, "d")


def test_a_cycle_that_begins_with_a_turn_without_a_queue(stage: Stage) -> None:
    b = stage.turn("b", stage.ask(stage.turn("a", queue=None), "b"))
    assert stage.refuses(b, "a")
    # What others ask of that agent has nothing to do with it.
    assert not stage.refuses(stage.turn("c"), "a")


def test_two_turns_that_ask_each_other_at_the_same_time(stage: Stage) -> None:
    a, b = stage.turn("a"), stage.turn("b")
    stage.ask(a, "b")
    assert stage.refuses(b, "a")


def test_three_turns_that_ask_in_a_ring(stage: Stage) -> None:
    a, b, c = (stage.turn(name) for name in "abc")
    stage.ask(a, "b")
    stage.ask(b, "c")
    assert stage.refuses(c, "a")


def test_a_queue_that_another_gateway_holds_in_between(stage: Stage) -> None:
    """A asks B, which asks C; but C's queue is held by a turn that waits for A's."""
    b = stage.turn("b", stage.ask(stage.turn("a"), "b"))
    stage.ask(stage.turn("c"), "a")
    assert stage.refuses(b, "c")


def test_parallel_waits_are_no_cycle(stage: Stage) -> None:
    a = stage.turn("a")
    to_b, to_c = stage.ask(a, "b"), stage.ask(a, "c")
    stage.ask(a, "b")  # twice the same
    b, c = stage.turn("b", to_b), stage.turn("c", to_c)
    assert stage.refuses(b, "a")
    assert stage.refuses(c, "a")
    stage.ask(b, "c")
    assert stage.refuses(c, "b")


def test_a_wait_that_is_over_closes_no_cycle(stage: Stage) -> None:
    a = stage.turn("a")
    with stage.waits.begin(a, queue("b")) as wait:
        b = stage.turn("b", wait)
        assert stage.refuses(b, "a")
    assert len(stage.waits) == 0
    # A has given up waiting, and the other goes on by itself.
    assert not stage.refuses(b, "a")


def test_two_conversations_of_one_agent_are_two_queues(stage: Stage) -> None:
    elsewhere = stage.turn("a", queue="f00")
    stage.ask(elsewhere, "b")
    # No turn waits for that conversation, so another turn of B may ask A's own.
    assert not stage.refuses(stage.turn("b"), "a")
